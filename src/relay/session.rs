//! How a session begins: look at everything, take the slot, take the row, judge the stream.
//!
//! The order matters. JetStream first: while it is away, Postgres is let alone. Then SQL, and the
//! facts that a refusal needs; then the slot, which is the leader lock; only then the row, since
//! who holds the slot may write it; at last the stream, read from its leader after all of that.

use super::intake::Intake;
use super::preflight;
use super::pump::{End, Opened, Process, Pump};
use super::upkeep::{Tools, changed};
use crate::config::Config;
use crate::delivery::checkpoint::Checkpoint;
use crate::delivery::confirm::Ledger;
use crate::delivery::history::History;
use crate::delivery::opening::{self, Opening, Plan, Server, Stored};
use crate::error::{Code, Failure};
use crate::nats::connect::Nats;
use crate::nats::publish::Publisher;
use crate::nats::stream::{Look, Stream};
use crate::ops::status::{Role, State};
use crate::outbox::{Mapping, Resolved};
use crate::postgres::client::Sql;
use crate::postgres::connection::Connection;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight as facts;
use crate::postgres::replication::ReplicationStream;
use crate::postgres::target::Host;
use crate::state::checkpoint;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, interval, timeout};
use tracing::{info, warn};

/// A standby looks at the slot so often: a take-over waits that long at most.
const STANDBY_LOOK: Duration = Duration::from_millis(100);

const BEAT: Duration = Duration::from_secs(1);

/// A few questions to the catalogues take milliseconds; a server that needs so long is as good as away.
const ANSWERS_MAX: Duration = Duration::from_secs(30);

/// The walsender is told that we live so often while the stream's tail is read.
const READING_STATUS: Duration = Duration::from_secs(5);

