//! What the slot holds that nobody reads.

use super::*;
use crate::postgres::error::Error;
use crate::postgres::peek::Peek;

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
        let (slot, publication) = (&self.config.postgres.slot, &self.config.postgres.publication);
        let id_column = Some(self.id_column.as_str());
        let mut peek = match Peek::begin(side, slot, publication, table_oid, id_column, Some(upto)).await {
            Ok(peek) => peek,
            Err(error) => return unpeeked(error),
        };
        let mut lines = String::new();
        loop {
            let held = match peek.next().await {
                Ok(Some(held)) => held,
                Ok(None) => break,
                Err(error) => return unpeeked(error),
            };
            let place = Place { commit_lsn: held.begin.final_lsn, index: held.index };
            if let (true, Some(id)) = (Some(place) > behind, held.id) {
                let Place { commit_lsn, index } = place;
                let _ =
                    writeln!(lines, "{}\t{commit_lsn}\t{index}\t{}", escaped(&id), held.begin.commit_time.0);
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

fn unpeeked(error: Error) -> Result<Peeked, Failure> {
    match &error {
        Error::Server(said) => match said.code.code() {
            "55006" => Ok(Peeked::Busy),
            "42704" | "55000" | "58P01" => Ok(Peeked::Undecodable(error.to_string())),
            _ => Err(Failure::from(error).context("look into the slot")),
        },
        _ => Err(Failure::from(error).context("look into the slot")),
    }
}
