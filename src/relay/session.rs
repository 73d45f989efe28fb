//! How a session begins: look at everything, take the slot, take the row, judge the stream.
//!
//! The order matters. JetStream first: while it is away, Postgres is let alone. Then SQL, and the
//! facts that a refusal needs; then the slot, which is the leader lock; only then the row, since
//! who holds the slot may write it; then the letters, which no one else can add to any more; at last
//! the stream, read from its leader after all of that.

use super::SURVEY_APART;
use super::intake::Intake;
use super::preflight;
use super::pump::{End, Opened, Process, Pump};
use super::sides::{Base, Broker, Publisher, Sides, Stream};
use crate::config::{Config, Oversize};
use crate::delivery::checkpoint::Checkpoint;
use crate::delivery::confirm::Ledger;
use crate::delivery::history::History;
use crate::delivery::opening::{self, KnownLetter, Opening, Plan, Server, Stored};
use crate::delivery::rewind;
use crate::error::{Code, Failure};
use crate::nats::object_store::bucket;
use crate::nats::stream::Look;
use crate::ops::counters::Peer;
use crate::ops::status::{Role, State};
use crate::outbox::{Mapping, Resolved};
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight as facts;
use crate::postgres::replication::ReplicationStream;
use crate::postgres::timestamp::Timestamp;
use crate::state::checkpoint;
use crate::state::dead_letter::Owner;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, interval, timeout_at};
use tracing::{info, warn};

/// A standby looks at the slot so often: a take-over waits that long at most.
const STANDBY_LOOK: Duration = Duration::from_millis(100);

const BEAT: Duration = Duration::from_secs(1);

/// Opens a session and pumps until it ends.
pub(super) async fn run<S: Sides>(
    sides: &S,
    config: &Config,
    process: &mut Process,
    mapping: &Mapping,
    resolved: &mut Option<Resolved>,
    patience: Duration,
    stop: &mut watch::Receiver<bool>,
) -> End {
    let mut stopping = stop.clone();
    let pulse = process.pulse.clone();
    let opened = {
        // Boxed: it is large, and lives only as long as the session takes to begin.
        let mut opening = Box::pin(open(sides, config, process, mapping, resolved));
        let mut beat = interval(BEAT);
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return End::Stopped,
                opened = &mut opening => break opened,
                // Every wait in it has an end of its own.
                _ = beat.tick() => pulse.beat(),
            }
        }
    };
    match opened {
        Ok(opened) => Pump::new(config, process, opened, patience).run(stop).await,
        Err(failure) => End::Failed(failure),
    }
}

fn note(process: &Process, role: Role, state: State, reason: impl Into<String>) {
    let reason = reason.into();
    process.board.update(|status| (status.role, status.state, status.reason) = (role, state, reason));
}

async fn open<S: Sides>(
    sides: &S,
    config: &Config,
    process: &mut Process,
    mapping: &Mapping,
    resolved: &mut Option<Resolved>,
) -> Result<Opened<S>, Failure> {
    note(process, Role::Waiting, State::Discover, "looking at the stream");
    let mut broker = sides.nats().await?;
    process.counters.connected(Peer::Nats);
    let before = broker.stream.look().await?;

    note(process, Role::Waiting, State::Discover, "connecting to Postgres");
    let base = sides.postgres(process.first_host).await?;
    process.counters.connected(Peer::Postgres);
    process.board.count(&process.counters);
    let table = base.table().await?;
    let resolved = match resolved {
        Some(resolved) => resolved,
        None => resolved.insert(preflight::columns(mapping, &table)?),
    };
    discover(&before, config, &broker, resolved).await?;
    if !process.streamed {
        // Later it is a warning of the clean-up's own.
        base.fits_care(&table, resolved).await?;
    }
    let objects = base.objects(&table).await?;
    let known = row(base.row().await?, config)?;
    if let Some(failure) = opening::unfinished(&known) {
        return Err(failure);
    }
    if known.objects != objects {
        return Err(preflight::changed(&config.postgres.publication, Some(objects), known.objects));
    }

    let (mut replication, history, start) = take_slot(config, process, &base, &mut broker, &known).await?;
    let row = row(base.take(fastrand::i64(1..)).await?, config)?;
    // Both again, now that nobody else can move them.
    let slot = base.slot().await?;
    let owner = Owner { slot: config.postgres.slot.clone(), system_id: history.system_id };
    let server = Server {
        history,
        slot: config.postgres.slot.clone(),
        confirmed: slot.confirmed.unwrap_or_default(),
        start,
        wal_end: slot.wal_end,
    };
    let from = row.last.as_ref().map_or(server.confirmed, |last| last.position.place.commit_lsn);
    let (letters, lettered) = base.letters(&owner, from.min(server.confirmed)).await?;
    note(process, Role::Leader, State::Sync, "reading the end of the stream");
    let (look, plan) = {
        let judging = judge(process, &broker.stream, &base, &row, &server, &letters);
        let mut judging = std::pin::pin!(judging);
        let mut alive = interval(config.postgres.status_apart());
        loop {
            tokio::select! {
                biased;
                judged = &mut judging => break judged?,
                _ = alive.tick() => replication.send_status(Lsn::ZERO, Lsn::ZERO, false).await?,
                // Nothing is due: pings are answered.
                _ = broker.publisher.answer() => {}
            }
        }
    };
    let row = Checkpoint { seq: plan.seq, last: plan.last, timeline: server.history.timeline, ..row };
    let hold_back = config.delivery.hold_back(&config.nats);
    let lettered = if letters.is_empty() { Lsn::ZERO } else { lettered };
    let mut ledger =
        Ledger::new(row, server.confirmed, plan.settled_lsn, lettered, hold_back, Instant::now());
    ledger.passed(plan.passed_seq);
    if plan.phantoms > 0 {
        warn!(
            events = plan.phantoms,
            "the stream holds events of a history that this server does not have: they were committed on a former \
             primary and lost in the fail-over"
        );
    }
    info!(
        slot = server.slot,
        stream = broker.stream.name(),
        start_lsn = %server.start,
        confirmed_lsn = %server.confirmed,
        last_seq = look.end.last_seq,
        to_prove = plan.resume.outstanding(),
        preset = %resolved.preset(),
        "the slot is ours"
    );
    Ok(Opened {
        intake: Intake::new(
            server.history.clone(),
            server.slot.clone(),
            ledger.committed().objects.table,
            resolved.clone(),
            process.key.clone(),
        ),
        template: resolved.subject().clone(),
        id_column: resolved.id_column().to_owned(),
        base,
        broker,
        owner,
        server,
        look,
        replication,
        resume: plan.resume,
        letters_in_a_row: plan.letters_in_a_row,
        stored_letters: plan.stored_letters,
        ledger,
    })
}

