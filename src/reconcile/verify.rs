//! Table against stream: is each committed row stored once and in order, and is nothing else there?
//!
//! Nothing is assumed of the relay, which may run meanwhile. The order of steps is the proof:
//!
//! 1. the ids of all rows are copied, and only then the end of the WAL is read: whatever was copied was
//!    committed before it;
//! 2. the stream is read from its first message to its last;
//! 3. rows that were not found are judged once everything before that end of the WAL is settled. A
//!    running relay says so in the checkpoint row; where none runs, the slot is peeked at: what it still
//!    holds is not missing, it is to come.
//!
//! Rows, messages and what the slot holds meet in temporary tables: a database joins millions of ids
//! better than we would.

use super::Progress;
use super::ids::{Ids, Peeked, Rows};
use super::order::{Order, Seen, Stray};
use crate::config::Config;
use crate::delivery::checkpoint::Checkpoint;
use crate::error::{Code, Failure};
use crate::nats::connect;
use crate::nats::stream::{Look, Stream};
use crate::outbox::Mapping;
use crate::postgres::client::Sql;
use crate::postgres::preflight::slot_is_active;
use crate::postgres::timestamp::Timestamp;
use crate::relay::preflight;
use crate::state::checkpoint;
use serde::Serialize;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// So many messages are read before their ids go into the database.
const CHUNK: u64 = 8192;

const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What is to be verified, and how patiently.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Only rows that were created then or later.
    pub since: Option<Timestamp>,
    /// Rows that are marked as processed count like the others.
    pub processed: bool,
    /// How long a running relay may take to settle what was committed.
    pub patience: Duration,
}

/// What table and stream say of each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Rows of the table that were looked at.
    pub rows: u64,
    /// … whose event is in the stream.
    pub stored: u64,
    /// … whose event is a dead letter that is open or was dropped.
    pub lettered: u64,
    /// … that the slot still holds, or that the relay has not come to in time.
    pub pending: u64,
    /// … that are marked as processed and not in the stream: someone else is taken to have published them.
    pub processed: u64,
    /// The columns that mark them.
    pub mark_columns: Vec<String>,
    /// … that are nowhere.
    pub missing: u64,
    /// Messages of events that the stream has already.
    pub doubled: u64,
    /// Messages of ours behind a later one.
    pub misordered: u64,
    /// Messages that this pipeline did not write.
    pub foreign: u64,
    /// Ids of missing rows, the first of them.
    pub missing_ids: Vec<String>,
    /// Ids of doubled events, the first of them.
    pub doubled_ids: Vec<String>,
    /// Messages that are misordered, the first of them.
    pub misordered_messages: Vec<Stray>,
    /// Messages that are foreign, the first of them.
    pub foreign_messages: Vec<Stray>,
    /// Rows that are pending were not settled in time: they may be missing.
    pub undecided: bool,
}

impl Report {
    /// Table and stream say the same.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.missing + self.doubled + self.misordered + self.foreign == 0 && !self.undecided
    }
}

