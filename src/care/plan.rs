//! What is to be done with this table, and what keeps it from being done.

use super::fit::{Found, fit_archive};
use super::standing;
use crate::config::{Care, Config};
use crate::error::{Code, Failure};
use crate::outbox::{Mapping, MarkColumn, MarkKind, NoMark, Resolved};
use crate::postgres::client::Sql;
use crate::postgres::preflight::Table;
use crate::relay::preflight;
use crate::state::older::Older;
use postgres_protocol::escape::escape_identifier;
use std::time::Duration;

pub(super) const DATE: u32 = 1082;
pub(super) const TIMESTAMP: u32 = 1114;
pub(super) const TIMESTAMPTZ: u32 = 1184;

/// How rows are marked.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    /// Quoted.
    pub(super) column: String,
    pub(super) value: &'static str,
    /// Which rows are not.
    pub(super) unmarked: String,
}

/// Where deleted rows go.
#[derive(Debug, Clone)]
pub(super) struct Archive {
    pub(super) table: String,
    /// Those that both have, quoted.
    pub(super) columns: Vec<String>,
    /// How many columns the outbox has.
    pub(super) of: usize,
}

/// Which partitions may go.
#[derive(Debug, Clone)]
pub(super) struct Partitions {
    /// The type of the key.
    pub(super) key_type: &'static str,
    pub(super) after: Duration,
}

/// What is to be done. Names are as SQL writes them.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) oid: u32,
    pub(super) name: String,
    /// Without the tables that inherit from it, which are not published as this one.
    pub(super) from: String,
    pub(super) partitioned: bool,
    pub(super) id: String,
    pub(super) mark: Option<Mark>,
    /// Which rows are old enough to be deleted.
    pub(super) delete: Option<String>,
    pub(super) archive: Option<Archive>,
    pub(super) partitions: Option<Partitions>,
    /// Which rows the publication sends.
    pub(super) filter: Option<String>,
    pub(super) schema: String,
    pub(super) slot: String,
}

/// All that keeps the clean-up of `config` from being done.
///
/// # Errors
/// Postgres is away, or says no.
pub async fn examine(
    sql: &Sql,
    config: &Config,
    table: &Table,
    resolved: &Resolved,
) -> Result<Vec<Failure>, Failure> {
    if !config.care.is_on() {
        return Ok(Vec::new());
    }
    Ok(draw(sql, config, table, resolved).await?.1)
}

/// The plan for the outbox as it is now, or the first thing that keeps it from being done.
pub(super) async fn of(sql: &Sql, config: &Config) -> Result<Plan, Failure> {
    let table = preflight::table(sql, config).await?;
    let resolved = preflight::columns(&Mapping::new(&config.outbox.settings(&config.nats))?, &table)?;
    let (plan, problems) = draw(sql, config, &table, &resolved).await?;
    problems.into_iter().next().map_or(Ok(plan), Err)
}

async fn draw(
    sql: &Sql,
    config: &Config,
    table: &Table,
    resolved: &Resolved,
) -> Result<(Plan, Vec<Failure>), Failure> {
    let (care, name) = (&config.care, config.outbox.table.to_string());
    let (mut problems, partitioned) = (Vec::new(), table.kind == 'p');
    let mark = care.mark.then(|| mark(care, &name, table)).transpose();
    let mark = mark.unwrap_or_else(|failure| {
        problems.push(failure);
        None
    });
    let marked = mark.as_ref().map(|(column, _)| column.as_str());
    let delete = care.delete_after.map(|after| due(after, &name, table, resolved, marked)).transpose();
    let delete = delete.unwrap_or_else(|failure| {
        problems.push(failure);
        None
    });
    let found = Found::of(sql, config, table, resolved, marked).await?;
    problems.extend(found.problems(sql, config, marked));
    let archive = match &care.archive_table {
        None => None,
        Some(archive) => match fit_archive(sql, config, table, archive).await? {
            Ok(archive) => Some(archive),
            Err(failure) => {
                problems.push(failure);
                None
            }
        },
    };
    let partitions = care.drop_partitions_after.and_then(|after| {
        let key_type = match found.key_type? {
            DATE => "date",
            TIMESTAMP => "timestamp",
            TIMESTAMPTZ => "timestamptz",
            _ => return None,
        };
        Some(Partitions { key_type, after })
    });
    if found.older == Older::Unknown {
        problems.push(standing::older_unknown(config, &escape_identifier(resolved.id_column())));
    }
    let plan = Plan {
        oid: table.oid,
        from: if partitioned { name.clone() } else { format!("ONLY {name}") },
        name,
        partitioned,
        id: escape_identifier(resolved.id_column()),
        mark: mark.map(|(_, mark)| mark),
        delete,
        archive,
        partitions,
        filter: found.filter,
        schema: config.postgres.schema.clone(),
        slot: config.postgres.slot.clone(),
    };
    Ok((plan, problems))
}

/// The type of a column; of a domain its base type.
fn type_of(table: &Table, column: &str) -> Option<u32> {
    table.columns.iter().find(|known| known.name == column).map(|known| known.type_oid)
}

/// Name of the marked column, and how it is marked.
fn mark(care: &Care, name: &str, table: &Table) -> Result<(String, Mark), Failure> {
    let found = match &care.mark_column {
        Some(column) => MarkColumn::named(column, &table.columns),
        None => MarkColumn::usual(&table.columns)
            .and_then(|found| found.ok_or_else(|| NoMark::Missing("processed_at".to_owned()))),
    };
    let unfit = |what| Failure::new(Code::CareColumns, what, "name another in care.mark_column, or add one");
    let column = found.map_err(|no_mark| match no_mark {
        NoMark::Unfit(column) => {
            unfit(format!("care.mark: column `{column}` of {name} is neither a boolean nor a time"))
        }
        NoMark::Missing(column) => unfit(format!("care.mark: {name} has no column `{column}`"))
            .sql(format!("ALTER TABLE {name} ADD COLUMN {} timestamptz;", escape_identifier(&column))),
    })?;
    let value = match column.kind {
        MarkKind::Boolean => "true",
        MarkKind::Date => "current_date",
        MarkKind::Timestamp => "localtimestamp",
        MarkKind::Timestamptz => "now()",
    };
    let unmarked = format!("NOT ({})", column.is_set());
    let quoted = escape_identifier(&column.name);
    Ok((column.name, Mark { column: quoted, value, unmarked }))
}

/// Which rows are old enough.
fn due(
    after: Duration,
    name: &str,
    table: &Table,
    resolved: &Resolved,
    marked: Option<&str>,
) -> Result<String, Failure> {
    if after.is_zero() {
        return Ok("true".to_owned());
    }
    let now = |column| match type_of(table, column)? {
        TIMESTAMPTZ => Some("now()"),
        TIMESTAMP | DATE => Some("localtimestamp"),
        _ => None,
    };
    let mut aged = [resolved.created_at_column(), marked].into_iter().flatten();
    match aged.find_map(|column| Some((column, now(column)?))) {
        Some((column, now)) => Ok(format!(
            "coalesce(o.{} < {now} - make_interval(secs => {}), false)",
            escape_identifier(column),
            after.as_secs_f64()
        )),
        None => Err(Failure::new(
            Code::CareColumns,
            format!("care.delete_after: {name} has no date or timestamp column that says how old a row is"),
            "name one in outbox.created_at, or mark rows with a timestamp (care.mark, care.mark_column), or set \
             care.delete_after = \"0s\"",
        )
        .sql(format!("ALTER TABLE {name} ADD COLUMN created_at timestamptz NOT NULL DEFAULT now();"))),
    }
}
