//! Faults in the log: an outage of hours is a few faults that repeat, not a thousand lines.

use crate::error::{Code, Failure};
use crate::ops::advice::Level;
use crate::ops::changes::is_alike;
use crate::ops::obstacles::{self, Obstacle};
use crate::ops::status::Board;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// A fault that goes on is named so often.
const NAMED_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// One that stays, or comes and goes, is named again after so long.
const OBSTACLE_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// Two or three faults that take turns are common; more are not one outage.
const NAMED_MAX: usize = 8;

/// When it was named last, and how often it came again since.
struct Named {
    text: String,
    at: Instant,
    silent: u64,
}

/// What was named, the latest last.
#[derive(Default)]
struct Lately(VecDeque<Named>);

impl Lately {
    /// How often `text` came since it was last named, this time included; none: it is not due yet.
    fn due(&mut self, text: &str) -> Option<u64> {
        let place = self.0.iter().position(|named| is_alike(&named.text, text));
        let named = place.and_then(|place| self.0.get_mut(place));
        if let Some(named) = named.filter(|named| named.at.elapsed() < NAMED_AGAIN_AFTER) {
            named.silent += 1;
            return None;
        }
        let before = place.and_then(|place| self.0.remove(place));
        if self.0.len() == NAMED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Named { text: text.to_owned(), at: Instant::now(), silent: 0 });
        Some(before.map_or(1, |before| before.silent + 1))
    }
}

/// See the module. Also one that passes within seconds and comes again is named once a minute.
#[derive(Default)]
pub(super) struct FaultLog {
    fault: Lately,
    drain: Lately,
    awaited: Lately,
    /// The fault that was named and goes on, and since when.
    open: Option<(Code, Instant)>,
}

impl FaultLog {
    pub(super) fn new() -> FaultLog {
        FaultLog::default()
    }

    /// `failure` broke off `what`; it is tried again after `wait`.
    pub(super) fn warn(&mut self, failure: &Failure, wait: Duration, what: &str) {
        let (code, error) = (failure.code, failure.message.as_str());
        let Some(times) = self.fault.due(&format!("{code} {error}")) else {
            debug!(%code, error, retry_in = ?wait, "{what}");
            return;
        };
        warn!(%code, error, remedy = failure.whole_remedy(), retry_in = ?wait, times, "{what}");
        self.open.get_or_insert((code, Instant::now()));
    }

    /// Publishing is broken off.
    pub(super) fn drains(&mut self, why: &str, in_flight: usize) {
        match self.drain.due(why) {
            Some(times) => info!(why, in_flight, times, "draining"),
            None => debug!(why, in_flight, "draining"),
        }
    }

    /// Postgres sends nothing, since it waits for a standby.
    pub(super) fn awaits(&mut self, notice: &str) {
        if let Some(times) = self.awaited.due(notice) {
            warn!(notice, times, "Postgres sends nothing before a standby has it");
        }
    }

    /// The relay streams.
    pub(super) fn streams(&mut self) {
        if let Some((code, since)) = self.open.take() {
            info!(%code, after_seconds = since.elapsed().as_secs(), "streaming again");
        }
    }
}

/// What keeps rows from being published, though all is sound: each is named once, and again after a while.
#[derive(Default)]
pub(super) struct ObstacleLog {
    named: BTreeMap<&'static str, Instant>,
}

impl ObstacleLog {
    /// Says what stands on the board.
    pub(super) fn tell(&mut self, board: &Board) {
        for Obstacle { code, level, message, remedy } in obstacles::of(&board.read()) {
            let code = code.as_str();
            if self.named.get(code).is_some_and(|at| at.elapsed() < OBSTACLE_AGAIN_AFTER) {
                continue;
            }
            self.named.insert(code, Instant::now());
            match level {
                Level::Note => info!(code, why = message, remedy, "what may keep rows from the stream"),
                Level::Warning | Level::Error => {
                    warn!(code, why = message, remedy, "what may keep rows from the stream")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn faults_that_take_turns_are_each_named_once_a_minute() {
        let mut lately = Lately::default();
        let mut named = Vec::new();
        for _ in 0..13 {
            named.extend(["refused", "no answer"].map(|text| lately.due(text)));
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        let named: Vec<_> = named.into_iter().flatten().collect();
        assert_eq!(named, [1, 1, 12, 12]);
        for number in 0..100 {
            lately.due(&"x".repeat(number));
        }
        assert_eq!(lately.0.len(), NAMED_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_that_repeats_is_named_once_a_minute_and_its_end_once() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let mut log = FaultLog::new();
        let retry = Duration::from_secs(5);
        for attempt in 0..36 {
            let fault = Failure::new(Code::NatsUnreachable, format!("refused at try {attempt}"), "start it");
            log.warn(&fault, retry, "the session ended");
            tokio::time::advance(retry).await;
        }
        log.warn(&Failure::new(Code::NoJetStream, "another", ""), retry, "the session ended");
        log.streams();
        log.streams();
        // It comes again at once, and passes at once: not a line for each.
        for _ in 0..50 {
            log.warn(&Failure::new(Code::NoJetStream, "another", ""), retry, "the session ended");
            log.streams();
        }
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[1].contains("times=12") && lines[2].contains("times=12"), "{text}");
        assert!(lines[3].contains("PR0303") && lines[4].contains("streaming again"), "{text}");
    }
}
