//! The columns that say of a row that it is processed: set by a poller, or by Postrider's clean-up. Whoever
//! reads or sets such a mark finds its column here.
//!
//! A name decides. Without one it is the first of [`USUAL`] that is a boolean or a time. Where one of them
//! holds something else (0 and 1, `sent`) it may be the poller's mark all the same: to take it for none would
//! publish again what the poller has published, so it is unclear until someone names a column.

use crate::error::{Code, Failure};
use crate::postgres::preflight::TableColumn;
use postgres_protocol::escape::escape_identifier;
use std::fmt::Display;

/// Where nobody names another.
const USUAL: [&str; 2] = ["processed", "processed_at"];

/// What a mark column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkKind {
    /// True once it is set.
    Boolean,
    /// Not null once it is set; like the others.
    Date,
    /// A time without its zone.
    Timestamp,
    /// A time.
    Timestamptz,
}

impl MarkKind {
    /// By the oid of the type, which is fixed (`pg_type.dat`).
    fn of(type_oid: u32) -> Option<MarkKind> {
        match type_oid {
            16 => Some(MarkKind::Boolean),
            1082 => Some(MarkKind::Date),
            1114 => Some(MarkKind::Timestamp),
            1184 => Some(MarkKind::Timestamptz),
            _ => None,
        }
    }
}

/// A column whose value says that a row is processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkColumn {
    /// Its name, unquoted.
    pub name: String,
    /// What it holds.
    pub kind: MarkKind,
}

/// Why a column is no mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoMark {
    /// There is no such column.
    Missing(String),
    /// It is neither a boolean nor a time.
    Unfit(String),
}

impl MarkColumn {
    /// The column of this name.
    ///
    /// # Errors
    /// It is none that can be a mark.
    pub fn named(name: &str, columns: &[TableColumn]) -> Result<MarkColumn, NoMark> {
        let Some(column) = columns.iter().find(|column| column.name == name) else {
            return Err(NoMark::Missing(name.to_owned()));
        };
        match MarkKind::of(column.type_oid) {
            Some(kind) => Ok(MarkColumn { name: name.to_owned(), kind }),
            None => Err(NoMark::Unfit(name.to_owned())),
        }
    }

    /// The column that is the mark where nobody names one.
    ///
    /// # Errors
    /// There is one of such a name, and none that can be a mark.
    pub fn usual(columns: &[TableColumn]) -> Result<Option<MarkColumn>, NoMark> {
        let mut unfit = None;
        for name in USUAL {
            match MarkColumn::named(name, columns) {
                Ok(column) => return Ok(Some(column)),
                Err(NoMark::Missing(_)) => {}
                Err(NoMark::Unfit(name)) => unfit = unfit.or(Some(NoMark::Unfit(name))),
            }
        }
        unfit.map_or(Ok(None), Err)
    }

    /// All columns of which one that is set makes a row processed: with `care`, the column of
    /// `care.mark_column`, also the usual one, for the poller's mark need not be ours.
    ///
    /// # Errors
    /// The named column cannot be a mark, or without a name the usual one.
    pub fn all(care: Option<&str>, columns: &[TableColumn]) -> Result<Vec<MarkColumn>, NoMark> {
        let usual = MarkColumn::usual(columns);
        let Some(named) = care else { return Ok(usual?.into_iter().collect()) };
        let mut all = vec![MarkColumn::named(named, columns)?];
        all.extend(usual.ok().flatten().filter(|usual| usual.name != named));
        Ok(all)
    }

    /// The condition on a row `o` for being marked in any of these columns; it is never null.
    #[must_use]
    pub fn any_is_set(columns: &[MarkColumn]) -> String {
        if columns.is_empty() {
            return "false".to_owned();
        }
        format!("({})", columns.iter().map(MarkColumn::is_set).collect::<Vec<_>>().join(" OR "))
    }

    /// The condition on a row `o` for being marked.
    #[must_use]
    pub fn is_set(&self) -> String {
        let column = escape_identifier(&self.name);
        match self.kind {
            MarkKind::Boolean => format!("o.{column} IS TRUE"),
            MarkKind::Date | MarkKind::Timestamp | MarkKind::Timestamptz => {
                format!("o.{column} IS NOT NULL")
            }
        }
    }
}

impl NoMark {
    /// It cannot be told which rows of `table` are processed. `remedy` beside naming a column.
    #[must_use]
    pub fn unclear(&self, table: &impl Display, remedy: &str) -> Failure {
        let (column, what) = match self {
            NoMark::Missing(column) => (column, "does not exist"),
            NoMark::Unfit(column) => (column, "is neither a boolean nor a time"),
        };
        Failure::new(
            Code::MarkUnclear,
            format!("column `{column}` of {table} {what}: it is unclear which rows are processed"),
            format!(
                "name a boolean that is true for processed rows, or a time that is not null: care.mark_column; {remedy}"
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[(&str, u32)]) -> Vec<TableColumn> {
        let column =
            |(name, type_oid): &(&str, u32)| TableColumn { name: (*name).into(), type_oid: *type_oid };
        columns.iter().map(column).collect()
    }

    fn names(care: Option<&str>, columns: &[(&str, u32)]) -> Result<Vec<String>, NoMark> {
        let all = MarkColumn::all(care, &table(columns))?;
        Ok(all.into_iter().map(|column| column.name).collect())
    }

    #[test]
    fn the_first_usual_column_that_can_be_a_mark_is_the_mark() {
        assert_eq!(names(None, &[("processed_at", 1184), ("processed", 16)]).unwrap(), ["processed"]);
        assert_eq!(names(None, &[("processed", 21), ("processed_at", 1114)]).unwrap(), ["processed_at"]);
        assert!(names(None, &[("id", 23)]).unwrap().is_empty());
    }

    #[test]
    fn a_usual_column_that_cannot_be_a_mark_is_not_taken_for_none() {
        let unfit = NoMark::Unfit("processed".into());
        assert_eq!(names(None, &[("processed", 21)]), Err(unfit));
    }

    #[test]
    fn a_named_mark_does_not_hide_the_pollers() {
        let columns = [("processed", 16), ("relayed_at", 1184)];
        assert_eq!(names(Some("relayed_at"), &columns).unwrap(), ["relayed_at", "processed"]);
        assert_eq!(names(Some("processed"), &columns).unwrap(), ["processed"]);
        assert_eq!(names(Some("sent"), &columns), Err(NoMark::Missing("sent".into())));
        assert_eq!(names(Some("sent"), &[("processed", 21), ("sent", 16)]).unwrap(), ["sent"]);
    }

    #[test]
    fn a_boolean_is_set_when_it_is_true_and_a_time_when_it_is_there() {
        let set = |type_oid| MarkColumn::named("Done", &table(&[("Done", type_oid)])).unwrap().is_set();
        assert_eq!((set(16), set(1082)), ("o.\"Done\" IS TRUE".into(), "o.\"Done\" IS NOT NULL".into()));
    }
}
