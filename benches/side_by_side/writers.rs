//! What it costs those who write that someone reads: how many single-row commits a closed loop of
//! writers gets done beside it, as a share of what it gets done beside a bare reader of a slot.
//!
//! Rounds are pairs: the bare reader and the other one after the other, in turns first. The
//! interval is that of the median of the pairs' ratios, from the order statistics.

use crate::contender::{Contender, POSTRIDER, Running};
use crate::lab::{FLOORS, Lab};
use crate::load::write_flat_out;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};

/// Seconds of each measurement.
const SECONDS: f64 = 2.0;

/// As many as a database with many outboxes has.
const MANY: usize = 8;

/// Who reads while writers write.
#[derive(Debug)]
enum Beside {
    Nobody,
    /// Relays, each with a slot, a publication and a stream of its own.
    Relays(usize),
    Contender(Contender),
}

/// Ratios of one, a pair each.
pub(crate) struct Cost {
    pub(crate) who: String,
    pub(crate) ratios: Vec<f64>,
    /// Rows a second beside it.
    pub(crate) rates: Vec<f64>,
}

pub(crate) async fn measure(lab: &Lab, contenders: &[Contender], pairs: usize) -> Result<Vec<Cost>> {
    let others = contenders.iter().filter(|contender| !contender.is_ours()).cloned().map(Beside::Contender);
    let all: Vec<_> =
        [Beside::Nobody, Beside::Relays(1), Beside::Relays(MANY)].into_iter().chain(others).collect();
    let mut costs: Vec<_> =
        all.iter().map(|beside| Cost { who: beside.name(), ratios: Vec::new(), rates: Vec::new() }).collect();
    for pair in 0..pairs {
        for (beside, cost) in all.iter().zip(&mut costs) {
            let (bare, rate) = if pair % 2 == 0 {
                let bare = beside_reader(lab).await?;
                (bare, beside.rate(lab).await?)
            } else {
                let rate = beside.rate(lab).await?;
                (beside_reader(lab).await?, rate)
            };
            eprintln!("writers beside {:<30} {rate:>7.0}/s, beside a bare reader {bare:>7.0}/s", cost.who);
            cost.ratios.push(rate / bare);
            cost.rates.push(rate);
        }
    }
    Ok(costs)
}

impl Beside {
    fn name(&self) -> String {
        match self {
            Beside::Nobody => "nobody".to_owned(),
            Beside::Relays(1) => POSTRIDER.name(),
            Beside::Relays(count) => format!("{count} × {}", POSTRIDER.name()),
            Beside::Contender(contender) => contender.name(),
        }
    }

    async fn rate(&self, lab: &Lab) -> Result<f64> {
        lab.empty().await?;
        let (insert, running) = match self {
            Beside::Nobody => (POSTRIDER.insert()?, Vec::new()),
            Beside::Relays(count) => {
                let mut running = Vec::new();
                for number in 1..=*count {
                    running.push(Running::relay_of_its_own(lab, number).await?);
                }
                (POSTRIDER.insert()?, running)
            }
            Beside::Contender(contender) => {
                contender.prepare(lab).await?;
                (contender.insert()?, vec![contender.start(lab).await?])
            }
        };
        let rate = write_flat_out(lab, &insert, SECONDS, crate::drain::PAYLOAD).await?;
        for running in running {
            running.stop().await?;
        }
        Ok(rate)
    }
}

async fn beside_reader(lab: &Lab) -> Result<f64> {
    lab.empty().await?;
    lab.create_publication().await?;
    lab.create_floors_slot().await?;
    let program = lab.pg_recvlogical().context("pg_recvlogical is not installed")?;
    let mut reader = Command::new(program)
        .args(["-d", &lab.postgres.url("postgres"), "--slot", FLOORS, "--start", "-f", "/dev/null"])
        .args(["-o", "proto_version=1", "-o", "publication_names=postrider"])
        .stdin(Stdio::null())
        .spawn()?;
    let rate = write_flat_out(lab, &POSTRIDER.insert()?, SECONDS, crate::drain::PAYLOAD).await;
    crate::process::terminate(&reader)?;
    reader.wait()?;
    rate
}
