//! The relay's state as `/status` and `postrider status` show it. Its field names are a contract.

use super::advice::{self, Advice};
use super::changes::Changes;
use super::counters::Counters;
use super::forecast::{Outlook, Trend};
use crate::config::Config;
use crate::error::Failure;
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use crate::state::obstacles::Obstacles;
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

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Leader, Role::Standby, Role::Waiting, Role::Halted];

    /// As JSON and the metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Standby => "standby",
            Role::Waiting => "waiting",
            Role::Halted => "halted",
        }
    }
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

impl State {
    /// All of them.
    pub const ALL: [State; 8] = [
        State::Discover,
        State::Sync,
        State::Probe,
        State::Stream,
        State::Drain,
        State::Rewind,
        State::Halt,
        State::Waiting,
    ];

    /// As JSON and the metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Discover => "discover",
            State::Sync => "sync",
            State::Probe => "probe",
            State::Stream => "stream",
            State::Drain => "drain",
            State::Rewind => "rewind",
            State::Halt => "halt",
            State::Waiting => "waiting",
        }
    }
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

/// What the first look at the outbox found.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    /// Rows ever inserted.
    pub inserted: u64,
    /// Looks since, that one included.
    pub looks: u64,
}

/// The contract's fields, then more. Null: not known, or not live.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// See [`Role`].
    pub role: Role,
    /// See [`State`].
    pub state: State,
    /// Why it is in this state, in words.
    pub reason: String,
    /// The database's name.
    pub database: Option<String>,
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
    /// WAL that the server writes a second, lately.
    pub wal_bytes_per_second: Option<f64>,
    /// At that rate, until the slot is lost; null: it follows, has no limit, or it is not known.
    pub slot_lost_in_seconds: Option<f64>,
    /// Open dead letters; null: not looked at, or Postgres is away.
    pub dead_letters: Option<u64>,
    /// See [`LastError`].
    pub last_error: Option<LastError>,
    /// Events published in the last second.
    pub published_per_second: Option<f64>,
    /// WAL that is settled and not confirmed.
    pub held_back_bytes: Option<u64>,
    /// Age of the oldest committed event that may not be stored.
    pub oldest_unpublished_age_seconds: Option<f64>,
    /// Size of the outbox, with all that belongs to it.
    pub outbox_table_bytes: Option<u64>,
    /// Its dead rows, as Postgres estimates them.
    pub outbox_dead_tuples: Option<u64>,
    /// What to do, the most urgent first.
    pub advice: Vec<Advice>,
    /// The last changes of role, state and reason, oldest first.
    pub recent_changes: Changes,
    /// The machine.
    pub host: Option<String>,
    /// Since when the process runs.
    pub started_at: Option<String>,
    /// Of this program.
    pub version: &'static str,
    /// Since when something committed may not be stored. None: everything is.
    #[serde(skip)]
    pub unpublished_since: Option<Timestamp>,
    /// What becomes of the slot.
    #[serde(skip)]
    pub outlook: Outlook,
    /// Postgres has the pipeline's row, and no slot.
    #[serde(skip)]
    pub slot_is_missing: bool,
    /// What keeps rows from being published though all is sound.
    #[serde(skip)]
    pub obstacles: Obstacles,
    /// Rows ever inserted into the outbox, when it was looked at for the first time.
    #[serde(skip)]
    pub inserted_before: Option<Before>,
}

impl Status {
    /// Of a relay that has nothing to show yet, but what it works on.
    #[must_use]
    pub fn of(config: &Config) -> Status {
        Status {
            database: config.postgres.database.resolve().ok().map(|target| target.database),
            slot: config.postgres.slot.clone(),
            stream: config.nats.stream.clone(),
            hold_back_seconds: config.delivery.hold_back(&config.nats).as_secs_f64(),
            version: env!("CARGO_PKG_VERSION"),
            ..Status::default()
        }
    }

    /// What its pipeline is known by.
    #[must_use]
    pub fn pipeline(&self) -> [Option<&str>; 3] {
        [self.database.as_deref(), Some(&self.slot), Some(&self.stream)]
    }

