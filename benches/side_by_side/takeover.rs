//! How long nothing is stored when a standby takes over.
//!
//! Rows come at a steady rate, so the longest pause between two messages is what it takes: the end of
//! the active relay, whom the standby has been waiting for, and its own way to its first publish.

use crate::contender::POSTRIDER;
use crate::lab::{Lab, PATIENCE, STREAM};
use crate::load::write;
use crate::on_a_thread;
use crate::stored::{self, Arrival, Faults};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Rows a second, and for how many seconds.
const RATE: u32 = 1_000;
const SECONDS: u32 = 4;

/// When the active relay is made to end, from the start of the writers.
const AFTER: Duration = Duration::from_secs(2);

/// Pauses in milliseconds, one a round.
#[derive(Debug, Default)]
pub(crate) struct TakeOver {
    /// After SIGTERM: it drains, confirms and says goodbye.
    pub(crate) asked: Vec<f64>,
    /// After SIGKILL.
    pub(crate) killed: Vec<f64>,
}

impl TakeOver {
    pub(crate) async fn round(&mut self, lab: &Lab) -> Result<()> {
        let (asked, killed) = (pause(lab, false).await?, pause(lab, true).await?);
        eprintln!("take-over: {asked:.1} ms after SIGTERM, {killed:.1} ms after SIGKILL");
        self.asked.push(asked);
        self.killed.push(killed);
        Ok(())
    }
}

async fn pause(lab: &Lab, kill: bool) -> Result<f64> {
    lab.empty().await?;
    POSTRIDER.prepare(lab).await?;
    let active = POSTRIDER.start(lab).await?;
    let standby = POSTRIDER.start(lab).await?;
    let rows = RATE * SECONDS;
    let nats = lab.nats_url()?;
    let consumer = on_a_thread(Duration::ZERO, move || stored::consume(nats, STREAM, rows, PATIENCE));
    let ending = async {
        tokio::time::sleep(AFTER).await;
        if kill {
            drop(active);
            return Ok(());
        }
        active.stop().await
    };
    let insert = POSTRIDER.insert()?;
    let (ended, _) = tokio::join!(ending, write(lab, &insert, RATE, rows, crate::drain::PAYLOAD));
    ended?;
    let arrivals = consumer.join().await?;
    let faults = Faults::of(&arrivals, rows, false);
    ensure!(faults.is_none(), "{faults} (lost/doubled/misordered) while a standby took over");
    standby.stop().await?;
    let apart = |pair: &[Arrival]| pair[1].stored.duration_since(pair[0].stored).unwrap_or_default();
    let longest = arrivals.windows(2).map(apart).max().context("nothing was stored")?;
    Ok(longest.as_secs_f64() * 1e3)
}
