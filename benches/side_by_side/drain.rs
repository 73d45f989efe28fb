//! How fast a backlog flows.
//!
//! | who | from | to |
//! | --- | --- | --- |
//! | `pg_recvlogical`, the walsender alone | start | last row |
//! | the publisher alone | first send | last ack |
//! | contenders | first message stored, by the server's clock | last message stored |
//!
//! Each has a backlog of its own, written a moment before. CPU is that of the client, of all of
//! Postgres and of nats-server while the client runs.

use crate::contender::{Contender, POSTRIDER};
use crate::floor::{self, Floor};
use crate::lab::{FLOORS_STREAM, Lab, STREAM};
use crate::load::fill;
use crate::process::Used;
use crate::spread::number;
use crate::stored::{self, Faults};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, SystemTime};

/// The usual size of a payload, in bytes.
pub(crate) const PAYLOAD: u32 = 250;

/// One measurement of one participant.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) who: String,
    pub(crate) is_floor: bool,
    pub(crate) rows: u32,
    /// Rows a second.
    pub(crate) rate: f64,
    pub(crate) cpu: Used,
    /// What it wrote to Postgres's log, in bytes a row.
    pub(crate) wal: f64,
    /// Row versions that it left to be vacuumed, a row.
    pub(crate) dead: f64,
    /// Until the first message was stored.
    pub(crate) start_up: Duration,
    pub(crate) memory_mib: f64,
    pub(crate) faults: Faults,
}

/// A backlog, who drains it, and all rounds of that.
pub(crate) struct Drain {
    /// What is not as usual.
    pub(crate) special: Option<String>,
    /// Rows of a transaction.
    pub(crate) size: u32,
    pub(crate) rows: u32,
    /// Of a payload.
    pub(crate) bytes: u32,
    /// Whether the floors are measured too.
    pub(crate) floors: bool,
    pub(crate) contenders: Vec<Contender>,
    pub(crate) rounds: Vec<Vec<Run>>,
}

/// The floors' names in reports.
pub(crate) const RECVLOGICAL: &str = "floor: pg_recvlogical";
pub(crate) const EAGER: &str = "floor: walsender, read eagerly";
pub(crate) const RESTING: &str = "floor: walsender, read restingly";
pub(crate) const PUBLISHER: &str = "floor: publisher";

impl Drain {
    pub(crate) fn new(size: u32, rows: u32, contenders: Vec<Contender>) -> Drain {
        Drain {
            special: None,
            size,
            rows: (rows / size).max(1) * size,
            bytes: PAYLOAD,
            floors: true,
            contenders,
            rounds: Vec::new(),
        }
    }

    /// What it is, in a heading.
    pub(crate) fn title(&self) -> String {
        let (rows, size) = (number(self.rows.into(), 0), number(self.size.into(), 0));
        let special = self.special.as_deref().map_or(String::new(), |special| format!("{special}: "));
        format!("{special}{rows} rows in transactions of {size}, {} rounds", self.rounds.len())
    }

    /// One round: every participant once, in an order that rotates.
    pub(crate) async fn round(&mut self, lab: &Lab) -> Result<()> {
        let mut runs = if self.floors { self.floors(lab).await? } else { Vec::new() };
        for turn in 0..self.contenders.len() {
            let contender = &self.contenders[(self.rounds.len() + turn) % self.contenders.len()];
            runs.push(self.contender(lab, contender).await.with_context(|| contender.name())?);
        }
        for run in &runs {
            eprintln!(
                "{:>7} × {:>6} B  {:<34} {:>9.0} rows/s  {}",
                self.size, self.bytes, run.who, run.rate, run.faults
            );
        }
        self.rounds.push(runs);
        Ok(())
    }

    fn run(&self, who: &str, floor: Floor) -> Run {
        Run {
            who: who.to_owned(),
            is_floor: true,
            rows: self.rows,
            rate: f64::from(self.rows) / floor.took.as_secs_f64(),
            cpu: floor.cpu,
            wal: 0.0,
            dead: 0.0,
            start_up: Duration::ZERO,
            memory_mib: 0.0,
            faults: Faults::default(),
        }
    }

    async fn floors(&self, lab: &Lab) -> Result<Vec<Run>> {
        lab.empty().await?;
        lab.create_publication().await?;
        let insert = POSTRIDER.insert()?;
        // Each reads the same backlog by a slot that begins before it.
        lab.create_floors_slot().await?;
        fill(lab, &insert, self.rows, self.size, self.bytes).await?;
        let messages = floor::read_back(lab, self.size).await?;
        ensure!(messages.len() == self.rows as usize, "{} rows were written", messages.len());
        // Neither of the two confirms, so the slot stays where it is.
        let mut runs = vec![
            self.run(EAGER, floor::walsender(lab, self.rows, false).await?),
            self.run(RESTING, floor::walsender(lab, self.rows, true).await?),
        ];
        if let Some(program) = lab.pg_recvlogical() {
            runs.push(self.run(RECVLOGICAL, floor::pg_recvlogical(lab, &program).await?));
        }
        runs.push(self.run(PUBLISHER, floor::publisher(lab, &messages).await?));
        lab.wait_for(FLOORS_STREAM, self.rows.into()).await?;
        Ok(runs)
    }

    async fn contender(&self, lab: &Lab, contender: &Contender) -> Result<Run> {
        lab.empty().await?;
        contender.prepare(lab).await?;
        let rows = contender.backlog(self.rows, self.size);
        fill(lab, &contender.insert()?, rows, self.size, self.bytes).await?;
        let wal = lab.wal_end().await?;
        let (before, begun) = (lab.cpu(Duration::ZERO)?, SystemTime::now());
        let running = contender.start(lab).await?;
        let waited = lab.wait_for(STREAM, rows.into()).await;
        let cpu = lab.cpu(running.cpu()?)?.since(before);
        let memory_mib = running.memory_peak()?;
        let state = waited.with_context(|| running.words())?;
        // Its last writes: marks, rows deleted, the checkpoint row.
        running.stop().await?;
        let wal = lab.wal_end().await? - wal;
        let (first, last) = (SystemTime::from(state.first_timestamp), SystemTime::from(state.last_timestamp));
        let arrivals = stored::read(lab.nats_url()?, STREAM, rows).await?;
        let faults = Faults::of(&arrivals, rows, true);
        let run = Run {
            who: contender.name(),
            is_floor: false,
            rows,
            rate: f64::from(rows) / last.duration_since(first)?.as_secs_f64(),
            cpu,
            #[expect(clippy::cast_precision_loss, reason = "a mean")]
            wal: wal as f64 / f64::from(rows),
            dead: dead_rows(lab).await? / f64::from(rows),
            start_up: first.duration_since(begun)?,
            memory_mib,
            faults,
        };
        ensure!(!contender.is_ours() || faults.is_none(), "postrider: {faults}");
        Ok(run)
    }
}

/// Row versions of all tables that wait for vacuum.
async fn dead_rows(lab: &Lab) -> Result<f64> {
    // ANALYZE counts them; its own reports may lag.
    lab.sql.batch_execute("ANALYZE").await?;
    let count = "SELECT coalesce(sum(n_dead_tup), 0)::float8 FROM pg_stat_user_tables";
    Ok(lab.sql.query_one(count, &[]).await?.get(0))
}
