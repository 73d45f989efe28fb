//! `run --shadow`: what would the relay do, beside a poller that does it today?
//!
//! It reads the log through a temporary slot and a publication of its own, publishes nothing, and
//! compares: rows that the log brings with rows that the poller marks or deletes, and how long each
//! takes. NATS, `init` and a checkpoint row are not needed, and not looked at.
//!
//! It must never disturb what runs. The slot goes with its connection and is confirmed at once, so it
//! retains no WAL; the publication cannot make the poller's statements fail, and the lock for it is waited
//! for in moments, which end no autovacuum (`publication`); the table is read once, at the slot's
//! snapshot, for the ids of rows that were there before; a server whose commits would wait for us is
//! refused, and left once it becomes one.
//!
//! | file | what |
//! | --- | --- |
//! | `publication` | made, proved harmless, dropped, also after a kill |
//! | `observer` | from the slot's messages to what happened to rows; no I/O |
//! | `session` | the slot, the ids of earlier rows, the loop |
//! | `comparison` | which rows both have, and which only one; no I/O |
//! | [`Report`] | what comes of it |

mod comparison;
mod observer;
mod publication;
mod report;
mod session;

use super::{preflight, schemas};
use crate::config::Config;
use crate::error::{Code, Disposition, Failure};
use crate::outbox::MarkColumn;
use crate::postgres::client::Sql;
use crate::postgres::preflight::Table;
use comparison::Comparison;
use publication::Publication;
pub use report::{Latencies, Quantiles, Report};
use session::{Clock, Shadow};
use std::time::Duration;
use tokio::sync::watch;

/// What is asked of the shadow.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the poller may take before a row that it has not processed is missing.
    pub grace: Duration,
    /// End after so long.
    pub lasts: Option<Duration>,
    /// End once so many events are compared.
    pub count: Option<u64>,
    /// The column that the poller marks.
    pub mark_column: Option<String>,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// What was seen until then.
    pub report: Report,
    /// What ended it before its time, and what it could not take away behind it.
    pub failures: Vec<Failure>,
}

/// Watches until asked to stop, or until there is enough. `progress` hears of it once a second.
///
/// # Errors
/// It cannot begin.
pub async fn watch(
    config: &Config,
    options: &Options,
    mut stop: watch::Receiver<bool>,
    progress: impl FnMut(&Report),
) -> Result<Ended, Failure> {
    let mapping = schemas::mapping(config)?;
    let sql = Sql::connect_any(&config.postgres.database.resolve()?).await?;
    preflight::server(&sql).await?;
    commits_do_not_wait(&sql).await?;
    let table = preflight::table(&sql, config).await?;
    let resolved = preflight::columns(&mapping, &table)?;
    let marks = mark_columns(config, options, &table)?;
    let mut comparison = Comparison::new(options.grace)
        .map_err(|error| Failure::new(Code::Unexpected, format!("no histogram: {error}"), "report it"))?;
    comparison.goes_by(&marks);
    let publication = Publication::make(&sql, config, &table, &marks).await?;
    let shadow = Shadow { config, options, sql: &sql, publication: &publication, clock: Clock::default() };
    let watched = shadow.watch(&table, resolved, marks, &mut comparison, &mut stop, progress).await;
    let watched = watched.map_err(begin_again);
    let report = comparison.judge();
    let dropped = publication.drop(&sql, config).await;
    Ok(Ended { report, failures: [watched, dropped].into_iter().filter_map(Result::err).collect() })
}

/// What the relay would try again ends the shadow, whose slot is gone.
fn begin_again(mut failure: Failure) -> Failure {
    if failure.code.disposition() == Disposition::Retry {
        failure.remedy = "begin again: postrider run --shadow".into();
    }
    failure
}

/// A shadow that Postgres takes for a synchronous standby would hold up every commit.
async fn commits_do_not_wait(sql: &Sql) -> Result<(), Failure> {
    let names = sql.client.query_one("SELECT current_setting('synchronous_standby_names')", &[]).await?;
    let (names, us): (String, _) = (names.get(0), &sql.target.application_name);
    if !preflight::counts_as_standby(&names, us) {
        return Ok(());
    }
    Err(Failure::new(
        Code::ShadowUnsafe,
        format!(
            "synchronous_standby_names = `{names}` counts the shadow as a standby: commits would wait for it"
        ),
        format!("name the standbys one by one, without `*` and `{us}`, in synchronous_standby_names"),
    ))
}

/// The columns that the poller may mark; none where it deletes.
fn mark_columns(config: &Config, options: &Options, table: &Table) -> Result<Vec<MarkColumn>, Failure> {
    let found = match &options.mark_column {
        Some(named) => MarkColumn::named(named, &table.columns).map(|column| vec![column]),
        None => MarkColumn::all(config.care.mark_column.as_deref(), &table.columns),
    };
    found.map_err(|no_mark| {
        no_mark.unclear(
            &config.outbox.table,
            "or --mark-column; postrider explain PR0117 tells what to do where there is none",
        )
    })
}
