//! The statements that look at rows, mark them and delete them.
//!
//! A table is gone through by ranges of blocks, so that one statement is short however large the table is,
//! and needs no index. A batch locks what it picks and passes over what others hold.

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
const BLOCKS: u64 = 1024;

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

    /// Rows that are ours to touch, proved or not.
    pub(super) fn free(&self, older: Older) -> String {
        let id = format!("btrim(format('%s', o.{}), {TRIMMED})", self.id);
        let mut free = format!(
            "o.{} IS NOT NULL AND NOT EXISTS (SELECT FROM {} AS l WHERE l.resolved_at IS NULL \
             AND btrim(l.event_id, {TRIMMED}) = {id} AND l.slot IN (SELECT slot FROM {} WHERE table_oid = {}))",
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
            // What a table held when it was attached was never sent.
            free.push_str(&format!(
                " AND ({}, o.cmin::text::bigint) > (SELECT {}, i.cmin::text::bigint FROM pg_inherits AS i \
                 WHERE i.inhrelid = o.tableoid)",
                whole("o.xmin"),
                whole("i.xmin")
            ));
        }
        if let Some(filter) = &self.filter {
            free.push_str(&format!(" AND ({filter})"));
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

    fn probe(&self, range: &str, older: Older) -> String {
        let (delete, mark) = (self.due(Action::Delete), self.due(Action::Mark));
        format!(
            "SELECT count(*) FILTER (WHERE d AND p AND f), count(*) FILTER (WHERE NOT d AND p AND f), \
             count(*) FILTER (WHERE NOT p AND f) FROM (SELECT {delete} AS d, ({}) AS p, ({}) AS f FROM {} AS o \
             WHERE {range} AND ({delete} OR {mark})) AS due",
            self.proved(),
            self.free(older),
            self.from
        )
    }

    fn batch(&self, action: Action, range: &str, older: Older, batch: usize) -> String {
        // A column that was added since would be lost.
        let whole = self.archive.as_ref().map_or_else(String::new, |archive| {
            format!(
                " AND (SELECT count(*) FROM pg_attribute WHERE attrelid = {} AND attnum > 0 AND NOT attisdropped) = {}",
                self.oid, archive.of
            )
        });
        let picked = format!(
            "WITH picked AS (SELECT o.tableoid AS t, o.ctid AS c FROM {} AS o WHERE {range} AND {} AND {} AND {}{whole} \
             LIMIT {batch} FOR UPDATE OF o SKIP LOCKED)",
            self.from,
            self.due(action),
            self.proved(),
            self.free(older)
        );
        let same = "WHERE o.tableoid = picked.t AND o.ctid = picked.c";
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

    /// Blocks of the table, or of its largest partition.
    async fn blocks(&self, sql: &Sql) -> Result<u64, Failure> {
        let query = "SELECT coalesce(max(pg_relation_size(relid)), 0) / current_setting('block_size')::bigint \
            FROM (SELECT $1::oid::regclass AS relid UNION SELECT relid FROM pg_partition_tree($1::oid::regclass) \
            WHERE isleaf) AS leaf";
        let row = sql.client.query_one(query, &[&self.oid]).await?;
        Ok(unsigned(row.get(0)))
    }
}

/// What a sweep may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Broom {
    pub(super) older: Older,
    pub(super) batch: usize,
    pub(super) pace: Duration,
    pub(super) dry: bool,
}

/// Goes through the whole table once. `goes_on` is asked between two statements; the time that was spent
/// at work is the second part.
pub(super) async fn sweep(
    sql: &Sql,
    plan: &Plan,
    proofs: &mut Proofs,
    broom: Broom,
    goes_on: impl Fn() -> bool,
) -> Result<(Tally, Duration), Failure> {
    let (mut tally, mut busy) = (Tally::default(), Duration::ZERO);
    if plan.mark.is_none() && plan.delete.is_none() {
        return Ok((tally, busy));
    }
    let blocks = plan.blocks(sql).await?;
    for first in (0..=blocks).step_by(usize::try_from(BLOCKS).unwrap_or(usize::MAX)) {
        let last = first + BLOCKS;
        let range = format!("o.ctid >= '({first},0)'::tid AND o.ctid < '({last},0)'::tid");
        let began = Instant::now();
        let (horizon, marks) = (proofs.horizon(), proofs.marks());
        let probe = plan.probe(&range, broom.older);
        let row = sql.client.query_one(&probe, &[&horizon, &marks]).await?;
        let [deletes, marks, waiting] = [0, 1, 2].map(|column| unsigned(row.get(column)));
        busy += began.elapsed();
        tally.waiting += waiting;
        if broom.dry {
            (tally.deleted, tally.marked) = (tally.deleted + deletes, tally.marked + marks);
            continue;
        }
        for (action, mut left) in [(Action::Delete, deletes), (Action::Mark, marks)] {
            while left > 0 && goes_on() {
                let began = Instant::now();
                let done = run_batch(sql, plan, proofs, action, &range, broom).await?;
                busy += began.elapsed();
                match action {
                    Action::Delete => tally.deleted += done,
                    Action::Mark => tally.marked += done,
                }
                // None: others hold the rest.
                left = if done == 0 { 0 } else { left.saturating_sub(done) };
                sleep(broom.pace).await;
            }
        }
        if !goes_on() {
            break;
        }
    }
    Ok((tally, busy))
}

async fn run_batch(
    sql: &Sql,
    plan: &Plan,
    proofs: &mut Proofs,
    action: Action,
    range: &str,
    broom: Broom,
) -> Result<u64, Failure> {
    let statement = plan.batch(action, range, broom.older, broom.batch);
    let row = sql.client.query_one(&statement, &[&proofs.horizon(), &proofs.marks()]).await?;
    let done = unsigned(row.get(0));
    if let (Action::Mark, true, Some(xid)) = (action, done > 0, row.get::<_, Option<&str>>(1)) {
        proofs.marked(super::standing::xid(xid).unwrap_or(0));
    }
    Ok(done)
}
