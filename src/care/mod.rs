//! Clean-up of the outbox: rows are marked, deleted, archived, partitions dropped, behind a proof.
//!
//! # The proof
//!
//! A *witness* is a pair: the oldest transaction that was running in a snapshot (its `xmin`, the
//! *horizon*), and the end of the WAL, read **after** the snapshot was taken. Every transaction below the
//! horizon had ended by then, and where it committed, its commit record lies before that LSN: the record
//! is written before the transaction leaves the list of running ones, flushed or not (so with
//! `synchronous_commit = off` the insert position is right, and the flush position would be wrong). When
//! the slot is *confirmed* past the LSN, every event before it is stored, or a letter. So a row that is
//! visible, and whose version was written by a transaction below the horizon, is proved.
//!
//! * Only the horizon counts, not what else the snapshot saw: a row may carry a subtransaction's id, which
//!   no snapshot lists, but which is never below the id of its transaction.
//! * An UPDATE gives a row a younger version, which only delays its proof. The transactions that mark are
//!   remembered, so that deleting does not wait for a proof of the marks; what triggers inserted there is not marked.
//! * Transaction ids come round. A row's 32 bits are taken for the youngest id that they can be: what then
//!   lies below the horizon does so in truth.
//! * A witness lives as long as the connection that it was taken on. A crash can take commits, and give
//!   their transaction ids out anew; a failover likewise. Both end the connection.
//! * What never came through the slot is proved by none of this, and is left alone: rows that are older
//!   than the slot ([`state::older`](crate::state::older)), rows that a table had before it was attached
//!   as a partition, rows that the publication's filter leaves to others. So are rows with an open letter. Those
//!   that were attached are told by transaction ids, which a later UPDATE renews: docs/table.md says how to list them.
//!
//! Considered and left: remembering the ids that a snapshot saw, which takes memory by the row or works at
//! a batch a hold-back; holding the snapshot open, which keeps vacuum from its work.
//!
//! | file | what |
//! | --- | --- |
//! | `proof` | witnesses, and what they prove; no I/O |
//! | `plan` | what is to be done with this table, or what keeps it from being done |
//! | `fit` | what the catalogues say of it |
//! | `rows` | the statements that look at rows, mark and delete them |
//! | `partitions` | dropping partitions |
//! | `standing` | what slot and checkpoint row say; taking witnesses |
//! | `keeper` | beside a relay, on a thread and a connection of its own |
//! | `prune` | once, by hand |
//! | [`watch`] | size and dead rows |

mod fit;
mod keeper;
mod partitions;
mod plan;
mod proof;
mod prune;
mod rows;
mod standing;
pub mod watch;

pub use fit::grants;
pub use keeper::{Wanted, start};
pub use plan::examine;
pub use prune::{Pruned, Scope, prune};

use crate::error::Failure;
use crate::postgres::client::Sql;

/// What one pass has done, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows that were marked.
    pub marked: u64,
    /// Rows that were deleted, archived ones among them.
    pub deleted: u64,
    /// Partitions that were dropped.
    pub dropped: Vec<String>,
    /// Rows that are due and not proved yet.
    pub waiting: u64,
    /// Rows that are due and are not to be touched: letters are open, or they never came through the slot.
    pub staying: u64,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.marked += other.marked;
        self.deleted += other.deleted;
        self.dropped.extend(other.dropped);
        self.waiting += other.waiting;
        self.staying += other.staying;
    }

    fn has_changed_anything(&self) -> bool {
        self.marked + self.deleted > 0 || !self.dropped.is_empty()
    }
}

/// Values print as pgoutput prints them; policies that hide rows are errors; nothing waits long for a
/// lock; triggers of the table find what they find under the role's own search path; a statement of
/// milliseconds is not compiled for seconds. Losing the last commits in a crash only means to do them again.
async fn settle_in(sql: &Sql) -> Result<(), Failure> {
    let settings = "SET DateStyle = ISO; SET IntervalStyle = postgres; SET extra_float_digits = 3; \
        SET bytea_output = hex; SET row_security = off; SET jit = off; SET lock_timeout = '1s'; SET synchronous_commit = off; \
        SELECT set_config('search_path', 'pg_catalog, ' || reset_val, false) FROM pg_settings WHERE name = 'search_path'";
    Ok(sql.client.batch_execute(settings).await?)
}

/// Counts are not negative.
fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
