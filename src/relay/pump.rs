//! The one loop: from the slot into the stream, until something ends the session.
//!
//! ```text
//!          ┌───────── answer other than expected, silence, link down ────────┐
//!          │                                                                 ▼
//!  SYNC ─► PROBE ─ first answer ─► STREAM                                  DRAIN
//!   ▲                                                                        │
//!   └───────────────────────────── back-off ◄────────────────────────────────┘
//! ```
//!
//! A fault on the NATS side goes round this circle and keeps the slot: the window still has every
//! event. Everything else ends the session, and the next begins from the checkpoint row.
//!
//! Each turn takes what has come, in this order: stop, answers, then frames; frames only while the
//! window has room, so a slow stream holds back Postgres by TCP and not by memory.

use super::intake::{Intake, Step, Taken};
use super::stream_failure;
use super::upkeep::{self, Plan, Tools};
use crate::config::Config;
use crate::delivery::confirm::{Ledger, Write};
use crate::delivery::opening::{Server, Stored, StreamEnd, foreign};
use crate::delivery::position::Place;
use crate::delivery::resume::{Admit, Resume, Seen};
use crate::delivery::window::{Room, Settled, Window};
use crate::error::{Code, Disposition, Failure};
use crate::nats::connect::Link;
use crate::nats::publish::{Answer, Limits, Publisher, TransactionHeaders};
use crate::nats::stream::Look;
use crate::ops::http::Pulse;
use crate::ops::status::{Board, Role, State};
use crate::outbox::{Event, Poison, Template};
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::Slot;
use crate::postgres::replication::{Received, ReplicationStream};
use crate::postgres::text::Text;
use crate::postgres::timestamp::Timestamp;
use futures_util::future::{BoxFuture, OptionFuture};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

/// Timers are looked at so often.
const TICK: Duration = Duration::from_millis(100);

/// A quarter of the `wal_sender_timeout` that the connection asks for.
const STATUS_APART_MAX: Duration = Duration::from_secs(7);

/// A flush that moved is reported at most so often.
const STATUS_APART_MIN: Duration = Duration::from_millis(200);

/// Upkeep looks at its plan so often.
const UPKEEP_APART: Duration = Duration::from_secs(1);

/// A catalogue query and a row take milliseconds; a server that needs so long is as good as away.
const UPKEEP_MAX: Duration = Duration::from_secs(20);

const CHECK_APART: Duration = Duration::from_secs(10);

/// A stream that went back is noticed so soon, though nothing is published.
const LOOK_APART: Duration = Duration::from_secs(5);

/// No answer for so long, though some are due: something is wrong.
const STALL: Duration = Duration::from_secs(2);

/// An idle server is asked for a sign of life after so long a silence.
const SILENCE_ASK: Duration = Duration::from_secs(10);

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// At the end, what is in flight is awaited so long.
const GOODBYE_MAX: Duration = Duration::from_secs(10);

/// Frames taken in one turn before answers are looked at again.
const FRAMES_A_TURN: usize = 256;

/// An event between intake and settled.
pub(super) struct Item {
    place: Place,
    commit_time: Timestamp,
    id: Option<Text>,
    transaction: Arc<TransactionHeaders>,
    event: Result<Event, Poison>,
}

impl Item {
    fn new(taken: Taken, event: Result<Event, Poison>) -> Item {
        let Taken { place, commit_time, id, transaction, .. } = taken;
        Item { place, commit_time, id, transaction, event }
    }

    fn is(&self, stored: &Stored, server: &Server) -> bool {
        let seen = Seen { place: self.place, commit_time: self.commit_time, event_id: self.id.as_deref() };
        match stored {
            // Purged or expired since: the stream has one message an event.
            Stored::Gone => true,
            Stored::Foreign(_) => false,
            Stored::Event(event) => {
                event.position.system_id == server.history.system_id
                    && event.position.slot == server.slot
                    && seen.is(event)
            }
        }
    }

    fn poison(&self, poison: &Poison) -> Failure {
        let at = format!("{:016X}/{}", self.place.commit_lsn.0, self.place.index);
        Failure::new(
            poison.code,
            format!("{} (position {at}, reason {})", poison.message, poison.reason),
            "everything before it is published; nothing behind it is. Mend the cause (postrider explain \
             shows how) and start again; an event that must never go out: postrider init --adopt after \
             dropping the slot goes on from now",
        )
    }
}