/// Opens a session and pumps until it ends.
pub(super) async fn run(
    config: &Config,
    process: &mut Process,
    mapping: &Mapping,
    resolved: &mut Option<Resolved>,
    nats: &Nats,
    patience: Duration,
    stop: &mut watch::Receiver<bool>,
) -> End {
    let mut stopping = stop.clone();
    let pulse = process.pulse.clone();
    let opened = {
        // Boxed: it is large, and lives only as long as the session takes to begin.
        let mut opening = Box::pin(open(config, process, mapping, resolved, nats));
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

async fn open(
    config: &Config,
    process: &mut Process,
    mapping: &Mapping,
    resolved: &mut Option<Resolved>,
    nats: &Nats,
) -> Result<Opened, Failure> {
    note(process, Role::Waiting, State::Discover, "looking at the stream");
    let stream = Stream::named(nats, &config.nats.stream).await?;
    let before = stream.look().await?;

    note(process, Role::Waiting, State::Discover, "connecting to Postgres");
    let (sql, host) = Sql::connect_any(&config.postgres.target).await?;
    in_time(preflight::server(&sql)).await?;
    let table = in_time(preflight::table(&sql, config)).await?;
    let resolved = match resolved {
        Some(resolved) => resolved,
        None => resolved.insert(preflight::columns(mapping, &table)?),
    };
    discover(&before, stream.name(), config, nats, resolved)?;
    let publication = in_time(preflight::publication(&sql, config, &table)).await?;
    in_time(preflight::slot(&sql, config)).await?;
    let known = in_time(checkpoint::read(&sql, &config.postgres.schema, &config.postgres.slot)).await?;
    let known = row(known, config)?;
    let objects = preflight::objects(&publication, &table);
    if known.objects != objects {
        return Err(changed(&config.postgres.publication, Some(objects), known.objects));
    }

    let (replication, history, start) = take_slot(config, process, &sql, &host, &known).await?;
    let session = fastrand::i64(1..);
    let taken =
        in_time(checkpoint::take(&sql, &config.postgres.schema, &config.postgres.slot, session)).await?;
    let row = row(taken, config)?;
    // Both again, now that nobody else can move them.
    let slot = in_time(preflight::slot(&sql, config)).await?;
    let server = Server {
        history,
        slot: config.postgres.slot.clone(),
        confirmed: slot.confirmed.unwrap_or_default(),
        start,
        wal_end: slot.wal_end,
    };
    let sql = Arc::new(sql);
    let tools = Tools {
        sql,
        stream,
        schema: config.postgres.schema.clone(),
        slot: config.postgres.slot.clone(),
        publication: config.postgres.publication.clone(),
        table: (config.outbox.table.schema.clone(), config.outbox.table.name.clone()),
    };
    note(process, Role::Leader, State::Sync, "reading the end of the stream");
    let mut replication = replication;
    let (look, plan) = {
        let judging = judge(&tools, &row, &server);
        let mut judging = std::pin::pin!(judging);
        let mut alive = interval(READING_STATUS);
        loop {
            tokio::select! {
                judged = &mut judging => break judged?,
                _ = alive.tick() => replication.send_status(Lsn::ZERO, Lsn::ZERO, false).await?,
            }
        }
    };
    begin(config, nats, tools, resolved, row, server, look, plan, replication).await
}

#[allow(clippy::too_many_arguments, reason = "the parts of a session, put together once")]
async fn begin(
    config: &Config,
    nats: &Nats,
    tools: Tools,
    resolved: &Resolved,
    row: Checkpoint,
    server: Server,
    look: Look,
    plan: Plan,
    replication: ReplicationStream,
) -> Result<Opened, Failure> {
    let row = Checkpoint { seq: plan.seq, last: plan.last, timeline: server.history.timeline, ..row };
    let hold_back = config.delivery.hold_back(&config.nats);
    let mut ledger = Ledger::new(row, server.confirmed, plan.settled_lsn, hold_back, Instant::now());
    if plan.phantoms > 0 {
        warn!(
            events = plan.phantoms,
            "the stream holds events of a history that this server does not have: they were committed on a former \
             primary and lost in the fail-over"
        );
        ledger.passed(plan.passed_seq);
    }
    info!(
        slot = server.slot,
        stream = tools.stream.name(),
        start_lsn = %server.start,
        confirmed_lsn = %server.confirmed,
        last_seq = look.end.last_seq,
        to_prove = plan.resume.outstanding(),
        preset = %resolved.preset(),
        "the slot is ours"
    );
    let origin = format!("{}/{}/{}/", server.history.system_id, server.history.timeline, server.slot);
    let intake = Intake::new(origin, ledger.committed().objects.table, resolved.clone());
    Ok(Opened {
        publisher: Publisher::new(nats, tools.stream.name()).await?,
        link: nats.link.clone(),
        tools,
        server,
        look,
        replication,
        intake,
        template: resolved.subject().clone(),
        resume: plan.resume,
        ledger,
    })
}

/// Whether stream and settings fit (DISCOVER).
fn discover(
    look: &Look,
    name: &str,
    config: &Config,
    nats: &Nats,
    resolved: &Resolved,
) -> Result<(), Failure> {
    look.config.fits(name, resolved.subject())?;
    for warning in look.config.warnings() {
        warn!(stream = name, warning);
    }
    if config.nats.msg_id && look.config.num_replicas > 1 && !nats.client.is_server_compatible(2, 12, 0) {
        return Err(Failure::new(
            Code::MessageIdUnsafe,
            format!(
                "nats.msg_id with {} replicas on nats-server {}",
                look.config.num_replicas,
                nats.client.server_info().version
            ),
            "set nats.msg_id = false",
        ));
    }
    Ok(())
}

/// A server that hangs must not hang the relay without a word.
async fn in_time<T, E: Into<Failure>>(asking: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    match timeout(ANSWERS_MAX, asking).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(super::unanswered()),
    }
}

fn row(read: Option<Checkpoint>, config: &Config) -> Result<Checkpoint, Failure> {
    let (slot, stream) = (&config.postgres.slot, &config.nats.stream);
    let row = read.ok_or_else(|| {
        Failure::new(
            Code::CheckpointMissing,
            format!("{} has no row for slot `{slot}`", checkpoint::table(&config.postgres.schema)),
            "new here: postrider init. If the row was deleted: postrider init --adopt (it says what is given up)",
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
async fn take_slot(
    config: &Config,
    process: &Process,
    sql: &Sql,
    host: &Host,
    known: &Checkpoint,
) -> Result<(ReplicationStream, History, Lsn), Failure> {
    let slot = &config.postgres.slot;
    let mut told = false;
    loop {
        while in_time(facts::slot_is_active(sql, slot)).await? {
            if !told {
                info!(slot, "another relay holds the slot: standing by");
                note(
                    process,
                    Role::Standby,
                    State::Waiting,
                    format!("another relay holds slot `{slot}`: standing by"),
                );
                told = true;
            }
            tokio::time::sleep(STANDBY_LOOK).await;
        }
        let mut connection = Connection::connect(&config.postgres.target, host).await?;
        let system = facts::identify(&mut connection).await?;
        // Behind a moving address the two connections may reach two servers: the row would then be
        // written to one and the slot confirmed on the other.
        if system.started_at != facts::started_at(sql).await? {
            return Err(Failure::new(
                Code::PostgresSession,
                "SQL and replication reached two different servers",
                "none is needed: the relay tries again. Name the servers in postgres.url rather than a moving address",
            ));
        }
        let history = match &system.history {
            Some(file) => History::parse(system.id, system.timeline, file)
                .map_err(|error| Failure::new(Code::Unexpected, error.to_string(), "report it"))?,
            None => History::first(system.id, system.timeline),
        };
        // The row may have moved while this relay stood by.
        let known = if told {
            row(in_time(checkpoint::read(sql, &config.postgres.schema, slot)).await?, config)?
        } else {
            known.clone()
        };
        let start = known.last.as_ref().map_or(Lsn::ZERO, |last| last.position.place.commit_lsn);
        let proved = known.last.as_ref().is_some_and(|last| history.contains(&last.position))
            && start <= system.wal_end;
        let start = if proved { start } else { Lsn::ZERO };
        match connection.start_replication(slot, start, &config.postgres.publication).await {
            Ok(()) => return Ok((connection.into_stream(), history, start)),
            Err(error) => {
                let failure = Failure::from(error);
                // Dropped or lost since it was looked at: then the preflight has the better words.
                preflight::slot(sql, config).await?;
                // Else someone was quicker.
                if failure.code != Code::SlotBusy {
                    return Err(failure.context(&format!("start slot `{slot}`")));
                }
            }
        }
    }
}

/// Reads the stream from its leader and judges it.
async fn judge(tools: &Tools, row: &Checkpoint, server: &Server) -> Result<(Look, Plan), Failure> {
    let look = tools.stream.look().await?;
    let end = look.end;
    if let Some(not_now) = opening::judge(row, server, end)? {
        return Err(not_now);
    }
    let at_seq = match row.seq {
        seq if seq > 0 && seq <= end.last_seq => tools.stream.message(seq).await?,
        _ => Stored::Gone,
    };
    let tail = tools.stream.messages(row.seq + 1, end.last_seq).await?;
    match opening::open(row, server, end, &at_seq, tail)? {
        Opening::Stream(plan) => Ok((look, *plan)),
        Opening::Again(failure) => Err(failure),
        Opening::Rewind => Err(rewind(tools, row, server, end).await?),
    }
}

/// The stream went back: the row is set to its last event, and the next session sends the rest
/// again, onto the same sequences.
async fn rewind(
    tools: &Tools,
    row: &Checkpoint,
    server: &Server,
    end: opening::StreamEnd,
) -> Result<Failure, Failure> {
    let mut seq = end.last_seq;
    let back = loop {
        let stored = if seq == 0 { Stored::Gone } else { tools.stream.message(seq).await? };
        match opening::rewind(row, server, end, seq, stored)? {
            Some(back) => break back,
            None => seq = seq.saturating_sub(1),
        }
    };
    warn!(from_seq = row.seq, to_seq = back.seq, "the stream went back: its lost events are sent again");
    if !checkpoint::write(&tools.sql, &tools.schema, &back).await? {
        return Ok(Failure::new(Code::SessionTaken, "the checkpoint row is another session's now", ""));
    }
    Ok(Failure::new(
        Code::NatsSession,
        format!("stream `{}` went back from sequence {} to {}", tools.stream.name(), row.seq, back.seq),
        "none is needed: the lost events are sent again from the slot",
    ))
}
