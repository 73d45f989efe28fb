//! What the slot holds that nobody reads.

use super::*;
use crate::postgres::error::Error;
use crate::postgres::peek::{Peek, flushed};

/// So many bytes of ids go into a table at once.
const COPIED: usize = 1 << 20;

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
        if !flushed(side, upto).await? {
            return Err(Failure::new(
                Code::PostgresSession,
                format!("Postgres does not flush its WAL up to {upto}"),
                "see Postgres's log, then again",
            ));
        }
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
