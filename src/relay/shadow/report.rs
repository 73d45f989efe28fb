//! What the shadow says at its end. Part of the contract: names are added, never changed.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The relay and the poller side by side.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The columns of which one that is set makes a row processed; none: a row is when it is deleted.
    pub marks: Vec<String>,
    /// Events that the relay would have got.
    pub seen: u64,
    /// … that the poller has processed too, after the transaction that inserted them.
    pub compared: u64,
    /// … that the poller has not come to yet.
    pub pending: u64,
    /// … that the poller will not process: it has gone past them, stands still, or they were marked or
    /// deleted by the transaction that inserted them.
    pub missing: u64,
    /// Rows that the poller has processed and the relay would not have published.
    pub extra: u64,
    /// Rows from before the shadow that the poller has processed meanwhile.
    pub earlier: u64,
    /// Events without an id, with an id that was under way already, or beyond what is remembered.
    pub uncompared: u64,
    /// Events that the relay could not publish.
    pub would_be_dead_letters: u64,
    /// Their number by reason.
    pub dead_letters: BTreeMap<&'static str, u64>,
    /// From commit to ready for publishing, and from commit to the commit of the poller's mark.
    pub latency_ms: Latencies,
    /// How long it watched.
    pub seconds: f64,
    /// Age of the oldest event that is pending.
    pub oldest_pending_seconds: Option<f64>,
    /// False once there were more rows than are remembered: from then on `extra` does not grow.
    pub extra_judged: bool,
    /// Ids of missing events, the first of them.
    pub missing_ids: Vec<String>,
    /// Ids of extra rows, the first of them.
    pub extra_ids: Vec<String>,
    /// What is wrong with the first event of each reason.
    pub dead_letter_examples: Vec<String>,
}

impl Report {
    /// The relay would publish what the poller publishes.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.missing + self.extra + self.would_be_dead_letters == 0
    }
}

/// Of both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// Until an event is decoded and mapped: publishing it adds the round trip to NATS. Of what was committed since
    /// the log is read.
    pub postrider: Quantiles,
    /// Until the poller's transaction commits that marks or deletes the row.
    pub poller: Quantiles,
}

/// In milliseconds; none where there is nothing to tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// The median.
    pub p50: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
    /// The longest.
    pub max: Option<f64>,
}

impl Quantiles {
    /// Of microseconds.
    pub(super) fn of(micros: &Histogram<u64>) -> Quantiles {
        let at = |quantile| {
            (!micros.is_empty()).then(|| {
                let micros = Duration::from_micros(micros.value_at_quantile(quantile));
                (micros.as_secs_f64() * 1e6).round() / 1e3
            })
        };
        Quantiles { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}
