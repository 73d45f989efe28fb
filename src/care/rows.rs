//! The statements that look at rows, mark them and delete them.
//!
//! A table is gone through by ranges of blocks, so that one statement is short however large the table is,
//! and needs no index; a partitioned one partition by partition. Statements name the partitioned table, on
//! which the role has its privileges, with the partition's constraint, by which the planner leaves out all others.
//! A batch locks what it picks and passes over what others hold.

use super::plan::Plan;
use super::proof::Proofs;
use super::{Tally, unsigned};
use crate::error::Failure;
use crate::postgres::client::Sql;
use crate::state::older::{self, Older, TRIMMED};
use crate::state::{checkpoint, dead_letter};
use postgres_protocol::escape::escape_literal;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// 8 MiB: some ten milliseconds of looking.
const BLOCKS: usize = 1024;

/// So many times as long is rested as was worked in vain: a large table costs a tenth of a core.
pub(super) const RESTS: u32 = 9;

/// After so many batches of one sweep rests are half as long, after twice as many a third, and so on: a backlog
/// is made up for, however fast it came.
const BATCHES: u32 = 50;

/// Of what is to be done, one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Delete,
    Mark,
}

/// The youngest id of 64 bits that the 32 of `xmin` can be: no row that is seen is younger than the
/// snapshot's end. The margin is for versions that are locked though they are younger than that.
pub(super) fn whole(xmin: &str) -> String {
    const YOUNGEST: &str = "(SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1048576)";
    format!("({YOUNGEST} - (({YOUNGEST} - {xmin}::text::bigint) & 4294967295))")
}

impl Plan {
    /// `$1` is the horizon, `$2` the marks. A trigger may have written rows in a transaction that marked others.
    pub(super) fn proved(&self) -> String {
        let (xid, unmarked) = (whole("o.xmin"), self.due(Action::Mark));
        format!("({xid} < $1::bigint OR {xid} = ANY($2::bigint[]) AND NOT ({unmarked}))")
    }

    /// Which rows the publication sends.
    fn ours(&self) -> &str {
        self.filter.as_deref().unwrap_or("true")
    }

    /// Rows of table `leaf` that may be touched, proved or not.
    pub(super) fn free(&self, older: Older, leaf: u32) -> String {
        let id = format!("btrim(format('%s', o.{}), {TRIMMED})", self.id);
        let mut free = format!(
            "o.{} IS NOT NULL AND {id} NOT IN (SELECT btrim(l.event_id, {TRIMMED}) FROM {} AS l \
             WHERE l.resolved_at IS NULL AND l.event_id IS NOT NULL \
             AND l.slot IN (SELECT slot FROM {} WHERE table_oid = {}))",
            self.id,
            dead_letter::table(&self.schema),
            checkpoint::table(&self.schema),
            self.oid
        );
        if older != Older::None {
            free.push_str(&format!(
                " AND NOT EXISTS (SELECT FROM {} AS r WHERE r.slot = {} AND r.event_id = {id})",
                older::table(&self.schema),
                escape_literal(&self.slot)
            ));
        }
        if self.partitioned {
            // What a table held when it, or one that it is a part of, was attached was never sent.
            free.push_str(&format!(
                " AND ({}, o.cmin::text::bigint) > (SELECT {}, i.cmin::text::bigint \
                 FROM pg_partition_ancestors({leaf}) AS a JOIN pg_inherits AS i ON i.inhrelid = a.relid \
                 ORDER BY 1 DESC, 2 DESC LIMIT 1)",
                whole("o.xmin"),
                whole("i.xmin")
            ));
        }
        free
    }

    fn due(&self, action: Action) -> &str {
        let due = match action {
            Action::Delete => self.delete.as_deref(),
            Action::Mark => self.mark.as_ref().map(|mark| mark.unmarked.as_str()),
        };
        due.unwrap_or("false")
    }

