//! `postrider init`: makes what `run` needs, and nothing twice.
//!
//! The order is that of the facts: table, schema, publication, and only then the slot, which can
//! decode nothing that was written before its publication existed; slot and stream together; last
//! the checkpoint row, which says that both belong to each other.

mod make;
mod plan;
mod print;

use super::{Ended, block_on, load};
use crate::config::{Config, Flags, Oversize};
use crate::delivery::checkpoint::Objects;
use crate::delivery::opening;
use crate::error::{Code, Failure};
use crate::nats::connect::Nats;
use crate::nats::sourcing::{self, Sourced};
use crate::nats::stream::Stream;
use crate::nats::{connect, object_store};
use crate::outbox::{Mapping, Preset, Resolved};
use crate::postgres::client::Sql;
use crate::postgres::connection::Connection;
use crate::postgres::preflight::{self as facts, System};
use crate::reconcile::{Asked, Phase, Survey, mend};
use crate::relay::preflight;
use crate::state::{checkpoint, dead_letter, older};
use make::make;
use plan::{Before, Next, judge_messages};
use postgres_protocol::escape::{escape_identifier, escape_literal};

/// Make what `run` needs: schema, publication, slot, stream, checkpoint row. Makes nothing twice.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider init                          # beside an outbox table that exists
  postrider init --create-table           # with an article table: id, event_type, payload, …
  postrider init --backfill               # and publish the rows that are there already, in the order of their ids
  postrider init --print-sql | less       # what a DBA would run instead
  postrider init --print-nats             # what the relay's user in NATS may do
  postrider init --source-into EVENTS --as 'events.>'   # a shared stream gets the events too

Without --backfill, rows that were committed before the slot existed are not published.")]
pub(super) struct Args {
    /// Create the outbox table where it is missing.
    #[arg(long, value_name = "PRESET", num_args = 0..=1, require_equals = true, default_missing_value = "article")]
    create_table: Option<NewTable>,
    /// Publish the rows too that are in the table already, but for those marked as processed. May be killed,
    /// and run again.
    #[arg(long)]
    backfill: bool,
    /// With --backfill: also rows that are marked as processed, by the column `processed`, else `processed_at`, or
    /// care.mark_column.
    #[arg(long, requires = "backfill")]
    processed: bool,
    /// Go on with what is there although it cannot be proved to fit; says what is given up.
    #[arg(long)]
    adopt: bool,
    /// Let this existing stream, which may have other writers, source the events too.
    #[arg(long, value_name = "STREAM")]
    source_into: Option<String>,
    /// The subjects that the events have there: 'events.>'
    #[arg(long = "as", value_name = "SUBJECTS", requires = "source_into")]
    renamed: Option<String>,
    /// Print the SQL, with the role's least privileges and its line of pg_hba.conf, and run nothing.
    #[arg(long)]
    print_sql: bool,
    /// Print the least permissions of the relay's user in NATS, and run nothing.
    #[arg(long)]
    print_nats: bool,
    #[command(flatten)]
    flags: Flags,
}

/// Tables that `init` can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum NewTable {
    Article,
    Debezium,
}

impl NewTable {
    fn sql(self, config: &Config) -> String {
        let columns = match self {
            NewTable::Article => {
                "    id          bigserial PRIMARY KEY,\n\
                 \x20   event_type  varchar(255) NOT NULL,\n\
                 \x20   payload     jsonb,\n\
                 \x20   created_at  timestamptz NOT NULL DEFAULT now(),\n\
                 \x20   processed   boolean NOT NULL DEFAULT false\n"
            }
            NewTable::Debezium => {
                "    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),\n\
                 \x20   aggregatetype  varchar(255) NOT NULL,\n\
                 \x20   aggregateid    varchar(255) NOT NULL,\n\
                 \x20   type           varchar(255) NOT NULL,\n\
                 \x20   payload        jsonb\n"
            }
        };
        format!("CREATE TABLE {} (\n{columns})", config.outbox.table)
    }
}

pub(super) fn run(args: &Args) -> Ended {
    let config = load(&args.flags)?;
    if args.print_sql || args.print_nats {
        if args.print_sql {
            print!("{}", print::sql(args.create_table, &config).map_err(|failure| vec![failure])?);
        }
        if args.print_nats {
            print!("{}", print::nats(&config, args.source_into.as_deref()).map_err(|failure| vec![failure])?);
        }
        return Ok(());
    }
    block_on(init(args, &config))
}

fn create_schema(config: &Config) -> String {
    format!("CREATE SCHEMA IF NOT EXISTS {}", escape_identifier(&config.postgres.schema))
}

