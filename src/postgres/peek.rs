//! What a slot that nobody reads still holds of one table. Moves nothing.
//!
//! A slot shows what is flushed: a commit with `synchronous_commit = off` may be visible and not here yet.

use super::client::Sql;
use super::error::Error;
use super::pgoutput::{Column, Message};
use bytes::Bytes;
use futures_util::TryStreamExt;
use postgres_protocol::escape::escape_identifier;
use std::pin::pin;
use tokio_postgres::types::ToSql;

/// An Insert of the table.
#[derive(Debug)]
pub struct Held {
    /// The transaction: not the subtransaction that may stand in the row.
    pub xid: u32,
    /// The text of the id column, trimmed.
    pub id: Option<String>,
}

/// Hands every Insert of `table_oid` that `slot` holds to `held`, in the order of commits.
///
/// # Errors
/// 55006 when someone reads the slot; Postgres says no or is away.
pub async fn peek(
    sql: &Sql,
    slot: &str,
    publication: &str,
    table_oid: u32,
    id_column: Option<&str>,
    mut held: impl FnMut(Held),
) -> Result<(), Error> {
    let query = "SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, \
        'proto_version', '1', 'publication_names', $2)";
    // A list of identifiers, which Postgres parses.
    let publication = escape_identifier(publication);
    let parameters: [&(dyn ToSql + Sync); 2] = [&slot, &publication];
    let mut changes = pin!(sql.client.query_raw(query, parameters).await?);
    let (mut xid, mut id_at) = (0, None);
    while let Some(change) = changes.try_next().await? {
        let message = Message::decode(Bytes::copy_from_slice(change.get(0)));
        match message.map_err(|error| Error::Protocol(format!("pgoutput: {error}")))? {
            Message::Begin(begin) => xid = begin.xid,
            Message::Relation(relation) if relation.oid == table_oid => {
                id_at = id_column
                    .and_then(|name| relation.columns.iter().position(|column| *column.name == *name));
            }
            Message::Insert(insert) if insert.relation_oid == table_oid => {
                let id = match id_at.and_then(|at| insert.tuple.get(at)) {
                    Some(Column::Text(id)) => Some(String::from_utf8_lossy(id).trim().to_owned()),
                    _ => None,
                };
                held(Held { xid, id });
            }
            _ => {}
        }
    }
    Ok(())
}