/// Verifies the pipeline that `config` names. `progress` hears how many messages are read, and of how many.
///
/// # Errors
/// Either side cannot be read, there is no checkpoint row, or the stream has lost its first messages and
/// `scope` does not say from when on it is complete.
pub async fn verify(
    config: &Config,
    scope: Scope,
    mut progress: impl FnMut(Progress),
) -> Result<Report, Failure> {
    let sql = Sql::connect_any(&config.postgres.database.resolve()?).await?;
    let table = preflight::table(&sql, config).await?;
    let resolved = preflight::columns(&Mapping::new(&config.outbox.settings(&config.nats))?, &table)?;
    let row = row(&sql, config).await?;
    let nats = connect::connect(&config.nats.access).await?;
    let stream = Stream::named(&nats, &config.nats.stream).await?;
    let look = stream.look().await?;
    if scope.since.is_none() {
        is_bounded(&stream, &look)?;
    }

    let side = Sql::connect(&sql.target, &sql.host).await?;
    let publication = preflight::publication(&sql, config, &table).await?;
    let ids = Ids::new(&sql, config, &resolved, &table, &publication, row.system_id).await?;
    let rows = Rows { since: scope.since, processed: scope.processed };
    let committed = ids.take_rows(rows).await?;
    let mut order = Order::new(&row.slot, row.system_id, row.passed_seq);
    let mut read = look.first_seq.saturating_sub(1);
    let mut last = look.end.last_seq;
    read_messages(&stream, &ids, &mut order, read, last, &mut progress).await?;

    let deadline = Instant::now() + scope.patience;
    let mut undecided = false;
    while ids.unfound(&row).await? > 0 {
        // Both asked before the stream: what was settled by then is in it.
        let relayed = slot_is_active(&sql, &config.postgres.slot).await?;
        let now = self::row(&sql, config).await?;
        (read, last) = (last, stream.look().await?.end.last_seq);
        if last < read.max(now.seq) {
            return Err(Failure::new(
                Code::StreamWentBack,
                format!(
                    "stream `{}` went back to message {last}, the relay was at {}",
                    stream.name(),
                    now.seq
                ),
                "let a relay run, which sends the lost events again, or says why it must not; then verify again",
            ));
        }
        read_messages(&stream, &ids, &mut order, read, last, &mut progress).await?;
        if now.settled_lsn >= committed {
            break;
        }
        if !relayed {
            let behind = now.last.as_ref().map(|last| last.position.place);
            match ids.peek(&side, now.objects.table, behind, committed).await? {
                // A relay has just taken it.
                Peeked::Busy => {}
                Peeked::Done => break,
                Peeked::Undecodable(why) => {
                    return Err(Failure::new(
                        Code::SlotUnfit,
                        format!("slot `{}` cannot be looked into: {why}", config.postgres.slot),
                        "postrider doctor, then postrider recover",
                    ));
                }
            }
        }
        if Instant::now() >= deadline {
            undecided = true;
            break;
        }
        sleep(ASK_AGAIN).await;
    }
    let mut report = ids.judge(&row, undecided).await?;
    report.mark_columns = ids.mark_names(rows)?;
    (report.misordered, report.misordered_messages) = order.misordered();
    (report.foreign, report.foreign_messages) = order.foreign();
    Ok(report)
}

/// Rows whose messages have expired cannot be told from lost ones.
///
/// # Errors
/// PR0113: the stream has lost its first messages, or loses some by its configuration.
pub(super) fn is_bounded(stream: &Stream, look: &Look) -> Result<(), Failure> {
    let name = stream.name();
    let why = if look.first_seq > 1 {
        format!("stream `{name}` begins at message {}", look.first_seq)
    } else if look.config.retention != "limits" || look.config.max_msgs_per_subject > 0 {
        format!("stream `{name}` loses messages by its retention or max_msgs_per_subject")
    } else {
        return Ok(());
    };
    Err(Failure::new(
        Code::VerifyUnbounded,
        format!("{why}: rows whose messages are gone for good cannot be told from lost ones"),
        "say from when on the stream is complete: --since 2h, or --since 2026-01-31T00:00:00Z",
    ))
}

async fn row(sql: &Sql, config: &Config) -> Result<Checkpoint, Failure> {
    let (schema, slot) = (&config.postgres.schema, &config.postgres.slot);
    checkpoint::read(sql, schema, slot).await?.ok_or_else(|| {
        Failure::new(
            Code::CheckpointMissing,
            format!("{} has no row for slot `{slot}`", checkpoint::table(schema)),
            "postrider init",
        )
    })
}

/// Reads the messages behind `read` up to `last`.
async fn read_messages(
    stream: &Stream,
    ids: &Ids<'_>,
    order: &mut Order,
    mut read: u64,
    last: u64,
    progress: &mut impl FnMut(Progress),
) -> Result<(), Failure> {
    while read < last {
        let upto = last.min(read + CHUNK);
        let mut ours = Vec::new();
        for (seq, stored) in stream.messages(read + 1, upto).await? {
            if let Seen::Ours(event) = order.message(seq, stored) {
                ours.push((event, seq));
            }
        }
        ids.put_messages(&ours).await?;
        read = upto;
        progress(Progress::Read(read, last));
    }
    Ok(())
}
