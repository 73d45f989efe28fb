//! Clean-up once, by hand: with the same proof, beside a running relay or without one.
//!
//! While a relay reads the slot, a witness is taken and its confirmation awaited. Where none does, nothing
//! moves, and the slot can be looked into: whatever it does not hold any more is confirmed. What a relay
//! would have looked at before it confirms is looked at here: the publication, which decides what the slot
//! shows, and the stream.

use super::keeper::fits;
use super::partitions::{self, Outcome};
use super::plan::{self, Plan};
use super::proof::Proofs;
use super::rows::{self, Broom, Pace};
use super::standing::{self, Standing};
use super::{Tally, settle_in};
use crate::config::Config;
use crate::delivery::opening;
use crate::error::{Code, Failure};
use crate::nats::connect;
use crate::nats::stream::Stream;
use crate::postgres::client::Sql;
use crate::postgres::error::Error;
use crate::postgres::lsn::Lsn;
use crate::postgres::peek::{Peek, flushed};
use crate::relay::preflight;
use crate::state::checkpoint;
use serde::Serialize;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;

const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What is to be done, and how patiently.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Only look.
    pub dry: bool,
    /// How long a running relay may take to have the slot confirmed.
    pub patience: Duration,
}

/// What was done, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Rows that were marked.
    pub marked: u64,
    /// Rows that were deleted.
    pub deleted: u64,
    /// … of which went into the archive.
    pub archived: u64,
    /// Partitions that were dropped.
    pub dropped: Vec<String>,
    /// Rows that are due, and whose events are not known to be stored and confirmed.
    pub waiting: u64,
    /// Rows that are due and stay: their letters are open, or they never came through the slot.
    pub staying: u64,
    /// Partitions whose time is past, and that hold such rows, or are in use.
    pub kept: Vec<String>,
}

/// Cleans up once. `told` hears what is waited for.
///
/// # Errors
/// Postgres cannot be asked, the clean-up does not fit the table, or nothing can be proved.
pub async fn prune(config: &Config, scope: Scope, mut told: impl FnMut(&str)) -> Result<Pruned, Failure> {
    if !config.care.is_on() {
        return Err(Failure::new(
            Code::CareOff,
            "neither care.mark nor care.delete_after nor care.drop_partitions_after is set",
            "set one of them, or say it here",
        )
        .command("postrider prune --dry-run --care-delete-after 7d"));
    }
    let sql = Sql::connect_any(&config.postgres.database.resolve()?).await?;
    settle_in(&sql).await?;
    let plan = plan::of(&sql, config).await?;
    let standing = standing::standing(&sql, config).await?;
    fits(&plan, &standing)?;
    let mut proofs = prove(&sql, config, &plan, scope, standing, &mut told).await?;
    let standing = standing::standing(&sql, config).await?;
    fits(&plan, &standing)?;

    let care = &config.care;
    let broom = Broom { older: standing.older, batch: care.batch, pace: Pace::of(care.pace), dry: scope.dry };
    let (mut tally, _) = rows::sweep(&sql, &plan, &mut proofs, broom, || true).await?;
    let mut kept = Vec::new();
    for outcome in partitions::drop_old(&sql, &plan, &proofs, standing.older, scope.dry).await? {
        match outcome {
            Outcome::Dropped(partition) => tally.dropped.push(partition),
            Outcome::Kept(partition, _) | Outcome::Busy(partition) => kept.push(partition),
        }
    }
    let Tally { marked, deleted, dropped, waiting, staying } = tally;
    let archived = if plan.archive.is_some() { deleted } else { 0 };
    Ok(Pruned { dry_run: scope.dry, marked, deleted, archived, dropped, waiting, staying, kept })
}

/// Proves what can be proved now.
async fn prove(
    sql: &Sql,
    config: &Config,
    plan: &Plan,
    scope: Scope,
    standing: Standing,
    told: &mut impl FnMut(&str),
) -> Result<Proofs, Failure> {
    if !standing.active
        && let Some(proofs) = look_into_slot(sql, config, plan).await?
    {
        return Ok(proofs);
    }
    // A relay reads it, perhaps since just now.
    await_confirmation(sql, config, plan, scope, told).await
}

