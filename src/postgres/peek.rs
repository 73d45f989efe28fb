//! What a slot that nobody reads still holds of one table. Moves nothing.
//!
//! A slot shows what is flushed: a commit with `synchronous_commit = off` may be visible and not here yet.

use super::client::Sql;
use super::error::{Error, ServerError};
use super::lsn::Lsn;
use super::pgoutput::{Begin, Column, Message};
use bytes::Bytes;
use futures_util::TryStreamExt;
use postgres_protocol::escape::escape_identifier;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_postgres::RowStream;
use tokio_postgres::types::ToSql;

/// The WAL writer flushes what was committed asynchronously within three times wal_writer_delay, which is
/// ten seconds at most (manual, "Asynchronous Commit").
const FLUSHED_MAX: Duration = Duration::from_secs(40);

const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Waits until everything before `lsn` is flushed, and so shown by a slot; `false`: not in time.
///
/// # Errors
/// The connection breaks.
pub async fn flushed(sql: &Sql, lsn: Lsn) -> Result<bool, Error> {
    let query = "SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn";
    let (until, lsn) = (Instant::now() + FLUSHED_MAX, lsn.to_string());
    loop {
        let is_flushed = sql.client.query_one(query, &[&lsn]).await?.get(0);
        if is_flushed || Instant::now() >= until {
            return Ok(is_flushed);
        }
        sleep(ASK_AGAIN).await;
    }
}

/// An Insert of the table.
#[derive(Debug)]
pub struct Held {
    /// Its transaction; the id is not the subtransaction's that may stand in the row.
    pub begin: Begin,
    /// Its number among the transaction's Inserts into the table, from 0.
    pub index: u64,
    /// The text of the id column.
    pub id: Option<String>,
}

/// A look into a slot: its Inserts, in the order of commits.
pub struct Peek<'a> {
    changes: Pin<Box<RowStream>>,
    skipped: watch::Receiver<Option<ServerError>>,
    table_oid: u32,
    id_column: Option<&'a str>,
    id_at: Option<usize>,
    begin: Option<Begin>,
    index: u64,
}

impl<'a> Peek<'a> {
    /// Begins to look at what `slot` holds of `table_oid`, committed before `upto` where that is given.
    ///
    /// # Errors
    /// 55006 when someone reads the slot; Postgres says no or is away.
    pub async fn begin(
        sql: &Sql,
        slot: &str,
        publication: &str,
        table_oid: u32,
        id_column: Option<&'a str>,
        upto: Option<Lsn>,
    ) -> Result<Peek<'a>, Error> {
        let query = "SELECT data FROM pg_logical_slot_peek_binary_changes($1, $3::text::pg_lsn, NULL, \
            'proto_version', '1', 'publication_names', $2)";
        // A list of identifiers, which Postgres parses.
        let publication = escape_identifier(publication);
        let upto = upto.map(|upto| upto.to_string());
        let parameters: [&(dyn ToSql + Sync); 3] = [&slot, &publication, &upto];
        let skipped = sql.skipped();
        let changes = Box::pin(sql.client.query_raw(query, parameters).await?);
        Ok(Peek { changes, skipped, table_oid, id_column, id_at: None, begin: None, index: 0 })
    }

    /// The next Insert.
    ///
    /// # Errors
    /// As [`begin`](Peek::begin); 55000 when rows were passed over, whose publication did not exist.
    pub async fn next(&mut self) -> Result<Option<Held>, Error> {
        while let Some(change) = self.changes.try_next().await? {
            let message = Message::decode(Bytes::copy_from_slice(change.get(0)));
            match message.map_err(|error| Error::Protocol(format!("pgoutput: {error}")))? {
                Message::Begin(begin) => (self.begin, self.index) = (Some(begin), 0),
                Message::Relation(relation) if relation.oid == self.table_oid => {
                    let named = |name: &str| relation.columns.iter().position(|column| *column.name == *name);
                    self.id_at = self.id_column.and_then(named);
                }
                Message::Insert(insert) if insert.relation_oid == self.table_oid => {
                    let odd = || Error::Protocol("pgoutput: an Insert outside of a transaction".to_owned());
                    let begin = self.begin.clone().ok_or_else(odd)?;
                    let id = match self.id_at.and_then(|at| insert.tuple.get(at)) {
                        Some(Column::Text(id)) => Some(String::from_utf8_lossy(id).into_owned()),
                        _ => None,
                    };
                    self.index += 1;
                    return Ok(Some(Held { begin, index: self.index - 1, id }));
                }
                _ => {}
            }
        }
        match &*self.skipped.borrow() {
            Some(notice) if self.skipped.has_changed().unwrap_or(true) => {
                Err(Error::Server(Box::new(notice.clone())))
            }
            _ => Ok(None),
        }
    }
}
