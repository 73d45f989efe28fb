//! `benches/RESULTS.md`: what was measured, on what, and by which command.

use crate::drain::{Drain, EAGER, PUBLISHER, RECVLOGICAL, RESTING, Run};
use crate::latency::{
    COMMIT_TO_CONSUMER, COMMIT_TO_RECEIVED, COMMIT_TO_STORED, DUE_TO_COMMIT, Latency, Micros, PUBLISH_TO_ACK,
    PUBLISH_TO_CONSUMER, millis,
};
use crate::plot;
use crate::spread::{Spread, number};
use crate::takeover::TakeOver;
use crate::writers::Cost;
use anyhow::Result;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// Everything of one run.
pub(crate) struct Report {
    pub(crate) command: String,
    pub(crate) date: String,
    pub(crate) surroundings: Vec<String>,
    /// Who could not take part, and why.
    pub(crate) left_out: Vec<(String, String)>,
    /// By size of transaction.
    pub(crate) drains: Vec<Drain>,
    /// With other payloads, windows and ways to store.
    pub(crate) variants: Vec<Drain>,
    pub(crate) latencies: Vec<Latency>,
    pub(crate) writers: Vec<Cost>,
    pub(crate) take_over: TakeOver,
}

impl Report {
    /// Writes the tables, and the plots beside them.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let mut text = String::new();
        self.head(&mut text)?;
        if !self.drains.is_empty() {
            self.drain(&mut text)?;
            plot::drain(&self.drains, &folder.join("plots/drain.svg"))?;
            plot::cpu(&self.drains, &folder.join("plots/cpu.svg"))?;
            plot::wal(&self.drains, &folder.join("plots/wal.svg"))?;
        }
        if !self.latencies.is_empty() {
            self.latency(&mut text)?;
            plot::latency(&self.latencies, &folder.join("plots/latency.svg"))?;
            for latency in &self.latencies {
                plot::distribution(latency, &folder.join(format!("plots/latency-{}.svg", latency.rate)))?;
            }
        }
        if !self.writers.is_empty() {
            self.costs(&mut text)?;
            self.take_over(&mut text)?;
        }
        std::fs::write(folder.join("RESULTS.md"), text)?;
        Ok(())
    }

    fn head(&self, text: &mut String) -> Result<()> {
        writeln!(
            text,
            "# Results\n\nWritten by `{}` on {}. All of it was measured in one run, in turns; compare within it only.\n",
            self.command, self.date
        )?;
        for line in &self.surroundings {
            writeln!(text, "* {line}")?;
        }
        for (name, why) in &self.left_out {
            writeln!(text, "* left out: {name}: {why}")?;
        }
        Ok(())
    }

    fn drain(&self, text: &mut String) -> Result<()> {
        writeln!(
            text,
            "\n## Drain of a backlog\n\nRows a second, median (least – most) of the rounds. CPU in µs a row; \
             WAL written and row versions left dead by whoever drains; memory and start-up of the contender; \
             faults: lost/doubled/misordered, all rounds together.\n\n\
             ![rows a second by transaction size](plots/drain.svg)\n\n\
             ![CPU by participant](plots/cpu.svg)\n\n![WAL by contender](plots/wal.svg)"
        )?;
        for drain in self.drains.iter().chain(&self.variants) {
            writeln!(
                text,
                "\n### {}\n\n\
                 | who | rows/s | CPU: client | Postgres | nats-server | WAL bytes/row | dead/row | memory MiB | start-up ms | faults |\n\
                 | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
                drain.title()
            )?;
            for who in drain.names() {
                let of = |value: &dyn Fn(&Run) -> f64| Spread::of(drain.of(&who).map(value));
                let micros = |pick: fn(&Run) -> Duration| {
                    let value = of(&|run| pick(run).as_secs_f64() * 1e6 / f64::from(run.rows));
                    value.map_or(String::new(), |spread| number(spread.median, 1))
                };
                let rate = of(&|run| run.rate).map_or(String::new(), |spread| spread.text(0));
                write!(
                    text,
                    "| {who} | {rate} | {} | {} | {} |",
                    micros(|run| run.cpu.client),
                    micros(|run| run.cpu.postgres),
                    micros(|run| run.cpu.nats),
                )?;
                if drain.of(&who).any(|run| run.is_floor) {
                    writeln!(text, " | | | | |")?;
                    continue;
                }
                let median = |value: &dyn Fn(&Run) -> f64, digits| {
                    of(value).map_or(String::new(), |spread| number(spread.median, digits))
                };
                let faults = drain.of(&who).map(|run| run.faults).reduce(|a, b| a.and(b)).unwrap_or_default();
                writeln!(
                    text,
                    " {} | {} | {} | {} | {faults} |",
                    median(&|run| run.wal, 0),
                    median(&|run| run.dead, 2),
                    median(&|run| run.memory_mib, 1),
                    median(&|run| run.start_up.as_secs_f64() * 1e3, 0),
                )?;
            }
            self.ratios(text, drain)?;
        }
        Ok(())
    }

    /// The relay against what bounds it, a ratio a round.
    fn ratios(&self, text: &mut String, drain: &Drain) -> Result<()> {
        let relay = |run: &Run| run.who == "postrider";
        let per_round = |ratio: &dyn Fn(&Run, &[Run]) -> Option<f64>| {
            Spread::of(
                drain.rounds.iter().filter_map(|round| ratio(round.iter().find(|run| relay(run))?, round)),
            )
        };
        let rate = |round: &[Run], name: &str| round.iter().find(|run| run.who == name).map(|run| run.rate);
        let floor = per_round(&|relay, round| {
            let reader =
                [RECVLOGICAL, EAGER, RESTING].iter().filter_map(|name| rate(round, name)).fold(0.0, f64::max);
            Some(relay.rate / reader.min(rate(round, PUBLISHER)?))
        });
        let cpu = per_round(&|relay, round| {
            let client = |name: &str| round.iter().find(|run| run.who == name).map(|run| run.cpu.client);
            let floors = client(PUBLISHER)? + client(EAGER)?.min(client(RESTING)?);
            Some(relay.cpu.client.as_secs_f64() / floors.as_secs_f64())
        });
        // What both cores could do at most if nothing but this work ran on them.
        let ceiling = per_round(&|relay, _| {
            let all = (relay.cpu.client + relay.cpu.postgres + relay.cpu.nats).as_secs_f64()
                / f64::from(relay.rows);
            let cores = std::thread::available_parallelism().ok()?.get();
            #[expect(clippy::cast_precision_loss, reason = "a few cores")]
            Some(relay.rate * all / cores as f64)
        });
        writeln!(text)?;
        for (what, spread) in [
            ("postrider / the slower floor (best reader of the walsender, publisher)", floor),
            ("postrider's CPU / (publisher's + the reader's with decoder)", cpu),
            ("share of all cores that relay, Postgres and nats-server were busy with", ceiling),
        ] {
            if let Some(spread) = spread {
                writeln!(text, "* {what}: {}", spread.text(2))?;
            }
        }
        let all = || drain.rounds.iter().flatten();
        for (what, cores) in [
            ("cores busy with others meanwhile", Spread::of(all().map(|run| run.cpu.others))),
            ("cores that a hypervisor took", Spread::of(all().map(|run| run.cpu.steal))),
        ] {
            if let Some(cores) = cores {
                writeln!(text, "* {what}: {}", cores.text(2))?;
            }
        }
        let pollers = per_round(&|relay, round| {
            let best =
                round.iter().filter(|run| run.who.contains("poller")).map(|run| run.rate).fold(0.0, f64::max);
            (best > 0.0).then_some(relay.rate / best)
        });
        if let Some(pollers) = pollers {
            writeln!(text, "* postrider / the fastest poller: {}", pollers.text(2))?;
        }
        Ok(())
    }

    fn latency(&self, text: &mut String) -> Result<()> {
        writeln!(
            text,
            "\n## Latency\n\nSingle-row transactions in an open loop, from the moment at which a row was due to its \
             arrival at a consumer; milliseconds, median (least – most) of the rounds.\n\n\
             ![latency by rate](plots/latency.svg)"
        )?;
        for latency in &self.latencies {
            writeln!(
                text,
                "\n### {} rows a second of {} bytes, rounds of {} s\n\n![distribution](plots/latency-{}.svg)\n\n\
                 | who | p50 | p99 | p99.9 | faults |\n| --- | ---: | ---: | ---: | --- |",
                number(latency.rate.into(), 0),
                latency.bytes,
                latency.seconds,
                latency.rate
            )?;
            for (name, faults) in &latency.faults {
                let Some(rounds) = latency.rounds.get(name) else { continue };
                let at =
                    |quantile| quantiles(rounds, quantile).map_or(String::new(), |spread| spread.text(2));
                writeln!(text, "| {name} | {} | {} | {} | {faults} |", at(0.5), at(0.99), at(0.999))?;
            }
            for (name, come) in &latency.behind {
                let rows = latency.rate * latency.seconds;
                writeln!(text, "| {name} | did not keep up: {come} of {rows} rows came | | | |")?;
            }
            writeln!(text, "\n| part | p50 | p99 |\n| --- | ---: | ---: |")?;
            for name in [
                DUE_TO_COMMIT,
                COMMIT_TO_RECEIVED,
                PUBLISH_TO_ACK,
                PUBLISH_TO_CONSUMER,
                COMMIT_TO_STORED,
                COMMIT_TO_CONSUMER,
            ] {
                let Some(rounds) = latency.rounds.get(name) else { continue };
                let at =
                    |quantile| quantiles(rounds, quantile).map_or(String::new(), |spread| spread.text(3));
                writeln!(text, "| {name} | {} | {} |", at(0.5), at(0.99))?;
            }
            writeln!(text)?;
            for quantile in [0.5, 0.99] {
                if let Some(ratio) = latency.ratio(quantile) {
                    writeln!(
                        text,
                        "* p{} of commit → consumer / (commit → received + publish → consumer): {}",
                        quantile * 100.0,
                        ratio.text(2)
                    )?;
                }
            }
        }
        self.sustained(text)
    }

    fn costs(&self, text: &mut String) -> Result<()> {
        writeln!(
            text,
            "\n## What writers pay\n\nSingle-row commits of four writers in a closed loop, beside each of these and \
             beside `pg_recvlogical` in turns: the median of the pairs' ratios with its interval of 95 %. What \
             reads shares the machine with who writes.\n\n\
             | beside | commits/s | / beside a bare reader | pairs |\n| --- | ---: | ---: | ---: |"
        )?;
        for cost in &self.writers {
            let rate = Spread::of(cost.rates.iter().copied()).map_or(String::new(), |spread| spread.text(0));
            let (low, high) = interval(&cost.ratios);
            let ratio = Spread::of(cost.ratios.iter().copied())
                .map_or(String::new(), |spread| format!("{:.2} ({low:.2} – {high:.2})", spread.median));
            writeln!(text, "| {} | {rate} | {ratio} | {} |", cost.who, cost.ratios.len())?;
        }
        Ok(())
    }
}