/// What the slot does not hold is confirmed: every transaction below the oldest that it holds, and below
/// the horizon. None: someone reads it.
async fn look_into_slot(sql: &Sql, config: &Config, plan: &Plan) -> Result<Option<Proofs>, Failure> {
    let nats = connect::connect(&config.nats.access).await?;
    let stream = Stream::named(&nats, &config.nats.stream).await?;
    belong_together(sql, config, &stream).await?;
    let witness = standing::witness(sql).await?;
    flush(sql, witness.lsn).await?;
    // A table of millions of unconfirmed rows takes its time.
    sql.client.batch_execute("SET statement_timeout = 0").await?;
    let (slot, publication) = (&config.postgres.slot, &config.postgres.publication);
    let peeked = async {
        let mut oldest = u64::MAX;
        let mut peek = Peek::begin(sql, slot, publication, plan.oid, None, None).await?;
        while let Some(held) = peek.next().await? {
            oldest = oldest.min(whole(held.begin.xid, witness.horizon));
        }
        Ok(oldest)
    };
    let peeked = peeked.await;
    sql.client.batch_execute("SET statement_timeout = '30s'").await?;
    let oldest = match peeked {
        Err(Error::Server(said)) if said.code == SqlState::OBJECT_IN_USE => return Ok(None),
        peeked => peeked?,
    };
    // Asked after it: whoever moved the slot by hand, or changed the publication, has made the look worthless.
    belong_together(sql, config, &stream).await?;
    let after = standing::standing(sql, config).await?;
    fits(plan, &after)?;
    if after.active {
        return Ok(None);
    }
    if after.confirmed > after.settled {
        return Err(Failure::new(
            Code::CareSlot,
            format!(
                "slot `{}` proves nothing: it is confirmed up to {}, the relay had settled {}",
                config.postgres.slot, after.confirmed, after.settled
            ),
            "someone else moved it; postrider doctor says what can be done",
        ));
    }
    Ok(Some(Proofs::proved(witness.horizon.min(oldest))))
}

/// The slot was made with this publication, and what was confirmed is in this stream.
async fn belong_together(sql: &Sql, config: &Config, stream: &Stream) -> Result<(), Failure> {
    let table = preflight::table(sql, config).await?;
    let publication = preflight::publication(sql, config, &table).await?;
    let now = preflight::objects(&publication, &table);
    let row = checkpoint::read(sql, &config.postgres.schema, &config.postgres.slot).await?;
    let Some(row) = row else { return Err(standing::unproved(config, "it has no checkpoint row")) };
    if now != row.objects {
        return Err(preflight::changed(&config.postgres.publication, Some(now), row.objects));
    }
    opening::relied_on(&row, stream.look().await?.end)
}

/// The id of 64 bits that a transaction of the slot's has: one that has been held for less than two
/// billion transactions.
fn whole(xid: u32, near: u64) -> u64 {
    const ROUND: u64 = 1 << 32;
    let base = near & !(ROUND - 1);
    let candidates = [base.checked_sub(ROUND), Some(base), base.checked_add(ROUND)];
    let whole = candidates.into_iter().flatten().map(|base| base + u64::from(xid));
    whole.min_by_key(|whole| whole.abs_diff(near)).unwrap_or(u64::from(xid))
}

/// A slot shows what is on disk: waits until everything before `lsn` is.
async fn flush(sql: &Sql, lsn: Lsn) -> Result<(), Failure> {
    standing::emit(sql).await?;
    if flushed(sql, lsn).await? {
        return Ok(());
    }
    Err(Failure::new(
        Code::CareSlot,
        format!("the WAL before {lsn} is not on disk yet"),
        "CHECKPOINT; as a superuser, then again",
    ))
}

/// Takes a witness and waits for the relay. What is not confirmed in time stays unproved.
async fn await_confirmation(
    sql: &Sql,
    config: &Config,
    plan: &Plan,
    scope: Scope,
    told: &mut impl FnMut(&str),
) -> Result<Proofs, Failure> {
    let mut proofs = Proofs::default();
    let witness = standing::witness(sql).await?;
    proofs.take(witness, Instant::now());
    let until = Instant::now() + scope.patience;
    standing::emit(sql).await?;
    loop {
        let standing = standing::standing(sql, config).await?;
        fits(plan, &standing)?;
        if proofs.confirm(standing.proved()) || Instant::now() >= until {
            return Ok(proofs);
        }
        told(&format!("the slot is confirmed up to {}, awaiting {}", standing.proved(), witness.lsn));
        sleep(ASK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_id_is_the_nearest_one_of_64_bits() {
        const ROUND: u64 = 1 << 32;
        for (xid, near, expected) in [
            (100, 200, 100),
            (300, 200, 300),
            (u32::MAX - 5, ROUND + 10, ROUND - 6),
            (7, ROUND + 10, ROUND + 7),
            (5, 2 * ROUND - 10, 2 * ROUND + 5),
        ] {
            assert_eq!(whole(xid, near), expected, "{xid} near {near}");
        }
    }
}
