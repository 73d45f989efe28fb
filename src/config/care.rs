//! What happens to outbox rows whose events are stored.

use super::TableName;
use super::build::Reader;
use super::value;
use crate::error::{Code, Failure};
use std::time::Duration;

/// A batch is one short transaction.
const BATCH_MAX: usize = 100_000;

/// `[care]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Care {
    /// Rows are marked.
    pub mark: bool,
    /// The column that is set, and whose value says that a row is processed; none: the usual one.
    pub mark_column: Option<String>,
    /// Rows of this age are deleted.
    pub delete_after: Option<Duration>,
    /// Where deleted rows go.
    pub archive_table: Option<TableName>,
    /// Partitions whose time is so long past are dropped.
    pub drop_partitions_after: Option<Duration>,
    /// Rows of one transaction.
    pub batch: usize,
    /// A rest after each of them.
    pub pace: Duration,
}

impl Care {
    /// Whether any row is touched at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.mark || self.delete_after.is_some() || self.drop_partitions_after.is_some()
    }
}

pub(super) fn care(read: &mut Reader<'_>, outbox: Option<&TableName>) -> Option<Care> {
    let mark = read.required("care.mark", value::boolean);
    let mark_column = read.optional("care.mark_column", value::identifier);
    let delete_after = read.required("care.delete_after", value::or_off(value::duration));
    let archive_table = read.required("care.archive_table", value::or_off(str::parse::<TableName>));
    let drop_partitions_after = read.required("care.drop_partitions_after", value::or_off(value::duration));
    let batch = read.required("care.batch", value::integer(1, BATCH_MAX));
    let pace = read.required("care.pace", value::duration);
    let care = Care {
        mark: mark?,
        mark_column: mark_column?,
        delete_after: delete_after?,
        archive_table: archive_table?,
        drop_partitions_after: drop_partitions_after?,
        batch: batch?,
        pace: pace?,
    };
    let conflict = match &care {
        Care { archive_table: Some(_), delete_after: None, .. } => Some((
            "care.archive_table says where deleted rows go, and none are deleted",
            "set care.delete_after, like \"7d\"",
        )),
        Care { archive_table: Some(_), drop_partitions_after: Some(_), .. } => Some((
            "care.drop_partitions_after drops rows that care.archive_table would keep",
            "choose one of them",
        )),
        Care { archive_table, .. } if archive_table.is_some() && archive_table.as_ref() == outbox => {
            Some(("care.archive_table is the outbox itself", "name another table"))
        }
        _ => None,
    };
    match conflict {
        None => Some(care),
        Some((message, remedy)) => {
            read.problems.push(Failure::new(Code::CareConflict, message, remedy));
            None
        }
    }
}