/// Whether stream and settings fit (DISCOVER).
async fn discover<S: Stream, P>(
    look: &Look,
    config: &Config,
    broker: &Broker<S, P>,
    resolved: &Resolved,
) -> Result<(), Failure> {
    let name = broker.stream.name();
    look.config.fits(name, resolved.subject())?;
    for warning in look.config.warnings() {
        warn!(stream = name, warning);
    }
    if config.nats.msg_id {
        look.config.takes_message_ids(broker.msg_id_is_safe, &broker.version)?;
    }
    if config.delivery.oversize == Oversize::ObjectStore && !broker.stream.has_object_store().await? {
        return Err(Failure::new(
            Code::StreamMissing,
            format!("object store `{}` does not exist", bucket(name)),
            "postrider init, with the same delivery.oversize = object_store",
        ));
    }
    Ok(())
}

fn row(read: Option<Checkpoint>, config: &Config) -> Result<Checkpoint, Failure> {
    let (slot, stream) = (&config.postgres.slot, &config.nats.stream);
    let row = read.ok_or_else(|| {
        Failure::new(
            Code::CheckpointMissing,
            format!("{} has no row for slot `{slot}`", checkpoint::table(&config.postgres.schema)),
            "new here: postrider init. If the row was deleted: postrider recover --adopt",
        )
    })?;
    if row.stream != *stream {
        return Err(Failure::new(
            Code::CheckpointUnfit,
            format!("slot `{slot}` is published to stream `{}`, not to `{stream}`", row.stream),
            format!("set nats.stream = \"{}\", or make another slot for this stream", row.stream),
        ));
    }
    Ok(row)
}

