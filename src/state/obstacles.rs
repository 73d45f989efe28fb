//! What keeps rows from being published though servers, slot and stream are sound, as Postgres shows it:
//! nobody has committed them, they are written elsewhere, filtered out, or each becomes a dead letter.
//!
//! Looked at beside the loop, each ten seconds. A server that refuses a question (a managed one may hide a
//! view) hides an explanation, and stops nothing.

use super::{dead_letter, survey};
use crate::config::Config;
use crate::error::Failure;
use crate::postgres::client::Sql;
use crate::postgres::error::Error;
use crate::postgres::preflight::unless_locked;
use std::time::Duration;
use tracing::debug;

/// See the module. None: there is none, or the role may not see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Obstacles {
    /// The outbox, and where it is.
    pub outbox: String,
    /// The oldest transaction that has written to the outbox and is open.
    pub writer: Option<Writer>,
    /// Commits that wait for a synchronous standby.
    pub commits_waiting: u64,
    /// `synchronous_standby_names`.
    pub standbys: String,
    /// The publication sends only these rows.
    pub row_filter: Option<String>,
    /// Who reads the slot, where it calls itself otherwise than we do.
    pub stranger: Option<Client>,
    /// Rows that were ever inserted into the outbox, as the statistics have it.
    pub inserted: Option<u64>,
    /// Rows that are there, as the statistics have it.
    pub rows: u64,
    /// Tables of the same name in other schemas.
    pub namesakes: Vec<String>,
    /// Code and error of the newest open dead letter.
    pub newest_letter: Option<(String, String)>,
}

/// Someone who is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its backend.
    pub pid: i32,
    /// Its `application_name`, and its user.
    pub name: String,
}

/// A transaction that has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writer {
    /// Of a session.
    Session(Client, Duration),
    /// Prepared, under this name.
    Prepared(String, Duration),
}

/// Looks.
///
/// # Errors
/// The connection breaks.
pub async fn read(sql: &Sql, config: &Config) -> Result<Obstacles, Failure> {
    match look(sql, config).await {
        Ok(obstacles) => Ok(obstacles),
        Err(Error::Server(refused)) => {
            debug!(%refused, "what keeps rows from being published is not seen");
            Ok(Obstacles::default())
        }
        Err(error) => Err(error.into()),
    }
}

async fn look(sql: &Sql, config: &Config) -> Result<Obstacles, Error> {
    let (table, slot) = (&config.outbox.table, &config.postgres.slot);
    let facts = "WITH RECURSIVE tree (oid) AS ( \
           SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname = $1 AND c.relname = $2 \
           UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid) \
         SELECT current_database()::text, sum(pg_stat_get_tuples_inserted(oid))::bigint, \
         sum(pg_stat_get_live_tuples(oid))::bigint, \
         (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'), \
         current_setting('synchronous_standby_names'), \
         ARRAY(SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c \
          JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = $2 AND n.nspname <> $1 \
          AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' ORDER BY 1 LIMIT 3) FROM tree";
    let row = sql.client.query_one(facts, &[&table.schema, &table.name]).await?;
    let unsigned =
        |column: usize| row.get::<_, Option<i64>>(column).and_then(|count| u64::try_from(count).ok());
    let letter = dead_letter::newest_open(sql, &config.postgres.schema, slot).await;
    Ok(Obstacles {
        outbox: format!("{table} of database `{}` at {}", row.get::<_, String>(0), sql.host),
        writer: writer(sql, &table.schema, &table.name).await?,
        commits_waiting: unsigned(3).unwrap_or(0),
        standbys: row.get(4),
        row_filter: row_filter(sql, config).await?,
        stranger: stranger(sql, slot).await?,
        inserted: unsigned(1),
        rows: unsigned(2).unwrap_or(0),
        namesakes: row.get(5),
        // Without the table there is none.
        newest_letter: survey::of_schema(letter).ok().flatten().flatten(),
    })
}

/// Behind a lock that keeps all others out it waits for a moment only.
async fn row_filter(sql: &Sql, config: &Config) -> Result<Option<String>, Error> {
    let (table, publication) = (&config.outbox.table, &config.postgres.publication);
    let query = "WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', '200ms', true) AS is_set) \
         SELECT to_jsonb(t)->>'rowfilter' FROM patience CROSS JOIN LATERAL ( \
         SELECT * FROM pg_publication_tables WHERE patience.is_set IS NOT NULL \
         AND pubname = $3 AND schemaname = $1 AND tablename = $2) t";
    let asked = sql.client.query_opt(query, &[&table.schema, &table.name, publication]).await;
    Ok(unless_locked(asked)?.flatten().and_then(|row| row.get(0)))
}

/// A lock that only writers of the table take; everyone may see it. Ours are clean-up's.
async fn writer(sql: &Sql, schema: &str, table: &str) -> Result<Option<Writer>, Error> {
    let query = "SELECT l.pid, coalesce(nullif(a.application_name, ''), '?') || ', user ' || coalesce(a.usename, '?'), \
         p.gid, extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8 AS age \
         FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_database d ON d.oid = l.database AND d.datname = current_database() \
         LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
         LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid' \
         AND x.virtualtransaction = l.virtualtransaction \
         LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid \
         WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted \
         AND n.nspname = $1 AND c.relname = $2 \
         AND a.application_name IS DISTINCT FROM current_setting('application_name') \
         ORDER BY age DESC NULLS LAST LIMIT 1";
    let Some(row) = sql.client.query_opt(query, &[&schema, &table]).await? else { return Ok(None) };
    let Some(age) = row.get::<_, Option<f64>>(3) else { return Ok(None) };
    let age = Duration::from_secs_f64(age.clamp(0.0, 1e9));
    let session = row.get::<_, Option<i32>>(0).map(|pid| Client { pid, name: row.get(1) });
    let prepared = || row.get::<_, Option<String>>(2).map(|gid| Writer::Prepared(gid, age));
    Ok(session.map(|client| Writer::Session(client, age)).or_else(prepared))
}

async fn stranger(sql: &Sql, slot: &str) -> Result<Option<Client>, Error> {
    let query = "SELECT s.active_pid, coalesce(nullif(a.application_name, ''), '?') || ', user ' || coalesce(a.usename, '?') \
         FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid \
         WHERE s.slot_name = $1 AND a.application_name <> current_setting('application_name')";
    let row = sql.client.query_opt(query, &[&slot]).await?;
    Ok(row.map(|row| Client { pid: row.get(0), name: row.get(1) }))
}