fn create_publication(config: &Config) -> String {
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish = 'insert', publish_via_partition_root = true)",
        escape_identifier(&config.postgres.publication),
        config.outbox.table
    )
}

/// With `failover` (17+) a standby keeps the slot up to date, so that it survives a promotion.
fn create_slot(slot: &str, failover: bool) -> String {
    let failover = if failover { ", failover => true" } else { "" };
    format!(
        "SELECT lsn::text FROM pg_create_logical_replication_slot({}, 'pgoutput'{failover})",
        escape_literal(slot)
    )
}

async fn init(args: &Args, config: &Config) -> Result<(), Failure> {
    let mut sql = Sql::connect_any(&config.postgres.database.resolve()?).await?;
    let server = preflight::server(&sql).await?;
    let nats = connect::connect(&config.nats.access).await?;
    let stream = Stream::named(&nats, &config.nats.stream).await?;

    let resolved = table(args, config, &sql).await?;
    schema(config, &sql).await?;
    let objects = publication(config, &sql).await?;
    let (mut connection, system) = replication(&sql).await?;
    let before = Before {
        slot: facts::slot(&sql, &config.postgres.slot).await?,
        row: checkpoint::read(&sql, &config.postgres.schema, &config.postgres.slot).await?,
        stream: match stream.look().await {
            Ok(look) => Some(look),
            Err(failure) if failure.code == Code::StreamMissing => None,
            Err(failure) => return Err(failure),
        },
    };
    drop(connection.query("SELECT 1").await);
    if let Some(look) = &before.stream {
        look.config.fits(stream.name(), resolved.subject())?;
    }
    if let Some(slot) = &before.slot {
        // A lost slot is given up by dropping it, which only a person may do.
        preflight::fit_slot(&config.postgres.slot, slot)?;
    }
    if let Some(failure) = before.row.as_ref().and_then(opening::unfinished).filter(|_| !args.backfill) {
        return Err(failure);
    }
    let wants_store = config.delivery.oversize == Oversize::ObjectStore;
    let fills = args.backfill && !before.is_ready();
    let next = if fills { Next::Backfill } else { before.plan(args.adopt, config, objects, system.id) };
    match next {
        Next::Backfill => {
            // Rows that are too large go there.
            if wants_store {
                payloads(config, &stream).await?;
            }
            backfill(args, config, &nats).await?;
        }
        Next::Nothing => {
            if args.backfill {
                println!("backfill    not needed: what the stream lacks, postrider recover publishes");
            }
            println!("slot        {} exists, with its checkpoint row", config.postgres.slot);
            println!("stream      {} exists", config.nats.stream);
        }
        Next::Refuse(failure) => return Err(*failure),
        Next::Make { given_up } => {
            judge_messages(args.adopt, &stream, &before, &system, config).await?;
            if before.slot.as_ref().is_some_and(|slot| slot.confirmed.is_none()) {
                return Err(preflight::blocked(&sql, &config.postgres.slot).await?);
            }
            if before.slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) {
                return Err(preflight::in_use(&config.postgres.slot, "stop it first"));
            }
            for words in &given_up {
                println!("given up    {words}");
            }
            make(config, &mut sql, &stream, &resolved, before, objects, &system, server.version_num).await?;
        }
    }
    if wants_store && !fills {
        payloads(config, &stream).await?;
    }
    if let Some(shared) = &args.source_into {
        share(&nats, &stream, shared, args.renamed.as_deref(), &resolved).await?;
    }
    println!("ready       postrider run");
    Ok(())
}

/// Publishes the rows that are there, and makes stream, slot and row on the way.
async fn backfill(args: &Args, config: &Config, nats: &Nats) -> Result<(), Failure> {
    let asked = Asked {
        phase: Phase::Backfill,
        since: None,
        processed: args.processed,
        accept: args.adopt,
        adopt: args.adopt,
    };
    let bar = super::verify::bar();
    let consent = |survey: &Survey| {
        println!("backfill    {} rows", survey.missing);
        if let Some(marked) = super::recover::marked(survey) {
            println!("{marked}");
        }
        Ok(true)
    };
    let mended = mend(config, asked, nats, consent, |progress| super::verify::show(&bar, progress)).await?;
    bar.finish_and_clear();
    if let Some(mended) = mended {
        println!("published   {}", mended.published);
        if mended.lettered > 0 {
            println!("lettered    {}: postrider dlq list", mended.lettered);
        }
        println!("slot        {} goes on at {}", config.postgres.slot, mended.slot_lsn);
    }
    Ok(())
}

