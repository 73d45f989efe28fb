//! `init --backfill` and `recover`: the rows that the stream lacks are published, and the checkpoint row is
//! written so that the relay goes on behind them.
//!
//! One mechanism, which may be killed at any moment and run again:
//!
//! 1. the row says `backfill` or `recover`: no relay streams until it says `ready` again;
//! 2. the slot stays where it can ([`Way`]); else a new one is made, which shows the table as it was at its
//!    beginning (manual, "Exported Snapshots");
//! 3. the rows of that snapshot are published which neither stream nor letters have, nor the slot will send:
//!    so what an attempt that was killed has published already is not published again;
//! 4. the row says `ready`, with what now identifies stream, cluster and publication.
//!
//! | file | what |
//! | --- | --- |
//! | `survey` | what there is to do; changes nothing |
//! | `work` | does it |
//!
//! The slot shows what was flushed, a snapshot also what was not yet (synchronous_commit = off): so the end of
//! the WAL is read after the snapshot was taken, and the slot is looked into once all before it is flushed.

mod survey;
mod work;

pub use survey::Survey;

use super::ids::{Ids, Peeked, Rows};
use super::order::{Order, Seen};
use super::plan::{self, Found, Way};
use super::publish::{Done, Filler, fenced};
use super::{Progress, Stray, verify};
use crate::config::Config;
use crate::delivery::checkpoint::{Checkpoint, Objects};
use crate::delivery::history::History;
use crate::delivery::opening::Stored;
use crate::delivery::position::{Identity, Place};
use crate::error::{Code, Disposition, Failure};
use crate::nats::connect::Nats;
use crate::nats::limits::Limits;
use crate::nats::publish::Publisher;
use crate::nats::stream::{Look, Stream};
use crate::nats::stream_config::New;
use crate::outbox::Resolved;
use crate::postgres::client::Sql;
use crate::postgres::connection::Connection;
use crate::postgres::error::Error;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{self as facts, System, Table, wal_insert_lsn};
use crate::postgres::timestamp::Timestamp;
use crate::relay::taken::Shape;
use crate::relay::{preflight, schemas};
use crate::state::checkpoint;
use crate::state::dead_letter::Owner;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// So many messages are read before their ids go into the database.
const CHUNK: u64 = 8192;

/// Without a row published for so long the command ends; the next goes on where it was.
const PATIENCE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(500);

/// A relay that lost its row ends its session by then.
const RELAY_ENDS_MAX: Duration = Duration::from_secs(15);

/// Which command it is: what the row says meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `init --backfill`
    Backfill,
    /// `recover`
    Recover,
}

