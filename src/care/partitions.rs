//! Dropping partitions whose time is past and whose every row is proved.
//!
//! Its rows are looked at, and where none must stay once more in one transaction: writers to the old partition
//! are locked out, its rows are looked at, and only then it is detached and dropped; a row that is not proved
//! rolls all of it back, and so does a crash. The lock of the whole table, which a drop needs, is held for that
//! moment alone and waited for shortly: whoever writes meanwhile queues behind it for as long. While someone holds
//! the table (a dump), the first attempt is the only one of its round. DETACH CONCURRENTLY would wait for every
//! transaction that uses the table, leave a detached table after a crash, and refuse inserts into that time meanwhile.

use super::plan::{Partitions, Plan};
use super::proof::Proofs;
use super::unsigned;
use crate::error::Failure;
use crate::postgres::client::Sql;
use crate::state::older::Older;
use tokio_postgres::error::SqlState;
use tracing::debug;

/// What can be done with a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is gone, or would be.
    Dropped(String),
    /// Rows of it must stay; so many of them wait for a proof.
    Kept(String, u64),
    /// Others use the table, or took the partition away: another time.
    Busy(String),
}

/// Drops what may go; with `dry` only looks.
pub(super) async fn drop_old(
    sql: &Sql,
    plan: &Plan,
    proofs: &Proofs,
    older: Older,
    dry: bool,
) -> Result<Vec<Outcome>, Failure> {
    let Some(partitions) = &plan.partitions else { return Ok(Vec::new()) };
    let known = Known { sql, plan, proofs, older };
    let (mut outcomes, mut busy) = (Vec::new(), false);
    for partition in past(sql, plan, partitions).await? {
        let staying = if busy { Err(Attempt::Busy) } else { known.look(&partition).await };
        let done = match staying {
            Ok(None) if !dry => known.drop_one(&partition).await,
            staying => staying,
        };
        let partition = partition.name;
        outcomes.push(match done {
            Ok(None) => Outcome::Dropped(partition),
            Ok(Some(waiting)) => Outcome::Kept(partition, waiting),
            Err(Attempt::Busy) => {
                debug!(partition, "others use the outbox: the partition is dropped another time");
                busy = true;
                Outcome::Busy(partition)
            }
            Err(Attempt::Failed(failure)) => return Err(failure),
        });
    }
    Ok(outcomes)
}

/// As SQL names it, and as the catalogue does.
struct Partition {
    name: String,
    oid: u32,
}

/// Partitions, but for the default one, whose upper bound is so long past; the oldest first. The bound is
/// printed and read in the same session, and so in the same time zone; printed without its table, which 17 would lock.
async fn past(sql: &Sql, plan: &Plan, partitions: &Partitions) -> Result<Vec<Partition>, Failure> {
    let key_type = partitions.key_type;
    let query = format!(
        "SELECT name, oid FROM (SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, \
         substring(pg_get_expr(c.relpartbound, 0) from 'TO \\(''([^'']+)''\\)$')::{key_type} AS upper \
         FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE i.inhparent = $1 AND c.relkind = 'r') AS p \
         WHERE upper <= now() - make_interval(secs => $2) ORDER BY upper"
    );
    let rows = sql.client.query(&query, &[&plan.oid, &partitions.after.as_secs_f64()]).await?;
    Ok(rows.iter().map(|row| Partition { name: row.get(0), oid: row.get(1) }).collect())
}

/// By what a partition is judged.
#[derive(Clone, Copy)]
struct Known<'a> {
    sql: &'a Sql,
    plan: &'a Plan,
    proofs: &'a Proofs,
    older: Older,
}

impl Known<'_> {
    /// The same as [`staying`](Known::staying), by which nobody is locked out. A look at millions of rows takes
    /// its time.
    async fn look(self, partition: &Partition) -> Result<Option<u64>, Attempt> {
        self.sql.client.batch_execute("BEGIN; SET LOCAL statement_timeout = 0").await?;
        let staying = self.staying(partition).await;
        self.sql.client.batch_execute("ROLLBACK").await?;
        staying
    }

    /// Whether rows of a partition must stay, and how many of them wait for a proof.
    async fn staying(self, partition: &Partition) -> Result<Option<u64>, Attempt> {
        let Known { sql, plan, proofs, older } = self;
        let query = format!(
            "SELECT count(*), count(*) FILTER (WHERE f) FROM (SELECT ({}) AS p, ({}) AS f FROM ONLY {} AS o) AS r \
             WHERE (p AND f) IS NOT TRUE",
            plan.proved(),
            plan.free(older, partition.oid),
            partition.name
        );
        let row = sql.client.query_one(&query, &[&proofs.horizon(), &proofs.marks()]).await?;
        let [staying, waiting] = [0, 1].map(|column| unsigned(row.get(column)));
        Ok((staying > 0).then_some(waiting))
    }

    /// Rows that keep it and wait, or None when it is dropped.
    async fn drop_one(self, partition: &Partition) -> Result<Option<u64>, Attempt> {
        let done = self.attempt(partition).await;
        let end = if matches!(done, Ok(None)) { "COMMIT" } else { "ROLLBACK" };
        self.sql.client.batch_execute(end).await?;
        done
    }

    /// The same, in a transaction that the caller ends.
    async fn attempt(self, partition: &Partition) -> Result<Option<u64>, Attempt> {
        let client = &self.sql.client;
        let name = &partition.name;
        client
            .batch_execute(&format!(
                "BEGIN; SET LOCAL statement_timeout = 0; LOCK TABLE ONLY {name} IN SHARE MODE"
            ))
            .await?;
        let staying = self.staying(partition).await?;
        if staying.is_some() {
            return Ok(staying);
        }
        // Whoever writes meanwhile waits behind this.
        let drop = format!(
            "SET LOCAL lock_timeout = '200ms'; ALTER TABLE {} DETACH PARTITION {name}; DROP TABLE {name}",
            self.plan.name
        );
        client.batch_execute(&drop).await?;
        Ok(None)
    }
}

enum Attempt {
    Busy,
    Failed(Failure),
}

impl From<tokio_postgres::Error> for Attempt {
    fn from(error: tokio_postgres::Error) -> Attempt {
        match error.code() {
            Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::UNDEFINED_TABLE) => Attempt::Busy,
            _ => Attempt::Failed(error.into()),
        }
    }
}
