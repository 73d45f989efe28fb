//! What the server and its catalogues say before a slot is streamed. Only questions; what an answer
//! means for an outbox is decided elsewhere.

use super::client::Sql;
use super::connection::Connection;
use super::error::Error;
use super::lsn::Lsn;
use super::snapshot::Snapshot;
use super::timestamp::Timestamp;
use tokio_postgres::types::ToSql;

/// The server.
#[derive(Debug, Clone)]
pub struct Server {
    /// 140000 …
    pub version_num: i32,
    /// As it prints itself: `18.6`.
    pub version: String,
    /// `logical` is wanted.
    pub wal_level: String,
    /// The database's encoding.
    pub encoding: String,
    /// The role may open a replication connection.
    pub may_replicate: bool,
    /// The role.
    pub role: String,
    /// Who runs it.
    pub service: Service,
}

/// Who runs the server, and so how its settings are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Nobody whom we know: there is a superuser.
    Own,
    /// Amazon RDS and Aurora.
    Rds,
    /// Google Cloud SQL.
    CloudSql,
    /// Azure Database for PostgreSQL.
    Azure,
    /// Supabase.
    Supabase,
    /// Neon.
    Neon,
}

impl Service {
    /// How a setting is changed there.
    #[must_use]
    pub fn remedy(self, setting: &str, value: &str, restarts: bool) -> String {
        let wal_level = setting == "wal_level";
        let then = if restarts { ", then restart Postgres" } else { "" };
        match self {
            Service::Own if restarts => format!("set {setting} = {value}{then} (a reload is not enough)"),
            Service::Own => format!("set {setting} = {value}"),
            Service::Rds if wal_level => {
                "set rds.logical_replication = 1 in the parameter group (Aurora: of the cluster), then reboot".to_owned()
            }
            Service::Rds => format!("set {setting} = {value} in the parameter group{}", if restarts { ", then reboot" } else { "" }),
            Service::CloudSql if wal_level => {
                "set the flag cloudsql.logical_decoding = on (gcloud sql instances patch …), which restarts the instance"
                    .to_owned()
            }
            Service::CloudSql => format!("set the flag {setting} = {value} (gcloud sql instances patch …)"),
            Service::Azure => format!("set {setting} = {value} under Server parameters{then}"),
            Service::Supabase => format!("supabase postgres-config update --config {setting}={value}"),
            Service::Neon if wal_level => {
                "enable logical replication in the project's settings (it stays on)".to_owned()
            }
            Service::Neon => format!("ask Neon's support for {setting} = {value}"),
        }
    }
}

/// Asks the server about itself and the role.
///
/// # Errors
/// The connection breaks.
pub async fn server(sql: &Sql) -> Result<Server, Error> {
    let row = sql
        .client
        .query_one(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
             current_setting('wal_level'), pg_encoding_to_char(d.encoding), \
             r.rolreplication OR r.rolsuper OR EXISTS (SELECT FROM pg_roles s \
             WHERE s.rolname IN ('rds_replication', 'rds_superuser') AND pg_has_role(s.oid, 'member')), \
             current_user::text, CASE \
             WHEN EXISTS (SELECT FROM pg_settings WHERE name LIKE 'neon.%') THEN 'neon' \
             WHEN EXISTS (SELECT FROM pg_settings WHERE name LIKE 'rds.%') THEN 'rds' \
             WHEN EXISTS (SELECT FROM pg_settings WHERE name LIKE 'cloudsql.%') THEN 'cloudsql' \
             WHEN EXISTS (SELECT FROM pg_settings WHERE name LIKE 'azure.%') THEN 'azure' \
             WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = 'supabase_admin') THEN 'supabase' ELSE '' END \
             FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user",
            &[],
        )
        .await?;
    Ok(Server {
        version_num: row.get(0),
        version: row.get(1),
        wal_level: row.get(2),
        encoding: row.get(3),
        may_replicate: row.get(4),
        role: row.get(5),
        service: match row.get(6) {
            "neon" => Service::Neon,
            "rds" => Service::Rds,
            "cloudsql" => Service::CloudSql,
            "azure" => Service::Azure,
            "supabase" => Service::Supabase,
            _ => Service::Own,
        },
    })
}

/// A table as the catalogue has it.
#[derive(Debug, Clone)]
pub struct Table {
    /// `pg_class.oid`.
    pub oid: u32,
    /// `r` table, `p` partitioned, `v` view, `m`, `f`.
    pub kind: char,
    /// `p` permanent, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// In order, without dropped ones.
    pub columns: Vec<TableColumn>,
}

/// One of its columns.
#[derive(Debug, Clone)]
pub struct TableColumn {
    /// Its name.
    pub name: String,
    /// Its type; of a domain the base type.
    pub type_oid: u32,
}

