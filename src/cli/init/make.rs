//! Slot, stream and checkpoint row, made and put together.

use super::plan::Before;
use super::{create_slot, execute};
use crate::config::Config;
use crate::delivery::checkpoint::{Checkpoint, Objects};
use crate::delivery::opening::Stored;
use crate::error::{Code, Failure};
use crate::nats::stream::{Look, Stream};
use crate::nats::stream_config::New;
use crate::outbox::Resolved;
use crate::postgres::client::Sql;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::System;
use crate::relay::preflight;
use crate::state::checkpoint;
use crate::state::older::{self, Older};
use postgres_protocol::escape::escape_literal;

#[allow(clippy::too_many_arguments, reason = "everything that init has found out, used once")]
pub(super) async fn make(
    config: &Config,
    sql: &mut Sql,
    stream: &Stream,
    resolved: &Resolved,
    before: Before,
    objects: Objects,
    system: &System,
    version_num: i32,
) -> Result<(), Failure> {
    let slot = &config.postgres.slot;
    let look = match before.stream {
        Some(look) => {
            println!("stream      {} exists", stream.name());
            look
        }
        None => create_stream(config, stream, resolved).await?,
    };
    let had_slot = before.slot.is_some();
    let confirmed = match before.slot.and_then(|slot| slot.confirmed) {
        Some(confirmed) => {
            println!("slot        {slot} exists");
            confirmed
        }
        None => new_slot(config, sql, version_num).await?,
    };
    let last_seq = look.end.last_seq;
    let fresh = Checkpoint {
        slot: slot.clone(),
        stream: stream.name().to_owned(),
        stream_created: look.end.created,
        system_id: system.id,
        timeline: system.timeline,
        objects,
        phase: "ready".to_owned(),
        session: 0,
        seq: last_seq,
        last: None,
        passed_seq: last_seq,
        settled_lsn: confirmed,
        confirmed_seq: last_seq,
    };
    let row = match before.row {
        // The slot goes on: what the row knows of it stays proved.
        Some(row) if had_slot && row.system_id == system.id => {
            let same = row.stream_created == look.end.created;
            Checkpoint {
                seq: if same { row.seq.min(last_seq) } else { last_seq },
                passed_seq: if same { pass_foreign(stream, &row, last_seq).await? } else { last_seq },
                timeline: row.timeline,
                last: row.last,
                settled_lsn: row.settled_lsn.max(confirmed),
                confirmed_seq: row.confirmed_seq.min(last_seq),
                ..fresh
            }
        }
        _ => fresh,
    };
    // Before the row is there: a killed init must not leave one that knows of no older rows.
    let older = match older::list(sql, config, resolved.id_column(), &row).await? {
        Some(0) => Older::None,
        Some(rows) => {
            println!("older       {rows} rows are not the slot's to send: clean-up leaves them alone");
            if row.last.is_some() {
                println!("            postrider recover lets it have those that the stream has");
            }
            Older::Listed
        }
        None => Older::Unknown,
    };
    let transaction = sql.client.transaction().await?;
    checkpoint::put(&transaction, &config.postgres.schema, &row).await?;
    older::note(&transaction, &config.postgres.schema, slot, older).await?;
    transaction.commit().await?;
    println!("checkpoint  written: slot at {confirmed}, stream at {last_seq}");
    Ok(())
}

/// The last message behind the row that is not this relay's: up to there messages are judged. Its own
/// events in between are still proved one by one, which takes that none of them is gone.
async fn pass_foreign(stream: &Stream, row: &Checkpoint, last_seq: u64) -> Result<u64, Failure> {
    let ours = |stored: &Stored| match stored {
        Stored::Event(event) => event.position.system_id == row.system_id && event.position.slot == row.slot,
        Stored::Gone | Stored::Foreign(_) => false,
    };
    let tail = stream.messages(row.seq + 1, last_seq).await?;
    let foreign = |(_, stored): &&(u64, Stored)| !ours(stored) && *stored != Stored::Gone;
    let Some(&(last, _)) = tail.iter().rev().find(foreign) else { return Ok(row.passed_seq) };
    match tail.iter().find(|(seq, stored)| *seq < last && *stored == Stored::Gone) {
        None => Ok(last),
        Some((seq, _)) => Err(Failure::new(
            Code::HistoryDiffers,
            format!(
                "message {seq} of stream `{}` is gone, and a message that is not this relay's stands behind it: what it was cannot be told",
                stream.name()
            ),
            format!(
                "SELECT pg_drop_replication_slot({}); then postrider init --adopt goes on from now; look for \
                 unpublished rows in the outbox table",
                escape_literal(&row.slot)
            ),
        )),
    }
}

async fn create_stream(config: &Config, stream: &Stream, resolved: &Resolved) -> Result<Look, Failure> {
    let new = New::of(&config.nats, resolved.subject())?;
    let look = stream.create(&new).await.map_err(|failure| failure.context("create the stream"))?;
    println!("stream      {} created for {}", stream.name(), new.subjects.join(", "));
    Ok(look)
}

async fn new_slot(config: &Config, sql: &Sql, version_num: i32) -> Result<Lsn, Failure> {
    let slot = &config.postgres.slot;
    execute(
        sql,
        &format!("SET statement_timeout = '{}s'", preflight::SLOT_CREATION_MAX_SECONDS),
        "set a time limit",
    )
    .await?;
    let created = sql.client.query_one(&create_slot(slot, version_num >= 170_000), &[]).await;
    let row = match created {
        Ok(row) => row,
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::QUERY_CANCELED) => {
            return Err(preflight::blocked(sql, slot).await?);
        }
        Err(error) => return Err(Failure::from(error).context("create the slot")),
    };
    let lsn: String = row.get(0);
    println!("slot        {slot} created at {lsn}");
    lsn.parse().map_err(|error| Failure::new(Code::Unexpected, format!("{error}"), "report it"))
}
