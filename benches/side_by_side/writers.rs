//! What a contender costs those who write: how many single-row commits a closed loop of writers gets
//! done beside it, as a share of what it gets done beside a bare reader of a slot.
//!
//! Rounds are pairs: the bare reader and the contender one after the other, in turns first. The
//! interval is that of the median of the pairs' ratios, from the order statistics.

use crate::contender::Contender;
use crate::lab::{FLOORS, Lab};
use crate::load::write_flat_out;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};

/// Ratios of one contender, a pair each.
pub(crate) struct Cost {
    pub(crate) who: String,
    pub(crate) ratios: Vec<f64>,
    /// Rows a second beside it.
    pub(crate) rates: Vec<f64>,
}

pub(crate) async fn measure(
    lab: &Lab,
    contenders: &[Contender],
    seconds: f64,
    pairs: usize,
) -> Result<Vec<Cost>> {
    let mut costs: Vec<_> = contenders
        .iter()
        .map(|contender| Cost { who: contender.name(), ratios: Vec::new(), rates: Vec::new() })
        .collect();
    for pair in 0..pairs {
        for (contender, cost) in contenders.iter().zip(&mut costs) {
            let (bare, beside) = if pair % 2 == 0 {
                let bare = beside_reader(lab, seconds).await?;
                (bare, beside_contender(lab, contender, seconds).await?)
            } else {
                let beside = beside_contender(lab, contender, seconds).await?;
                (beside_reader(lab, seconds).await?, beside)
            };
            eprintln!("writers beside {:<30} {beside:>7.0}/s, beside a bare reader {bare:>7.0}/s", cost.who);
            cost.ratios.push(beside / bare);
            cost.rates.push(beside);
        }
    }
    Ok(costs)
}

async fn beside_reader(lab: &Lab, seconds: f64) -> Result<f64> {
    lab.empty().await?;
    lab.create_publication().await?;
    lab.create_floors_slot().await?;
    let program = lab.pg_recvlogical().context("pg_recvlogical is not installed")?;
    let mut reader = Command::new(program)
        .args(["-d", &lab.postgres.url("postgres"), "--slot", FLOORS, "--start", "-f", "/dev/null"])
        .args(["-o", "proto_version=1", "-o", "publication_names=postrider"])
        .stdin(Stdio::null())
        .spawn()?;
    let rate = write_flat_out(lab, &Contender::Postrider.insert()?, seconds, crate::drain::PAYLOAD).await;
    crate::process::terminate(&reader)?;
    reader.wait()?;
    rate
}

async fn beside_contender(lab: &Lab, contender: &Contender, seconds: f64) -> Result<f64> {
    lab.empty().await?;
    contender.prepare(lab).await?;
    let running = contender.start(lab).await?;
    let rate = write_flat_out(lab, &contender.insert()?, seconds, crate::drain::PAYLOAD).await?;
    running.stop().await?;
    Ok(rate)
}
