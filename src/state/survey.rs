//! What Postgres has of a pipeline: slot, checkpoint row, open letters, the outbox's size. Read without a
//! relay by `status`, and by a relay that streams nothing, which would else show what was so long ago.

use super::obstacles::{self, Obstacles};
use super::{checkpoint, dead_letter};
use crate::config::Config;
use crate::delivery::checkpoint::Checkpoint;
use crate::error::{Code, Failure};
use crate::ops::forecast::Trend;
use crate::ops::status::Status;
use crate::postgres::client::Sql;
use crate::postgres::preflight::{self, Slot, TableSize};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// See the module. None: there is none.
pub struct Survey {
    /// The slot, fit or not.
    pub slot: Option<Slot>,
    /// The checkpoint row.
    pub row: Option<Checkpoint>,
    /// Open dead letters; none without the table.
    pub open_letters: Option<u64>,
    /// The outbox.
    pub outbox: TableSize,
    /// What keeps its rows from being published.
    pub obstacles: Obstacles,
}

/// Reads it.
///
/// # Errors
/// The connection breaks.
pub async fn read(sql: &Sql, config: &Config) -> Result<Survey, Failure> {
    let (schema, slot, table) = (&config.postgres.schema, &config.postgres.slot, &config.outbox.table);
    Ok(Survey {
        slot: preflight::slot(sql, slot).await?,
        row: of_schema(checkpoint::read(sql, schema, slot).await)?.flatten(),
        open_letters: of_schema(dead_letter::open_count(sql, schema, slot).await)?,
        outbox: preflight::table_size(sql, &table.schema, &table.name).await?,
        obstacles: obstacles::read(sql, config).await?,
    })
}

/// The slot is looked at twice, so far apart, to know how fast WAL is written.
const RATE_OVER: Duration = Duration::from_secs(1);

/// Watches `slot` for a second. `patience`: of the relay that reads it; none when nobody does.
///
/// # Errors
/// The connection breaks.
pub async fn trend(sql: &Sql, slot: &Slot, patience: Option<Duration>) -> Result<Trend, Failure> {
    let mut trend = Trend::over(RATE_OVER);
    let mut now = slot.clone();
    for looked_at in 0..2 {
        if looked_at > 0 {
            sleep(RATE_OVER).await;
        }
        now.wal_end = preflight::wal_insert_lsn(sql).await?;
        trend.saw(Instant::now(), &now, patience);
    }
    Ok(trend)
}

/// None when schema or table do not exist.
///
/// # Errors
/// Any other.
pub fn of_schema<T, E: Into<Failure>>(asked: Result<T, E>) -> Result<Option<T>, Failure> {
    match asked.map_err(Into::into) {
        Ok(answer) => Ok(Some(answer)),
        Err(failure) if failure.code == Code::SchemaMissing => Ok(None),
        Err(failure) => Err(failure),
    }
}

impl Survey {
    /// Shows it.
    pub fn show(self, status: &mut Status) {
        let Survey { slot, row, open_letters, outbox, obstacles } = self;
        status.obstructed(obstacles);
        status.dead_letters = open_letters;
        status.outbox_table_bytes = outbox.bytes;
        status.outbox_dead_tuples = outbox.dead_tuples;
        status.slot_is_missing = slot.is_none() && row.is_some();
        let of_slot = slot.as_ref();
        status.confirmed_lsn = of_slot.and_then(|slot| slot.confirmed).map(|lsn| lsn.to_string());
        status.retained_wal_bytes = of_slot.and_then(Slot::retained);
        status.safe_wal_bytes = of_slot.and_then(|slot| slot.safe_wal_size);
        status.lag_bytes =
            of_slot.zip(row.as_ref()).map(|(slot, row)| slot.wal_end.bytes_since(row.settled_lsn));
        status.wal_status = slot.and_then(|slot| slot.wal_status);
        if let Some(row) = row {
            status.system_id = Some(row.system_id.to_string());
            status.timeline = Some(row.timeline);
            status.position = row.last.map(|last| last.position.to_string());
            status.settled_lsn = Some(row.settled_lsn.to_string());
        }
    }
}
