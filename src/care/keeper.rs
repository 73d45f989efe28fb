//! Clean-up beside a relay, on a thread and a connection of its own: nothing here can slow the pump, and
//! no failure of it ends the relay. Only the leader cleans up; it ends with the process.
//!
//! Going through the table in vain costs nine times as long a rest, and a proof that comes meanwhile waits it out:
//! where one pass takes a minute, rows that are proved just after it stay for nine more.

use super::partitions::{self, Outcome};
use super::plan::{self, Plan};
use super::proof::Proofs;
use super::rows::{self, Broom, Pace, RESTS};
use super::standing::{self, Standing};
use super::{Tally, settle_in, watch};
use crate::config::Config;
use crate::error::{Code, Failure};
use crate::ops::status::{Board, Role, State};
use crate::postgres::client::Sql;
use crate::postgres::lsn::Lsn;
use crate::relay::preflight;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

/// What the slot proves is looked at so often.
const LOOK_APART: Duration = Duration::from_millis(500);

/// The table is gone through at most so often.
const SWEEP_APART: Duration = Duration::from_secs(1);

/// Witnesses are no closer than this: each has the relay look at the publication.
const WITNESS_APART: Duration = Duration::from_secs(2);

/// Past partitions are looked at so often …
const PARTITIONS_APART: Duration = Duration::from_secs(10);

/// … and less and less often while others use the table: at each attempt writers wait for a moment.
const PARTITIONS_APART_MAX: Duration = Duration::from_secs(300);

/// A transaction that keeps proofs from coming is named after so long.
const HELD_MAX: Duration = Duration::from_secs(60);

/// Clean-up is summed up in the log, and the table measured, so often.
const SUMMARY_APART: Duration = Duration::from_secs(60);

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The LSN that a proof waits for: an idle relay writes its row for it.
#[derive(Debug, Clone, Default)]
pub struct Wanted(Arc<AtomicU64>);

impl Wanted {
    fn want(&self, lsn: Lsn) {
        self.0.fetch_max(lsn.0, Ordering::Relaxed);
    }

    /// The highest one yet.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        Lsn(self.0.load(Ordering::Relaxed))
    }
}

/// Cleans up until the process ends, whenever `board` says that this relay leads.
pub fn start(config: &Config, board: Board) -> Wanted {
    let wanted = Wanted::default();
    let keeper = Keeper { config: config.clone(), board, wanted: wanted.clone() };
    let spawned = std::thread::Builder::new().name("care".to_owned()).spawn(move || {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(keeper.run()),
            Err(error) => warn!(%error, "the outbox is not cleaned up"),
        }
    });
    if let Err(error) = spawned {
        warn!(%error, "the outbox is not cleaned up");
    }
    wanted
}

struct Keeper {
    config: Config,
    board: Board,
    wanted: Wanted,
}

impl Keeper {
    fn leads(&self) -> bool {
        let status = self.board.read();
        status.role == Role::Leader && status.state == State::Stream
    }

