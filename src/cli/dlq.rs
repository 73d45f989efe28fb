//! `postrider dlq`: looks at dead letters, sends them again, puts them away.

use super::{Ended, block_on, load};
use crate::config::{Config, Flags};
use crate::error::Failure;
use crate::outbox::Mapping;
use crate::postgres::client::Sql;
use crate::relay::preflight;
use crate::state::dead_letter::{self, Shown};
use crate::state::replay::{Outbox, replay};
use serde_json::json;

/// Look at dead letters, send them again, put them away.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider dlq list                # open ones, oldest first
  postrider dlq show 17             # why, and the whole row
  postrider dlq replay 17 18        # through the outbox and the slot, as if written now
  postrider dlq drop 19             # it is not to be published

A dead letter is an event that cannot be published; the events behind it go on. They are rows of
postrider.dead_letter, to be read with SQL as well.")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the open letters, oldest first.
    List {
        /// Also those that were resolved.
        #[arg(long)]
        all: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: Flags,
    },
    /// Show a letter with its whole row.
    Show {
        /// The letter.
        id: i64,
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: Flags,
    },
    /// Send letters again: delete and insert the outbox row in one transaction.
    Replay {
        /// The letters.
        #[arg(required_unless_present = "all")]
        ids: Vec<i64>,
        /// All open ones, in commit order.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: Flags,
    },
    /// Put letters away: their events are not to be published.
    Drop {
        /// The letters.
        #[arg(required = true)]
        ids: Vec<i64>,
        #[command(flatten)]
        flags: Flags,
    },
}

pub(super) fn run(args: &Args) -> Ended {
    match &args.action {
        Action::List { all, json, flags } => {
            let config = load(flags)?;
            block_on(list(&config, *all, *json))
        }
        Action::Show { id, json, flags } => {
            let config = load(flags)?;
            block_on(show(&config, *id, *json))
        }
        Action::Replay { ids, all, json, flags } => {
            let config = load(flags)?;
            let mut refused = Vec::new();
            block_on(replay_all(&config, (!all).then_some(ids), *json, &mut refused))?;
            if refused.is_empty() { Ok(()) } else { Err(refused) }
        }
        Action::Drop { ids, flags } => {
            let config = load(flags)?;
            let mut missing = Vec::new();
            block_on(drop_letters(&config, ids, &mut missing))?;
            if missing.is_empty() { Ok(()) } else { Err(missing) }
        }
    }
}

async fn connect(config: &Config) -> Result<Sql, Failure> {
    Ok(Sql::connect_any(&config.postgres.database.resolve()?).await?)
}

async fn list(config: &Config, all: bool, json: bool) -> Result<(), Failure> {
    let sql = connect(config).await?;
    let letters = dead_letter::list(&sql, &config.postgres.schema, &config.postgres.slot, all).await?;
    if json {
        println!("{}", serde_json::Value::from_iter(letters.into_iter().map(|letter| letter.json)));
        return Ok(());
    }
    if letters.is_empty() {
        println!("no {}dead letters", if all { "" } else { "open " });
    }
    for Shown { id, json } in letters {
        let text = |name: &str| json.get(name).and_then(|value| value.as_str()).unwrap_or("-").to_owned();
        let resolution = json.get("resolution").and_then(|value| value.as_str());
        let resolution = resolution.map_or(String::new(), |resolution| format!("  [{resolution}]"));
        println!(
            "{id:>8}  {}  {:<16}  {}{resolution}",
            text("created_at").get(..19).unwrap_or_default(),
            text("reason"),
            text("error")
        );
    }
    Ok(())
}

async fn show(config: &Config, id: i64, json: bool) -> Result<(), Failure> {
    let sql = connect(config).await?;
    let letter = dead_letter::show(&sql, &config.postgres.schema, &config.postgres.slot, id).await?;
    if json {
        println!("{}", letter.json);
        return Ok(());
    }
    for (name, value) in letter.json.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if value != "null" {
            println!("{name:<12} {value}");
        }
    }
    Ok(())
}

/// Each letter is one transaction; one that is refused does not keep the others.
async fn replay_all(
    config: &Config,
    ids: Option<&Vec<i64>>,
    json: bool,
    refused: &mut Vec<Failure>,
) -> Result<(), Failure> {
    let mut sql = connect(config).await?;
    let (schema, slot) = (&config.postgres.schema, &config.postgres.slot);
    let table = preflight::table(&sql, config).await?;
    let mapping = Mapping::new(&config.outbox.settings(&config.nats))?;
    let id = preflight::columns(&mapping, &table)?.id_column().to_owned();
    let outbox = Outbox { oid: table.oid, name: config.outbox.table.to_string(), id };
    let ids = match ids {
        Some(ids) => ids.clone(),
        None => dead_letter::list(&sql, schema, slot, false).await?.iter().map(|letter| letter.id).collect(),
    };
    let (mut replayed, mut problems) = (Vec::new(), Vec::new());
    for id in ids {
        match replay(&mut sql, schema, slot, &outbox, id).await {
            Ok(()) => replayed.push(id),
            Err(failure) => {
                problems.push(json!({ "id": id, "code": failure.code.as_str(), "message": failure.message }));
                refused.push(failure);
            }
        }
    }
    if json {
        println!("{}", json!({ "replayed": replayed, "refused": problems }));
    } else {
        println!("replayed {} of {}", replayed.len(), replayed.len() + problems.len());
    }
    Ok(())
}

async fn drop_letters(config: &Config, ids: &[i64], missing: &mut Vec<Failure>) -> Result<(), Failure> {
    let sql = connect(config).await?;
    let (schema, slot) = (&config.postgres.schema, &config.postgres.slot);
    let dropped = dead_letter::put_away(&sql, schema, slot, ids).await?;
    println!("dropped {} of {}", dropped.len(), ids.len());
    missing.extend(ids.iter().filter(|id| !dropped.contains(id)).map(|id| dead_letter::missing(*id)));
    Ok(())
}