/// A stream with other writers: it sources ours.
async fn share(
    nats: &Nats,
    stream: &Stream,
    shared: &str,
    renamed: Option<&str>,
    resolved: &Resolved,
) -> Result<(), Failure> {
    let subjects = resolved.subject().stream_subject().unwrap_or_else(|| ">".to_owned());
    let into = Stream::named(nats, shared).await?;
    let shown = renamed.unwrap_or(&subjects);
    let how = match sourcing::source(&into, stream, &subjects, renamed).await? {
        Sourced::Now => "sources from now on",
        Sourced::Already => "sources already",
    };
    println!("shared      {shared} {how}, on {shown}");
    Ok(())
}

/// The object store for payloads that are too large.
async fn payloads(config: &Config, stream: &Stream) -> Result<(), Failure> {
    let bucket = object_store::bucket(stream.name());
    if object_store::exists(stream).await? {
        println!("store       {bucket} exists");
        return Ok(());
    }
    object_store::create(stream, config.nats.replicas, config.nats.max_age).await?;
    println!("store       {bucket} created for payloads that are too large");
    Ok(())
}

async fn execute(sql: &Sql, statement: &str, doing: &str) -> Result<(), Failure> {
    let done = sql.client.batch_execute(statement).await;
    done.map_err(|error| Failure::from(error).context(doing))
}

async fn table(args: &Args, config: &Config, sql: &Sql) -> Result<Resolved, Failure> {
    let name = &config.outbox.table;
    if let Some(new) = args.create_table
        && facts::table(sql, &name.schema, &name.name).await?.is_none()
    {
        execute(sql, &new.sql(config), "create the outbox table").await?;
        println!("table       {name} created");
    }
    let table = preflight::table(sql, config).await?;
    let mapping = Mapping::new(&config.outbox.settings(&config.nats))?;
    let resolved = preflight::columns(&mapping, &table)?;
    println!("table       {name}, preset {}, subject {}", resolved.preset(), resolved.subject());
    if resolved.preset() == Preset::Article && table.kind == 'p' {
        println!("            partitioned: rows come under the root's name");
    }
    Ok(resolved)
}

/// Schema, and the tables of checkpoints and dead letters. Looked for first: IF NOT EXISTS asks for the privilege to create
/// even where nothing is to be created.
async fn schema(config: &Config, sql: &Sql) -> Result<(), Failure> {
    let schema = &config.postgres.schema;
    let known = sql
        .client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1), EXISTS (SELECT FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = 'pipeline'), \
             EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = 'dead_letter'), EXISTS (SELECT FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = 'older_row'), \
             EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n \
             ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = 'pipeline' AND a.attname = 'older_rows')",
            &[schema],
        )
        .await?;
    if !known.get::<_, bool>(0) {
        execute(sql, &create_schema(config), "create the schema").await?;
        println!("schema      {schema} created");
    }
    if !known.get::<_, bool>(1) {
        execute(sql, &checkpoint::create_table(schema), "create the table of checkpoints").await?;
    } else if !known.get::<_, bool>(4) {
        execute(sql, &checkpoint::add_older_rows(schema), "add to the table of checkpoints").await?;
    }
    if !known.get::<_, bool>(2) {
        execute(sql, &dead_letter::create_table(schema), "create the table of dead letters").await?;
    }
    if !known.get::<_, bool>(3) {
        execute(sql, &older::create_table(schema), "create the table of older rows").await?;
    }
    Ok(())
}

async fn publication(config: &Config, sql: &Sql) -> Result<Objects, Failure> {
    let name = &config.outbox.table;
    let table = preflight::table(sql, config).await?;
    let known = facts::publication(sql, &config.postgres.publication, &name.schema, &name.name).await?;
    if known.is_none() {
        execute(sql, &create_publication(config), "create the publication").await?;
        println!("publication {} created", config.postgres.publication);
    } else {
        println!("publication {} exists", config.postgres.publication);
    }
    let publication = preflight::publication(sql, config, &table).await?;
    Ok(preflight::objects(&publication, &table))
}

/// Opens a replication connection: proves that the role and pg_hba.conf allow it, and says who the
/// server is.
async fn replication(sql: &Sql) -> Result<(Connection, System), Failure> {
    let mut connection = sql
        .walsender(&sql.target)
        .await
        .map_err(|error| Failure::from(error).context("open a replication connection"))?;
    let system = facts::identify(&mut connection).await?;
    Ok((connection, system))
}
