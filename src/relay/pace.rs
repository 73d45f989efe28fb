//! When the relay's thread rests before it waits, and for how long.
//!
//! A thread that waits for its sockets is woken by every send of its peers, and waking it is most of
//! what such a send costs: a walsender sends Begin, Insert and Commit one by one, nats-server its
//! answers. So under load the thread sleeps a little before it waits, and frames and answers gather
//! meanwhile without waking anyone; the more rows come, the longer. Below [`BUSY`] it never does: an
//! event goes out when it is there.
//!
//! The runtime's timers tick in milliseconds, and a socket that nobody polls wakes the runtime all
//! the same: therefore it is the thread that sleeps, and only when nothing is left to do.
//!
//! Tried in turns on two cores, Postgres 15 and nats-server 2.15, single-row transactions of up to 16
//! writers, in an open loop; from commit to stored, p50 and p99 in ms, two rounds each:
//!
//! | rest | 1,000/s | 3,000/s | 5,000/s | 10,000/s |
//! | --- | --- | --- | --- | --- |
//! | never | 0.12, 0.2 | 0.12, 0.5 | 5.6 to 12, 198 to 444 | 7 to 11, 198 to 213 |
//! | 200 µs from 4,000/s | as above | as above | 0.32 to 0.42, 3 to 12 | 8 to 13, 69 to 137 |
//! | 500 µs from 3,000/s | as above | | 0.43 to 0.47, 3 to 4 | 6 to 8, 38 to 54 |
//! | in proportion, up to 1 ms (this) | as above | 0.27, 0.8 | 0.38 to 0.42, 2 to 3 | 6, 23 to 48 |
//!
//! In a drain a rest ends when half of what the socket takes in has gathered (see `src/postgres/socket.rs`).
//! As much as it takes in or more made some drains slower: 97 to 117 k rows/s in place of 130 k, for Postgres
//! and nats-server stood still by turns.
//!
//! A reader that rests takes 140 k such rows a second from the walsender for 6.8 µs of its CPU each; an
//! eager one 56 k for 18 µs. Rests of 2 and 3 ms gave the same 6 ms at 10,000/s as 1 ms: there the writers' backends take
//! one of the cores and half of the other, and nats-server's own answers take 5 to 6 ms. A Unix socket
//! to Postgres in place of TCP made a drain slower: 60 to 66 k rows/s against 98 to 108 k.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Rows a second from which on rests pay.
const BUSY: f64 = 3_000.0;

/// Rows a second from which on rests are the longest.
const FULL: f64 = 10_000.0;

/// Far below what anyone waits for at such a load, and much less than the window holds.
const REST_MAX: Duration = Duration::from_millis(1);

/// What gathers during a rest: half of what the socket to Postgres takes in.
const GATHERED_MAX: f64 = 16_384.0;

/// A thread sleeps some 50 µs longer than it is told to: less than that twice is not worth it.
const REST_MIN: Duration = Duration::from_micros(100);

/// The load is that of about so long.
const MEMORY: Duration = Duration::from_millis(20);

/// Shared by the pump, which sees the load, and by the runtime, which knows when nothing is to be
/// done. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// How long to rest, in microseconds; 0: not at all.
    rest: Arc<AtomicU64>,
}

impl Pace {
    /// To be called before the relay's thread waits.
    pub fn rest(&self) {
        let rest = self.rest.load(Ordering::Relaxed);
        if rest > 0 {
            std::thread::sleep(Duration::from_micros(rest));
        }
    }
}

/// How many rows come, as the pump sees it.
#[derive(Debug)]
pub(super) struct Load {
    pace: Pace,
    /// Rows a second.
    rate: f64,
    /// Bytes a second.
    flow: f64,
    at: Instant,
}

impl Load {
    pub(super) fn new(pace: Pace) -> Load {
        Load { pace, rate: 0.0, flow: 0.0, at: Instant::now() }
    }

    /// So many rows came since the last call, in frames of so many bytes.
    #[expect(clippy::cast_precision_loss, reason = "a window of rows")]
    pub(super) fn took(&mut self, rows: usize, bytes: usize, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        let memory = MEMORY.as_secs_f64();
        let kept = (-elapsed / memory).exp();
        self.rate = self.rate * kept + rows as f64 / memory;
        self.flow = self.flow * kept + bytes as f64 / memory;
        self.at = now;
        let rest = if self.rate < BUSY {
            Duration::ZERO
        } else {
            let gathering = Duration::from_secs_f64(GATHERED_MAX / self.flow.max(1.0));
            let rest = REST_MAX.mul_f64((self.rate / FULL).min(1.0)).min(gathering);
            if rest < REST_MIN { Duration::ZERO } else { rest }
        };
        self.pace.rest.store(u64::try_from(rest.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.pace.rest.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a small row's frames.
    const ROW: usize = 500;

    fn is_busy(load: &Load) -> bool {
        load.pace.rest.load(Ordering::Relaxed) > 0
    }

    /// So many rows one by one, `rate` a second.
    fn come(load: &mut Load, rows: u32, rate: u32) {
        let apart = Duration::from_secs(1) / rate;
        for _ in 0..rows {
            let now = load.at + apart;
            load.took(1, ROW, now);
        }
    }

    #[test]
    fn rows_that_come_now_and_then_never_wait() {
        let mut load = Load::new(Pace::default());
        for rate in [1, 100, 1_000, 2_500] {
            come(&mut load, 1_000, rate);
            assert!(!is_busy(&load), "{rate} rows a second");
        }
    }

    #[test]
    fn a_busy_slot_is_known_within_milliseconds_and_forgotten_as_soon() {
        let mut load = Load::new(Pace::default());
        come(&mut load, 100, 20_000);
        assert!(is_busy(&load));
        load.took(0, 0, load.at + Duration::from_millis(100));
        assert!(!is_busy(&load));
    }

    #[test]
    fn the_more_rows_come_the_longer_the_rest_up_to_a_millisecond() {
        let rest = |rate| {
            let mut load = Load::new(Pace::default());
            come(&mut load, rate, rate);
            load.pace.rest.load(Ordering::Relaxed)
        };
        let rests = [4_000, 8_000, 20_000].map(rest);
        assert!(rests.is_sorted() && (350..450).contains(&rests[0]), "{rests:?}");
        assert_eq!(rests[2], 1_000);
    }

    #[test]
    fn what_gathers_during_a_rest_is_no_more_than_the_socket_takes() {
        for (rate, bytes) in [(10_000, 5_000), (100_000, 500), (300_000, 500)] {
            let mut load = Load::new(Pace::default());
            for _ in 0..rate {
                let now = load.at + Duration::from_secs(1) / rate;
                load.took(1, bytes, now);
            }
            let rest = Duration::from_micros(load.pace.rest.load(Ordering::Relaxed)).as_secs_f64();
            let gathered = rest * f64::from(rate) * f64::from(u32::try_from(bytes).unwrap());
            assert!((10_000.0..17_000.0).contains(&gathered), "{gathered} bytes at {rate} rows a second");
        }
    }

    #[test]
    fn a_session_that_ends_leaves_the_thread_awake() {
        let pace = Pace::default();
        let mut load = Load::new(pace.clone());
        come(&mut load, 2_000, 20_000);
        assert!(is_busy(&load));
        drop(load);
        assert_eq!(pace.rest.load(Ordering::Relaxed), 0);
    }
}
