//! What the relay is told to do: flag > environment > file > default.
//!
//! One table, [`keys::KEYS`], names every key; file, environment, flags, `--help` and the README's
//! table follow from it. Values travel as text with their [`Origin`] until [`Config`] gives them
//! their types, so that every source is checked by the same rules.
//!
//! * All problems are reported at once, each with where it was read.
//! * Secrets are never shown: not in problems, not in `Debug`, not in [`Loaded::shown`].
//! * What PG* variables and `.pgpass` add to `postgres.url` is [`target`](crate::postgres::target)'s matter.
//!
//! Considered and left: figment, config and serde's `deny_unknown_fields` stop at the first problem and
//! cannot say `did you mean`.

mod access;
mod build;
mod care;
mod context;
mod database;
mod encrypt;
mod flags;
pub mod keys;
mod load;
mod sensitive;
#[cfg(test)]
mod tests;
mod value;

use crate::error::Failure;
use crate::outbox::{ColumnNames, PresetChoice, Settings};
use crate::postgres::target::Secret;
pub use access::{Access, Identity, JetStream};
pub use care::Care;
pub use database::Database;
pub use encrypt::{Encrypt, read_keys};
pub use flags::Flags;
pub use load::{Environment, Origin, Value};
pub use sensitive::Sensitive;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
pub use value::{TableName, masked_server};

/// Everything that the relay is told, with its types.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[postgres]`
    pub postgres: Postgres,
    /// `[outbox]`
    pub outbox: Outbox,
    /// `[nats]`
    pub nats: Nats,
    /// `[delivery]`
    pub delivery: Delivery,
    /// `[care]`
    pub care: Care,
    /// `[encrypt]`
    pub encrypt: Encrypt,
    /// `[validate]`
    pub validate: Validate,
    /// `[http]`
    pub http: Http,
    /// How long to wait at the start for servers that are not up yet; none: for ever.
    pub start_timeout: Option<Duration>,
    /// `[log]`
    pub log: Log,
}

/// The source.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Server, database and role.
    pub database: Database,
    /// The replication slot.
    pub slot: String,
    /// The publication, as the catalogue holds its name.
    pub publication: String,
    /// The schema of the checkpoint table, as the catalogue holds its name.
    pub schema: String,
    /// Without an acknowledgement for so long, the replication connection is let go.
    pub release_after: Duration,
    /// The walsender ends a relay that has been silent for so long. It takes the place of the server's
    /// own `wal_sender_timeout`.
    pub wal_sender_timeout: Duration,
}

impl Postgres {
    /// The walsender is told that we live at least so often: two reports in a row may be late.
    #[must_use]
    pub fn status_apart(&self) -> Duration {
        self.wal_sender_timeout / 4
    }
}

/// How rows become events.
#[derive(Debug, Clone)]
pub struct Outbox {
    /// The table.
    pub table: TableName,
    /// Which columns mean what.
    pub preset: PresetChoice,
    /// Columns that are named one by one.
    pub columns: ColumnNames,
    /// The subject template, as written.
    pub subject: Option<String>,
    /// Whether CloudEvents attributes are sent too.
    pub cloudevents: bool,
}

impl Outbox {
    /// What the mapping needs to know.
    #[must_use]
    pub fn settings(&self, nats: &Nats) -> Settings {
        Settings {
            preset: self.preset,
            columns: self.columns.clone(),
            subject: self.subject.clone(),
            msg_id: nats.msg_id,
            cloudevents: self.cloudevents,
        }
    }
}

/// The sink.
#[derive(Debug, Clone)]
pub struct Nats {
    /// How to reach it, and as whom.
    pub access: Access,
    /// The stream.
    pub stream: String,
    /// Replicas of a stream that is created.
    pub replicas: usize,
    /// Age limit of a stream that is created.
    pub max_age: Option<Duration>,
    /// Size limit of a stream that is created.
    pub max_bytes: Option<u64>,
    /// How often the servers sync the stream to disk.
    pub sync_interval: SyncInterval,
    /// Whether the event id is also sent as `Nats-Msg-Id`.
    pub msg_id: bool,
}

/// How often nats-server syncs a stream to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncInterval {
    /// Before each acknowledgement.
    Always,
    /// This often.
    Every(Duration),
}

/// The window and the confirming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Events in flight at most.
    pub window_messages: usize,
    /// Bytes in flight at most.
    pub window_bytes: usize,
    /// How long a stored event stays unconfirmed.
    pub hold_back: HoldBack,
    /// What happens at an event that cannot be published.
    pub on_poison: OnPoison,
    /// What happens at an event that is too large.
    pub oversize: Oversize,
    /// More dead letters in a row halt the relay.
    pub dead_letters_max: usize,
    /// How long resolved letters are kept.
    pub dead_letter_retention: Duration,
    /// Whether an event waits until its transaction is visible to others.
    pub wait_visible: bool,
}

