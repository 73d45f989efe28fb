//! `postrider remove`: takes away what `init` made, so that nothing retains WAL for a relay that is gone.

use super::{Ended, block_on, confirmed, load};
use crate::config::{Config, Flags};
use crate::error::{Code, Failure};
use crate::nats::stream::Stream;
use crate::nats::{connect, object_store};
use crate::postgres::client::Sql;
use crate::postgres::preflight as facts;
use crate::relay::preflight;
use crate::state::survey::of_schema;
use crate::state::{checkpoint, dead_letter, older};
use bytesize::ByteSize;
use postgres_protocol::escape::escape_identifier;
use tokio_postgres::error::SqlState;

/// Drop the slot, the checkpoint row and the publication. The outbox table stays, and so does the
/// stream unless it is asked for.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider remove                    # shows what would go, and asks
  postrider remove --yes              # asks nothing, for scripts
  postrider remove --with-stream      # the stream and its object store too

A slot that no one reads retains WAL until the disk is full: remove it when the relay is gone for good.
Events that are committed and not yet published are then only in the outbox table.")]
pub(super) struct Args {
    /// Leave the publication.
    #[arg(long)]
    keep_publication: bool,
    /// Delete the stream with its messages too, and the object store beside it.
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
    streams: Vec<Stream>,
}

