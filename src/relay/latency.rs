//! Commit to PubAck of about the last minute.

use crate::postgres::timestamp::Timestamp;
use hdrhistogram::Histogram;
use std::time::Duration;
use tokio::time::Instant;

/// Half of what is looked back on.
const HALF: Duration = Duration::from_secs(30);

/// Two half-minutes: the present one and the one before.
pub(super) struct Recent {
    now: Option<Histogram<u32>>,
    before: Option<Histogram<u32>>,
    turned: Instant,
}

impl Recent {
    pub(super) fn new() -> Recent {
        Recent { now: empty(), before: empty(), turned: Instant::now() }
    }

    /// An event committed at `commit` is stored at `stored`; both clocks are of one machine, or the
    /// difference is theirs too.
    pub(super) fn record(&mut self, commit: Timestamp, stored: Timestamp) {
        let micros = stored.0.saturating_sub(commit.0).max(0).unsigned_abs();
        if let Some(now) = &mut self.now {
            now.saturating_record(micros);
        }
    }

    /// Median and 99th percentile in seconds.
    pub(super) fn quantiles(&mut self) -> (Option<f64>, Option<f64>) {
        if self.turned.elapsed() >= HALF {
            self.turned = Instant::now();
            std::mem::swap(&mut self.now, &mut self.before);
            if let Some(now) = &mut self.now {
                now.reset();
            }
        }
        let (Some(now), Some(before)) = (&self.now, &self.before) else { return (None, None) };
        if now.is_empty() && before.is_empty() {
            return (None, None);
        }
        let mut both = before.clone();
        if both.add(now).is_err() {
            return (None, None);
        }
        let seconds = |quantile| Duration::from_micros(both.value_at_quantile(quantile)).as_secs_f64();
        (Some(seconds(0.5)), Some(seconds(0.99)))
    }
}

/// 1 µs to 1 h at two digits: some 20 KB.
fn empty() -> Option<Histogram<u32>> {
    Histogram::new_with_bounds(1, 3_600_000_000, 2).ok()
}
