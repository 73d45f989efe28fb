//! Sending a dead letter once more: not by a second writer, but through the log.
//!
//! In one transaction the letter is resolved, its outbox row is deleted where it still is, and
//! inserted again with the same id. It then comes from the slot like any other row, at a new position,
//! in the order of commits, once.

use super::dead_letter::table;
use crate::error::{Code, Failure};
use crate::postgres::client::Sql;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::Transaction;

/// Where a letter goes back to.
#[derive(Debug, Clone)]
pub struct Outbox {
    /// `pg_class.oid`.
    pub oid: u32,
    /// As SQL names it.
    pub name: String,
    /// The id column, unquoted.
    pub id: String,
}

/// Replays letter `id` of `slot`.
///
/// # Errors
/// PR0108 when there is no such open letter, PR0219 when its row cannot be inserted again; nothing is
/// changed then.
pub async fn replay(
    sql: &mut Sql,
    schema: &str,
    slot: &str,
    outbox: &Outbox,
    id: i64,
) -> Result<(), Failure> {
    let transaction = sql.client.transaction().await.map_err(postgres)?;
    resolve(&transaction, schema, slot, id).await?;
    let columns = columns(&transaction, outbox).await?;
    let id_type = columns.iter().find(|column| column.name == outbox.id).map(|column| &column.type_name);
    let Some(id_type) = id_type else {
        return Err(refused(id, &format!("{} has no column `{}` any more", outbox.name, outbox.id)));
    };
    let keys = keys(&transaction, schema, id, &outbox.id).await?;
    let letters = table(schema);
    let this = format!(
        "(SELECT (l.row ->> {})::{id_type} FROM {letters} AS l WHERE l.id = {id})",
        escape_literal(&outbox.id)
    );
    refuse_referred(&transaction, outbox, id, &this).await?;
    let delete = format!("DELETE FROM {} WHERE {} = {this}", outbox.name, escape_identifier(&outbox.id));
    let deleted = transaction.execute(&delete, &[]).await.map_err(postgres)?;
    if deleted > 1 {
        return Err(refused(id, &format!("{deleted} rows of {} have its id", outbox.name)));
    }
    let inserted: Vec<_> =
        columns.iter().filter(|column| !column.generated && keys.contains(&column.name)).collect();
    let names: Vec<_> = inserted.iter().map(|column| escape_identifier(&column.name)).collect();
    let values = inserted
        .iter()
        .map(|column| format!("(l.row ->> {})::{}", escape_literal(&column.name), column.type_name));
    let insert = format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {letters} AS l WHERE l.id = {id}",
        outbox.name,
        names.join(", "),
        values.collect::<Vec<_>>().join(", ")
    );
    transaction.execute(&insert, &[]).await.map_err(postgres)?;
    transaction.commit().await.map_err(postgres)
}

fn postgres(error: tokio_postgres::Error) -> Failure {
    Failure::from(error)
}

fn refused(id: i64, why: &str) -> Failure {
    Failure::new(
        Code::ReplayRefused,
        format!("letter {id} cannot be replayed: {why}"),
        format!(
            "insert the event into the outbox by hand (postrider dlq show {id}), then postrider dlq drop {id}"
        ),
    )
}

async fn resolve(transaction: &Transaction<'_>, schema: &str, slot: &str, id: i64) -> Result<(), Failure> {
    let statement = format!(
        "UPDATE {} SET resolved_at = now(), resolution = 'replayed' \
         WHERE id = $1 AND slot = $2 AND resolved_at IS NULL",
        table(schema)
    );
    match transaction.execute(&statement, &[&id, &slot]).await.map_err(postgres)? {
        0 => Err(super::dead_letter::missing(id)),
        _ => Ok(()),
    }
}

struct Column {
    name: String,
    /// With its length, and its schema where that is not `pg_catalog`.
    type_name: String,
    generated: bool,
}

async fn columns(transaction: &Transaction<'_>, outbox: &Outbox) -> Result<Vec<Column>, Failure> {
    let query = "SELECT attname::text, format_type(atttypid, atttypmod), attgenerated <> '' \
                 FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
    let rows = transaction.query(query, &[&outbox.oid]).await.map_err(postgres)?;
    let column =
        |row: &tokio_postgres::Row| Column { name: row.get(0), type_name: row.get(1), generated: row.get(2) };
    Ok(rows.iter().map(column).collect())
}

/// The names of the columns that the letter's row has.
async fn keys(
    transaction: &Transaction<'_>,
    schema: &str,
    id: i64,
    id_column: &str,
) -> Result<Vec<String>, Failure> {
    let query = format!("SELECT jsonb_object_keys(row), row ->> $2 FROM {} WHERE id = $1", table(schema));
    let rows = transaction.query(&query, &[&id, &id_column]).await.map_err(postgres)?;
    match rows.first().map(|row| row.get::<_, Option<String>>(1)) {
        None => Err(refused(id, "its row is larger than jsonb can hold")),
        Some(None) => Err(refused(id, "its row has no id")),
        Some(Some(_)) => Ok(rows.iter().map(|row| row.get(0)).collect()),
    }
}

/// Deleting the row would break, or by ON DELETE CASCADE remove, what refers to it.
async fn refuse_referred(
    transaction: &Transaction<'_>,
    outbox: &Outbox,
    id: i64,
    this: &str,
) -> Result<(), Failure> {
    let query = "SELECT c.conrelid::regclass::text, \
                   (SELECT string_agg(format('r.%I = o.%I', a.attname, b.attname), ' AND ') \
                    FROM unnest(c.conkey, c.confkey) AS k (a, b) \
                    JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.a \
                    JOIN pg_attribute b ON b.attrelid = c.confrelid AND b.attnum = k.b) \
                 FROM pg_constraint c WHERE c.contype = 'f' AND c.confrelid = $1";
    for constraint in transaction.query(query, &[&outbox.oid]).await.map_err(postgres)? {
        let (referring, join): (String, String) = (constraint.get(0), constraint.get(1));
        let exists = format!(
            "SELECT EXISTS (SELECT FROM {} AS o JOIN {referring} AS r ON {join} WHERE o.{} = {this})",
            outbox.name,
            escape_identifier(&outbox.id)
        );
        if transaction.query_one(&exists, &[]).await.map_err(postgres)?.get(0) {
            return Err(refused(id, &format!("rows of {referring} refer to its row")));
        }
    }
    Ok(())
}