    /// OFFSET: each condition is looked at once a row, not where it is counted.
    fn probe(&self, leaf: &Leaf, range: &str, older: Older) -> String {
        let (delete, mark) = (self.due(Action::Delete), self.due(Action::Mark));
        format!(
            "SELECT count(*) FILTER (WHERE d AND p AND f), count(*) FILTER (WHERE NOT d AND p AND f), \
             count(*) FILTER (WHERE NOT p AND f), count(*) FILTER (WHERE f IS NOT TRUE) \
             FROM (SELECT {delete} AS d, ({}) AS p, ({}) AS f FROM {} AS o \
             WHERE {range} AND ({}) AND ({delete} OR {mark}) OFFSET 0) AS due",
            self.proved(),
            self.free(older, leaf.oid),
            self.from,
            self.ours()
        )
    }

    fn batch(&self, action: Action, leaf: &Leaf, range: &str, older: Older, batch: usize) -> String {
        // A column that was added since would be lost.
        let whole = self.archive.as_ref().map_or_else(String::new, |archive| {
            format!(
                " AND (SELECT count(*) FROM pg_attribute WHERE attrelid = {} AND attnum > 0 AND NOT attisdropped) = {}",
                self.oid, archive.of
            )
        });
        let picked = format!(
            "WITH picked AS (SELECT o.ctid AS \"postrider ctid\" FROM {} AS o \
             WHERE {range} AND ({}) AND {} AND {} AND {}{whole} LIMIT {batch} FOR UPDATE OF o SKIP LOCKED)",
            self.from,
            self.ours(),
            self.due(action),
            self.proved(),
            self.free(older, leaf.oid)
        );
        let same = format!("WHERE {} AND o.ctid = picked.\"postrider ctid\"", leaf.rows);
        let count = "SELECT count(*), pg_current_xact_id_if_assigned()::text FROM done";
        match (action, &self.mark, &self.archive) {
            (Action::Mark, Some(mark), _) => format!(
                "{picked}, done AS (UPDATE {} AS o SET {} = {} FROM picked {same} RETURNING 1) {count}",
                self.from, mark.column, mark.value
            ),
            (_, _, Some(archive)) => format!(
                "{picked}, gone AS (DELETE FROM {} AS o USING picked {same} RETURNING {}), \
                 done AS (INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM gone RETURNING 1) {count}",
                self.from,
                archive.columns.iter().map(|column| format!("o.{column}")).collect::<Vec<_>>().join(", "),
                archive.table,
                archive.columns.join(", "),
                archive.columns.join(", ")
            ),
            (_, _, None) => {
                format!(
                    "{picked}, done AS (DELETE FROM {} AS o USING picked {same} RETURNING 1) {count}",
                    self.from
                )
            }
        }
    }

    /// The tables that hold the rows.
    async fn leaves(&self, sql: &Sql) -> Result<Vec<Leaf>, Failure> {
        let query = "SELECT c.oid, pg_relation_size(c.oid) / current_setting('block_size')::bigint, \
            coalesce(pg_get_partition_constraintdef(c.oid), 'true') FROM pg_class c WHERE c.relkind = 'r' \
            AND c.oid IN (SELECT $1 UNION SELECT relid::oid FROM pg_partition_tree($1::oid::regclass)) ORDER BY c.oid";
        let leaves = sql.client.query(query, &[&self.oid]).await?;
        let leaf = |row: &tokio_postgres::Row| {
            let (oid, constraint): (u32, String) = (row.get(0), row.get(2));
            // One that is being dropped has no size any more.
            let blocks = unsigned(row.get::<_, Option<i64>>(1)?);
            Some(Leaf { oid, blocks, rows: format!("({constraint}) AND o.tableoid = {oid}") })
        };
        Ok(leaves.iter().filter_map(leaf).collect())
    }
}

/// A table of rows: the outbox itself, or a partition of it.
struct Leaf {
    oid: u32,
    blocks: u64,
    /// Which rows of the outbox are in it.
    rows: String,
}

/// What a sweep may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Broom {
    pub(super) older: Older,
    pub(super) batch: usize,
    pub(super) pace: Pace,
    pub(super) dry: bool,
}

/// How long a sweep rests after each of its batches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    rest: Duration,
    batches: u32,
}

