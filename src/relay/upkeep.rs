//! What is done beside the path of an event, once a second: look at the publication, look at the
//! stream, write the row. One at a time, and the pump goes on meanwhile.

use crate::delivery::checkpoint::Objects;
use crate::delivery::confirm::Write;
use crate::delivery::opening::StreamEnd;
use crate::error::{Code, Failure};
use crate::nats::stream::Stream;
use crate::postgres::client::Sql;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{self, Slot};
use crate::state::checkpoint;
use std::sync::Arc;

/// What to ask with.
#[derive(Clone)]
pub(super) struct Tools {
    pub(super) sql: Arc<Sql>,
    pub(super) stream: Stream,
    pub(super) schema: String,
    pub(super) slot: String,
    pub(super) publication: String,
    /// Schema and name of the outbox.
    pub(super) table: (String, String),
}

/// What to do this time.
pub(super) struct Plan {
    /// Look at the publication, which must still be made of these.
    pub(super) check: Option<Objects>,
    /// Look at the stream.
    pub(super) look: bool,
    /// Write the row, after looking at the stream where its `confirmed_seq` rises.
    pub(super) write: Option<Write>,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Done {
    /// The WAL's end before the publication was seen whole, and the slot after.
    pub(super) checked: Option<(Lsn, Slot)>,
    /// The stream's end. None: nobody answered, or it was not asked.
    pub(super) looked: Option<StreamEnd>,
    /// Why nobody answered.
    pub(super) silent: Option<Failure>,
    /// The row, committed.
    pub(super) written: Option<Write>,
}

/// Does what `plan` says. The row is not written when the stream could not be looked at or ends
/// before `settled`: it would state what is no longer so.
pub(super) async fn keep(tools: Tools, plan: Plan, settled: StreamEnd) -> Result<Done, Failure> {
    let mut done = Done::default();
    if let Some(objects) = plan.check {
        done.checked = Some(check(&tools, objects).await?);
    }
    if plan.look {
        match tools.stream.look().await {
            Ok(look) => done.looked = Some(look.end),
            Err(failure) => {
                done.silent = Some(failure);
                return Ok(done);
            }
        }
        let fits = |end: StreamEnd| end.created == settled.created && end.last_seq >= settled.last_seq;
        if !done.looked.is_some_and(fits) {
            return Ok(done);
        }
    }
    if let Some(write) = plan.write {
        if !checkpoint::write(&tools.sql, &tools.schema, &write.row).await? {
            return Err(taken());
        }
        done.written = Some(write);
    }
    Ok(done)
}

/// Another session took the row, or it is gone.
fn taken() -> Failure {
    Failure::new(
        Code::SessionTaken,
        "the checkpoint row is another session's now",
        "none is needed: this relay stands by",
    )
}

/// The WAL's end is read first: what is seen whole afterwards was whole up to there.
async fn check(tools: &Tools, objects: Objects) -> Result<(Lsn, Slot), Failure> {
    let lsn = preflight::wal_insert_lsn(&tools.sql).await?;
    let (schema, name) = (&tools.table.0, &tools.table.1);
    let table = preflight::table(&tools.sql, schema, name).await?;
    let publication = preflight::publication(&tools.sql, &tools.publication, schema, name).await?;
    let now = publication.filter(|publication| publication.has_table && publication.inserts).zip(table);
    let now = now.map(|(publication, table)| super::preflight::objects(&publication, &table));
    if now != Some(objects) {
        return Err(changed(&tools.publication, now, objects));
    }
    let slot = preflight::slot(&tools.sql, &tools.slot)
        .await?
        .ok_or_else(|| super::preflight::missing_slot(&tools.slot))?;
    super::preflight::fit_slot(&tools.slot, &slot)?;
    Ok((lsn, slot))
}

/// Publication or table are not what they were when the slot was made.
pub(super) fn changed(publication: &str, now: Option<Objects>, known: Objects) -> Failure {
    let what = match now {
        None => "it does not publish the outbox any more",
        Some(now) if now.publication != known.publication => "it was dropped and made again",
        Some(now) if now.table != known.table => "the outbox table was dropped and made again",
        Some(_) => "the outbox table was taken out and put back",
    };
    Failure::new(
        Code::PublicationChanged,
        format!("publication `{publication}`: {what}; rows written meanwhile are not in the slot"),
        "put publication and table right, look for rows of that time in the outbox table, then \
         postrider init --adopt goes on from now",
    )
}
