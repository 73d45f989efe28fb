//! Temporary tables: of the rows, of the stream's messages, of what the slot still holds (`peek`); and what
//! they say to `verify` (`verdict`).

mod peek;
mod verdict;

pub(super) use peek::Peeked;

use super::plan::Found;
use super::verify::Report;
use super::{NAMED_MAX, rows};
use crate::config::Config;
use crate::delivery::checkpoint::Checkpoint;
use crate::delivery::position::{Identity, Place};
use crate::error::{Code, Failure};
use crate::outbox::{MarkColumn, NoMark, Resolved};
use crate::postgres::client::{AS_PGOUTPUT, Sql};
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{Publication, Table, wal_insert_lsn};
use crate::postgres::timestamp::Timestamp;
use crate::state::dead_letter;
use crate::state::older::{self, Older, TRIMMED};
use bytes::Bytes;
use futures_util::SinkExt;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use std::fmt::Write;
use std::pin::pin;
use tokio_postgres::types::ToSql;

/// A table of millions may take its time; a policy that hides rows is an error, for the slot has them.
const SETTINGS: &str = "SET statement_timeout = 0; SET row_security = off";

/// A message of this slot that no cluster of the present system wrote has no place here; one that was
/// published for a row is noted with sequence 0 until it is read.
const TABLES: &str = "CREATE TEMPORARY TABLE postrider_rows (id text NOT NULL, processed boolean NOT NULL); \
    CREATE TEMPORARY TABLE postrider_messages (id text NOT NULL, seq bigint NOT NULL, lsn pg_lsn, index bigint, \
    at bigint); \
    CREATE TEMPORARY TABLE postrider_slot (id text NOT NULL, lsn pg_lsn NOT NULL, index bigint NOT NULL, \
    at bigint NOT NULL); \
    CREATE TEMPORARY TABLE postrider_left_out (id text NOT NULL)";

/// The messages `m` that the slot, confirmed up to $1, would have to send again and does not hold.
const NOT_OF_THE_SLOT: &str = "m.lsn >= $1::text::pg_lsn AND (m.lsn - '0/0') % 8 = 0 AND NOT EXISTS (SELECT \
    FROM pg_temp.postrider_slot AS s WHERE (s.lsn, s.index, s.id, s.at) = (m.lsn, m.index, m.id, m.at))";

/// The tables of one connection, and what fills them.
pub(super) struct Ids<'a> {
    pub(super) sql: &'a Sql,
    config: &'a Config,
    system_id: u64,
    /// The outbox, without the rows that the publication's filter leaves out.
    source: String,
    /// As the catalogue has it.
    id_column: String,
    created_at: Option<String>,
    /// The columns that mark a row as processed, or why that is unclear: which matters only where such rows
    /// are told from others.
    marks: Result<Vec<MarkColumn>, NoMark>,
}

/// Which rows count.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rows {
    /// Only those that were created then or later.
    pub(super) since: Option<Timestamp>,
    /// Those too that are marked as processed.
    pub(super) processed: bool,
}