impl Phase {
    /// As the checkpoint row has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Backfill => "backfill",
            Phase::Recover => "recover",
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// By which command.
    pub phase: Phase,
    /// Only rows that were created then or later.
    pub since: Option<Timestamp>,
    /// Also rows that are marked as processed.
    pub processed: bool,
    /// Messages of others that are in the stream are passed over from now on.
    pub accept: bool,
    /// The database is another cluster than the row says, or there is no row.
    pub adopt: bool,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Mended {
    /// Rows that were published.
    pub published: u64,
    /// Rows that became dead letters.
    pub lettered: u64,
    /// Messages of others that are passed over from now on.
    pub accepted: u64,
    /// Rows that are neither stored nor published now, and that clean-up leaves alone.
    pub left_out: u64,
    /// From where the slot goes on.
    pub slot_lsn: String,
    /// The stream's last message.
    pub last_seq: u64,
}

/// Surveys, asks `consent`, and mends. None: there was nothing to do, or no consent.
///
/// # Errors
/// Either side says no or is away, a relay streams the slot, or what is found needs `accept`, `adopt` or
/// `since`. Nothing is changed before `consent`.
pub async fn mend(
    config: &Config,
    asked: Asked,
    nats: &Nats,
    consent: impl FnOnce(&Survey) -> Result<bool, Failure>,
    mut progress: impl FnMut(Progress),
) -> Result<Option<Mended>, Failure> {
    let target = config.postgres.database.resolve()?;
    let sql = Sql::connect_any(&target).await?;
    let side = Sql::connect(&target, &sql.host).await?;
    let server = preflight::server(&sql).await?;
    let table = preflight::table(&sql, config).await?;
    let resolved = preflight::columns(&schemas::mapping(config)?, &table)?;
    let publication = preflight::publication(&sql, config, &table).await?;
    preflight::checkpoints(&sql, config).await?;
    preflight::letters(&sql, config).await?;
    let mut connection = sql.walsender(&sql.target).await?;
    let system = facts::identify(&mut connection).await?;
    if system.started_at != facts::started_at(&sql).await? {
        return Err(Failure::new(
            Code::PostgresSession,
            "SQL and replication reached two different servers",
            "name one server in postgres.url rather than a moving address, then the same command again",
        ));
    }
    let history = History::of(system.id, system.timeline, system.history.as_deref());
    let history = history.map_err(|error| Failure::new(Code::Unexpected, error.to_string(), "report it"))?;
    let row = checkpoint::read(&sql, &config.postgres.schema, &config.postgres.slot).await?;
    let passed_seq = match (&row, asked.adopt) {
        (Some(row), false) => row.passed_seq,
        (None, false) => 0,
        (_, true) => u64::MAX,
    };
    let mut mending = Mending {
        config,
        asked,
        ids: Ids::new(&sql, config, &resolved, &table, &publication, system.id).await?,
        order: Order::new(&config.postgres.slot, system.id, passed_seq),
        objects: preflight::objects(&publication, &table),
        stream: Stream::named(nats, &config.nats.stream).await?,
        sql: &sql,
        side: &side,
        table: &table,
        resolved: &resolved,
        system: &system,
        history,
        row,
        created: None,
        other_history: None,
        read: 0,
        own: 0,
    };
    let survey = mending.survey(&mut progress).await?;
    if !consent(&survey)? || survey.is_sound() && !(asked.accept && survey.foreign > 0) {
        return Ok(None);
    }
    let failover = server.version_num >= 170_000;
    mending.mend(nats, connection, failover, &survey, &mut progress).await.map(Some)
}

struct Mending<'a> {
    config: &'a Config,
    asked: Asked,
    /// Reads rows, in one snapshot.
    sql: &'a Sql,
    /// Writes the row and letters meanwhile, and looks into the slot.
    side: &'a Sql,
    ids: Ids<'a>,
    order: Order,
    table: &'a Table,
    resolved: &'a Resolved,
    objects: Objects,
    system: &'a System,
    history: History,
    stream: Stream,
    row: Option<Checkpoint>,
    /// When the stream was made that is being read.
    created: Option<Timestamp>,
    /// The stream was found to have events that this server never had, which are forgotten since.
    other_history: Option<String>,
    /// Messages up to this one are read.
    read: u64,
    /// Of which so many are this slot's.
    own: u64,
}

impl Mending<'_> {
    fn slot(&self) -> &str {
        &self.config.postgres.slot
    }

    fn rows(&self) -> Rows {
        Rows { since: self.asked.since, processed: self.asked.processed }
    }

    /// The stream, which goes on behind what was read of it.
    async fn look(&self) -> Result<Option<Look>, Failure> {
        match self.stream.look().await {
            Ok(look) => {
                look.config.fits(self.stream.name(), self.resolved.subject())?;
                self.goes_on(&look, self.read)?;
                Ok(Some(look))
            }
            Err(failure) if failure.code == Code::StreamMissing => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Whether the stream still has what was read up to `seq`.
    fn goes_on(&self, look: &Look, seq: u64) -> Result<(), Failure> {
        let other = self.created.is_some_and(|created| created != look.end.created);
        if !other && look.end.last_seq >= seq {
            return Ok(());
        }
        Err(Failure::new(
            Code::StreamWentBack,
            format!("stream `{}` went back while it was read", self.stream.name()),
            "the same command again: it reads the stream anew",
        ))
    }

    /// It was committed on a former primary and lost in a fail-over: a row of now may have its id.
    fn is_phantom(&self, event: &Identity) -> bool {
        event.position.system_id == self.system.id && !self.history.contains(&event.position)
    }

    /// One snapshot from here on.
    async fn begin(&self) -> Result<(), Failure> {
        Ok(self.sql.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?)
    }

    async fn commit(&self) -> Result<(), Failure> {
        Ok(self.sql.client.batch_execute("COMMIT").await?)
    }

    /// The event that was read at `seq`.
    async fn event(&self, seq: u64) -> Result<Box<Identity>, Failure> {
        match self.stream.message(seq).await? {
            Stored::Event(event) => Ok(event),
            Stored::Gone | Stored::Foreign(_) => Err(Failure::new(
                Code::NatsSession,
                format!("message {seq} of stream `{}` went while the stream was read", self.stream.name()),
                "the same command again: it reads the stream anew",
            )),
        }
    }

    fn vanished(&self) -> Failure {
        Failure::new(
            Code::StreamMissing,
            format!("stream `{}` was deleted meanwhile", self.stream.name()),
            "the same command again: it makes the stream anew",
        )
    }
}

fn in_use(slot: &str) -> Failure {
    preflight::in_use(slot, "stop it first (systemctl stop postrider), then the same command again")
}