/// Looks a table up; none when there is none.
///
/// # Errors
/// The connection breaks.
pub async fn table(sql: &Sql, schema: &str, name: &str) -> Result<Option<Table>, Error> {
    let found = sql
        .client
        .query_opt(
            "SELECT c.oid, c.relkind::text, c.relpersistence::text FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2",
            &[&schema, &name],
        )
        .await?;
    let Some(found) = found else { return Ok(None) };
    let oid: u32 = found.get(0);
    let columns = sql
        .client
        .query(
            "WITH RECURSIVE base (attnum, attname, oid, typtype, typbasetype) AS ( \
               SELECT a.attnum, a.attname, t.oid, t.typtype, t.typbasetype \
               FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
               WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped \
             UNION ALL \
               SELECT b.attnum, b.attname, t.oid, t.typtype, t.typbasetype \
               FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd') \
             SELECT attname::text, oid FROM base WHERE typtype <> 'd' ORDER BY attnum",
            &[&oid],
        )
        .await?;
    let letter = |column: usize| found.get::<_, String>(column).chars().next().unwrap_or(' ');
    Ok(Some(Table {
        oid,
        kind: letter(1),
        persistence: letter(2),
        columns: columns.iter().map(|row| TableColumn { name: row.get(0), type_oid: row.get(1) }).collect(),
    }))
}

/// Which of `privileges` the role lacks on `table`, which is written as SQL writes it; None when it
/// does not exist.
///
/// # Errors
/// The connection breaks, or the role may not use the table's schema.
pub async fn missing_privileges(
    sql: &Sql,
    table: &str,
    privileges: &[&'static str],
) -> Result<Option<Vec<String>>, Error> {
    let row = sql
        .client
        .query_one(
            "SELECT to_regclass($1) IS NOT NULL, ARRAY(SELECT p FROM unnest($2::text[]) p \
             WHERE NOT has_table_privilege(to_regclass($1)::oid, p))",
            &[&table, &privileges],
        )
        .await?;
    Ok(row.get::<_, bool>(0).then(|| row.get(1)))
}

/// A publication, and how it has one table.
#[derive(Debug, Clone)]
pub struct Publication {
    /// `pg_publication.oid`.
    pub oid: u32,
    /// It publishes inserts.
    pub inserts: bool,
    /// It publishes something else too.
    pub more: bool,
    /// Partitions' rows come as the root's.
    pub via_root: bool,
    /// `pg_publication_rel.oid`; 0 when it has the table otherwise.
    pub membership: u32,
    /// It has the table, in whichever way.
    pub has_table: bool,
    /// It has other tables too.
    pub has_others: bool,
    /// The columns that it publishes, where it has a list (15+).
    pub columns: Option<Vec<String>>,
    /// Its row filter (15+).
    pub row_filter: Option<String>,
}

/// Looks a publication up; none when there is none.
///
/// # Errors
/// The connection breaks.
pub async fn publication(
    sql: &Sql,
    name: &str,
    schema: &str,
    table: &str,
) -> Result<Option<Publication>, Error> {
    let row = sql
        .client
        .query_opt(
            "SELECT p.oid, p.pubinsert, p.pubupdate OR p.pubdelete OR p.pubtruncate, p.pubviaroot, \
             (SELECT r.oid FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid \
              JOIN pg_namespace n ON n.oid = c.relnamespace \
              WHERE r.prpubid = p.oid AND n.nspname = $2 AND c.relname = $3), \
             t.tablename IS NOT NULL, \
             ARRAY(SELECT jsonb_array_elements_text(to_jsonb(t)->'attnames')), \
             to_jsonb(t)->>'rowfilter', EXISTS (SELECT FROM pg_publication_tables o WHERE o.pubname = p.pubname \
             AND (o.schemaname, o.tablename) <> ($2, $3)) \
             FROM pg_publication p LEFT JOIN pg_publication_tables t \
             ON t.pubname = p.pubname AND t.schemaname = $2 AND t.tablename = $3 WHERE p.pubname = $1",
            &[&name, &schema, &table],
        )
        .await?;
    Ok(row.map(|row| {
        let columns: Vec<String> = row.get(6);
        Publication {
            oid: row.get(0),
            inserts: row.get(1),
            more: row.get(2),
            via_root: row.get(3),
            membership: row.get::<_, Option<u32>>(4).unwrap_or(0),
            has_table: row.get(5),
            // 14 has no such column, and later versions list all columns where there is no list.
            columns: (!columns.is_empty()).then_some(columns),
            row_filter: row.get(7),
            has_others: row.get(8),
        }
    }))
}

/// A replication slot.
#[derive(Debug, Clone)]
pub struct Slot {
    /// `pgoutput` is wanted; none for a physical slot.
    pub plugin: Option<String>,
    /// Its database; none for a physical slot.
    pub database: Option<String>,
    /// The present database.
    pub here: String,
    /// It goes with the connection that made it.
    pub temporary: bool,
    /// It decodes prepared transactions.
    pub two_phase: bool,
    /// The walsender that streams it.
    pub active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Why it is of no more use (17+).
    pub invalidation: Option<String>,
    /// The LSN from which WAL is kept.
    pub restart_lsn: Option<Lsn>,
    /// The confirmed LSN; none while the slot is being created.
    pub confirmed: Option<Lsn>,
    /// The end of the WAL.
    pub wal_end: Lsn,
    /// Bytes of WAL until the slot is in danger, 0 when it is lost; none: no limit.
    pub safe_wal_size: Option<i64>,
}

impl Slot {
    /// Bytes of WAL that it retains; none while it retains nothing.
    #[must_use]
    pub fn retained(&self) -> Option<u64> {
        self.restart_lsn.map(|restart| self.wal_end.bytes_since(restart))
    }
}

/// Looks a slot up; none when there is none.
///
/// # Errors
/// The connection breaks.
pub async fn slot(sql: &Sql, name: &str) -> Result<Option<Slot>, Error> {
    let row = sql
        .client
        .query_opt(
            "SELECT s.plugin::text, s.database::text, current_database()::text, s.temporary, s.two_phase, \
             s.active_pid, s.wal_status, to_jsonb(s)->>'invalidation_reason', s.restart_lsn::text, \
             s.confirmed_flush_lsn::text, (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
             ELSE pg_current_wal_lsn() END)::text, \
             CASE WHEN s.wal_status = 'lost' THEN 0 ELSE s.safe_wal_size END \
             FROM pg_replication_slots s WHERE s.slot_name = $1",
            &[&name],
        )
        .await?;
    let lsn = |text: Option<String>| -> Result<Option<Lsn>, Error> {
        text.map(|text| text.parse().map_err(|error| Error::Protocol(format!("{error}")))).transpose()
    };
    row.map(|row| {
        Ok(Slot {
            plugin: row.get(0),
            database: row.get(1),
            here: row.get(2),
            temporary: row.get(3),
            two_phase: row.get(4),
            active_pid: row.get(5),
            wal_status: row.get(6),
            invalidation: row.get(7),
            restart_lsn: lsn(row.get(8))?,
            confirmed: lsn(row.get(9))?,
            wal_end: lsn(row.get(10))?.unwrap_or_default(),
            safe_wal_size: row.get(11),
        })
    })
    .transpose()
}