impl Report {
    fn take_over(&self, text: &mut String) -> Result<()> {
        writeln!(
            text,
            "\n## Take-over\n\nHow long nothing is stored when the active relay ends and a standby waits, at 1,000 \
             rows a second; milliseconds.\n\n| the active relay | pause | rounds |\n| --- | ---: | ---: |"
        )?;
        for (how, pauses) in [("SIGTERM", &self.take_over.asked), ("SIGKILL", &self.take_over.killed)] {
            let pause = Spread::of(pauses.iter().copied()).map_or(String::new(), |spread| spread.text(0));
            writeln!(text, "| {how} | {pause} | {} |", pauses.len())?;
        }
        Ok(())
    }

    /// The highest rate that each kept up with.
    fn sustained(&self, text: &mut String) -> Result<()> {
        let names: BTreeSet<&String> =
            self.latencies.iter().flat_map(|latency| latency.faults.keys()).collect();
        writeln!(
            text,
            "\n### The highest rate\n\nOf those measured, rows a second, at which p99 was at most {} ms.\n\n\
             | who | rows/s | p99 |\n| --- | ---: | ---: |",
            SUSTAINED_P99_MAX
        )?;
        for name in names {
            let p99 = |latency: &Latency| Some(quantiles(latency.rounds.get(name)?, 0.99)?.median);
            let kept_up = self.latencies.iter().filter(|latency| !latency.behind.contains_key(name));
            let sustained = kept_up.filter_map(|latency| Some((latency.rate, p99(latency)?)));
            let highest =
                sustained.filter(|(_, p99)| *p99 <= SUSTAINED_P99_MAX).max_by_key(|(rate, _)| *rate);
            match highest {
                Some((rate, p99)) => {
                    writeln!(text, "| {name} | {} | {} |", number(rate.into(), 0), number(p99, 1))?;
                }
                None => writeln!(text, "| {name} | none | |")?,
            }
        }
        Ok(())
    }
}

