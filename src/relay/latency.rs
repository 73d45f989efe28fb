//! Commit to PubAck of about the last minute, and events by second.

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

    /// An event took so long.
    pub(super) fn record(&mut self, micros: u64) {
        if let Some(now) = &mut self.now {
            now.saturating_record(micros);
        }
    }

    /// Median and 99th percentile in seconds.
    pub(super) fn quantiles(&mut self) -> (Option<f64>, Option<f64>) {
        let elapsed = self.turned.elapsed();
        if elapsed >= HALF {
            self.turned = Instant::now();
            std::mem::swap(&mut self.now, &mut self.before);
            self.now.iter_mut().for_each(Histogram::reset);
        }
        // Nobody asked for a while: what was the present then is longer ago than a minute.
        if elapsed >= 2 * HALF {
            self.before.iter_mut().for_each(Histogram::reset);
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

/// How many events a second, measured over a second at least.
pub(super) struct Rate {
    since: Instant,
    counted: u64,
    per_second: f64,
}

impl Rate {
    pub(super) fn new() -> Rate {
        Rate { since: Instant::now(), counted: 0, per_second: 0.0 }
    }

    /// `count` events up to now: those of the last second.
    pub(super) fn at(&mut self, count: u64) -> f64 {
        let elapsed = self.since.elapsed();
        if elapsed >= Duration::from_secs(1) {
            self.per_second = count.saturating_sub(self.counted) as f64 / elapsed.as_secs_f64();
            (self.since, self.counted) = (Instant::now(), count);
        }
        self.per_second
    }
}

/// 1 µs to 1 h at two digits: some 20 KB.
fn empty() -> Option<Histogram<u32>> {
    Histogram::new_with_bounds(1, 3_600_000_000, 2).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn what_took_place_more_than_a_minute_ago_is_forgotten_though_nobody_asked_meanwhile() {
        let mut recent = Recent::new();
        recent.record(2_000);
        advance(HALF).await;
        assert!(recent.quantiles().0.is_some(), "half a minute ago");
        recent.record(2_000);
        advance(100 * HALF).await;
        assert_eq!(recent.quantiles(), (None, None));
    }
}