/// Whether the slot has a reader now. Asked often by a standby, so it is one small question.
///
/// # Errors
/// The connection breaks.
pub async fn slot_is_active(sql: &Sql, name: &str) -> Result<bool, Error> {
    let row = sql
        .client
        .query_opt("SELECT active FROM pg_replication_slots WHERE slot_name = $1", &[&name])
        .await?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// What the slot's walsender waits for (manual, "pg_stat_activity"); none while it works, and where
/// the role may not see it.
///
/// # Errors
/// The connection breaks.
pub async fn walsender_waits_for(sql: &Sql, slot: &str) -> Result<Option<String>, Error> {
    let row = sql
        .client
        .query_opt(
            "SELECT a.wait_event_type || ':' || a.wait_event FROM pg_replication_slots s \
             JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = $1",
            &[&slot],
        )
        .await?;
    Ok(row.and_then(|row| row.get(0)))
}

/// How much room a table takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableSize {
    /// With indexes, TOAST and partitions. None: it does not exist, or someone has locked it.
    pub bytes: Option<u64>,
    /// Rows that vacuum has not removed yet, as the statistics have it.
    pub dead_tuples: Option<u64>,
}

/// Measures a table. Behind a lock that keeps all others out (`VACUUM FULL`) it waits for a moment only.
///
/// # Errors
/// The connection breaks.
pub async fn table_size(sql: &Sql, schema: &str, name: &str) -> Result<TableSize, Error> {
    // The CTEs in their order: lock_timeout holds for this statement alone, and the partitions are found
    // without a lock.
    let parameters: [&(dyn ToSql + Sync); 2] = [&schema, &name];
    let asking = sql.client.query_one(
        "WITH RECURSIVE patience AS MATERIALIZED (SELECT set_config('lock_timeout', '200ms', true) AS is_set), \
         tree (oid) AS (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname = $1 AND c.relname = $2 \
           UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid) \
         SELECT sum(pg_total_relation_size(CASE WHEN patience.is_set IS NOT NULL THEN tree.oid END))::bigint, \
         sum(pg_stat_get_dead_tuples(tree.oid))::bigint FROM patience, tree",
        &parameters,
    );
    let Some(row) = unless_locked(asking.await)? else { return Ok(TableSize::default()) };
    let column = |place: usize| row.get::<_, Option<i64>>(place).and_then(|value| u64::try_from(value).ok());
    Ok(TableSize { bytes: column(0), dead_tuples: column(1) })
}

