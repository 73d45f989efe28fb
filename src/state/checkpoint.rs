//! The checkpoint row of a slot, read and written over SQL, fenced by session.
//!
//! `session` is random and lives as long as one SQL connection. It is written after START
//! succeeded, and each later write carries `session = mine` in the same statement: a relay that lost
//! its slot, however late it wakes up, writes nothing any more.

use crate::delivery::checkpoint::{Checkpoint, Objects};
use crate::delivery::position::Identity;
use crate::postgres::client::Sql;
use crate::postgres::error::Error;
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// The table of checkpoints in `schema`, as SQL names it.
#[must_use]
pub fn table(schema: &str) -> String {
    format!("{}.pipeline", escape_identifier(schema))
}

/// What the relay's role does with it.
pub const PRIVILEGES: [&str; 3] = ["SELECT", "INSERT", "UPDATE"];

/// The statement that makes the table; `sql/init.sql` shows the same.
#[must_use]
pub fn create_table(schema: &str) -> String {
    let table = table(schema);
    format!(
        "CREATE TABLE IF NOT EXISTS {table} (\n\
         \x20   slot                text PRIMARY KEY,\n\
         \x20   stream              text NOT NULL,\n\
         \x20   stream_created      timestamptz NOT NULL,\n\
         \x20   system_id           text NOT NULL,\n\
         \x20   timeline            bigint NOT NULL,\n\
         \x20   publication_oid     oid NOT NULL,\n\
         \x20   publication_rel_oid oid NOT NULL,\n\
         \x20   table_oid           oid NOT NULL,\n\
         \x20   phase               text NOT NULL CHECK (phase IN ('ready', 'backfill', 'recover')),\n\
         \x20   session             bigint NOT NULL,\n\
         \x20   seq                 bigint NOT NULL,\n\
         \x20   position            text,\n\
         \x20   commit_time         timestamptz,\n\
         \x20   event_id            text,\n\
         \x20   passed_seq          bigint NOT NULL,\n\
         \x20   settled_lsn         pg_lsn NOT NULL,\n\
         \x20   confirmed_seq       bigint NOT NULL,\n\
         \x20   older_rows          text CHECK (older_rows IN ('listed', 'unknown')),\n\
         \x20   updated_at          timestamptz NOT NULL DEFAULT now()\n\
         ) WITH (fillfactor = 50)"
    )
}

/// A table that was made before the column: what its rows would say is not known.
#[must_use]
pub fn add_older_rows(schema: &str) -> String {
    let table = table(schema);
    format!(
        "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS older_rows text DEFAULT 'unknown' \
         CHECK (older_rows IN ('listed', 'unknown')); ALTER TABLE {table} ALTER COLUMN older_rows DROP DEFAULT"
    )
}

const COLUMNS: &str = "slot, stream, (extract(epoch FROM stream_created) * 1000000)::bigint, system_id, \
    timeline, publication_oid, publication_rel_oid, table_oid, phase, session, seq, position, \
    (extract(epoch FROM commit_time) * 1000000)::bigint, event_id, passed_seq, settled_lsn::text, confirmed_seq";

/// A row that this version cannot have written.
#[derive(Debug, thiserror::Error)]
#[error("column `{column}` of the checkpoint row holds `{value}`")]
pub struct Unreadable {
    column: &'static str,
    value: String,
}

/// Why a row cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// Postgres says no or is away.
    #[error(transparent)]
    Postgres(#[from] Error),
    /// The row makes no sense.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl From<tokio_postgres::Error> for RowError {
    fn from(error: tokio_postgres::Error) -> RowError {
        RowError::Postgres(error.into())
    }
}

/// Reads the row of `slot`; none when there is none.
///
/// # Errors
/// See [`RowError`]; 42P01 and 3F000 when the table or its schema does not exist.
pub async fn read(sql: &Sql, schema: &str, slot: &str) -> Result<Option<Checkpoint>, RowError> {
    let query = format!("SELECT {COLUMNS} FROM {} WHERE slot = $1", table(schema));
    let row = sql.client.query_opt(&query, &[&slot]).await?;
    Ok(row.map(|row| from_row(&row)).transpose()?)
}

/// Takes the row for `session` and reads it in the same statement; none when there is none. A row that a
/// command works with stays the command's.
///
/// # Errors
/// See [`RowError`].
pub async fn take(sql: &Sql, schema: &str, slot: &str, session: i64) -> Result<Option<Checkpoint>, RowError> {
    let query = format!(
        "UPDATE {} SET session = CASE WHEN phase = 'ready' THEN $2 ELSE session END, updated_at = now() \
         WHERE slot = $1 RETURNING {COLUMNS}",
        table(schema)
    );
    let row = sql.client.query_opt(&query, &[&slot, &session]).await?;
    Ok(row.map(|row| from_row(&row)).transpose()?)
}

/// Writes the row where `session` is still its own; `false`: another session took it. The commit is
/// durable when this returns.
///
/// # Errors
/// See [`RowError`].
pub async fn write(sql: &Sql, schema: &str, row: &Checkpoint) -> Result<bool, RowError> {
    let statement = format!(
        "UPDATE {} SET timeline = $3, phase = $4, seq = $5, position = $6, \
         commit_time = $7::text::timestamptz, event_id = $8, passed_seq = $9, \
         settled_lsn = $10::text::pg_lsn, confirmed_seq = $11, updated_at = now() \
         WHERE slot = $1 AND session = $2",
        table(schema)
    );
    let values = Values::of(row);
    Ok(sql.client.execute(&statement, &values.settled(row)).await? > 0)
}