/// Why the loop ended.
pub(super) enum End {
    /// It was asked to, and drained.
    Stopped,
    /// The session is over.
    Failed(Failure),
}

/// The stream as a SYNC finds it: its end, and what stands behind the last settled event.
struct Ending {
    look: Look,
    /// What stands where the last settled event must stand.
    settled: Stored,
    tail: Vec<(u64, Stored)>,
}

enum Phase {
    /// Reading the stream's end.
    Sync(BoxFuture<'static, Result<Ending, Failure>>),
    /// One event under way at most.
    Probe,
    /// A window under way.
    Stream,
    /// Awaiting the answers that are due, until then.
    Drain { until: Instant },
    /// Until then, nothing.
    BackOff { until: Instant },
}

impl Phase {
    fn state(&self) -> State {
        match self {
            Phase::Sync(_) | Phase::BackOff { .. } => State::Sync,
            Phase::Probe => State::Probe,
            Phase::Stream => State::Stream,
            Phase::Drain { .. } => State::Drain,
        }
    }
}

/// Everything that a session has when it begins to stream.
pub(super) struct Opened {
    pub(super) tools: Tools,
    pub(super) server: Server,
    pub(super) look: Look,
    pub(super) publisher: Publisher,
    pub(super) link: watch::Receiver<Link>,
    pub(super) replication: ReplicationStream,
    pub(super) intake: Intake,
    pub(super) template: Template,
    pub(super) resume: Resume,
    pub(super) ledger: Ledger,
}

/// What outlives a session.
pub(super) struct Process {
    pub(super) board: Board,
    pub(super) pulse: Pulse,
    /// The process has been in STREAM once: refusals no longer end it.
    pub(super) streamed: bool,
    pub(super) published: u64,
    pub(super) latency: super::latency::Recent,
}

pub(super) struct Pump<'a> {
    config: &'a Config,
    process: &'a mut Process,
    session: Opened,
    window: Window<Item>,
    limits: Limits,
    phase: Phase,
    /// Publishes of this epoch, and their answers.
    sent: u64,
    answered: u64,
    /// Answers other than stored, by the sequence that the message must get.
    refused: BTreeMap<u64, Answer>,
    back_off: Duration,
    upkeep: Option<BoxFuture<'static, Result<upkeep::Done, Failure>>>,
    /// When upkeep set out, and the sequence that was settled then.
    upkeep_began: (Instant, u64),
    check_due: Instant,
    look_due: Instant,
    plan_due: Instant,
    /// The last answer, or look, that showed JetStream alive.
    alive: Instant,
    /// The last frame from Postgres.
    heard: Instant,
    asked: Option<Instant>,
    received: Lsn,
    wal_end: Lsn,
    status_sent: (Instant, Lsn),
    reply_requested: bool,
    stopping: Option<Instant>,
    /// Why publishing pauses.
    cause: Option<Failure>,
    /// An event that JetStream refuses for its own sake.
    condemned: Option<(Place, Failure)>,
    /// The server's complaints up to the present epoch.
    complaint: u64,
    /// Frames are taken.
    filling: bool,
    slot: Option<Slot>,
    patience: Duration,
}

