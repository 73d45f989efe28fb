//! What the slot holds that nobody reads.

use super::*;

/// So many bytes of ids go into a table at once.
const COPIED: usize = 1 << 20;

/// The WAL writer flushes what was committed asynchronously within three times wal_writer_delay, which is
/// ten seconds at most (manual, "Asynchronous Commit").
const FLUSHED_MAX: Duration = Duration::from_secs(35);

/// How the slot answers to a peek.
pub(in super::super) enum Peeked {
    /// What it holds is in the table.
    Done,
    /// A relay streams it.
    Busy,
    /// It cannot be decoded: what it relies on did not exist then.
    Undecodable(String),
}

impl Ids<'_> {
    /// Notes what the slot, which nobody reads, holds behind `behind`, of all that was committed before
    /// `upto`. It moves nothing. `side`: another connection to the same server.
    pub(in super::super) async fn peek(
        &self,
        side: &Sql,
        table_oid: u32,
        behind: Option<Place>,
        upto: Lsn,
    ) -> Result<Peeked, Failure> {
        self.forget_slot().await?;
        flushed(side, upto).await?;
        side.client.batch_execute("SET statement_timeout = 0").await?;
        let peek = "SELECT data FROM pg_logical_slot_peek_binary_changes($1, $3::text::pg_lsn, NULL, \
            'proto_version', '1', 'publication_names', $2)";
        // A list of identifiers, which Postgres parses.
        let publication = escape_identifier(&self.config.postgres.publication);
        let upto = upto.to_string();
        let parameters: [&(dyn ToSql + Sync); 3] = [&self.config.postgres.slot, &publication, &upto];
        let mut changes = match side.client.query_raw(peek, parameters).await {
            Ok(changes) => Box::pin(changes),
            Err(error) => return unpeeked(error),
        };
        let (mut commit_lsn, mut at, mut index, mut id_at, mut lines) =
            (Lsn::ZERO, 0, 0, None, String::new());
        loop {
            let change = match changes.try_next().await {
                Ok(Some(change)) => change,
                Ok(None) => break,
                Err(error) => return unpeeked(error),
            };
            let message = Message::decode(Bytes::copy_from_slice(change.get(0)));
            let message = message
                .map_err(|error| Failure::new(Code::Unexpected, format!("pgoutput: {error}"), "report it"))?;
            match message {
                Message::Begin(begin) => (commit_lsn, at, index) = (begin.final_lsn, begin.commit_time.0, 0),
                Message::Relation(relation) if relation.oid == table_oid => {
                    id_at = relation.columns.iter().position(|column| *column.name == *self.id_column);
                }
                Message::Insert(insert) if insert.relation_oid == table_oid => {
                    let place = Place { commit_lsn, index };
                    index += 1;
                    let id = id_at.and_then(|at| insert.tuple.get(at));
                    if let (true, Some(Column::Text(id))) = (Some(place) > behind, id) {
                        let id = escaped(&String::from_utf8_lossy(id));
                        let _ = writeln!(lines, "{id}\t{commit_lsn}\t{}\t{at}", place.index);
                    }
                }
                _ => {}
            }
            if lines.len() >= COPIED {
                self.copy("postrider_slot", std::mem::take(&mut lines)).await?;
            }
        }
        self.copy("postrider_slot", lines).await?;
        Ok(Peeked::Done)
    }

    /// Forgets what a peek has noted.
    pub(in super::super) async fn forget_slot(&self) -> Result<(), Failure> {
        Ok(self.sql.client.batch_execute("TRUNCATE pg_temp.postrider_slot").await?)
    }
}

/// Waits until everything before `lsn` is flushed, for a slot shows no more than that.
async fn flushed(sql: &Sql, lsn: Lsn) -> Result<(), Failure> {
    let deadline = Instant::now() + FLUSHED_MAX;
    loop {
        let row = sql
            .client
            .query_one("SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn", &[&lsn.to_string()])
            .await?;
        if row.get(0) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Code::PostgresSession,
                format!("Postgres does not flush its WAL up to {lsn}"),
                "see Postgres's log, then again",
            ));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn unpeeked(error: tokio_postgres::Error) -> Result<Peeked, Failure> {
    match error.code().map(tokio_postgres::error::SqlState::code) {
        Some("55006") => Ok(Peeked::Busy),
        Some("42704" | "55000" | "58P01") => Ok(Peeked::Undecodable(
            error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned()),
        )),
        _ => Err(Failure::from(error).context("look into the slot")),
    }
}