/// Waits until the slot is free, then starts it: at the row's position where this server's history
/// has it, else where the slot stands. From then on nobody else reads it.
async fn take_slot<S: Stream, P: Publisher>(
    config: &Config,
    process: &mut Process,
    base: &impl Base,
    broker: &mut Broker<S, P>,
    known: &Checkpoint,
) -> Result<(ReplicationStream, History, Lsn), Failure> {
    let slot = &config.postgres.slot;
    let mut told = false;
    let mut cut_off = None;
    let mut survey_due = Instant::now();
    loop {
        while base.slot_is_active().await? {
            if !told {
                info!(slot, "another relay holds the slot: standing by");
                note(
                    process,
                    Role::Standby,
                    State::Waiting,
                    format!("another relay holds slot `{slot}`: standing by"),
                );
                // The other relay's matter.
                process.board.update(|status| status.unpublished_since = None);
                told = true;
            }
            if Instant::now() >= survey_due {
                survey_due = Instant::now() + SURVEY_APART;
                process.show_survey(Ok(base.survey().await?), config);
            }
            // Who cannot publish cannot take over, and must not be counted on.
            if broker.link.borrow().up {
                cut_off = None;
            } else if cut_off.get_or_insert_with(Instant::now).elapsed() >= config.postgres.release_after {
                return Err(Failure::new(
                    Code::NatsSession,
                    "this relay stood by, and has lost its connection to NATS",
                    "see nats-server, and the network between; the relay tries again",
                ));
            }
            let next_look = Instant::now() + STANDBY_LOOK;
            // Nothing is due: pings are answered, a lost connection is made anew.
            while timeout_at(next_look, broker.publisher.answer()).await.is_ok() {}
        }
        let mut connection = base.walsender().await?;
        let system = facts::identify(&mut connection).await?;
        // Behind a moving address the two connections may reach two servers: the row would then be
        // written to one and the slot confirmed on the other.
        if system.started_at != base.started_at().await? {
            return Err(Failure::new(
                Code::PostgresSession,
                "SQL and replication reached two different servers",
                "none is needed: the relay tries again. Name the servers in postgres.url rather than a moving address",
            ));
        }
        let history = History::of(system.id, system.timeline, system.history.as_deref())
            .map_err(|error| Failure::new(Code::Unexpected, error.to_string(), "report it"))?;
        // The row may have moved while this relay stood by.
        let known = if told { row(base.row().await?, config)? } else { known.clone() };
        let start = known.last.as_ref().map_or(Lsn::ZERO, |last| last.position.place.commit_lsn);
        let proved = known.last.as_ref().is_some_and(|last| history.contains(&last.position))
            && start <= system.wal_end;
        let start = if proved { start } else { Lsn::ZERO };
        match connection.start_replication(slot, start, &config.postgres.publication).await {
            Ok(()) => return Ok((connection.into_stream(), history, start)),
            Err(error) => {
                let failure = Failure::from(error);
                // Dropped or lost since it was looked at: then the preflight has the better words.
                base.slot().await?;
                // Else someone was quicker.
                if failure.code != Code::SlotBusy {
                    return Err(failure.context(&format!("start slot `{slot}`")));
                }
            }
        }
    }
}

/// Reads the stream from its leader and judges it.
async fn judge(
    process: &Process,
    stream: &impl Stream,
    base: &impl Base,
    row: &Checkpoint,
    server: &Server,
    letters: &[KnownLetter],
) -> Result<(Look, Plan), Failure> {
    let look = stream.look().await?;
    let end = look.end;
    if let Some(not_now) = opening::judge(row, server, end)? {
        return Err(not_now);
    }
    let at_seq = match row.seq {
        seq if seq > 0 && seq <= end.last_seq => stream.message(seq).await?,
        _ => Stored::Gone,
    };
    let tail = stream.messages(row.seq + 1, end.last_seq).await?;
    let gone = tail.iter().any(|(_, stored)| *stored == Stored::Gone);
    let gone_before = if gone { last_stored_before(stream, base).await? } else { None };
    match opening::open(row, server, end, &at_seq, tail, gone_before, letters)? {
        Opening::Stream(plan) => Ok((look, *plan)),
        Opening::Again(failure) => Err(failure),
        Opening::Rewind => {
            note(
                process,
                Role::Leader,
                State::Rewind,
                "the stream went back: its lost events are sent again",
            );
            Err(go_back(stream, base, row, server, end).await?)
        }
    }
}

/// By Postgres's clock: no message of the stream was stored later than that. None: the server does
/// not tell its time.
async fn last_stored_before(stream: &impl Stream, base: &impl Base) -> Result<Option<Timestamp>, Failure> {
    let look = stream.look().await?;
    // Read after NATS's clock, it errs towards late.
    let now = base.now().await?;
    Ok(look.last_at.zip(look.now).map(|(at, nats_now)| Timestamp(now.0 - (nats_now.0 - at.0))))
}

/// The stream went back: the row is set to its last event, and the next session sends the rest
/// again, onto the same sequences.
async fn go_back(
    stream: &impl Stream,
    base: &impl Base,
    row: &Checkpoint,
    server: &Server,
    end: opening::StreamEnd,
) -> Result<Failure, Failure> {
    let mut seq = end.last_seq;
    let back = loop {
        let stored = if seq == 0 { Stored::Gone } else { stream.message(seq).await? };
        match rewind::back_to(row, server, end, seq, stored)? {
            Some(back) => break back,
            None => seq = seq.saturating_sub(1),
        }
    };
    warn!(from_seq = row.seq, to_seq = back.seq, "the stream went back: its lost events are sent again");
    if !base.write(&back).await? {
        return Ok(super::upkeep::taken());
    }
    Ok(Failure::new(
        Code::NatsSession,
        format!("stream `{}` went back from sequence {} to {}", stream.name(), row.seq, back.seq),
        "none is needed: the lost events are sent again from the slot",
    ))
}
