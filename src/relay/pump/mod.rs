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
//!
//! In a drain of single-row transactions two cores are busy to nine tenths with Postgres, nats-server
//! and this loop, which takes 2.3 µs of CPU a row, where a bare publisher of equal messages by async-nats
//! takes 3.5. Tried and not taken: a window of 8,192 (no difference); mimalloc (0.6 µs less when messages
//! still went through async-nats, but 32 MiB in place of 16).
//!
//! | file | what it does to the pump's state |
//! | --- | --- |
//! | `flow` | frames in, publishes out, answers back, what is settled by them |
//! | `drain` | the circle above |
//! | `aside` | events that cannot be published |
//! | `timers` | life signs of both sides, upkeep, confirmations, the last words |
//! | `unread` | WAL that the slot does not deliver |
//! | `show` | the status |

mod aside;
mod drain;
mod flow;
mod item;
mod show;
mod timers;
mod unread;
mod visibility;

use aside::Aside;
pub(super) use aside::LetterLog;
use item::Item;
pub(super) use show::Summary;
use unread::Unread;
use visibility::Visibility;

use super::faults::{FaultLog, ObstacleLog};
use super::intake::{Intake, Step};
use super::pace::{Load, Pace};
use super::sides::{Base, Broker, Publisher, Sides, Stream};
use super::slot_watch::SlotWatch;
use super::stream_failure;
use super::taken::Taken;
use super::upkeep::{self, Check, Plan};
use crate::care::Wanted;
use crate::config::{Config, OnPoison, Oversize};
use crate::delivery::confirm::{Ledger, Write};
use crate::delivery::opening::{Server, Stored, StreamEnd, foreign};
use crate::delivery::position::Place;
use crate::delivery::resume::{Admit, Resume, Seen};
use crate::delivery::window::{Room, Settled, Window};
use crate::error::{Code, Disposition, Failure};
use crate::nats::answer::{Answer, LEADERLESS};
use crate::nats::limits::Limits;
use crate::nats::stream::Look;
use crate::ops::counters::{Counters, Peer, Retry, micros};
use crate::ops::forecast;
use crate::ops::http::Pulse;
use crate::ops::status::{Board, Role, State};
use crate::outbox::seal::Key;
use crate::outbox::{Event, Poison, Reason, Template, excerpt};
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{Slot, TableSize};
use crate::postgres::replication::{Received, ReplicationStream};
use crate::postgres::timestamp::Timestamp;
use crate::state::dead_letter::{Letter, Owner};
use futures_util::future::{LocalBoxFuture, OptionFuture};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

/// Timers are looked at so often.
const TICK: Duration = Duration::from_millis(100);

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

/// A walsender that is silent for so long is looked at: what does it wait for?
const SILENCE_NAMED: Duration = Duration::from_secs(15);

/// An idle server is asked for a sign of life after so long a silence.
const SILENCE_ASK: Duration = Duration::from_secs(10);

/// Far above any turn of the loop.
const IDLE_MAX: Duration = Duration::from_secs(10);

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// At the end, what is in flight is awaited so long.
const GOODBYE_MAX: Duration = Duration::from_secs(10);

/// Frames taken in one turn before answers are looked at again.
const FRAMES_A_TURN: usize = 256;

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
    Sync(LocalBoxFuture<'static, Result<Ending, Failure>>),
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
pub(super) struct Opened<S: Sides> {
    pub(super) base: S::Base,
    pub(super) broker: Broker<S::Stream, S::Publisher>,
    pub(super) owner: Owner,
    pub(super) server: Server,
    pub(super) look: Look,
    pub(super) replication: ReplicationStream,
    pub(super) intake: Intake,
    pub(super) template: Template,
    pub(super) id_column: String,
    pub(super) resume: Resume,
    pub(super) letters_in_a_row: usize,
    /// Letters whose events the stream has all the same.
    pub(super) stored_letters: Vec<Place>,
    pub(super) ledger: Ledger,
}

/// What outlives a session.
pub(super) struct Process {
    pub(super) board: Board,
    pub(super) pulse: Pulse,
    pub(super) pace: Pace,
    /// What clean-up waits to be confirmed.
    pub(super) wanted: Wanted,
    /// Payloads are encrypted with it.
    pub(super) key: Option<Arc<Key>>,
    /// The process has been in STREAM once: refusals no longer end it.
    pub(super) streamed: bool,
    /// The host to begin with: another one after a former primary was met.
    pub(super) first_host: usize,
    pub(super) counters: Counters,
    pub(super) letter_log: LetterLog,
    pub(super) fault_log: FaultLog,
    pub(super) latency: super::latency::Recent,
    pub(super) rate: super::latency::Rate,
    pub(super) summary: Summary,
    pub(super) slot_watch: SlotWatch,
    pub(super) obstacle_log: ObstacleLog,
}

impl Process {
    /// Events that are done with: stored, or dead letters.
    pub(super) fn progress(&self) -> u64 {
        self.counters.published + self.counters.dead_lettered_total()
    }
}

pub(super) struct Pump<'a, S: Sides> {
    config: &'a Config,
    process: &'a mut Process,
    session: Opened<S>,
    window: Window<Item>,
    limits: Limits,
    phase: Phase,
    /// The last event that was sent on this connection.
    sent_up_to: Option<Place>,
    /// An event that cannot be published is being dealt with.
    aside: Option<LocalBoxFuture<'static, Result<Aside, Failure>>>,
    visibility: Visibility,
    /// Events that the slot sent again and neither the stream nor a letter has.
    unaccounted: VecDeque<Item>,
    letters_in_a_row: usize,
    /// In the table, as last counted.
    open_letters: Option<u64>,
    /// Answers other than stored, by the sequence that the message must get.
    refused: BTreeMap<u64, Answer>,
    back_off: Duration,
    upkeep: Option<LocalBoxFuture<'static, Result<upkeep::Done, Failure>>>,
    /// When upkeep set out, and the sequence that was settled then.
    upkeep_began: (Instant, u64),
    check_due: Instant,
    obstacles_due: Instant,
    look_due: Instant,
    plan_due: Instant,
    /// The last answer, or look, that showed JetStream alive.
    alive: Instant,
    /// Since when nothing is under way though something is to be done.
    idle_since: Option<Instant>,
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
    /// Losses of the connection to NATS that were counted.
    losses: u64,
    /// Frames are taken.
    filling: bool,
    load: Load,
    slot: Option<Slot>,
    unread: Unread,
    outbox: TableSize,
    /// What a silent walsender waits for.
    waits_for: Option<String>,
    /// When the walsender last said that it waits for a standby, and its words.
    standby_awaited: Option<(Instant, String)>,
    patience: Duration,
}

