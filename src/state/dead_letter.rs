//! The table of dead letters: events that cannot be published, beside the outbox that they come from.
//!
//! A letter is durable before anything behind it is sent, lies in the same history as the slot
//! (crash, fail-over, restore), may be of any size, and is read with SQL. Its place in the log is its
//! key, so lettering an event twice is nothing. `system_id` is part of it: a table that was dumped
//! and loaded into another cluster must not hide that cluster's events, whose LSNs begin anew.

use super::checkpoint;
use crate::delivery::opening::KnownLetter;
use crate::delivery::position::Place;
use crate::error::{Code, Failure};
use crate::outbox::Reason;
use crate::postgres::client::Sql;
use crate::postgres::error::Error;
use crate::postgres::lsn::Lsn;
use postgres_protocol::escape::escape_identifier;
use std::fmt::Write;
use std::time::Duration;
use tokio_postgres::error::SqlState;

/// The table of letters in `schema`, as SQL names it.
#[must_use]
pub fn table(schema: &str) -> String {
    format!("{}.dead_letter", escape_identifier(schema))
}

/// What the relay's role does with it.
pub const PRIVILEGES: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];

/// The statements that make the table and what counts its open letters; `sql/init.sql` shows the same.
#[must_use]
pub fn create_table(schema: &str) -> String {
    let table = table(schema);
    format!(
        "CREATE TABLE IF NOT EXISTS {table} (\n\
         \x20   id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,\n\
         \x20   slot        text NOT NULL,\n\
         \x20   system_id   text NOT NULL,\n\
         \x20   timeline    bigint NOT NULL,\n\
         \x20   commit_lsn  pg_lsn NOT NULL,\n\
         \x20   index       bigint NOT NULL,\n\
         \x20   event_id    text,\n\
         \x20   event_type  text,\n\
         \x20   key         text,\n\
         \x20   subject     text,\n\
         \x20   reason      text NOT NULL,\n\
         \x20   code        text NOT NULL,\n\
         \x20   error       text NOT NULL,\n\
         \x20   headers     jsonb,\n\
         \x20   payload     bytea,\n\
         \x20   row         jsonb,\n\
         \x20   created_at  timestamptz NOT NULL DEFAULT now(),\n\
         \x20   resolved_at timestamptz,\n\
         \x20   resolution  text CHECK (resolution IN ('replayed', 'dropped', 'stored')),\n\
         \x20   UNIQUE (slot, system_id, commit_lsn, index, timeline),\n\
         \x20   CHECK ((resolved_at IS NULL) = (resolution IS NULL))\n\
         );\n\
         CREATE INDEX IF NOT EXISTS dead_letter_resolved ON {table} (slot, resolved_at)"
    )
}

/// Whose letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The slot.
    pub slot: String,
    /// The cluster.
    pub system_id: u64,
}

/// An event that cannot be published.
#[derive(Debug, Clone)]
pub struct Letter {
    /// On which its transaction committed.
    pub timeline: u32,
    /// Its place in the log.
    pub place: Place,
    /// Why.
    pub reason: Reason,
    /// Why, in words.
    pub error: String,
    /// What a person looks for.
    pub parts: crate::outbox::Parts,
    /// The whole row, a JSON object.
    pub row: String,
}

/// Commits a letter, fenced by `session`: the LSN that its commit lies before, or None when the
/// checkpoint row is another session's.
///
/// The row is locked, so that a session that takes it over finds every letter of its predecessor's.
///
/// # Errors
/// Postgres says no or is away.
pub async fn insert(
    sql: &Sql,
    schema: &str,
    owner: &Owner,
    session: i64,
    letter: &Letter,
) -> Result<Option<Lsn>, Error> {
    let fenced = match insert_with(sql, schema, owner, session, letter, true).await {
        // jsonb has limits that a row has not: 256 MiB a string, for one.
        Err(error) if is_no_jsonb(&error) => insert_with(sql, schema, owner, session, letter, false).await?,
        inserted => inserted?,
    };
    if fenced {
        return Ok(None);
    }
    let row = sql.client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
    Ok(row.get::<_, String>(0).parse().ok())
}

fn is_no_jsonb(error: &tokio_postgres::Error) -> bool {
    let codes = [
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        SqlState::UNTRANSLATABLE_CHARACTER,
        SqlState::INVALID_TEXT_REPRESENTATION,
    ];
    error.code().is_some_and(|code| codes.contains(code))
}