    /// Whether `/readyz` answers 200; a standby by setting.
    #[must_use]
    pub fn is_ready(&self, standby_ready: bool) -> bool {
        match self.role {
            Role::Leader => self.state == State::Stream,
            Role::Standby => standby_ready,
            Role::Waiting | Role::Halted => false,
        }
    }

    /// What was seen of the slot up to now says what becomes of it.
    pub fn foresee(&mut self, trend: &Trend) {
        self.outlook = trend.outlook();
        self.wal_bytes_per_second = trend.rate();
        self.slot_lost_in_seconds = match self.outlook {
            Outlook::Lost(after) => Some(after.as_secs_f64()),
            Outlook::Unknown | Outlook::Follows | Outlook::FillsDisk => None,
        };
    }

    /// The outbox was looked at.
    pub fn obstructed(&mut self, obstacles: Obstacles) {
        self.inserted_before = match (self.inserted_before, obstacles.inserted) {
            (Some(before), _) => Some(Before { looks: before.looks + 1, ..before }),
            (None, inserted) => inserted.map(|inserted| Before { inserted, looks: 1 }),
        };
        self.obstacles = obstacles;
    }

    /// Fills in what follows from the rest.
    pub fn complete(&mut self) {
        let lsn = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<Lsn>().ok());
        let ends = lsn(&self.settled_lsn).zip(lsn(&self.confirmed_lsn));
        self.held_back_bytes = ends.map(|(settled, confirmed)| settled.bytes_since(confirmed));
        self.advice = advice::of(self);
    }
}

/// Where the pump puts its status and its counters, and HTTP takes them from. The pump never waits for a
/// reader.
#[derive(Debug, Clone)]
pub struct Board {
    status: watch::Sender<Status>,
    counters: watch::Sender<Counters>,
}

impl Board {
    /// A board that shows `first`.
    #[must_use]
    pub fn new(first: Status) -> Board {
        Board { status: watch::Sender::new(first), counters: watch::Sender::default() }
    }

    /// Changes what is shown.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(|status| {
            change(status);
            status.recent_changes.note(status.role, status.state, &status.reason);
        });
    }

    /// Shows these.
    pub fn count(&self, counters: &Counters) {
        self.counters.send_replace(*counters);
    }

    /// What is shown now.
    #[must_use]
    pub fn read(&self) -> Status {
        let mut status = self.status.borrow().clone();
        // Grows also while the loop hangs. A standby does not know.
        status.oldest_unpublished_age_seconds = match status.role {
            Role::Standby => None,
            _ => Some(status.unpublished_since.map_or(0.0, Timestamp::age)),
        };
        status.complete();
        status
    }

    /// What was counted up to now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_in_json_and_in_the_metrics() {
        for role in Role::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }

    #[test]
    fn a_standby_is_ready_by_setting() {
        let status = Status { role: Role::Standby, ..Status::default() };
        assert!(status.is_ready(true) && !status.is_ready(false));
        let leader = Status { role: Role::Leader, state: State::Stream, ..Status::default() };
        assert!(leader.is_ready(false));
        let draining = Status { state: State::Drain, ..leader };
        assert!(!draining.is_ready(true));
    }

    #[test]
    fn the_age_of_what_is_unpublished_grows_though_nobody_updates_the_board() {
        let board = Board::new(Status { role: Role::Leader, ..Status::default() });
        assert_eq!(board.read().oldest_unpublished_age_seconds, Some(0.0));
        let hour_ago = Timestamp(Timestamp::now().0 - 3_600_000_000);
        board.update(|status| status.unpublished_since = Some(hour_ago));
        assert!(board.read().oldest_unpublished_age_seconds.is_some_and(|age| age >= 3_600.0));
        board.update(|status| status.role = Role::Standby);
        assert_eq!(board.read().oldest_unpublished_age_seconds, None);
    }

    #[test]
    fn what_is_held_back_lies_between_settled_and_confirmed() {
        let mut status = Status {
            settled_lsn: Some("0/200".to_owned()),
            confirmed_lsn: Some("0/100".to_owned()),
            ..Status::default()
        };
        status.complete();
        assert_eq!(status.held_back_bytes, Some(256));
    }
}