impl<'a, S: Sides> Pump<'a, S> {
    pub(super) fn new(
        config: &'a Config,
        process: &'a mut Process,
        session: Opened<S>,
        patience: Duration,
    ) -> Pump<'a, S> {
        let now = Instant::now();
        let room = Room { messages: config.delivery.window_messages, bytes: config.delivery.window_bytes };
        let window = Window::new(room, session.look.end.last_seq);
        let limits = Limits::of(&session.look.config, session.broker.publisher.max_payload());
        let status_sent = (now, Lsn::ZERO);
        let complaint = session.broker.link.borrow().complaints;
        let load = Load::new(process.pace.clone());
        let mut pump = Pump {
            config,
            process,
            wal_end: session.server.wal_end,
            session,
            window,
            limits,
            phase: Phase::Probe,
            sent_up_to: None,
            aside: None,
            visibility: Visibility::default(),
            unaccounted: VecDeque::new(),
            letters_in_a_row: 0,
            open_letters: None,
            refused: BTreeMap::new(),
            back_off: BACK_OFF_MIN,
            upkeep: None,
            upkeep_began: (now, 0),
            check_due: now,
            obstacles_due: now,
            look_due: now + LOOK_APART,
            plan_due: now,
            alive: now,
            idle_since: None,
            heard: now,
            asked: None,
            received: Lsn::ZERO,
            status_sent,
            reply_requested: true,
            stopping: None,
            cause: None,
            condemned: None,
            complaint,
            losses: 0,
            filling: true,
            load,
            slot: None,
            unread: Unread::default(),
            outbox: TableSize::default(),
            waits_for: None,
            standby_awaited: None,
            patience,
        };
        pump.letters_in_a_row = pump.session.letters_in_a_row;
        pump.session.broker.publisher.next_epoch();
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
        let base = self.session.base.clone();
        let mut sql_closed = std::pin::pin!(base.closed());
        let mut link = self.session.broker.link.clone();
        link.mark_unchanged();
        loop {
            self.settle();
            self.publish()?;
            if self.stopping.is_some() && self.window.in_flight() == 0 && self.aside.is_none() {
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
            let setting_aside: OptionFuture<_> = self.aside.as_mut().into();
            let asking: OptionFuture<_> = self.visibility.asking.as_mut().into();
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
                answer = self.session.broker.publisher.answer() => self.answers(answer),
                Ok(()) = link.changed() => {
                    if !link.borrow_and_update().up {
                        self.drain(Retry::NatsDown, "the connection to NATS is down");
                    }
                }
                Some(read) = syncing => self.synced(read)?,
                Some(done) = keeping => {
                    self.upkeep = None;
                    self.kept(done?)?;
                }
                Some(done) = setting_aside => {
                    self.aside = None;
                    self.aside(done)?;
                }
                Some(snapshot) = asking => self.saw(snapshot?),
                _ = ticks.tick() => self.tick().await?,
                received = self.session.replication.next(), if room => {
                    self.frames(received.map_err(stream_failure)?)?;
                }
            }
        }
    }

    /// Everything that the stream held at the start is accounted for.
    fn is_accounted(&self) -> bool {
        self.session.resume.is_done() && self.unaccounted.is_empty()
    }

    fn may_fill(&self) -> bool {
        if self.filling { self.window.has_room() } else { self.window.is_half_empty() }
    }
}