/// What was answered; none where a lock was not waited for any longer (`lock_timeout`).
///
/// # Errors
/// All others.
pub fn unless_locked<T>(asked: Result<T, tokio_postgres::Error>) -> Result<Option<T>, Error> {
    match asked.map_err(Error::from) {
        Ok(answer) => Ok(Some(answer)),
        // lock_not_available
        Err(Error::Server(said)) if said.code.code() == "55P03" => Ok(None),
        Err(error) => Err(error),
    }
}

/// The end of the WAL that is being written.
///
/// # Errors
/// The connection breaks, or the server is in recovery.
pub async fn wal_insert_lsn(sql: &Sql) -> Result<Lsn, Error> {
    let row = sql.client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
    row.get::<_, String>(0).parse().map_err(|error| Error::Protocol(format!("{error}")))
}

/// What others can see now.
///
/// # Errors
/// The connection breaks.
pub async fn snapshot(sql: &Sql) -> Result<Snapshot, Error> {
    let row = sql.client.query_one("SELECT pg_current_snapshot()::text", &[]).await?;
    row.get::<_, &str>(0).parse().map_err(|error| Error::Protocol(format!("{error}")))
}

/// The transactions that a new slot waits for, in words.
///
/// # Errors
/// The connection breaks.
pub async fn writers(sql: &Sql) -> Result<String, Error> {
    let row = sql
        .client
        .query_one(
            "SELECT coalesce(string_agg(writer, ', '), 'a transaction that has ended meanwhile') FROM ( \
             SELECT format('pid %s (%s, %s, since %s)', pid, usename, coalesce(nullif(application_name, ''), '?'), \
             date_trunc('second', now() - xact_start)) FROM pg_stat_activity \
             WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
             UNION ALL SELECT format('prepared transaction %s (%s)', gid, owner) FROM pg_prepared_xacts) w (writer)",
            &[],
        )
        .await?;
    Ok(row.get(0))
}

/// When the server that SQL talks to was started: two connections to one server agree on it.
///
/// # Errors
/// The connection breaks.
pub async fn started_at(sql: &Sql) -> Result<String, Error> {
    Ok(sql.client.query_one(&format!("{STARTED_AT}::text"), &[]).await?.get(0))
}

const STARTED_AT: &str = "SELECT extract(epoch FROM pg_postmaster_start_time())";

/// The server's clock.
///
/// # Errors
/// The connection breaks.
pub async fn now(sql: &Sql) -> Result<Timestamp, Error> {
    let now = sql.client.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
    Ok(Timestamp::from_system_time(now))
}

/// What IDENTIFY_SYSTEM says of the server that a replication connection talks to.
#[derive(Debug, Clone)]
pub struct System {
    /// The cluster.
    pub id: u64,
    /// The server's timeline.
    pub timeline: u32,
    /// The end of the flushed WAL.
    pub wal_end: Lsn,
    /// The timeline's history file; none for the first.
    pub history: Option<String>,
    /// When this server was started, as [`started_at`] has it.
    pub started_at: String,
}

/// Asks on the replication connection itself, so that no fail-over lies in between.
///
/// # Errors
/// The connection breaks, or the answer is none.
pub async fn identify(connection: &mut Connection) -> Result<System, Error> {
    let odd = || Error::Protocol("IDENTIFY_SYSTEM answers oddly".to_owned());
    let rows = connection.query("IDENTIFY_SYSTEM").await?;
    let row = rows.first().ok_or_else(odd)?;
    let text = |column: usize| row.get(column).cloned().flatten().ok_or_else(odd);
    let timeline: u32 = text(1)?.parse().map_err(|_| odd())?;
    let history = if timeline > 1 {
        let rows = connection.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
        rows.first().and_then(|row| row.get(1).cloned().flatten())
    } else {
        None
    };
    let started = connection.query(&format!("{STARTED_AT}::text")).await?;
    Ok(System {
        started_at: started.first().and_then(|row| row.first().cloned().flatten()).ok_or_else(odd)?,
        id: text(0)?.parse().map_err(|_| odd())?,
        timeline,
        wal_end: text(2)?.parse().map_err(|_| odd())?,
        history,
    })
}
