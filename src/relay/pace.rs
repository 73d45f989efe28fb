//! When the relay's thread rests before it waits.
//!
//! A thread that waits for its sockets is woken by every send of its peers, and waking it is most of
//! what such a send costs: a walsender sends Begin, Insert and Commit one by one, nats-server its
//! answers. So under load the thread sleeps a little before it waits, and frames and answers gather
//! meanwhile without waking anyone. Below [`BUSY`] it never does: an event goes out when it is there.
//!
//! Measured on two cores in turns, Postgres 15 and nats-server 2.15, single-row transactions, from
//! commit to stored, with rests against without: at 5,000 rows a second p50 0.31 ms against 0.57 to
//! 4.7 ms, p99 80 to 190 against 145 to 272 ms; at 8,000 p50 0.3 to 0.4 against 0.6 to 1,500 ms, for
//! eager reads then take the walsender more CPU than there is; at 2,500 no difference, for there are
//! no rests.
//!
//! The runtime's timers tick in milliseconds, and a socket that nobody polls wakes the runtime all
//! the same: therefore it is the thread that sleeps, and only when nothing is left to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Rows a second from which on rests pay.
const BUSY: f64 = 4_000.0;

/// Long enough for tens of frames of a busy walsender, and far below what anyone waits for.
const REST: Duration = Duration::from_micros(200);

/// The load is that of about so long.
const MEMORY: Duration = Duration::from_millis(10);

/// Shared by the pump, which sees the load, and by the runtime, which knows when nothing is to be
/// done. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    busy: Arc<AtomicBool>,
}

impl Pace {
    /// To be called before the relay's thread waits.
    pub fn rest(&self) {
        if self.busy.load(Ordering::Relaxed) {
            std::thread::sleep(REST);
        }
    }
}

/// How many rows come, as the pump sees it.
#[derive(Debug)]
pub(super) struct Load {
    pace: Pace,
    /// Rows a second.
    rate: f64,
    at: Instant,
}

impl Load {
    pub(super) fn new(pace: Pace) -> Load {
        Load { pace, rate: 0.0, at: Instant::now() }
    }

    /// So many rows came since the last call.
    pub(super) fn took(&mut self, rows: usize, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        let memory = MEMORY.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a window of rows")]
        let rows = rows as f64;
        self.rate = self.rate * (-elapsed / memory).exp() + rows / memory;
        self.at = now;
        self.pace.busy.store(self.rate >= BUSY, Ordering::Relaxed);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.pace.busy.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_busy(load: &Load) -> bool {
        load.pace.busy.load(Ordering::Relaxed)
    }

    /// So many rows one by one, `rate` a second.
    fn come(load: &mut Load, rows: u32, rate: u32) {
        let apart = Duration::from_secs(1) / rate;
        for _ in 0..rows {
            let now = load.at + apart;
            load.took(1, now);
        }
    }

    #[test]
    fn rows_that_come_now_and_then_never_wait() {
        let mut load = Load::new(Pace::default());
        for rate in [1, 100, 1_000, 3_000] {
            come(&mut load, 1_000, rate);
            assert!(!is_busy(&load), "{rate} rows a second");
        }
    }

    #[test]
    fn a_busy_slot_is_known_within_milliseconds_and_forgotten_as_soon() {
        let mut load = Load::new(Pace::default());
        come(&mut load, 100, 20_000);
        assert!(is_busy(&load));
        load.took(0, load.at + Duration::from_millis(100));
        assert!(!is_busy(&load));
    }

    #[test]
    fn a_session_that_ends_leaves_the_thread_awake() {
        let pace = Pace::default();
        let mut load = Load::new(pace.clone());
        come(&mut load, 2_000, 20_000);
        assert!(is_busy(&load));
        drop(load);
        assert!(!pace.busy.load(Ordering::Relaxed));
    }
}