impl Pace {
    pub(super) fn of(rest: Duration) -> Pace {
        Pace { rest, batches: 0 }
    }

    /// After one more batch.
    fn rest(&mut self) -> Duration {
        let rest = self.rest * BATCHES / (BATCHES + self.batches);
        self.batches += 1;
        rest
    }
}

/// Goes through the whole table once. `goes_on` is asked between two statements; the second part is how long
/// to rest then.
pub(super) async fn sweep(
    sql: &Sql,
    plan: &Plan,
    proofs: &mut Proofs,
    mut broom: Broom,
    goes_on: impl Fn() -> bool,
) -> Result<(Tally, Duration), Failure> {
    let (mut tally, mut rest) = (Tally::default(), Duration::ZERO);
    if plan.mark.is_none() && plan.delete.is_none() {
        return Ok((tally, rest));
    }
    for leaf in plan.leaves(sql).await? {
        for first in (0..=leaf.blocks).step_by(BLOCKS) {
            if !goes_on() {
                return Ok((tally, rest));
            }
            let (done, busy) = sweep_range(sql, plan, proofs, &mut broom, &leaf, first, &goes_on).await?;
            rest += if done.has_changed_anything() { busy } else { busy * RESTS };
            tally.add(done);
        }
    }
    Ok((tally, rest))
}

/// Goes through the blocks from `first`; the time that was spent at work is the second part.
async fn sweep_range(
    sql: &Sql,
    plan: &Plan,
    proofs: &mut Proofs,
    broom: &mut Broom,
    leaf: &Leaf,
    first: u64,
    goes_on: &impl Fn() -> bool,
) -> Result<(Tally, Duration), Failure> {
    let last = first + BLOCKS as u64;
    let range = format!("{} AND o.ctid >= '({first},0)'::tid AND o.ctid < '({last},0)'::tid", leaf.rows);
    let began = Instant::now();
    let probe = plan.probe(leaf, &range, broom.older);
    let row = sql.client.query_one(&probe, &[&proofs.horizon(), &proofs.marks()]).await?;
    let [deletes, marks, waiting, staying] = [0, 1, 2, 3].map(|column| unsigned(row.get(column)));
    let mut busy = began.elapsed();
    let mut tally = Tally { waiting, staying, ..Tally::default() };
    if broom.dry {
        (tally.deleted, tally.marked) = (deletes, marks);
        return Ok((tally, busy));
    }
    for (action, mut left) in [(Action::Delete, deletes), (Action::Mark, marks)] {
        while left > 0 && goes_on() {
            let began = Instant::now();
            let done = run_batch(sql, plan, proofs, action, leaf, &range, *broom).await?;
            busy += began.elapsed();
            match action {
                Action::Delete => tally.deleted += done,
                Action::Mark => tally.marked += done,
            }
            // None: others hold the rest.
            left = if done == 0 { 0 } else { left.saturating_sub(done) };
            sleep(broom.pace.rest()).await;
        }
    }
    Ok((tally, busy))
}

async fn run_batch(
    sql: &Sql,
    plan: &Plan,
    proofs: &mut Proofs,
    action: Action,
    leaf: &Leaf,
    range: &str,
    broom: Broom,
) -> Result<u64, Failure> {
    let statement = plan.batch(action, leaf, range, broom.older, broom.batch);
    let row = sql.client.query_one(&statement, &[&proofs.horizon(), &proofs.marks()]).await?;
    let done = unsigned(row.get(0));
    if let (Action::Mark, true, Some(xid)) = (action, done > 0, row.get::<_, Option<&str>>(1)) {
        proofs.marked(super::standing::xid(xid).unwrap_or(0));
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_are_shorter_the_more_there_is_to_do() {
        let mut pace = Pace::of(Duration::from_millis(100));
        let rests: Vec<_> = (0..=450).map(|_| pace.rest().as_millis()).collect();
        assert_eq!([0, 50, 100, 450].map(|batches| rests[batches]), [100, 50, 33, 10]);
    }
}