/// Whether another session has the checkpoint row.
async fn insert_with(
    sql: &Sql,
    schema: &str,
    owner: &Owner,
    session: i64,
    letter: &Letter,
    with_json: bool,
) -> Result<bool, tokio_postgres::Error> {
    let statement = format!(
        "WITH mine AS (SELECT FROM {} WHERE slot = $1 AND session = $2 FOR NO KEY UPDATE), \
         letter AS (INSERT INTO {} (slot, system_id, timeline, commit_lsn, index, event_id, event_type, key, \
         subject, reason, code, error, headers, payload, row) \
         SELECT $1, $3, $4, $5::text::pg_lsn, $6, $7, $8, $9, $10, $11, $12, $13, $14::text::jsonb, $15, \
         $16::text::jsonb FROM mine ON CONFLICT DO NOTHING) \
         SELECT count(*) FROM mine",
        checkpoint::table(schema),
        table(schema)
    );
    let Letter { timeline, place, reason, error, parts, row } = letter;
    let (headers, row) = (parts.headers.as_deref().filter(|_| with_json), with_json.then_some(row.as_str()));
    let mine = sql
        .client
        .query_one(
            &statement,
            &[
                &owner.slot,
                &session,
                &owner.system_id.to_string(),
                &i64::from(*timeline),
                &place.commit_lsn.to_string(),
                &checkpoint::bigint(place.index),
                &parts.event_id,
                &parts.event_type,
                &parts.key,
                &parts.subject,
                &reason.as_str(),
                &reason.code().as_str(),
                &error,
                &headers,
                &parts.payload.as_deref(),
                &row,
            ],
        )
        .await?;
    Ok(mine.get::<_, i64>(0) == 0)
}

/// The letters of events whose transactions commit at `from` or later, and the LSN that all of their
/// commits lie before.
///
/// # Errors
/// Postgres says no or is away; 42P01 when the table does not exist.
pub async fn behind(
    sql: &Sql,
    schema: &str,
    owner: &Owner,
    from: Lsn,
) -> Result<(Vec<KnownLetter>, Lsn), Error> {
    let query = format!(
        "SELECT commit_lsn::text, index, resolved_at IS NULL FROM {} \
         WHERE slot = $1 AND system_id = $2 AND commit_lsn >= $3::text::pg_lsn ORDER BY commit_lsn, index",
        table(schema)
    );
    let (system_id, from) = (owner.system_id.to_string(), from.to_string());
    let rows = sql.client.query(&query, &[&owner.slot, &system_id, &from]).await?;
    let known = rows.iter().filter_map(|row| {
        let commit_lsn = row.get::<_, &str>(0).parse().ok()?;
        let index = u64::try_from(row.get::<_, i64>(1)).ok()?;
        Some(KnownLetter { place: Place { commit_lsn, index }, open: row.get(2) })
    });
    let known = known.collect();
    let row = sql.client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
    Ok((known, row.get::<_, String>(0).parse().unwrap_or_default()))
}

/// The stream has these events all the same: their letters are resolved as `stored`.
///
/// # Errors
/// Postgres says no or is away.
pub async fn void(sql: &Sql, schema: &str, owner: &Owner, places: &[Place]) -> Result<(), Error> {
    let statement = format!(
        "UPDATE {} SET resolved_at = now(), resolution = 'stored' WHERE slot = $1 AND system_id = $2 \
         AND commit_lsn = $3::text::pg_lsn AND index = $4 AND resolved_at IS NULL",
        table(schema)
    );
    for place in places {
        let (commit_lsn, index) = (place.commit_lsn.to_string(), checkpoint::bigint(place.index));
        let system_id = owner.system_id.to_string();
        sql.client.execute(&statement, &[&owner.slot, &system_id, &commit_lsn, &index]).await?;
    }
    Ok(())
}

