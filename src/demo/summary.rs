//! What the demo says at its end.

use super::proof::Verdict;
use super::tally::Tally;
use std::time::Duration;

pub(super) struct Summary {
    pub(super) tally: Tally,
    /// Messages that the stream has stored.
    pub(super) published: u64,
    pub(super) sold_for: Duration,
    pub(super) verdict: Verdict,
}

impl Summary {
    fn events_per_second(&self) -> f64 {
        let committed = u32::try_from(self.tally.committed_events).unwrap_or(u32::MAX);
        f64::from(committed) / self.sold_for.as_secs_f64().max(1e-3)
    }

    pub(super) fn faults(&self) -> String {
        let Verdict { lost, doubled, misordered, never_committed } = self.verdict;
        format!(
            "{lost} lost, {doubled} doubled, {misordered} out of order, {never_committed} never committed"
        )
    }

    /// For a person on stdout, or for a program there and for the person on stderr.
    pub(super) fn print(&self, json: bool) {
        let text = self.text();
        if json {
            eprintln!("{text}");
            println!("{}", self.json());
        } else {
            println!("{text}");
        }
    }

    fn text(&self) -> String {
        let tally = &self.tally;
        let proof = match self.verdict.holds() {
            true => "every committed event was consumed once, in commit order, and no rolled-back one was",
            false => "DOES NOT HOLD",
        };
        format!(
            "\ncommitted  {} events in {} transactions, {:.0} events/s; {} more were rolled back\n\
             published  {}\n\
             consumed   {}: {}\n\
             latency    commit to consumer: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms\n\
             proof      {proof}",
            tally.committed_events,
            tally.committed_transactions(),
            self.events_per_second(),
            tally.rolled_back_events,
            self.published,
            tally.consumed_events(),
            self.faults(),
            tally.latency_ms(0.5),
            tally.latency_ms(0.99),
            tally.latency_ms(1.0),
        )
    }

    fn json(&self) -> String {
        let (tally, verdict) = (&self.tally, &self.verdict);
        let thousandths = |value: f64| (value * 1000.0).round() / 1000.0;
        let latency = |quantile| thousandths(tally.latency_ms(quantile));
        let object = SummaryJson {
            committed: tally.committed_events,
            rolled_back: tally.rolled_back_events,
            published: self.published,
            consumed: tally.consumed_events(),
            lost: verdict.lost,
            doubled: verdict.doubled,
            misordered: verdict.misordered,
            never_committed: verdict.never_committed,
            latency_ms: LatencyJson { p50: latency(0.5), p99: latency(0.99), max: latency(1.0) },
            events_per_second: thousandths(self.events_per_second()),
        };
        serde_json::to_string(&object).unwrap_or_default()
    }
}

/// Part of the contract: names are added, never changed.
#[derive(serde::Serialize)]
struct SummaryJson {
    committed: usize,
    rolled_back: usize,
    published: u64,
    consumed: usize,
    lost: usize,
    doubled: usize,
    misordered: usize,
    never_committed: usize,
    latency_ms: LatencyJson,
    events_per_second: f64,
}

#[derive(serde::Serialize)]
struct LatencyJson {
    p50: f64,
    p99: f64,
    max: f64,
}