/// Inserts the row of a new pipeline, or overwrites one that is given up.
///
/// # Errors
/// See [`RowError`].
pub async fn put(
    client: &impl tokio_postgres::GenericClient,
    schema: &str,
    row: &Checkpoint,
) -> Result<(), RowError> {
    let statement = format!(
        "INSERT INTO {} (slot, session, timeline, phase, seq, position, commit_time, event_id, passed_seq, \
         settled_lsn, confirmed_seq, stream, stream_created, system_id, publication_oid, publication_rel_oid, table_oid) \
         VALUES ($1, $2, $3, $4, $5, $6, $7::text::timestamptz, $8, $9, \
         $10::text::pg_lsn, $11, $12, $13::text::timestamptz, $14, $15, $16, $17) \
         ON CONFLICT (slot) DO UPDATE SET (session, timeline, phase, seq, position, commit_time, event_id, \
         passed_seq, settled_lsn, confirmed_seq, stream, stream_created, system_id, publication_oid, \
         publication_rel_oid, table_oid, updated_at) = (excluded.session, excluded.timeline, excluded.phase, \
         excluded.seq, excluded.position, excluded.commit_time, excluded.event_id, excluded.passed_seq, \
         excluded.settled_lsn, excluded.confirmed_seq, excluded.stream, excluded.stream_created, \
         excluded.system_id, excluded.publication_oid, excluded.publication_rel_oid, excluded.table_oid, now())",
        table(schema)
    );
    let values = Values::of(row);
    let mut parameters = values.settled(row);
    let created = row.stream_created.to_string();
    let system_id = row.system_id.to_string();
    let Objects { publication, membership, table } = &row.objects;
    parameters.extend([
        &row.stream as &(dyn ToSql + Sync),
        &created,
        &system_id,
        publication,
        membership,
        table,
    ]);
    client.execute(&statement, &parameters).await?;
    Ok(())
}

/// The row's values in the types that the statements take.
struct Values {
    timeline: i64,
    seq: i64,
    position: Option<String>,
    commit_time: Option<String>,
    event_id: Option<String>,
    passed_seq: i64,
    settled_lsn: String,
    confirmed_seq: i64,
}

impl Values {
    fn of(row: &Checkpoint) -> Values {
        let last = row.last.as_ref();
        Values {
            timeline: i64::from(row.timeline),
            seq: bigint(row.seq),
            position: last.map(|last| last.position.to_string()),
            commit_time: last.map(|last| last.commit_time.to_string()),
            event_id: last.map(|last| last.event_id.clone()),
            passed_seq: bigint(row.passed_seq),
            settled_lsn: row.settled_lsn.to_string(),
            confirmed_seq: bigint(row.confirmed_seq),
        }
    }

    /// `$1` to `$11` of the statements.
    fn settled<'a>(&'a self, row: &'a Checkpoint) -> Vec<&'a (dyn ToSql + Sync)> {
        vec![
            &row.slot,
            &row.session,
            &self.timeline,
            &row.phase,
            &self.seq,
            &self.position,
            &self.commit_time,
            &self.event_id,
            &self.passed_seq,
            &self.settled_lsn,
            &self.confirmed_seq,
        ]
    }
}

/// Sequences of JetStream and indices of rows stay far below 2^63.
pub(super) fn bigint(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

fn from_row(row: &Row) -> Result<Checkpoint, Unreadable> {
    let position: Option<String> = row.get(11);
    let commit_time: Option<i64> = row.get(12);
    let event_id: Option<String> = row.get(13);
    let last = match (position, commit_time, event_id) {
        (Some(position), Some(commit_time), Some(event_id)) => Some(Identity {
            position: parsed("position", &position)?,
            commit_time: Timestamp::from_unix_micros(commit_time),
            event_id,
        }),
        (None, _, _) => None,
        (Some(value), _, _) => return Err(Unreadable { column: "position", value }),
    };
    let timeline: i64 = row.get(4);
    Ok(Checkpoint {
        slot: row.get(0),
        stream: row.get(1),
        stream_created: Timestamp::from_unix_micros(row.get(2)),
        system_id: parsed("system_id", row.get(3))?,
        timeline: u32::try_from(timeline)
            .map_err(|_| Unreadable { column: "timeline", value: timeline.to_string() })?,
        objects: Objects { publication: row.get(5), membership: row.get(6), table: row.get(7) },
        phase: row.get(8),
        session: row.get(9),
        seq: sequence("seq", row.get(10))?,
        last,
        passed_seq: sequence("passed_seq", row.get(14))?,
        settled_lsn: parsed::<Lsn>("settled_lsn", row.get(15))?,
        confirmed_seq: sequence("confirmed_seq", row.get(16))?,
    })
}

fn parsed<T: std::str::FromStr>(column: &'static str, text: &str) -> Result<T, Unreadable> {
    text.parse().map_err(|_| Unreadable { column, value: text.to_owned() })
}

fn sequence(column: &'static str, value: i64) -> Result<u64, Unreadable> {
    u64::try_from(value).map_err(|_| Unreadable { column, value: value.to_string() })
}