/// Milliseconds.
const SUSTAINED_P99_MAX: f64 = 100.0;

impl Drain {
    /// Who took part, in order of appearance.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for run in self.rounds.iter().flatten() {
            if !names.contains(&run.who) {
                names.push(run.who.clone());
            }
        }
        names.sort_by_key(|name| !name.starts_with("floor"));
        names
    }

    pub(crate) fn of<'d>(&'d self, who: &'d str) -> impl Iterator<Item = &'d Run> {
        self.rounds.iter().flatten().filter(move |run| run.who == who)
    }
}

impl Latency {
    /// The relay against the sum of its floors, a ratio a round.
    fn ratio(&self, quantile: f64) -> Option<Spread> {
        let of =
            |name| self.rounds.get(name).map(|rounds| rounds.iter().map(move |round| at(round, quantile)));
        let floors = of(COMMIT_TO_RECEIVED)?.zip(of(PUBLISH_TO_CONSUMER)?).map(|(a, b)| a + b);
        Spread::of(of(COMMIT_TO_CONSUMER)?.zip(floors).map(|(relay, floor)| relay / floor))
    }
}

fn at(round: &Micros, quantile: f64) -> f64 {
    millis(round.value_at_quantile(quantile))
}

fn quantiles(rounds: &[Micros], quantile: f64) -> Option<Spread> {
    Spread::of(rounds.iter().map(|round| at(round, quantile)))
}

/// The order statistics between which the median lies in at least 95 of 100 cases; all of the range
/// where there are fewer than six values.
fn interval(values: &[f64]) -> (f64, f64) {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    // The k-th lowest and highest leave out the median with a chance of 2 · P(Binomial(n, ½) < k).
    let n = values.len();
    let mut chance = 0.5_f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let (mut outside, mut k) = (chance, 0);
    while k < n / 2 && 2.0 * outside <= 0.05 {
        k += 1;
        #[expect(clippy::cast_precision_loss, reason = "a few rounds")]
        {
            chance *= (n - k + 1) as f64 / k as f64;
        }
        outside += chance;
    }
    let k = k.saturating_sub(1);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    (at(k), at(n.saturating_sub(1 + k)))
}
