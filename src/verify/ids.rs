//! Temporary tables of ids: of the rows, of the stream's messages, of what the slot still holds.

use super::{NAMED_MAX, Report};
use crate::config::Config;
use crate::delivery::checkpoint::Checkpoint;
use crate::delivery::position::Place;
use crate::error::{Code, Failure};
use crate::outbox::{Preset, Resolved};
use crate::postgres::client::Sql;
use crate::postgres::lsn::Lsn;
use crate::postgres::pgoutput::{Column, Message};
use crate::postgres::preflight::{Table, wal_insert_lsn};
use crate::postgres::timestamp::Timestamp;
use crate::state::dead_letter;
use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use postgres_protocol::escape::escape_identifier;
use std::pin::pin;
use tokio_postgres::types::ToSql;

/// As NATS clients trim a header's value.
const TRIMMED: &str = "E' \\t\\r\\n'";

/// Values print as pgoutput prints them; a table of millions may take its time; a policy that hides rows is an
/// error, for the slot has them.
const SETTINGS: &str = "SET DateStyle = ISO; SET TimeZone = UTC; SET IntervalStyle = postgres; \
    SET extra_float_digits = 3; SET bytea_output = hex; SET statement_timeout = 0; \
    SET row_security = off";

const TABLES: &str = "CREATE TEMPORARY TABLE postrider_rows (id text NOT NULL, processed boolean NOT NULL); \
    CREATE TEMPORARY TABLE postrider_messages (id text NOT NULL, seq bigint NOT NULL); \
    CREATE TEMPORARY TABLE postrider_slot (id text NOT NULL)";

/// The tables of one connection, and what fills them.
pub(super) struct Ids<'a> {
    sql: &'a Sql,
    config: &'a Config,
    /// As the catalogue has it.
    id_column: String,
    created_at: Option<String>,
    /// The rows that a poller marks as processed.
    processed: &'static str,
}

