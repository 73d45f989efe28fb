//! The relay's state as `/status` and `postrider status` show it. Its field names are a contract.

use crate::error::Failure;
use crate::postgres::timestamp::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

/// What this process is to its slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It streams.
    Leader,
    /// Another relay streams; it takes over when that one ends.
    Standby,
    /// A server is away, or a person must act.
    #[default]
    Waiting,
    /// It has ended for good.
    Halted,
}

/// Where the delivery protocol is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Looking at servers, stream, slot and row.
    Discover,
    /// Reading the end of the stream.
    Sync,
    /// One event is under way, to prove that the end of the stream is ours.
    Probe,
    /// Publishing.
    Stream,
    /// Awaiting what is in flight after something went wrong, or at the end.
    Drain,
    /// The stream went back; beginning again from the slot.
    Rewind,
    /// Ended for good.
    Halt,
    /// Between two sessions.
    #[default]
    Waiting,
}

/// The last error, kept after it passed.
#[derive(Debug, Clone, Serialize)]
pub struct LastError {
    /// `PR0123`.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do.
    pub remedy: String,
    /// When, RFC 3339.
    pub at: String,
}

impl From<&Failure> for LastError {
    fn from(failure: &Failure) -> LastError {
        LastError {
            code: failure.code.to_string(),
            message: failure.message.clone(),
            remedy: failure.whole_remedy(),
            at: Timestamp::now().to_string(),
        }
    }
}

/// Commit to PubAck of the last minute, in seconds; null without events.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
}

/// The contract's fields. Null: not known, or not live.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// See [`Role`].
    pub role: Role,
    /// See [`State`].
    pub state: State,
    /// Why it is in this state, in words.
    pub reason: String,
    /// The slot's name.
    pub slot: String,
    /// The stream's name.
    pub stream: String,
    /// The cluster, as text: it does not fit a double.
    pub system_id: Option<String>,
    /// The server's timeline.
    pub timeline: Option<u32>,
    /// The last settled event's position.
    pub position: Option<String>,
    /// Every event before it is stored.
    pub settled_lsn: Option<String>,
    /// Confirmed to Postgres.
    pub confirmed_lsn: Option<String>,
    /// How long a boundary ages before it is confirmed.
    pub hold_back_seconds: f64,
    /// WAL between what is settled and its known end.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest event that is taken and not stored; 0 when there is none.
    pub lag_seconds: Option<f64>,
    /// Events published by this process.
    pub published_total: Option<u64>,
    /// Events dead-lettered by this process.
    pub dead_lettered_total: Option<u64>,
    /// Events taken and not stored.
    pub in_flight_messages: Option<u64>,
    /// Their bytes.
    pub in_flight_bytes: Option<u64>,
    /// See [`Latency`].
    pub latency_seconds: Latency,
    /// WAL that the slot keeps.
    pub retained_wal_bytes: Option<u64>,
    /// WAL until the slot is in danger; null: no limit, or not known.
    pub safe_wal_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Open dead letters.
    pub dead_letters: u64,
    /// See [`LastError`].
    pub last_error: Option<LastError>,
}

impl Status {
    /// Whether `/readyz` answers 200.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match self.role {
            Role::Leader => self.state == State::Stream,
            Role::Standby => true,
            Role::Waiting | Role::Halted => false,
        }
    }
}

/// Where the pump puts its status, and HTTP takes it from. The pump never waits for a reader.
#[derive(Debug, Clone)]
pub struct Board(watch::Sender<Status>);

impl Board {
    /// A board that shows `first`.
    #[must_use]
    pub fn new(first: Status) -> Board {
        Board(watch::Sender::new(first))
    }

    /// Changes what is shown.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        self.0.send_modify(change);
    }

    /// What is shown now.
    #[must_use]
    pub fn read(&self) -> Status {
        self.0.borrow().clone()
    }
}