impl<'a> Ids<'a> {
    pub(super) async fn new(
        sql: &'a Sql,
        config: &'a Config,
        resolved: &Resolved,
        table: &Table,
        publication: &Publication,
        system_id: u64,
    ) -> Result<Ids<'a>, Failure> {
        sql.client.batch_execute(AS_PGOUTPUT).await?;
        sql.client.batch_execute(SETTINGS).await?;
        sql.client.batch_execute(TABLES).await.map_err(|error| {
            Failure::from(error).context("create temporary tables (GRANT TEMPORARY ON DATABASE … TO …)")
        })?;
        let has = |name: &str| table.columns.iter().any(|column| column.name == name);
        let outbox = &config.outbox.table;
        Ok(Ids {
            sql,
            config,
            system_id,
            source: match &publication.row_filter {
                Some(filter) => format!("(SELECT * FROM {outbox} WHERE {filter})"),
                None => outbox.to_string(),
            },
            id_column: resolved.id_column().to_owned(),
            created_at: resolved.created_at_column().filter(|name| has(name)).map(str::to_owned),
            marks: MarkColumn::all(config.care.mark_column.as_deref(), &table.columns),
        })
    }

    /// The columns that mark rows which are not among `rows`.
    pub(super) fn marks(&self, rows: Rows) -> Result<&[MarkColumn], Failure> {
        match &self.marks {
            _ if rows.processed => Ok(&[]),
            Ok(marks) => Ok(marks),
            Err(no_mark) => Err(no_mark.unclear(
                &self.config.outbox.table,
                "or --processed, which takes every row for one that nobody has published yet",
            )),
        }
    }

    /// Their names.
    pub(super) fn mark_names(&self, rows: Rows) -> Result<Vec<String>, Failure> {
        Ok(self.marks(rows)?.iter().map(|column| column.name.clone()).collect())
    }

    /// The id of a row `o`, as a header holds it.
    fn id(&self) -> String {
        format!("btrim(format('%s', o.{}), {TRIMMED})", escape_identifier(&self.id_column))
    }

    /// The condition on a row `o` for being one of `rows`.
    fn counted(&self, rows: Rows) -> Result<String, Failure> {
        let mut condition = format!("o.{} IS NOT NULL", escape_identifier(&self.id_column));
        // The column may be with or without a time zone: Postgres compares either.
        match (rows.since, &self.created_at) {
            (None, _) => {}
            (Some(since), Some(column)) => {
                let seconds = since.to_unix_micros() as f64 / 1e6;
                let column = escape_identifier(column);
                let _ = write!(condition, " AND o.{column} >= to_timestamp({seconds:.6})");
            }
            (Some(_), None) => {
                return Err(Failure::new(
                    Code::VerifyUnbounded,
                    format!("{} has no column that says when a row was created", self.config.outbox.table),
                    "leave out --since, or name the column: outbox.created_at",
                ));
            }
        }
        let _ = write!(condition, " AND NOT {}", MarkColumn::any_is_set(self.marks(rows)?));
        Ok(condition)
    }

    /// Adds messages: the event and its sequence.
    pub(super) async fn put_messages(&self, messages: &[(Box<Identity>, u64)]) -> Result<(), Failure> {
        let mut lines = String::new();
        for (event, seq) in messages {
            let Place { commit_lsn, index } = event.position.place;
            let (id, at) = (escaped(&event.event_id), event.commit_time.0);
            let _ = match event.position.system_id == self.system_id {
                true => writeln!(lines, "{id}\t{seq}\t{commit_lsn}\t{index}\t{at}"),
                false => writeln!(lines, "{id}\t{seq}\t\\N\t\\N\t\\N"),
            };
        }
        self.copy("postrider_messages", lines).await
    }

    /// Adds events that are settled otherwise: dead letters that this snapshot does not show.
    pub(super) async fn put_settled(&self, ids: &[String]) -> Result<(), Failure> {
        let lines = ids.iter().map(|id| format!("{}\t0\t\\N\t\\N\t\\N\n", escaped(id))).collect();
        self.copy("postrider_messages", lines).await
    }

    async fn copy(&self, table: &str, lines: String) -> Result<(), Failure> {
        if lines.is_empty() {
            return Ok(());
        }
        let copy = format!("COPY pg_temp.{table} FROM STDIN");
        let mut sink = pin!(self.sql.client.copy_in::<_, Bytes>(&copy).await?);
        sink.send(Bytes::from(lines)).await?;
        sink.close().await?;
        Ok(())
    }

    /// What slot, stream and table say of each other, after a peek. `last`: the stream's last event that the slot
    /// would send again.
    pub(super) async fn found(
        &self,
        confirmed: Lsn,
        last: Option<(u64, Box<Identity>)>,
    ) -> Result<Found, Failure> {
        let client = &self.sql.client;
        let confirmed_text = confirmed.to_string();
        let query = format!(
            "SELECT format('event %s at %s/%s', m.id, m.lsn, m.index) FROM pg_temp.postrider_messages AS m \
             WHERE {NOT_OF_THE_SLOT} ORDER BY m.lsn, m.index LIMIT 1"
        );
        let differs = client.query_opt(&query, &[&confirmed_text]).await?;
        // Up to the last one the relay skips whatever comes.
        let (lsn, index) = last.as_ref().map_or((Lsn::ZERO, -1), |(_, event)| {
            let place = event.position.place;
            (place.commit_lsn, bigint(place.index))
        });
        let doubled = client
            .query_one(
                "SELECT count(*) FROM pg_temp.postrider_slot AS s WHERE (s.lsn, s.index) > ($1::text::pg_lsn, $2) \
                 AND EXISTS (SELECT FROM pg_temp.postrider_messages AS m WHERE m.id = s.id)",
                &[&lsn.to_string(), &index],
            )
            .await?;
        Ok(Found {
            exists: true,
            confirmed,
            last,
            differs: differs.map(|row| row.get(0)),
            doubled: unsigned(doubled.get(0)),
            unusable: None,
        })
    }

    /// Forgets the events of a history that this server never had: rows of now may have their ids.
    pub(super) async fn forget_other_history(&self, confirmed: Lsn) -> Result<(), Failure> {
        let delete = format!("DELETE FROM pg_temp.postrider_messages AS m WHERE {NOT_OF_THE_SLOT}");
        self.sql.client.execute(&delete, &[&confirmed.to_string()]).await?;
        Ok(())
    }

    /// The sequence of the stream's last event at `from` or later.
    pub(super) async fn last_seq_from(&self, from: Lsn) -> Result<Option<u64>, Failure> {
        self.last_seq_where(">=", from).await
    }

    /// The sequence of the stream's last event at `lsn`.
    pub(super) async fn last_seq_at(&self, lsn: Lsn) -> Result<Option<u64>, Failure> {
        self.last_seq_where("=", lsn).await
    }

    async fn last_seq_where(&self, compares: &str, lsn: Lsn) -> Result<Option<u64>, Failure> {
        let query = format!(
            "SELECT seq FROM pg_temp.postrider_messages WHERE lsn {compares} $1::text::pg_lsn \
             ORDER BY lsn DESC, index DESC, seq DESC LIMIT 1"
        );
        let last = self.sql.client.query_opt(&query, &[&lsn.to_string()]).await?;
        Ok(last.map(|row| unsigned(row.get(0))))
    }

    /// How much more of the transaction at `place` the slot holds, and how much of that the table lacks.
    pub(super) async fn rest_of(&self, place: Place) -> Result<(u64, u64), Failure> {
        let id = self.id();
        let query = format!(
            "SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (SELECT FROM {} AS o WHERE {id} = s.id)) \
             FROM pg_temp.postrider_slot AS s WHERE s.lsn = $1::text::pg_lsn AND s.index > $2",
            self.source
        );
        let rest = [&place.commit_lsn.to_string() as &(dyn ToSql + Sync), &bigint(place.index)];
        let rest = self.sql.client.query_one(&query, &rest).await?;
        Ok((unsigned(rest.get(0)), unsigned(rest.get(1))))
    }

    /// The index behind those of the stream's events and of the letters at `lsn`.
    pub(super) async fn next_index(&self, lsn: Lsn) -> Result<u64, Failure> {
        let query = format!(
            "SELECT greatest((SELECT coalesce(max(index) + 1, 0) FROM pg_temp.postrider_messages \
             WHERE lsn = $1::text::pg_lsn), (SELECT coalesce(max(index) + 1, 0) FROM {} \
             WHERE slot = $2 AND commit_lsn = $1::text::pg_lsn))",
            dead_letter::table(&self.config.postgres.schema)
        );
        let of = [&lsn.to_string() as &(dyn ToSql + Sync), &self.config.postgres.slot];
        Ok(unsigned(self.sql.client.query_one(&query, &of).await?.get(0)))
    }

    /// Rows `o` of `rows` that are [accounted for](Self::unaccounted) nowhere; a subquery's beginning at FROM.
    fn lacking(&self, rows: Rows, behind: Option<Place>) -> Result<String, Failure> {
        Ok(format!(
            "FROM {} AS o WHERE {} AND {}",
            self.source,
            self.counted(rows)?,
            self.unaccounted(behind)
        ))
    }

    /// The condition on a row `o` that neither stream nor letters have it, and that the slot does not hold it
    /// behind `behind`.
    fn unaccounted(&self, behind: Option<Place>) -> String {
        let id = self.id();
        let to_come = behind.map_or_else(String::new, |place| {
            format!(
                " AND (s.lsn, s.index) > ('{}'::pg_lsn, {}::bigint)",
                place.commit_lsn,
                bigint(place.index)
            )
        });
        format!(
            "NOT EXISTS (SELECT FROM pg_temp.postrider_messages AS m WHERE m.id = {id}) \
             AND NOT EXISTS (SELECT FROM pg_temp.postrider_slot AS s WHERE s.id = {id}{to_come}) \
             AND NOT EXISTS (SELECT FROM {} AS l WHERE l.slot = {} AND btrim(l.event_id, {TRIMMED}) = {id} \
                             AND (l.resolution IS NULL OR l.resolution = 'dropped'))",
            dead_letter::table(&self.config.postgres.schema),
            escape_literal(&self.config.postgres.slot),
        )
    }

    /// How many rows that are.
    pub(super) async fn lacking_count(&self, rows: Rows, behind: Option<Place>) -> Result<u64, Failure> {
        self.sql.client.batch_execute("ANALYZE pg_temp.postrider_messages, pg_temp.postrider_slot").await?;
        let query = format!("SELECT count(*) {}", self.lacking(rows, behind)?);
        Ok(unsigned(self.sql.client.query_one(&query, &[]).await?.get(0)))
    }

    /// How many rows are lacking likewise, and none of `rows` only because they are marked as processed.
    pub(super) async fn marked_count(&self, rows: Rows, behind: Option<Place>) -> Result<u64, Failure> {
        let marks = self.marks(rows)?;
        if marks.is_empty() {
            return Ok(0);
        }
        let query = format!(
            "SELECT count(*) {} AND {}",
            self.lacking(Rows { processed: true, ..rows }, behind)?,
            MarkColumn::any_is_set(marks)
        );
        Ok(unsigned(self.sql.client.query_one(&query, &[]).await?.get(0)))
    }

    /// Those rows: the columns of `table`, in the order in which they were written as far as that can be told:
    /// by a whole number as id, else by creation, else by id.
    pub(super) async fn lacking_rows(
        &self,
        table: &Table,
        rows: Rows,
        behind: Option<Place>,
    ) -> Result<rows::Reader, Failure> {
        let id = escape_identifier(&self.id_column);
        let counted = |oid: &u32| matches!(oid, 20 | 21 | 23 | 1700);
        let of = |name: &str| {
            table.columns.iter().find(|column| column.name == name).map(|column| column.type_oid)
        };
        let created = self.created_at.as_deref().filter(|name| matches!(of(name), Some(1114 | 1184)));
        let order = match created {
            Some(created) if !of(&self.id_column).as_ref().is_some_and(counted) => {
                format!("o.{}, o.{id}", escape_identifier(created))
            }
            _ => format!("o.{id}"),
        };
        let micros = created.map_or_else(
            || "NULL".to_owned(),
            |created| {
                let created = escape_identifier(created);
                format!("CASE WHEN isfinite(o.{created}) THEN (extract(epoch FROM o.{created}) * 1000000)::bigint END")
            },
        );
        let columns: String =
            table.columns.iter().map(|column| format!(", o.{}", escape_identifier(&column.name))).collect();
        let copy = format!(
            "COPY (SELECT {micros}{columns} {} ORDER BY {order}) TO STDOUT",
            self.lacking(rows, behind)?
        );
        rows::Reader::start(self.sql, &copy).await
    }

    async fn has_list(&self) -> Result<bool, Failure> {
        let known = "SELECT to_regclass($1) IS NOT NULL";
        let list = older::table(&self.config.postgres.schema);
        Ok(self.sql.client.query_one(known, &[&list]).await?.get(0))
    }

    /// Whether rows that table care leaves alone are in the stream.
    pub(super) async fn lists_stored(&self) -> Result<bool, Failure> {
        if !self.has_list().await? {
            return Ok(false);
        }
        let query = format!(
            "SELECT EXISTS (SELECT FROM {} AS r JOIN pg_temp.postrider_messages AS m ON m.id = r.event_id \
             WHERE r.slot = $1)",
            older::table(&self.config.postgres.schema)
        );
        Ok(self.sql.client.query_one(&query, &[&self.config.postgres.slot]).await?.get(0))
    }

    /// Takes the rows that are left out although nothing proves that their events are stored: those that someone
    /// else has marked as processed, and those from before the time to begin at. In the snapshot of the others:
    /// what was committed after it, the slot sends.
    pub(super) async fn take_left_out(&self, rows: Rows, behind: Option<Place>) -> Result<(), Failure> {
        // Without a time of creation a row is not known to be one of `rows`.
        let take = format!(
            "INSERT INTO pg_temp.postrider_left_out SELECT DISTINCT {} FROM {} AS o WHERE {} AND ({}) IS NOT TRUE AND {}",
            self.id(),
            self.source,
            self.counted(Rows { since: None, processed: true })?,
            self.counted(rows)?,
            self.unaccounted(behind)
        );
        self.sql.client.batch_execute(&take).await?;
        Ok(())
    }

    /// Notes them for table care to leave them alone. How many.
    pub(super) async fn list_left_out(&self) -> Result<u64, Failure> {
        let (schema, slot) = (&self.config.postgres.schema, &self.config.postgres.slot);
        // A schema of an earlier version: clean-up then takes no row for proved that it cannot tell.
        if !self.has_list().await? {
            return Ok(0);
        }
        older::settle(&self.sql.client, schema, slot).await?;
        let list = format!(
            "INSERT INTO {} (slot, event_id) SELECT $1, id FROM pg_temp.postrider_left_out ON CONFLICT DO NOTHING",
            older::table(schema)
        );
        let listed = self.sql.client.execute(&list, &[slot]).await?;
        if listed > 0 {
            older::note(&self.sql.client, schema, slot, Older::Listed).await?;
        }
        Ok(listed)
    }
}

/// Positions stay far below 2^63.
fn bigint(index: u64) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

/// Counts are not negative.
fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// An id in COPY's text format (Postgres manual, COPY, "Text Format").
fn escaped(id: &str) -> String {
    let mut text = String::with_capacity(id.len());
    for character in id.trim_matches([' ', '\t', '\r', '\n']).chars() {
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