/// How many letters of `slot` are open.
///
/// # Errors
/// Postgres says no or is away; 42P01 when the table does not exist.
pub async fn open_count(sql: &Sql, schema: &str, slot: &str) -> Result<u64, Error> {
    let query = format!("SELECT count(*) FROM {} WHERE slot = $1 AND resolved_at IS NULL", table(schema));
    let row = sql.client.query_one(&query, &[&slot]).await?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// Code and error of the newest open letter of `slot`.
///
/// # Errors
/// Postgres says no or is away; 42P01 when the table does not exist.
pub async fn newest_open(sql: &Sql, schema: &str, slot: &str) -> Result<Option<(String, String)>, Error> {
    let query = format!(
        "SELECT code, error FROM {} WHERE slot = $1 AND resolved_at IS NULL ORDER BY id DESC LIMIT 1",
        table(schema)
    );
    let row = sql.client.query_opt(&query, &[&slot]).await?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// Removes letters that were resolved `retention` ago and whose events cannot come again: the slot is
/// confirmed past them. Those that were dropped stay while their row is in the outbox, and where the
/// role cannot see that. Open ones stay.
///
/// # Errors
/// Postgres says no or is away.
pub async fn sweep(
    sql: &Sql,
    schema: &str,
    owner: &Owner,
    outbox: &Outbox<'_>,
    retention: Duration,
) -> Result<u64, Error> {
    let confirmed = "(SELECT confirmed_flush_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = $1)";
    let gone = format!(
        "NOT EXISTS (SELECT FROM {} AS o WHERE o.{}::text = l.event_id)",
        outbox.table,
        escape_identifier(outbox.id)
    );
    let visible = sql
        .client
        .query_one("SELECT has_table_privilege($1::text::regclass, 'SELECT')", &[&outbox.table])
        .await?
        .get::<_, bool>(0);
    let statement = format!(
        "DELETE FROM {} AS l WHERE slot = $1 AND resolved_at < now() - make_interval(secs => $2) \
         AND commit_lsn < {confirmed} AND (resolution IN ('replayed', 'stored'){})",
        table(schema),
        if visible { format!(" OR event_id IS NOT NULL AND {gone}") } else { String::new() }
    );
    Ok(sql.client.execute(&statement, &[&owner.slot, &retention.as_secs_f64()]).await?)
}

/// The outbox, for a look at whether a row is still there.
#[derive(Debug, Clone, Copy)]
pub struct Outbox<'a> {
    /// As SQL names it.
    pub table: &'a str,
    /// The id column, unquoted.
    pub id: &'a str,
}

/// A letter for a person.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The letter.
    pub id: i64,
    /// Its columns.
    pub json: serde_json::Value,
}

const ORDER: &str = "ORDER BY l.commit_lsn, l.index, l.id";

/// The open letters of `slot`, or all of them, in commit order; without payload and row.
///
/// # Errors
/// Postgres says no or is away.
pub async fn list(sql: &Sql, schema: &str, slot: &str, all: bool) -> Result<Vec<Shown>, Failure> {
    let query = format!(
        // The payload and the row may be large: they are not even read.
        "SELECT l.id, to_jsonb(l)::text FROM (SELECT id, slot, system_id, timeline, commit_lsn, index, event_id, \
         event_type, key, subject, reason, code, error, headers, octet_length(payload) AS payload_bytes, created_at, \
         resolved_at, resolution FROM {}) AS l WHERE l.slot = $1 AND ($2 OR l.resolved_at IS NULL) {ORDER}",
        table(schema)
    );
    let rows = sql.client.query(&query, &[&slot, &all]).await?;
    rows.iter().map(|row| shown(row.get(0), row.get(1))).collect()
}

/// One letter with its row and its payload: text where it is UTF-8, else hex as Postgres prints it.
///
/// # Errors
/// PR0108 when there is none.
pub async fn show(sql: &Sql, schema: &str, slot: &str, id: i64) -> Result<Shown, Failure> {
    let query = format!(
        "SELECT (to_jsonb(l) - 'payload')::text, l.payload FROM {} AS l WHERE l.slot = $1 AND l.id = $2",
        table(schema)
    );
    let row = sql.client.query_opt(&query, &[&slot, &id]).await?;
    let row = row.ok_or_else(|| missing(id))?;
    let mut letter = shown(id, row.get(0))?;
    let payload = row.get::<_, Option<Vec<u8>>>(1).map(|bytes| {
        String::from_utf8(bytes).unwrap_or_else(|error| {
            error.as_bytes().iter().fold("\\x".to_owned(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        })
    });
    if let Some(columns) = letter.json.as_object_mut() {
        columns.insert("payload".to_owned(), payload.into());
    }
    Ok(letter)
}

fn shown(id: i64, json: &str) -> Result<Shown, Failure> {
    let json = serde_json::from_str(json)
        .map_err(|error| Failure::new(Code::Unexpected, format!("letter {id}: {error}"), "report it"))?;
    Ok(Shown { id, json })
}

/// Resolves open letters as `dropped`: those that were.
///
/// # Errors
/// Postgres says no or is away.
pub async fn put_away(sql: &Sql, schema: &str, slot: &str, ids: &[i64]) -> Result<Vec<i64>, Error> {
    let statement = format!(
        "UPDATE {} SET resolved_at = now(), resolution = 'dropped' \
         WHERE slot = $1 AND id = ANY($2) AND resolved_at IS NULL RETURNING id",
        table(schema)
    );
    let rows = sql.client.query(&statement, &[&slot, &ids]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// No open letter has this id.
#[must_use]
pub fn missing(id: i64) -> Failure {
    Failure::new(
        Code::LetterMissing,
        format!("there is no open dead letter {id}"),
        "postrider dlq list shows the open ones, postrider dlq list --all the resolved ones too",
    )
}
