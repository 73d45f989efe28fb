//! The size of the outbox, and the dead rows that vacuum has left in it.

use crate::config::Config;
use crate::error::{Code, Failure};
use crate::postgres::client::Sql;
use bytesize::ByteSize;

/// Below this nobody minds.
const LARGE: u64 = 1 << 30;

/// So many dead rows are a vacuum's work of seconds, not a sign of anything.
const DEAD_MIN: u64 = 100_000;

/// So many statements are printed.
const PASTED_MAX: usize = 20;

/// The table with its partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extent {
    /// With indexes and TOAST.
    pub bytes: u64,
    /// As the statistics have them.
    pub live: u64,
    /// Versions that vacuum has not removed.
    pub dead: u64,
    /// Itself or its partitions, as SQL names them, where autovacuum has no threshold of their own.
    pub untuned: Vec<String>,
}

/// Measures it; none when there is no such table.
///
/// # Errors
/// Postgres says no or is away.
pub async fn extent(sql: &Sql, table: u32) -> Result<Extent, Failure> {
    let query = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint, \
        coalesce(sum(pg_stat_get_live_tuples(c.oid)), 0)::bigint, coalesce(sum(pg_stat_get_dead_tuples(c.oid)), 0)::bigint, \
        array_remove(array_agg(CASE WHEN array_to_string(c.reloptions, ',') LIKE '%autovacuum_vacuum_scale_factor=%' \
        THEN NULL ELSE format('%s.%I', c.relnamespace::regnamespace, c.relname) END ORDER BY c.oid), NULL) FROM pg_class c WHERE c.relkind = 'r' AND c.oid IN \
        (SELECT $1 UNION SELECT relid::oid FROM pg_partition_tree($1::oid::regclass))";
    let row = sql.client.query_one(query, &[&table]).await?;
    let [bytes, live, dead] = [0, 1, 2].map(|column| super::unsigned(row.get(column)));
    let untuned = row.get::<_, Option<Vec<String>>>(3).unwrap_or_default();
    Ok(Extent { bytes, live, dead, untuned })
}

impl Extent {
    /// The table is large, where nothing of `config` keeps it small or that does not suffice.
    #[must_use]
    pub fn is_large(&self, config: &Config) -> Option<Failure> {
        if self.bytes < LARGE {
            return None;
        }
        let removes = config.care.delete_after.is_some() || config.care.drop_partitions_after.is_some();
        let remedy = match removes {
            false => "let care.delete_after or care.drop_partitions_after remove what is stored",
            true => {
                "remove rows sooner (care.delete_after), or faster (care.batch, care.pace); postrider prune --dry-run \
                 says what is due; VACUUM FULL gives the space back, and stops the writers meanwhile"
            }
        };
        let what =
            format!("{} holds {} in about {} rows", config.outbox.table, ByteSize(self.bytes), self.live);
        Some(Failure::new(Code::OutboxLarge, what, remedy))
    }

    /// Vacuum does not keep up.
    #[must_use]
    pub fn is_bloated(&self, config: &Config) -> Option<Failure> {
        if self.dead < DEAD_MIN.max(self.live.saturating_mul(2)) {
            return None;
        }
        let name = &config.outbox.table;
        let what = format!("{name} has {} dead rows beside {} live ones", self.dead, self.live);
        let remedy = "vacuum it by count (on each partition), and look for what keeps vacuum from removing them: old \
            transactions, forgotten slots and prepared transactions (sql/monitor.sql)";
        Some(self.tuning(Failure::new(Code::VacuumLags, what, remedy)).sql(format!("VACUUM {name};")))
    }

    /// Care leaves dead rows, and vacuum waits for a fifth of the table.
    #[must_use]
    pub fn is_untuned(&self, config: &Config) -> Option<Failure> {
        if self.untuned.is_empty() || !config.care.is_on() {
            return None;
        }
        let what = format!(
            "{} is vacuumed by the server's defaults, which wait for a fifth of its rows",
            config.outbox.table
        );
        let remedy = "vacuum it by count (on a partitioned table: on each partition)";
        Some(self.tuning(Failure::new(Code::VacuumLags, what, remedy)))
    }

    fn tuning(&self, failure: Failure) -> Failure {
        self.untuned.iter().take(PASTED_MAX).fold(failure, |failure, table| failure.sql(settings(table)))
    }
}

/// What we recommend for a table whose rows come and go.
#[must_use]
pub fn settings(table: &str) -> String {
    format!(
        "ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, \
         autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn config() -> Config {
        let flags = ["postgres.url", "nats.url"].into_iter().zip(["postgres://u@h/d", "nats://h"]);
        let flags = flags.fold(crate::config::Flags::default(), |flags, (key, text)| {
            flags.with(crate::config::keys::find(key).unwrap(), text)
        });
        crate::config::Loaded::from(&flags, &crate::config::Environment::default()).config.unwrap()
    }

    #[test]
    fn size_and_dead_rows_are_told_from_where_they_matter() {
        let config = config();
        let extent = |bytes, live, dead| Extent { bytes, live, dead, untuned: vec!["public.outbox".into()] };
        assert!(extent(GIB, 1, 0).is_large(&config).is_some_and(|told| told.code.as_str() == "PR0640"));
        assert!(extent(GIB - 1, 1, 0).is_large(&config).is_none());
        assert!(extent(0, 1, 100_000).is_bloated(&config).is_some_and(|told| told.code == Code::VacuumLags));
        assert!(extent(0, 1, 99_999).is_bloated(&config).is_none());
        assert!(extent(0, 1_000_000, 1_999_999).is_bloated(&config).is_none());
        assert!(extent(0, 1, 0).is_untuned(&config).is_none(), "nothing of ours leaves dead rows");
    }
}