async fn remove(args: &Args, config: &Config) -> Result<(), Failure> {
    let mut sql = Sql::connect_any(&config.postgres.database.resolve()?).await?;
    let mut plan = Vec::new();
    let found = look(args, config, &sql, &mut plan).await?;
    if plan.is_empty() {
        println!("nothing to remove: neither slot nor row nor publication is there");
        return Ok(());
    }
    plan.iter().for_each(|line| println!("{line}"));
    // Before the first thing is gone.
    may_remove(config, &sql, &found).await?;
    if !args.yes && !confirmed("Remove all of it?", "postrider remove --yes")? {
        println!("nothing was removed");
        return Ok(());
    }
    let slot = &config.postgres.slot;
    if found.slot {
        // Refused by Postgres, too, while anyone streams it.
        let dropped = sql.client.execute("SELECT pg_drop_replication_slot($1)", &[slot]).await;
        dropped.map_err(|error| match error.code() {
            Some(&SqlState::OBJECT_IN_USE) => in_use(slot),
            _ => error.into(),
        })?;
        println!("removed     slot {slot}");
    }
    let transaction = sql.client.transaction().await?;
    let mut removed = Vec::new();
    if found.row {
        let delete = format!("DELETE FROM {} WHERE slot = $1", checkpoint::table(&config.postgres.schema));
        transaction.execute(&delete, &[slot]).await?;
        // A schema of an earlier version has no such table.
        let older = older::table(&config.postgres.schema);
        let known = transaction.query_one("SELECT to_regclass($1) IS NOT NULL", &[&older]).await?;
        if known.get(0) {
            transaction.execute(&format!("DELETE FROM {older} WHERE slot = $1"), &[slot]).await?;
        }
        removed.push("checkpoint row".to_owned());
    }
    if found.publication {
        let name = escape_identifier(&config.postgres.publication);
        transaction.batch_execute(&format!("DROP PUBLICATION {name}")).await?;
        removed.push(format!("publication {name}"));
    }
    if found.schema {
        let schema = escape_identifier(&config.postgres.schema);
        let tables = [checkpoint::table, dead_letter::table, older::table];
        let tables = tables.map(|table| table(&config.postgres.schema));
        let drop = format!("DROP TABLE IF EXISTS {}; DROP SCHEMA {schema}", tables.join(", "));
        transaction.batch_execute(&drop).await?;
        removed.push(format!("schema {schema}"));
    }
    transaction.commit().await?;
    removed.iter().for_each(|what| println!("removed     {what}"));
    for stream in &found.streams {
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
    let slot = &config.postgres.slot;
    let known = facts::slot(sql, slot).await?;
    if let Some(known) = &known {
        if known.plugin.as_deref() != Some("pgoutput")
            || known.database.as_deref() != Some(known.here.as_str())
        {
            // Names of slots are the whole server's: it is someone else's.
            return Err(preflight::fit_slot(slot, known).err().unwrap_or_else(|| in_use(slot)));
        }
        if known.active_pid.is_some() {
            return Err(in_use(slot));
        }
        let retained = known.retained().unwrap_or(0);
        plan.push(format!(
            "slot        {slot} of database {}, which retains {} of WAL",
            known.here,
            ByteSize(retained)
        ));
    }
    let row = of_schema(checkpoint::read(sql, &config.postgres.schema, slot).await)?.flatten();
    if let Some(row) = &row {
        plan.push(format!("row         of slot {slot}: everything before {} is settled", row.settled_lsn));
    }
    let publication = !args.keep_publication && publication_is_ours(config, sql, plan).await?;
    let letters = of_schema(dead_letter::open_count(sql, &config.postgres.schema, slot).await)?;
    let schema = match letters {
        // Its tables are not both there.
        None => false,
        Some(_) => is_ours_alone(config, sql).await?,
    };
    if schema {
        plan.push(format!("schema      {}, which no other pipeline uses", config.postgres.schema));
    }
    let streams = if args.with_stream { streams(config, plan).await? } else { Vec::new() };
    Ok(Found {
        slot: known.is_some(),
        row: row.is_some(),
        publication,
        letters: letters.unwrap_or(0),
        schema,
        streams,
    })
}

/// Whether the publication can go: another pipeline, or a table that is not the outbox, keeps it.
async fn publication_is_ours(config: &Config, sql: &Sql, plan: &mut Vec<String>) -> Result<bool, Failure> {
    let (name, outbox) = (&config.postgres.publication, &config.outbox.table);
    let Some(published) = facts::publication(sql, name, &outbox.schema, &outbox.name).await? else {
        return Ok(false);
    };
    let others = format!(
        "SELECT EXISTS (SELECT FROM {} WHERE slot <> $1 AND publication_oid = $2)",
        checkpoint::table(&config.postgres.schema)
    );
    let others = sql.client.query_one(&others, &[&config.postgres.slot, &published.oid]).await;
    let others = of_schema(others)?.is_some_and(|row| row.get(0));
    let kept = match (others, published.has_others) {
        (true, _) => "which another pipeline uses",
        (false, true) => "which has other tables",
        (false, false) => {
            plan.push(format!("publication {name}"));
            return Ok(true);
        }
    };
    println!("kept        publication {name}, {kept}");
    Ok(false)
}

/// The stream, and the object store beside it.
async fn streams(config: &Config, plan: &mut Vec<String>) -> Result<Vec<Stream>, Failure> {
    let nats = connect::connect(&config.nats.access).await?;
    let store = format!("OBJ_{}", object_store::bucket(&config.nats.stream));
    let mut found = Vec::new();
    for name in [&config.nats.stream, &store] {
        let stream = Stream::named(&nats, name).await?;
        match stream.look().await {
            Ok(look) => {
                plan.push(format!("stream      {name} with its {} messages", look.messages));
                found.push(stream);
            }
            Err(failure) if failure.code == Code::StreamMissing => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(found)
}

/// What belongs to others is not removed by halves.
async fn may_remove(config: &Config, sql: &Sql, found: &Found) -> Result<(), Failure> {
    let query = "SELECT \
        coalesce((SELECT pg_has_role(pubowner, 'USAGE') FROM pg_publication WHERE pubname = $1), true), \
        coalesce((SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = $2), true), \
        coalesce((SELECT has_table_privilege(c.oid, 'DELETE') FROM pg_class c JOIN pg_namespace n \
        ON n.oid = c.relnamespace WHERE n.nspname = $2 AND c.relname = 'pipeline'), true)";
    let (publication, schema) = (&config.postgres.publication, &config.postgres.schema);
    let row = sql.client.query_one(query, &[publication, schema]).await?;
    let lacking = [
        (found.publication && !row.get::<_, bool>(0), "own the publication"),
        (found.schema && !row.get::<_, bool>(1), "own the schema"),
        (found.row && !row.get::<_, bool>(2), "delete the checkpoint row"),
    ];
    match lacking.iter().find(|(lacks, _)| *lacks) {
        None => Ok(()),
        Some((_, what)) => Err(Failure::new(
            Code::PostgresRefuses,
            format!("role `{}` does not {what}: nothing was removed", sql.target.user),
            "run it as the role that ran postrider init (DATABASE_URL), or have a DBA run sql/remove.sql",
        )),
    }
}

/// Whether the schema holds nothing but our tables, and those nothing of others, and no open letter.
async fn is_ours_alone(config: &Config, sql: &Sql) -> Result<bool, Failure> {
    let schema = &config.postgres.schema;
    let query = format!(
        "SELECT NOT EXISTS (SELECT FROM {} WHERE slot <> $1) AND NOT EXISTS (SELECT FROM {} WHERE resolved_at IS NULL) \
         AND NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $2 \
         AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname NOT IN ('pipeline', 'dead_letter', 'older_row'))",
        checkpoint::table(schema),
        dead_letter::table(schema)
    );
    let row = sql.client.query_one(&query, &[&config.postgres.slot, schema]).await?;
    Ok(row.get(0))
}

fn in_use(slot: &str) -> Failure {
    let remedy = "stop it first, and whoever would start it again (systemctl disable --now postrider)";
    preflight::in_use(slot, remedy)
}
