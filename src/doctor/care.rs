//! Clean-up of the outbox, and what becomes of a table that has none.

use super::Report;
use crate::care::{self, watch};
use crate::config::Config;
use crate::outbox::Resolved;
use crate::postgres::client::Sql;
use crate::postgres::preflight::Table;

/// Whether the clean-up that is configured can be done, and how large the table is.
pub(super) async fn examine(
    sql: &Sql,
    config: &Config,
    table: &Table,
    resolved: &Resolved,
    report: &mut Report,
) {
    let problems = report.told(care::examine(sql, config, table, resolved).await);
    let sound = config.care.is_on() && problems.as_ref().is_some_and(Vec::is_empty);
    problems.into_iter().flatten().for_each(|failure| report.error(failure));
    if sound {
        report.sound("clean-up");
    }
    let Some(extent) = report.told(watch::extent(sql, table.oid).await) else { return };
    let bloated = extent.is_bloated(config);
    let untuned = extent.is_untuned(config).filter(|_| bloated.is_none());
    for failure in [extent.is_large(config), bloated, untuned].into_iter().flatten() {
        report.advice(failure);
    }
}