impl Delivery {
    /// How long a stored event's LSN stays unconfirmed.
    ///
    /// A NATS machine that loses power loses at most what it had not synced. Twice the interval, for a
    /// timer that is late, and ten seconds for the sync itself.
    #[must_use]
    pub fn hold_back(&self, nats: &Nats) -> Duration {
        const SYNC_MARGIN: Duration = Duration::from_secs(10);
        match (self.hold_back, nats.sync_interval) {
            (HoldBack::Fixed(duration), _) => duration,
            (HoldBack::Auto, SyncInterval::Always) => Duration::ZERO,
            (HoldBack::Auto, SyncInterval::Every(interval)) => {
                interval.saturating_mul(2).saturating_add(SYNC_MARGIN)
            }
        }
    }
}

/// How long a stored event stays unconfirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldBack {
    /// From the servers' sync interval: see [`Delivery::hold_back`].
    Auto,
    /// This long.
    Fixed(Duration),
}

/// What happens at an event that cannot be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPoison {
    /// It becomes a dead letter, and the relay goes on.
    DeadLetter,
    /// The relay stops there.
    Halt,
}

/// What happens at an event that is too large for NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oversize {
    /// What `on_poison` says of any event that cannot be published.
    DeadLetter,
    /// Its payload goes into an object store, and the message refers to it.
    ObjectStore,
    /// The relay stops there.
    Halt,
}

/// What payloads are held against.
#[derive(Debug, Clone)]
pub struct Validate {
    /// The folder of JSON Schemas; none: nothing is.
    pub schemas: Option<PathBuf>,
}

/// The HTTP server.
#[derive(Debug, Clone)]
pub struct Http {
    /// Where it listens; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// The bearer token that it demands.
    pub token: Option<Secret>,
    /// Whether others than this machine may ask without a token.
    pub allow_anonymous: bool,
    /// Whether `/readyz` calls a standby ready.
    pub standby_ready: bool,
}

/// Logging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The least severe events that are logged.
    pub level: LogLevel,
    /// How they are written.
    pub format: LogFormat,
}

/// A log event's severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// What needs attention.
    Warn,
    /// Changes of state and summaries.
    Info,
    /// Details of sessions.
    Debug,
    /// Details of events.
    Trace,
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        })
    }
}

/// How log events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Human,
    /// For machines.
    Json,
}

impl Config {
    /// Reads the process's environment, the configuration file and `flags`.
    ///
    /// # Errors
    /// All problems at once.
    pub fn load(flags: &Flags) -> Result<Config, Vec<Failure>> {
        Loaded::from(flags, &Environment::of_process()).config
    }

    /// The same for a command that connects to no NATS: `nats.url` need not be set.
    ///
    /// # Errors
    /// All other problems at once.
    pub fn load_without_nats(flags: &Flags) -> Result<Config, Vec<Failure>> {
        let env = Environment::of_process();
        let (mut values, problems) = load::gather(flags, &env);
        let url = values.iter_mut().find(|value| value.key.name == "nats.url" && value.text.is_none());
        if let Some(url) = url {
            url.text = Some("nats://localhost:4222".to_owned());
        }
        Loaded::of(values, problems, &env).config
    }
}

/// The configuration as a person asks about it: every value with its origin, even when some are wrong.
#[derive(Debug)]
pub struct Loaded {
    /// One value a key, in the table's order.
    pub values: Vec<Value>,
    /// The typed configuration, or all problems.
    pub config: Result<Config, Vec<Failure>>,
}

impl Loaded {
    /// Reads `env`, the configuration file and `flags`.
    #[must_use]
    pub fn from(flags: &Flags, env: &Environment) -> Loaded {
        let (values, problems) = load::gather(flags, env);
        Loaded::of(values, problems, env)
    }

    fn of(mut values: Vec<Value>, mut problems: Vec<Failure>, env: &Environment) -> Loaded {
        let config = build::config(&mut values, env, &mut problems);
        let config = match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(problems),
        };
        Loaded { values, config }
    }

    /// A value's text as it may be shown: URLs without their passwords, other secrets as `***`.
    #[must_use]
    pub fn shown(&self, value: &Value) -> Option<String> {
        let config = self.config.as_ref().ok();
        match (value.key.name, config) {
            ("postgres.url", Some(config)) => Some(config.postgres.database.resolve().ok()?.to_string()),
            ("nats.url", Some(_)) => value.text.as_deref().map(|text| {
                text.split(',').map(|server| masked_server(server.trim())).collect::<Vec<_>>().join(",")
            }),
            _ if value.key.secret => value.text.as_ref().map(|_| "***".to_owned()),
            _ => value.text.clone(),
        }
    }
}