    async fn run(&self) {
        let mut pause = PAUSE_MIN;
        let mut warned = Warned::default();
        loop {
            if !self.leads() {
                sleep(LOOK_APART).await;
                continue;
            }
            let began = Instant::now();
            let ended = match self.config.care.is_on() {
                true => self.session(&mut pause, &mut warned).await,
                false => self.look_at_size(&mut warned).await,
            };
            match ended {
                Ok(()) => {}
                Err(failure) if !self.config.care.is_on() => {
                    debug!(error = failure.message, "the outbox is not measured")
                }
                // The relay has lost its server too, or another one leads now.
                Err(failure) if !self.leads() => debug!(error = failure.message, "clean-up ended"),
                Err(failure) => {
                    warn!(code = %failure.code, error = failure.message, remedy = failure.whole_remedy(), retry_in = ?pause,
                        "clean-up failed");
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
            if !self.config.care.is_on() {
                tokio::time::sleep_until(began + SUMMARY_APART).await;
            }
        }
    }

    /// One connection; it ends when this relay leads no more.
    async fn session(&self, pause: &mut Duration, warned: &mut Warned) -> Result<(), Failure> {
        let config = &self.config;
        let sql = Sql::connect_any(&config.postgres.database.resolve_again()?).await?;
        settle_in(&sql).await?;
        let mut session = Session::new(config, plan::of(&sql, config).await?);
        while self.leads() {
            session.pass(self, &sql).await?;
            *pause = PAUSE_MIN;
            session.sum_up(&sql, warned).await?;
            sleep(LOOK_APART).await;
        }
        Ok(())
    }

    /// Where nothing is cleaned up, that it grows is all the more worth a word.
    async fn look_at_size(&self, warned: &mut Warned) -> Result<(), Failure> {
        let sql = Sql::connect_any(&self.config.postgres.database.resolve_again()?).await?;
        let table = preflight::table(&sql, &self.config).await?;
        warned.look(&sql, &self.config, table.oid).await
    }
}

struct Session<'a> {
    config: &'a Config,
    plan: Plan,
    proofs: Proofs,
    held: Held,
    witness_apart: Duration,
    emitted: Lsn,
    sweep_due: Instant,
    partitions_due: Instant,
    partitions_apart: Duration,
    summary_due: Instant,
    /// Rows that are due and wait for a proof.
    waits: bool,
    done: Tally,
}

impl<'a> Session<'a> {
    fn new(config: &'a Config, plan: Plan) -> Session<'a> {
        let now = Instant::now();
        Session {
            config,
            plan,
            proofs: Proofs::default(),
            held: Held { horizon: 0, since: now, told: false },
            witness_apart: (config.delivery.hold_back(&config.nats) / 16).max(WITNESS_APART),
            emitted: Lsn::ZERO,
            sweep_due: now,
            partitions_due: now,
            partitions_apart: PARTITIONS_APART,
            summary_due: now + SUMMARY_APART,
            waits: false,
            done: Tally::default(),
        }
    }

    /// What the slot proves now, and then what that allows.
    async fn pass(&mut self, keeper: &Keeper, sql: &Sql) -> Result<(), Failure> {
        let standing = standing::standing(sql, self.config).await?;
        fits(&self.plan, &standing)?;
        self.proofs.confirm(standing.proved());
        if Instant::now() >= self.sweep_due {
            self.sweep(keeper, sql, &standing).await?;
        }
        if Instant::now() >= self.partitions_due {
            self.drop_partitions(sql, &standing).await?;
        }
        if self.waits && self.proofs.may_take(self.witness_apart, Instant::now()) {
            let witness = standing::witness(sql).await?;
            self.held.look(sql, witness.horizon).await?;
            self.proofs.take(witness, Instant::now());
            self.waits = false;
        }
        let Some(wanted) = self.proofs.wanted() else { return Ok(()) };
        keeper.wanted.want(wanted);
        if standing.flushed < wanted && self.emitted < wanted {
            // Nobody has written since the last look: the walsender would have nothing to send.
            standing::emit(sql).await?;
            self.emitted = wanted;
        }
        Ok(())
    }

    async fn sweep(&mut self, keeper: &Keeper, sql: &Sql, standing: &Standing) -> Result<(), Failure> {
        let care = &self.config.care;
        let broom = Broom { older: standing.older, batch: care.batch, pace: Pace::of(care.pace), dry: false };
        let (tally, rest) = rows::sweep(sql, &self.plan, &mut self.proofs, broom, || keeper.leads()).await?;
        self.sweep_due = Instant::now() + rest.max(SWEEP_APART);
        self.waits = tally.waiting > 0;
        (self.done.waiting, self.done.staying) = (0, 0);
        self.done.add(tally);
        Ok(())
    }

    async fn drop_partitions(&mut self, sql: &Sql, standing: &Standing) -> Result<(), Failure> {
        let began = Instant::now();
        let (mut dropped, mut busy) = (false, false);
        for outcome in partitions::drop_old(sql, &self.plan, &self.proofs, standing.older, false).await? {
            match outcome {
                Outcome::Dropped(partition) => {
                    info!(partition, "a partition whose events are stored was dropped");
                    self.done.dropped.push(partition);
                    dropped = true;
                }
                Outcome::Kept(_, waiting) => self.waits |= waiting > 0,
                Outcome::Busy(_) => busy = true,
            }
        }
        self.partitions_apart =
            if busy { (self.partitions_apart * 2).min(PARTITIONS_APART_MAX) } else { PARTITIONS_APART };
        let rest = if dropped { began.elapsed() } else { began.elapsed() * RESTS };
        self.partitions_due = Instant::now() + rest.max(self.partitions_apart);
        Ok(())
    }

    async fn sum_up(&mut self, sql: &Sql, warned: &mut Warned) -> Result<(), Failure> {
        if Instant::now() < self.summary_due {
            return Ok(());
        }
        self.summary_due = Instant::now() + SUMMARY_APART;
        let Tally { marked, deleted, dropped, waiting, staying } = std::mem::take(&mut self.done);
        if marked + deleted > 0 || !dropped.is_empty() {
            info!(
                marked,
                deleted,
                partitions_dropped = dropped.len(),
                waiting,
                staying,
                "the outbox was cleaned up"
            );
        }
        // The table may have other columns by now.
        self.plan = plan::of(sql, self.config).await?;
        warned.look(sql, self.config, self.plan.oid).await
    }
}

/// The slot sends another table than the one that would be cleaned up.
pub(super) fn fits(plan: &Plan, standing: &Standing) -> Result<(), Failure> {
    if standing.table_oid == plan.oid {
        return Ok(());
    }
    Err(Failure::new(
        Code::CareSlot,
        format!("slot `{}` proves nothing: {} was dropped and made again", plan.slot, plan.name),
        "postrider doctor says what is wrong; no row is touched meanwhile",
    ))
}

/// Since when the horizon stands still though rows wait: each transaction that holds it is named once.
struct Held {
    horizon: u64,
    since: Instant,
    told: bool,
}

impl Held {
    async fn look(&mut self, sql: &Sql, horizon: u64) -> Result<(), Failure> {
        if horizon != self.horizon {
            *self = Held { horizon, since: Instant::now(), told: false };
        }
        if self.told || self.since.elapsed() < HELD_MAX {
            return Ok(());
        }
        if let Some(failure) = standing::holder(sql, horizon).await? {
            warn!(code = %failure.code, error = failure.message, remedy = failure.whole_remedy(), "clean-up waits");
            self.told = true;
        }
        Ok(())
    }
}

/// What was warned of already: each is said once until it has doubled.
#[derive(Debug, Default)]
struct Warned {
    bytes: u64,
    dead: u64,
}

impl Warned {
    async fn look(&mut self, sql: &Sql, config: &Config, table: u32) -> Result<(), Failure> {
        let extent = watch::extent(sql, table).await?;
        let large = extent.is_large(config).filter(|_| extent.bytes >= self.bytes.saturating_mul(2));
        let bloated = extent.is_bloated(config).filter(|_| extent.dead >= self.dead.saturating_mul(2));
        if large.is_some() {
            self.bytes = extent.bytes;
        }
        self.dead = match extent.is_bloated(config) {
            Some(_) if bloated.is_some() => extent.dead,
            Some(_) => self.dead,
            None => 0,
        };
        for failure in [large, bloated].into_iter().flatten() {
            warn!(code = %failure.code, error = failure.message, remedy = failure.whole_remedy(), "the outbox needs care");
        }
        Ok(())
    }
}
