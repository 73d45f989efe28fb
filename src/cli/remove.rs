//! `postrider remove`: takes away what `init` made, so that nothing retains WAL for a relay that is gone.

use super::{Ended, block_on, load};
use crate::config::{Config, Flags};
use crate::error::{Code, Failure};
use crate::nats::connect;
use crate::nats::stream::Stream;
use crate::postgres::client::Sql;
use crate::postgres::error::Error;
use crate::postgres::preflight;
use crate::state::{checkpoint, dead_letter};
use bytesize::ByteSize;
use postgres_protocol::escape::escape_identifier;
use std::io::{IsTerminal, Write as _};
use tokio_postgres::error::SqlState;

/// Drop the slot, the checkpoint row and the publication. The outbox table stays, and so does the
/// stream unless it is asked for.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider remove                    # shows what would go, and asks
  postrider remove --yes              # asks nothing, for scripts
  postrider remove --with-stream      # the stream with its messages too

A slot that no one reads retains WAL until the disk is full: remove it when the relay is gone for good.
Events that are committed and not yet published are then only in the outbox table.")]
pub(super) struct Args {
    /// Leave the publication.
    #[arg(long)]
    keep_publication: bool,
    /// Delete the stream with its messages too.
    #[arg(long)]
    with_stream: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args) -> Ended {
    let config = load(&args.flags)?;
    block_on(remove(args, &config))
}

/// What is there to be removed.
struct Found {
    slot: bool,
    row: bool,
    publication: bool,
    letters: u64,
    /// No other pipeline uses the schema, and no letter is open in it.
    schema: bool,
    stream: Option<Stream>,
}

async fn remove(args: &Args, config: &Config) -> Result<(), Failure> {
    let sql = Sql::connect_any(&config.postgres.database.resolve()?).await?;
    let mut plan = Vec::new();
    let found = look(args, config, &sql, &mut plan).await?;
    if plan.is_empty() {
        println!("nothing to remove: neither slot nor row nor publication is there");
        return Ok(());
    }
    plan.iter().for_each(|line| println!("{line}"));
    if !args.yes && !confirmed()? {
        println!("nothing was removed");
        return Ok(());
    }
    let slot = &config.postgres.slot;
    if found.slot {
        // Refused by Postgres, too, while anyone streams it.
        let dropped = sql.client.execute("SELECT pg_drop_replication_slot($1)", &[slot]).await;
        dropped.map_err(|error| match error.code() {
            Some(&SqlState::OBJECT_IN_USE) => in_use(slot),
            _ => Error::from(error).into(),
        })?;
        println!("removed     slot {slot}");
    }
    if found.row {
        let delete = format!("DELETE FROM {} WHERE slot = $1", checkpoint::table(&config.postgres.schema));
        sql.client.execute(&delete, &[slot]).await.map_err(Error::from)?;
        println!("removed     checkpoint row");
    }
    if found.publication {
        let name = escape_identifier(&config.postgres.publication);
        execute(&sql, &format!("DROP PUBLICATION {name}")).await?;
        println!("removed     publication {name}");
    }
    if found.schema {
        let schema = escape_identifier(&config.postgres.schema);
        let tables =
            [checkpoint::table(&config.postgres.schema), dead_letter::table(&config.postgres.schema)];
        execute(&sql, &format!("DROP TABLE {}; DROP SCHEMA {schema}", tables.join(", "))).await?;
        println!("removed     schema {schema}");
    }
    if let Some(stream) = found.stream {
        stream.delete().await?;
        println!("removed     stream {}", stream.name());
    }
    if found.letters > 0 {
        let letters = dead_letter::table(&config.postgres.schema);
        println!("kept        {} open dead letters, in {letters}", found.letters);
    }
    Ok(())
}

async fn look(args: &Args, config: &Config, sql: &Sql, plan: &mut Vec<String>) -> Result<Found, Failure> {
    let (slot, outbox) = (&config.postgres.slot, &config.outbox.table);
    let known = preflight::slot(sql, slot).await?;
    if known.as_ref().is_some_and(|known| known.active_pid.is_some()) {
        return Err(in_use(slot));
    }
    if let Some(known) = &known {
        let retained = known.restart_lsn.map_or(0, |restart| known.wal_end.bytes_since(restart));
        plan.push(format!("slot        {slot}, which retains {} of WAL", ByteSize(retained)));
    }
    let row = of_schema(checkpoint::read(sql, &config.postgres.schema, slot).await)?.flatten();
    if let Some(row) = &row {
        plan.push(format!("row         of slot {slot}: everything before {} is settled", row.settled_lsn));
    }
    let publication = &config.postgres.publication;
    let published = preflight::publication(sql, publication, &outbox.schema, &outbox.name).await?;
    let drop_publication = published.is_some() && !args.keep_publication;
    if drop_publication {
        plan.push(format!("publication {publication}"));
    }
    let letters = of_schema(dead_letter::open_count(sql, &config.postgres.schema, slot).await)?;
    let schema = match letters {
        // Its tables are not both there.
        None => false,
        Some(_) => is_ours_alone(config, sql).await?,
    };
    if schema {
        plan.push(format!("schema      {}, which no other pipeline uses", config.postgres.schema));
    }
    let mut stream = None;
    if args.with_stream {
        let nats = connect::connect(&config.nats.access).await?;
        let named = Stream::named(&nats, &config.nats.stream).await?;
        match named.look().await {
            Ok(look) => {
                plan.push(format!("stream      {} with its {} messages", named.name(), look.messages));
                stream = Some(named);
            }
            Err(failure) if failure.code == Code::StreamMissing => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(Found {
        slot: known.is_some(),
        row: row.is_some(),
        publication: drop_publication,
        letters: letters.unwrap_or(0),
        schema,
        stream,
    })
}

/// None when schema or table do not exist.
fn of_schema<T, E: Into<Failure>>(asked: Result<T, E>) -> Result<Option<T>, Failure> {
    match asked.map_err(Into::into) {
        Ok(answer) => Ok(Some(answer)),
        Err(failure) if failure.code == Code::SchemaMissing => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Whether the schema holds nothing but our two tables, and those nothing of others, and no open letter.
async fn is_ours_alone(config: &Config, sql: &Sql) -> Result<bool, Failure> {
    let schema = &config.postgres.schema;
    let query = format!(
        "SELECT NOT EXISTS (SELECT FROM {} WHERE slot <> $1) AND NOT EXISTS (SELECT FROM {} WHERE resolved_at IS NULL) \
         AND NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $2 \
         AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname NOT IN ('pipeline', 'dead_letter'))",
        checkpoint::table(schema),
        dead_letter::table(schema)
    );
    let row = sql.client.query_one(&query, &[&config.postgres.slot, schema]).await.map_err(Error::from)?;
    Ok(row.get(0))
}

async fn execute(sql: &Sql, statement: &str) -> Result<(), Failure> {
    Ok(sql.client.batch_execute(statement).await.map_err(Error::from)?)
}

fn in_use(slot: &str) -> Failure {
    Failure::new(
        Code::SlotInUse,
        format!("a relay streams slot `{slot}`"),
        "stop it first, and whoever would start it again (systemctl disable --now postrider)",
    )
}

fn confirmed() -> Result<bool, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::new(
            Code::MissingValue,
            "nobody is here to be asked, and this cannot be undone",
            "postrider remove --yes",
        ));
    }
    print!("Remove all of it? [y/N] ");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    let read = stdin.read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}
