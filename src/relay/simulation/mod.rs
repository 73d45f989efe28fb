//! The whole relay, loop and sessions, between models of both servers, under faults drawn by seed.
//!
//! Time is paused, so minutes pass in milliseconds, and a seed is the same run each time.
//!
//! | file | |
//! | --- | --- |
//! | `wire` | bytes as a walsender writes them |
//! | `postgres` | log, slot, walsender, the relay's two tables, a standby that lags |
//! | `jetstream` | the stream, and the network before it |
//! | `scenario` | writers, faults, and the oracle that judges what is left |
//! | `real` | the model of the stream beside a real nats-server |
//!
//! The oracle: the stream equals the committed events, in order, once; what cannot be published is a
//! letter, once; and at each confirmation everything that it covers is on disk.

mod jetstream;
mod postgres;
mod real;
mod scenario;
mod wire;

use super::sides::{Base, Broker, Sides};
use crate::error::Failure;
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use crate::state::survey::Survey;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The type of events that only the server refuses.
const REFUSED: &str = "refused";

/// The first few say what there is to say.
const FINDINGS_MAX: usize = 5;

/// The NATS machine loses at most what was stored within this time.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// Everything outside of the relay.
struct World {
    rng: RefCell<fastrand::Rng>,
    broker: RefCell<jetstream::Broker>,
    server: RefCell<postgres::Server>,
    /// A client asked its walsender for a sign of life.
    asked: Notify,
    /// The NATS machine may lose power: an answer is not on disk yet.
    loses_power: Cell<bool>,
    /// What the oracle found, first things first.
    findings: RefCell<Vec<String>>,
    began: Instant,
    /// What happened, with the time.
    story: RefCell<Vec<String>>,
}

impl World {
    fn new(seed: u64) -> Rc<World> {
        Rc::new(World {
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            broker: RefCell::new(jetstream::Broker::new()),
            server: RefCell::new(postgres::Server::new()),
            asked: Notify::new(),
            loses_power: Cell::new(false),
            findings: RefCell::default(),
            began: Instant::now(),
            story: RefCell::default(),
        })
    }

    fn chance(&self, share: f64) -> bool {
        self.rng.borrow_mut().f64() < share
    }

    fn below(&self, limit: usize) -> usize {
        self.rng.borrow_mut().usize(..limit.max(1))
    }

    fn millis(&self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.borrow_mut().u64(range))
    }

    /// Both servers' clock: commit times are later and later, also over a fail-over.
    fn moment(&self, at: Instant) -> Timestamp {
        Timestamp(i64::try_from((at - self.began).as_micros()).unwrap())
    }

    /// One way, one statement.
    fn latency(&self) -> Duration {
        let slow = self.chance(0.05);
        Duration::from_micros(self.rng.borrow_mut().u64(50..if slow { 30_000 } else { 800 }))
    }

    /// Answers overtake each other now and then.
    fn answer_delay(&self) -> Duration {
        let slow = self.chance(0.02);
        Duration::from_micros(if slow { self.rng.borrow_mut().u64(100..300_000) } else { 100 })
    }

    fn tell(&self, what: impl Into<String>) {
        let at = self.began.elapsed();
        let what = what.into();
        tracing::info!(seconds = at.as_secs_f64(), what);
        self.story.borrow_mut().push(format!("{:9.3}  {what}", at.as_secs_f64()));
    }

    fn find(&self, what: String) {
        if self.findings.borrow().len() == FINDINGS_MAX {
            return;
        }
        self.tell(format!("FOUND {what}"));
        self.findings.borrow_mut().push(what);
    }

    /// A status update: everything that it covers must be safe.
    fn confirm(&self, flush: Lsn) {
        let before = self.server.borrow().confirmed;
        if flush <= before {
            return;
        }
        if let Some(found) = scenario::unsafe_confirmation(self, before, flush) {
            self.find(found);
        }
        self.server.borrow_mut().confirmed = flush;
    }
}

struct Models(Rc<World>);

impl Sides for Models {
    type Base = postgres::Sql;
    type Stream = jetstream::Stream;
    type Publisher = jetstream::Publisher;

    async fn nats(&self) -> Result<Broker<jetstream::Stream, jetstream::Publisher>, Failure> {
        jetstream::connect(&self.0).await
    }

    async fn postgres(&self, _: usize) -> Result<postgres::Sql, Failure> {
        postgres::connect(&self.0).await
    }

    async fn survey(&self, _: usize) -> Result<Survey, Failure> {
        postgres::connect(&self.0).await?.survey().await
    }
}