impl<'a> Pump<'a> {
    pub(super) fn new(
        config: &'a Config,
        process: &'a mut Process,
        session: Opened,
        patience: Duration,
    ) -> Pump<'a> {
        let now = Instant::now();
        let room = Room { messages: config.delivery.window_messages, bytes: config.delivery.window_bytes };
        let window = Window::new(room, session.look.end.last_seq);
        let limits = Limits::of(&session.look.config, session.publisher.max_payload());
        let status_sent = (now, Lsn::ZERO);
        let mut pump = Pump {
            config,
            process,
            wal_end: session.server.wal_end,
            session,
            window,
            limits,
            phase: Phase::Probe,
            sent: 0,
            answered: 0,
            refused: BTreeMap::new(),
            back_off: BACK_OFF_MIN,
            upkeep: None,
            upkeep_began: (now, 0),
            check_due: now,
            look_due: now + LOOK_APART,
            plan_due: now,
            alive: now,
            heard: now,
            asked: None,
            received: Lsn::ZERO,
            status_sent,
            reply_requested: true,
            stopping: None,
            cause: None,
            condemned: None,
            complaint: 0,
            filling: true,
            slot: None,
            patience,
        };
        pump.session.publisher.next_epoch();
        pump
    }

    /// Runs until asked to stop or the session is over; leaves the slot free.
    pub(super) async fn run(mut self, stop: &mut watch::Receiver<bool>) -> End {
        let ended = self.turn(stop).await;
        if let Err(failure) = &ended {
            debug!(code = %failure.code, error = failure.message, "the session ends");
        }
        // Also after a failure: what is settled is written, unless the row or the stream is in doubt.
        let sound = match &ended {
            Ok(()) => true,
            Err(failure) => failure.code.disposition() == Disposition::Poison,
        };
        if sound && timeout(GOODBYE_MAX, self.last_words()).await.is_err() {
            warn!("the checkpoint row is not written in time: the next start reads the stream instead");
        }
        self.show();
        self.session.replication.close().await;
        match ended {
            Ok(()) => End::Stopped,
            Err(failure) => End::Failed(failure),
        }
    }

    async fn turn(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), Failure> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let sql = Arc::clone(&self.session.tools.sql);
        let mut sql_closed = std::pin::pin!(sql.closed());
        let mut link = self.session.link.clone();
        link.mark_unchanged();
        loop {
            self.settle();
            self.publish().await?;
            if self.stopping.is_some() && self.window.in_flight() == 0 {
                return Ok(());
            }
            // Once full, wait until it is half empty: the walsender then works in long stretches
            // instead of being woken for a few rows, and what is in flight keeps the stream busy.
            let filled = self.filling;
            self.filling = self.may_fill();
            if self.filling && !filled {
                // It was not listened to meanwhile.
                self.heard = Instant::now();
            }
            let room = self.filling && self.stopping.is_none();
            let syncing: OptionFuture<_> = match &mut self.phase {
                Phase::Sync(reading) => Some(reading),
                _ => None,
            }
            .into();
            let keeping: OptionFuture<_> = self.upkeep.as_mut().into();
            tokio::select! {
                // Ranked: to stop must always be possible; answers make room and are bounded by the
                // window; timers must not starve under load; frames come last.
                biased;
                _ = stop.wait_for(|stop| *stop), if self.stopping.is_none() => {
                    info!(in_flight = self.window.in_flight(), "draining");
                    self.stopping = Some(Instant::now() + GOODBYE_MAX);
                }
                why = &mut sql_closed => {
                    return Err(Failure::new(Code::PostgresSession, why, "none is needed: the relay tries again"));
                }
                answer = self.session.publisher.answer() => self.answers(answer)?,
                Ok(()) = link.changed() => {
                    if !link.borrow_and_update().up {
                        self.drain("the connection to NATS is down");
                    }
                }
                Some(read) = syncing => self.synced(read)?,
                Some(done) = keeping => {
                    self.upkeep = None;
                    self.kept(done?)?;
                }
                _ = ticks.tick() => self.tick().await?,
                received = self.session.replication.next(), if room => {
                    self.frames(received.map_err(stream_failure)?)?;
                }
            }
        }
    }

    fn may_fill(&self) -> bool {
        if self.filling { self.window.has_room() } else { self.window.is_half_empty() }
    }

    /// Takes the frame, and those that are complete in the buffer behind it.
    fn frames(&mut self, first: Received) -> Result<(), Failure> {
        self.heard = Instant::now();
        self.asked = None;
        let mut next = Some(first);
        let mut left = FRAMES_A_TURN;
        while let Some(received) = next {
            self.frame(received)?;
            left -= 1;
            next = if left > 0 && self.window.has_room() {
                self.session.replication.buffered().map_err(stream_failure)?
            } else {
                None
            };
        }
        Ok(())
    }

    fn frame(&mut self, received: Received) -> Result<(), Failure> {
        match received {
            Received::Data(message, bytes) => match self.session.intake.take(message)? {
                Step::Event(taken) => self.event(taken, bytes)?,
                Step::Commit { commit_lsn, end_lsn } => {
                    self.received = self.received.max(end_lsn);
                    if self.session.resume.commit(commit_lsn)? {
                        self.window.boundary(end_lsn);
                    }
                }
                Step::Nothing => {}
            },
            Received::Keepalive { wal_end, reply_requested } => {
                self.reply_requested |= reply_requested;
                self.received = self.received.max(wal_end);
                self.wal_end = self.wal_end.max(wal_end);
                if !self.session.intake.in_transaction() && self.session.resume.keepalive(wal_end)? {
                    self.window.boundary(wal_end);
                }
            }
            Received::Notice(notice) => {
                if notice.message.contains("skipped loading publication") || notice.code.code() == "55000" {
                    return Err(Failure::new(
                        Code::PublicationMissing,
                        format!("Postgres skips rows: {notice}"),
                        "the publication did not exist when these rows were written: look for them in the outbox \
                         table, then postrider init --adopt after dropping the slot goes on from now",
                    ));
                }
                warn!(%notice, "Postgres");
            }
        }
        Ok(())
    }

    fn event(&mut self, taken: Taken, bytes: usize) -> Result<(), Failure> {
        let seen = Seen { place: taken.place, commit_time: taken.commit_time, event_id: taken.id.as_deref() };
        match self.session.resume.event(seen)? {
            Admit::Skip => {}
            Admit::Stored(seq) => {
                // Boundaries before it are settled by what came before it.
                self.settle();
                let id = taken.id.unwrap_or_default();
                self.session.ledger.event(seq, taken.place, taken.commit_time, id);
                if self.session.resume.is_done() {
                    self.plan_due = Instant::now();
                    info!(seq, "every message behind the checkpoint is accounted for");
                }
            }
            Admit::New => {
                let event = self.session.intake.event(&taken);
                self.window.push(Item::new(taken, event), bytes);
            }
        }
        Ok(())
    }

    /// Publishes what may go out now.
    async fn publish(&mut self) -> Result<(), Failure> {
        if self.stopping.is_some() || !self.session.resume.is_done() {
            return Ok(());
        }
        while let Some(item) = self.window.waiting() {
            let may = match self.phase {
                Phase::Stream => true,
                Phase::Probe => self.window.in_flight() == 0,
                Phase::Sync(_) | Phase::Drain { .. } | Phase::BackOff { .. } => false,
            };
            if !may {
                return Ok(());
            }
            let checked = item.event.as_ref().map_err(Clone::clone).and_then(|event| {
                self.limits.check(event)?;
                Ok(event)
            });
            if let Some((_, failure)) = self.condemned.as_ref().filter(|(place, _)| *place == item.place) {
                return if self.window.in_flight() == 0 { Err(failure.clone()) } else { Ok(()) };
            }
            let event = match checked {
                Ok(event) => event,
                // Halts once everything before it is stored.
                Err(poison) if self.window.in_flight() == 0 => return Err(item.poison(&poison)),
                Err(_) => return Ok(()),
            };
            if self.sent == self.answered {
                self.alive = Instant::now();
            }
            let seq = self.window.next_seq();
            self.session.publisher.send(seq, event, item.place, &item.transaction).await?;
            self.window.send();
            self.sent += 1;
        }
        Ok(())
    }

    /// Takes the answer, and those that are here behind it.
    fn answers(&mut self, first: Option<(u64, Answer)>) -> Result<(), Failure> {
        let Some(first) = first else {
            return Err(Failure::new(Code::NatsSession, "the NATS client has ended", ""));
        };
        self.alive = Instant::now();
        let mut next = Some(first);
        while let Some((seq, answer)) = next {
            self.answered += 1;
            match answer {
                Answer::Stored(stored) if stored == seq && self.window.ack(seq).is_ok() => {
                    if matches!(self.phase, Phase::Probe) {
                        self.streaming();
                    }
                }
                other => {
                    debug!(seq, answer = ?other, "an answer other than expected");
                    self.refused.insert(seq, other);
                    self.drain("a publish was not stored where it must be");
                }
            }
            next = self.session.publisher.answered();
        }
        Ok(())
    }

    fn streaming(&mut self) {
        self.phase = Phase::Stream;
        self.back_off = BACK_OFF_MIN;
        self.cause = None;
        if !self.process.streamed {
            self.process.streamed = true;
        }
        debug!("streaming");
    }

    /// Takes out what is settled.
    fn settle(&mut self) {
        let mut now = None;
        while let Some(settled) = self.window.settle() {
            match settled {
                Settled::Event(seq, item) => {
                    let wall = *now.get_or_insert_with(Timestamp::now);
                    self.process.published += 1;
                    self.process.latency.record(item.commit_time, wall);
                    let id = item.id.unwrap_or_default();
                    self.session.ledger.event(seq, item.place, item.commit_time, id);
                }
                Settled::Boundary(lsn) => self.session.ledger.boundary(lsn, Instant::now()),
            }
        }
    }

    /// Something went wrong on the way into the stream.
    fn drain(&mut self, why: &str) {
        if matches!(self.phase, Phase::Probe | Phase::Stream) {
            info!(why, in_flight = self.window.in_flight(), "draining");
            if self.answered >= self.sent {
                // Nothing was due: silence is counted from here.
                self.alive = Instant::now();
            }
            self.phase = Phase::Drain { until: Instant::now() + STALL };
            self.process.board.update(|status| status.reason = why.to_owned());
        }
    }

    /// The window is answered, or no more answers are awaited: find the cause and go on.
    fn drained(&mut self) -> Result<(), Failure> {
        self.settle();
        let silent = self.answered < self.sent;
        let root = self.refused.iter().find(|(_, answer)| !is_consequence(answer));
        let failure = match root {
            Some((seq, answer)) => Some(self.judge(*seq, answer)),
            None if silent => Some(self.silence()),
            None => None,
        };
        let cause = root.map(|(seq, _)| *seq);
        let failure = failure.or_else(|| self.duplicate());
        let Some(failure) = failure else {
            // Only consequences: a message was lost, or another relay published. The stream tells.
            self.back_off();
            return Ok(());
        };
        match failure.code.disposition() {
            Disposition::Retry => {}
            Disposition::Operator if self.process.streamed => {}
            // What went before it may not be stored yet: first SYNC, then halt when it is at the front.
            Disposition::Poison => {
                let place = cause.and_then(|seq| self.window.at(seq)).map(|item| item.place);
                self.condemned = place.map(|place| (place, failure.clone()));
            }
            Disposition::Operator | Disposition::Halt => return Err(failure),
        }
        self.cause = Some(failure.clone());
        warn!(code = %failure.code, error = failure.message, retry_in = ?self.back_off, "publishing pauses");
        self.process.board.update(|status| {
            status.reason = failure.message.clone();
            status.last_error = Some((&failure).into());
        });
        self.back_off();
        Ok(())
    }

    fn back_off(&mut self) {
        // Jittered: two relays must not meet again and again.
        let wait = self.back_off.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.phase = Phase::BackOff { until: Instant::now() + wait };
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
    }

    /// With `nats.msg_id`, an id that returns within the stream's window is never stored.
    fn duplicate(&self) -> Option<Failure> {
        let (seq, answer) = self.refused.first_key_value()?;
        let Answer::Duplicate(stored) = answer else { return None };
        let id = self.window.at(*seq).and_then(|item| item.id.as_deref()).unwrap_or("?");
        Some(Failure::new(
            Code::PublishRefused,
            format!("JetStream takes event `{id}` for a duplicate of message {stored}"),
            "set nats.msg_id = false, or wait for the stream's duplicate window to pass",
        ))
    }

    fn judge(&self, seq: u64, answer: &Answer) -> Failure {
        let subject = self.window.at(seq).and_then(|item| item.event.as_ref().ok());
        let subject = subject.map_or("?", |event| event.subject.as_str());
        answer.failure(self.session.tools.stream.name(), subject)
    }

    /// No answer at all: a lost connection, a stream without a leader, or a publish that is not
    /// permitted, which the server only complains about.
    fn silence(&self) -> Failure {
        let link = self.session.link.borrow();
        let recent = link.complaint.as_ref().filter(|_| link.complaints > self.complaint);
        match recent.filter(|text| text.to_lowercase().contains("permissions violation for publish")) {
            Some(complaint) => Failure::new(
                Code::PublishForbidden,
                format!("the server says: {complaint}"),
                "grant the NATS account publish permission for the subjects of outbox.subject",
            ),
            None => Failure::new(
                Code::NatsSession,
                if link.up {
                    "JetStream does not answer publishes"
                } else {
                    "the connection to NATS is down"
                },
                "none is needed: the relay tries again",
            ),
        }
    }

    fn sync(&mut self) {
        self.session.publisher.next_epoch();
        (self.sent, self.answered) = (0, 0);
        self.refused.clear();
        self.complaint = self.session.link.borrow().complaints;
        let stream = self.session.tools.stream.clone();
        let (judged, seq) = (self.session.ledger.judged_seq(), self.session.ledger.seq());
        let settled = self.session.ledger.last().filter(|_| seq > 0);
        self.phase = Phase::Sync(Box::pin(async move {
            let look = stream.look().await?;
            let settled = match settled {
                Some(_) if seq <= look.end.last_seq => stream.message(seq).await?,
                _ => Stored::Gone,
            };
            let tail = stream.messages(judged + 1, look.end.last_seq).await?;
            Ok(Ending { look, settled, tail })
        }));
    }

    fn synced(&mut self, read: Result<Ending, Failure>) -> Result<(), Failure> {
        let Ending { look, settled, tail } = match read {
            Ok(read) => read,
            Err(failure) => match failure.code.disposition() {
                Disposition::Retry => {
                    self.back_off();
                    return Ok(());
                }
                _ => return Err(failure),
            },
        };
        self.alive = Instant::now();
        let name = self.session.tools.stream.name();
        look.config.fits(name, &self.session.template)?;
        let known = self.session.ledger.committed();
        // Also before the tail was verified: the next session reads it anew.
        if look.end.created != known.stream_created
            || look.end.last_seq < self.session.ledger.judged_seq()
            || !self.session.resume.is_done()
        {
            return Err(Failure::new(
                Code::NatsSession,
                format!(
                    "the stream ends at {}, the relay was at {}",
                    look.end.last_seq,
                    self.session.ledger.seq()
                ),
                "none is needed: the next session begins from the checkpoint",
            ));
        }
        // Lost, and its place filled by someone else: the number alone does not show it.
        let stands = match (&settled, self.session.ledger.last()) {
            (Stored::Event(there), Some(last)) => there.is_same_event(&last),
            (Stored::Foreign(_), Some(_)) => false,
            _ => true,
        };
        if !stands {
            let seq = self.session.ledger.seq();
            return Err(Failure::new(
                Code::NatsSession,
                format!("message {seq} of stream `{name}` is not the event that was stored there"),
                "none is needed: the next session goes back to the stream's last event",
            ));
        }
        let server = &self.session.server;
        if let Err(seq) =
            self.window.restart(look.end.last_seq, &tail, |item, stored| item.is(stored, server))
        {
            let what = tail.iter().find(|(at, _)| *at == seq).map(|(_, stored)| stored);
            return Err(match what {
                Some(Stored::Foreign(subject)) => {
                    foreign(name, seq, &format!("subject `{subject}`, no position of this relay"))
                }
                _ => Failure::new(
                    Code::NatsSession,
                    format!("message {seq} of stream `{name}` is not the event that must come there"),
                    "none is needed: the next session looks who wrote it",
                ),
            });
        }
        debug!(last_seq = look.end.last_seq, stored = tail.len(), "synchronised");
        self.limits = Limits::of(&look.config, self.session.publisher.max_payload());
        self.session.look = look;
        self.phase = Phase::Probe;
        self.look_due = Instant::now() + LOOK_APART;
        Ok(())
    }

    async fn tick(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        self.process.pulse.beat();
        match self.phase {
            Phase::Drain { until } if now >= until || self.answered >= self.sent => self.drained()?,
            Phase::BackOff { until } if now >= until => self.sync(),
            Phase::Probe | Phase::Stream if self.answered < self.sent && now >= self.alive + STALL => {
                self.drain("JetStream does not answer");
            }
            _ => {}
        }
        if self.stopping.is_some_and(|until| now >= until) {
            return Err(Failure::new(
                Code::NatsSession,
                "what was in flight at the end was not answered",
                "",
            ));
        }
        self.watch_nats(now)?;
        self.watch_postgres(now).await?;
        self.keep(now);
        self.show();
        Ok(())
    }

    /// An unconfirming reader keeps Postgres from shutting down, and holds WAL: let go.
    fn watch_nats(&mut self, now: Instant) -> Result<(), Failure> {
        let idle = matches!(self.phase, Phase::Stream | Phase::Probe) && self.answered >= self.sent;
        if idle && self.session.link.borrow().up || now < self.alive + self.config.postgres.release_after {
            return Ok(());
        }
        if let Some(cause) = self.cause.take() {
            return Err(cause);
        }
        Err(Failure::new(
            Code::NatsSession,
            format!(
                "no answer from JetStream for {:?}: letting go of Postgres",
                self.config.postgres.release_after
            ),
            "see nats-server; the relay tries again",
        ))
    }

    async fn watch_postgres(&mut self, now: Instant) -> Result<(), Failure> {
        let silent = now.saturating_duration_since(self.heard);
        let waits = self.filling;
        let ask = waits && silent >= SILENCE_ASK && self.asked.is_none_or(|asked| now >= asked + SILENCE_ASK);
        if waits && silent >= self.patience {
            return Err(Failure::new(
                Code::WalsenderSilent,
                format!("the walsender has been silent for {silent:?}"),
                "none is needed: the relay tries again. A giant transaction of other tables takes the server that \
                 long to decode: see wait_event of the walsender in pg_stat_activity",
            ));
        }
        let flush = self.session.ledger.confirmed_lsn();
        let (sent, reported) = self.status_sent;
        let since = now.saturating_duration_since(sent);
        let due = since >= STATUS_APART_MAX
            || ask
            || since >= STATUS_APART_MIN && (flush > reported || self.reply_requested);
        if due {
            self.session.replication.send_status(self.received, flush, ask).await?;
            self.status_sent = (now, flush);
            self.reply_requested = false;
            if ask {
                self.asked = Some(now);
            }
        }
        Ok(())
    }

    /// Sends upkeep out when there is something to do.
    fn keep(&mut self, now: Instant) {
        if self.upkeep.is_some() || now < self.plan_due || !matches!(self.phase, Phase::Probe | Phase::Stream)
        {
            return;
        }
        self.plan_due = now + UPKEEP_APART;
        let settled = self.session.resume.is_done();
        let check = (now >= self.check_due).then(|| self.session.ledger.committed().objects);
        let write = if settled { self.session.ledger.due(now) } else { None };
        let known = self.session.ledger.committed();
        let rises = write.as_ref().is_some_and(|write| write.row.confirmed_seq > known.confirmed_seq);
        let confirms = settled && self.session.ledger.confirmable(now).is_some();
        let look = settled && (rises || confirms || now >= self.look_due);
        if check.is_none() && write.is_none() && !look {
            return;
        }
        let end = StreamEnd { last_seq: self.session.ledger.judged_seq(), created: known.stream_created };
        let plan = Plan { check, look, write };
        self.upkeep_began = (now, end.last_seq);
        let keeping = timeout(UPKEEP_MAX, upkeep::keep(self.session.tools.clone(), plan, end));
        self.upkeep = Some(Box::pin(async { keeping.await.unwrap_or_else(|_| Err(super::unanswered())) }));
    }

    /// Upkeep is back.
    fn kept(&mut self, done: upkeep::Done) -> Result<(), Failure> {
        let now = Instant::now();
        if let Some((lsn, slot)) = done.checked {
            self.session.ledger.checked(lsn);
            self.wal_end = self.wal_end.max(lsn);
            self.slot = Some(slot);
            self.check_due = now + CHECK_APART;
        }
        if let Some(write) = done.written {
            self.session.ledger.written(write, now);
        }
        if let Some(failure) = done.silent {
            if failure.code.disposition() != Disposition::Retry && !self.process.streamed {
                return Err(failure);
            }
            self.drain(&failure.message);
            return Ok(());
        }
        let Some(end) = done.looked else { return Ok(()) };
        let (began, settled_seq) = self.upkeep_began;
        self.alive = self.alive.max(began);
        self.look_due = now + LOOK_APART;
        let known = self.session.ledger.committed();
        if end.created != known.stream_created || end.last_seq > self.window.last_sent() {
            self.drain("the stream is not as the relay left it");
            return Ok(());
        }
        if end.last_seq < settled_seq {
            self.drain("the stream went back");
            return Ok(());
        }
        // Marks that came of age before the look, and are covered by the row.
        if let Some(lsn) = self.session.ledger.confirmable(began) {
            self.session.ledger.confirm(lsn);
        }
        Ok(())
    }

    /// The row once more, and the confirmation that it allows.
    async fn last_words(&mut self) {
        self.settle();
        if !self.session.resume.is_done() {
            return;
        }
        // What upkeep is about to write must not come after this.
        if let Some(Ok(done)) = OptionFuture::from(self.upkeep.take()).await
            && let Some(write) = done.written
        {
            self.session.ledger.written(write, Instant::now());
        }
        let now = Instant::now();
        let write: Write = self.session.ledger.write(now);
        if write.row == *self.session.ledger.committed() {
            return;
        }
        let end = StreamEnd {
            last_seq: self.session.ledger.judged_seq(),
            created: self.session.ledger.committed().stream_created,
        };
        let plan = Plan { check: None, look: true, write: Some(write) };
        match upkeep::keep(self.session.tools.clone(), plan, end).await {
            Ok(upkeep::Done { written: Some(write), .. }) => {
                self.session.ledger.written(write, now);
                if let Some(lsn) = self.session.ledger.confirmable(now) {
                    self.session.ledger.confirm(lsn);
                }
            }
            Ok(_) => {}
            Err(failure) => {
                warn!(error = %failure, "the checkpoint row is not written: the next start reads the stream instead")
            }
        }
        let flush = self.session.ledger.confirmed_lsn();
        if let Err(error) = self.session.replication.send_status(self.received, flush, false).await {
            debug!(%error, "the last status was not sent");
        }
    }

    fn show(&mut self) {
        let ledger = &self.session.ledger;
        let (p50, p99) = self.process.latency.quantiles();
        let state = if self.stopping.is_some() { State::Drain } else { self.phase.state() };
        // Nothing to prove while nothing is to be sent: an idle relay is ready.
        let caught_up = self.received >= self.session.server.wal_end && self.session.resume.is_done();
        let state =
            if state == State::Probe && self.window.is_empty() && caught_up { State::Stream } else { state };
        if state == State::Stream {
            self.process.streamed = true;
        }
        let oldest = self.window.oldest().map(|item| age(item.commit_time));
        let outstanding = self.session.resume.outstanding();
        let server = &self.session.server;
        let slot = self.slot.as_ref();
        self.process.board.update(|status| {
            status.role = Role::Leader;
            status.state = state;
            status.reason = match state {
                State::Stream => "streaming".to_owned(),
                State::Probe if outstanding > 0 => {
                    format!("proving {outstanding} stored messages against the slot")
                }
                State::Probe if self.window.is_empty() => "awaiting the first rows of the slot".to_owned(),
                State::Probe => "awaiting the first answer of JetStream".to_owned(),
                _ => std::mem::take(&mut status.reason),
            };
            status.system_id = Some(server.history.system_id.to_string());
            status.timeline = Some(server.history.timeline);
            status.position = ledger.last().map(|last| last.position.to_string());
            status.settled_lsn = Some(ledger.settled_lsn().to_string());
            status.confirmed_lsn = Some(ledger.confirmed_lsn().to_string());
            status.lag_bytes = Some(self.wal_end.bytes_since(ledger.settled_lsn()));
            status.lag_seconds = Some(oldest.unwrap_or(0.0));
            status.published_total = Some(self.process.published);
            status.dead_lettered_total = Some(0);
            status.in_flight_messages = Some(self.window.len() as u64);
            status.in_flight_bytes = Some(self.window.bytes() as u64);
            status.latency_seconds.p50 = p50;
            status.latency_seconds.p99 = p99;
            if let Some(slot) = slot {
                status.retained_wal_bytes = slot.restart_lsn.map(|restart| self.wal_end.bytes_since(restart));
                status.safe_wal_bytes = slot.safe_wal_size;
                status.wal_status.clone_from(&slot.wal_status);
            }
        });
    }
}

fn age(commit_time: Timestamp) -> f64 {
    let micros = Timestamp::now().0.saturating_sub(commit_time.0).max(0);
    Duration::from_micros(micros.unsigned_abs()).as_secs_f64()
}

/// Answers that say no more than that an earlier message is not where it must be.
fn is_consequence(answer: &Answer) -> bool {
    match answer {
        Answer::Stored(_) | Answer::Duplicate(_) => true,
        // Wrong last sequence, duplicate in process, and the per-subject form on replicas.
        Answer::Refused { err_code, .. } => matches!(err_code, 10_071 | 10_158 | 10_164),
        Answer::NoResponders => false,
    }
}
