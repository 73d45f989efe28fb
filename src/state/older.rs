//! The rows that were in the outbox before the slot was: they never came through it, and nobody has
//! proved that they are published. Table care leaves them alone.
//!
//! They are known by their ids, not by a transaction id or a time: an UPDATE and a rewrite of the table
//! give a row another `xmin`, transaction ids come round, and a clock is anybody's. `init` lists them
//! once, when it writes the checkpoint row; whatever publishes or accounts for all of them calls [`settle`].

use super::checkpoint;
use crate::config::Config;
use crate::delivery::checkpoint::Checkpoint;
use crate::error::Failure;
use crate::postgres::client::Sql;
use crate::postgres::error::Error;
use crate::postgres::peek::Peek;
use postgres_protocol::escape::escape_identifier;
use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;

/// As NATS clients trim a header's value: an id is compared as it is published.
pub const TRIMMED: &str = "E' \\t\\r\\n'";

/// Ids go into the database so many at a time.
const CHUNK: usize = 10_000;

/// The table of ids in `schema`, as SQL names it.
#[must_use]
pub fn table(schema: &str) -> String {
    format!("{}.older_row", escape_identifier(schema))
}

/// What the role of `init` and of the relay does with it.
pub const PRIVILEGES: [&str; 3] = ["SELECT", "INSERT", "DELETE"];

/// The statement that makes the table; `sql/init.sql` shows the same.
#[must_use]
pub fn create_table(schema: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (\n\
         \x20   slot      text NOT NULL,\n\
         \x20   event_id  text NOT NULL,\n\
         \x20   PRIMARY KEY (slot, event_id)\n\
         )",
        table(schema)
    )
}

/// What is known of them; the column `older_rows` of the checkpoint row. No word: there are none that
/// are not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Older {
    /// None, or all of them are accounted for.
    None,
    /// Those in the table.
    Listed,
    /// Nobody could look.
    Unknown,
}

impl Older {
    /// As the column has it.
    #[must_use]
    pub fn read(word: Option<&str>) -> Older {
        match word {
            None => Older::None,
            Some("listed") => Older::Listed,
            Some(_) => Older::Unknown,
        }
    }

    fn word(self) -> Option<&'static str> {
        match self {
            Older::None => None,
            Older::Listed => Some("listed"),
            Older::Unknown => Some("unknown"),
        }
    }
}

/// Lists the rows that the slot, which nobody reads, will not send: whatever is in the outbox now but
/// for what the slot holds. How many there are; none where the role may not look.
///
/// # Errors
/// Postgres says no or is away.
pub async fn list(
    sql: &Sql,
    config: &Config,
    id_column: &str,
    row: &Checkpoint,
) -> Result<Option<u64>, Failure> {
    let (name, older) = (config.outbox.table.to_string(), table(&config.postgres.schema));
    let may_look =
        sql.client.query_one("SELECT has_table_privilege($1::text::regclass, 'SELECT')", &[&name]).await?;
    if !may_look.get::<_, bool>(0) {
        return Ok(None);
    }
    let id = escape_identifier(id_column);
    // Printed as the slot prints them; a table of millions takes its time.
    sql.client
        .batch_execute(
            "SET DateStyle = ISO; SET IntervalStyle = postgres; SET extra_float_digits = 3; \
             SET bytea_output = hex; SET statement_timeout = 0; SET row_security = off",
        )
        .await?;
    let insert = format!(
        "INSERT INTO {older} (slot, event_id) SELECT DISTINCT $1, btrim(format('%s', {id}), {TRIMMED}) FROM {name} \
         WHERE {id} IS NOT NULL ON CONFLICT DO NOTHING"
    );
    sql.client.execute(&format!("DELETE FROM {older} WHERE slot = $1"), &[&row.slot]).await?;
    let listed = match sql.client.execute(&insert, &[&row.slot]).await {
        // A policy hides rows from the role.
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => return Ok(None),
        listed => listed?,
    };
    if listed == 0 {
        return Ok(Some(0));
    }
    // That commit has flushed every commit that it saw: the slot shows all of them.
    let mut ids = Vec::new();
    let (table_oid, publication) = (row.objects.table, &config.postgres.publication);
    let peeked = async {
        let mut peek = Peek::begin(sql, &row.slot, publication, table_oid, Some(id_column), None).await?;
        while let Some(held) = peek.next().await? {
            ids.extend(held.id.map(|id| id.trim().to_owned()));
        }
        Ok::<_, Error>(())
    };
    if let Err(error) = peeked.await {
        // The list is longer than it need be, which loses nothing.
        println!("            what the slot holds cannot be told from older rows: {error}");
    }
    let delete = format!("DELETE FROM {older} WHERE slot = $1 AND event_id = ANY($2)");
    let mut newer = 0;
    for ids in ids.chunks(CHUNK) {
        newer += sql.client.execute(&delete, &[&row.slot, &ids]).await?;
    }
    Ok(Some(listed.saturating_sub(newer)))
}

/// Notes what is known of them, beside the checkpoint row.
///
/// # Errors
/// Postgres says no or is away.
pub async fn note(
    client: &impl GenericClient,
    schema: &str,
    slot: &str,
    older: Older,
) -> Result<(), tokio_postgres::Error> {
    let statement = format!("UPDATE {} SET older_rows = $2 WHERE slot = $1", checkpoint::table(schema));
    client.execute(&statement, &[&slot, &older.word()]).await?;
    Ok(())
}

/// All of them are published, or accounted for otherwise: care treats them like any other row.
///
/// # Errors
/// Postgres says no or is away.
pub async fn settle(
    client: &impl GenericClient,
    schema: &str,
    slot: &str,
) -> Result<(), tokio_postgres::Error> {
    note(client, schema, slot, Older::None).await?;
    client.execute(&format!("DELETE FROM {} WHERE slot = $1", table(schema)), &[&slot]).await?;
    Ok(())
}