impl<'a> Ids<'a> {
    pub(super) async fn new(
        sql: &'a Sql,
        config: &'a Config,
        resolved: &Resolved,
        table: &Table,
    ) -> Result<Ids<'a>, Failure> {
        sql.client.batch_execute(SETTINGS).await?;
        sql.client.batch_execute(TABLES).await.map_err(|error| {
            Failure::from(error).context("create temporary tables (GRANT TEMPORARY ON DATABASE … TO …)")
        })?;
        let has = |name: &str| table.columns.iter().any(|column| column.name == name);
        let marked = resolved.preset() == Preset::Article && has("processed");
        Ok(Ids {
            sql,
            config,
            id_column: resolved.id_column().to_owned(),
            created_at: resolved.created_at_column().filter(|name| has(name)).map(str::to_owned),
            processed: if marked { "processed IS TRUE" } else { "false" },
        })
    }

    /// Takes the ids of the rows: the end of the WAL, before which all of them were committed.
    pub(super) async fn take_rows(&self, since: Option<Timestamp>) -> Result<Lsn, Failure> {
        let id = escape_identifier(&self.id_column);
        let mut statement = format!(
            "INSERT INTO pg_temp.postrider_rows SELECT btrim(format('%s', {id}), {TRIMMED}), {} FROM {} \
             WHERE {id} IS NOT NULL",
            self.processed, self.config.outbox.table
        );
        // The column may be with or without a time zone: Postgres compares either.
        let since = match (since, &self.created_at) {
            (None, _) => None,
            (Some(since), Some(column)) => {
                statement.push_str(&format!(" AND {} >= to_timestamp($1)", escape_identifier(column)));
                Some(since.to_unix_micros() as f64 / 1e6)
            }
            (Some(_), None) => {
                return Err(Failure::new(
                    Code::VerifyUnbounded,
                    format!("{} has no column that says when a row was created", self.config.outbox.table),
                    "leave out --since, or name the column: outbox.created_at",
                ));
            }
        };
        let parameters: Vec<&(dyn ToSql + Sync)> =
            since.iter().map(|since| since as &(dyn ToSql + Sync)).collect();
        self.sql
            .client
            .execute(&statement, &parameters)
            .await
            .map_err(|error| Failure::from(error).context("read the ids of the outbox"))?;
        Ok(wal_insert_lsn(self.sql).await?)
    }

    /// Adds messages: id and sequence.
    pub(super) async fn put_messages(&self, messages: Vec<(String, u64)>) -> Result<(), Failure> {
        let lines = messages.iter().map(|(id, seq)| format!("{}\t{seq}\n", escaped(id))).collect();
        self.copy("postrider_messages (id, seq)", lines).await
    }

    async fn copy(&self, table: &str, lines: String) -> Result<(), Failure> {
        let copy = format!("COPY pg_temp.{table} FROM STDIN");
        let mut sink = pin!(self.sql.client.copy_in::<_, Bytes>(&copy).await?);
        sink.send(Bytes::from(lines)).await?;
        sink.close().await?;
        Ok(())
    }

    /// Adds what the slot, which nobody reads, holds behind `row`. It moves nothing.
    pub(super) async fn peek(&self, row: &Checkpoint) -> Result<(), Failure> {
        let peek = "SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, \
            'proto_version', '1', 'publication_names', $2)";
        // A list of identifiers, which Postgres parses.
        let publication = escape_identifier(&self.config.postgres.publication);
        let parameters: [&(dyn ToSql + Sync); 2] = [&self.config.postgres.slot, &publication];
        let doing = |error: tokio_postgres::Error| Failure::from(error).context("look into the slot");
        let mut changes = pin!(self.sql.client.query_raw(peek, parameters).await.map_err(doing)?);
        let settled = row.last.as_ref().map(|last| last.position.place);
        let (mut commit_lsn, mut index, mut id_at, mut lines) = (Lsn::ZERO, 0, None, String::new());
        while let Some(change) = changes.try_next().await.map_err(doing)? {
            let message = Message::decode(Bytes::copy_from_slice(change.get(0)));
            let message = message
                .map_err(|error| Failure::new(Code::Unexpected, format!("pgoutput: {error}"), "report it"))?;
            match message {
                Message::Begin(begin) => (commit_lsn, index) = (begin.final_lsn, 0),
                Message::Relation(relation) if relation.oid == row.objects.table => {
                    id_at = relation.columns.iter().position(|column| *column.name == *self.id_column);
                }
                Message::Insert(insert) if insert.relation_oid == row.objects.table => {
                    let place = Place { commit_lsn, index };
                    index += 1;
                    let id = id_at.and_then(|at| insert.tuple.get(at));
                    if let (true, Some(Column::Text(id))) = (Some(place) > settled, id) {
                        lines.push_str(&escaped(&String::from_utf8_lossy(id)));
                        lines.push('\n');
                    }
                }
                _ => {}
            }
        }
        self.copy("postrider_slot (id)", lines).await
    }

    /// How many rows are neither stored nor put aside for good.
    pub(super) async fn unfound(&self, row: &Checkpoint) -> Result<u64, Failure> {
        let query = format!("SELECT count(*) FROM ({}) AS u", self.unfound_rows());
        let found = self.sql.client.query_one(&query, &[&row.slot]).await?;
        Ok(unsigned(found.get(0)))
    }

    /// Rows without message or letter, but for those that someone else has published.
    fn unfound_rows(&self) -> String {
        format!(
            "SELECT r.id FROM pg_temp.postrider_rows AS r WHERE NOT r.processed \
             AND NOT EXISTS (SELECT FROM pg_temp.postrider_messages AS m WHERE m.id = r.id) \
             AND NOT EXISTS (SELECT FROM {} AS l WHERE l.slot = $1 AND btrim(l.event_id, {TRIMMED}) = r.id \
                             AND (l.resolution IS NULL OR l.resolution = 'dropped'))",
            dead_letter::table(&self.config.postgres.schema)
        )
    }

    /// The verdict on each row; of those that were not found in time it is left open.
    pub(super) async fn judge(&self, row: &Checkpoint, undecided: bool) -> Result<Report, Failure> {
        let client = &self.sql.client;
        let rows = client
            .query_one(
                "SELECT count(*), count(m.id), count(*) FILTER (WHERE r.processed AND m.id IS NULL) \
                 FROM pg_temp.postrider_rows AS r \
                 LEFT JOIN (SELECT DISTINCT id FROM pg_temp.postrider_messages) AS m ON m.id = r.id",
                &[],
            )
            .await?;
        let (all, stored, processed) = (unsigned(rows.get(0)), unsigned(rows.get(1)), unsigned(rows.get(2)));
        let unfound = self.unfound(row).await?;
        let to_come = "EXISTS (SELECT FROM pg_temp.postrider_slot AS s WHERE s.id = u.id)";
        let query = format!("SELECT count(*) FROM ({}) AS u WHERE {to_come}", self.unfound_rows());
        let held = unsigned(client.query_one(&query, &[&row.slot]).await?.get(0));
        let pending = if undecided { unfound } else { held };
        let missing = unfound.saturating_sub(pending);
        let query = format!(
            "SELECT u.id FROM ({}) AS u WHERE NOT {to_come} ORDER BY length(u.id), u.id LIMIT {NAMED_MAX}",
            self.unfound_rows()
        );
        let missing_ids = client.query(&query, &[&row.slot]).await?;
        let doubled = client
            .query(
                "SELECT id, count(*) - 1, sum(count(*) - 1) OVER () FROM pg_temp.postrider_messages \
                 GROUP BY id HAVING count(*) > 1 ORDER BY length(id), id",
                &[],
            )
            .await?;
        Ok(Report {
            rows: all,
            stored,
            lettered: all.saturating_sub(stored + processed + unfound),
            pending,
            processed,
            missing,
            doubled: doubled.iter().map(|row| unsigned(row.get(1))).sum(),
            missing_ids: missing_ids.iter().filter(|_| missing > 0).map(|row| row.get(0)).collect(),
            doubled_ids: doubled.iter().take(NAMED_MAX).map(|row| row.get(0)).collect(),
            undecided: undecided && unfound > 0,
            ..Report::default()
        })
    }
}

/// Counts are not negative.
fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// An id in COPY's text format (Postgres manual, COPY, "Text Format").
fn escaped(id: &str) -> String {
    let mut text = String::with_capacity(id.len());
    for character in id.trim().chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\t' => text.push_str("\\t"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            other => text.push(other),
        }
    }
    text
}
