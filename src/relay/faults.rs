//! Faults in the log: an outage of hours is one fault that repeats, not a thousand lines.

use crate::error::{Code, Failure};
use crate::ops::changes::is_alike;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// A fault that goes on is named so often.
const NAMED_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The fault that was named last.
struct Named {
    code: Code,
    message: String,
    began: Instant,
    at: Instant,
    /// How often it happened since, without being named.
    silent: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct FaultLog(Option<Named>);

impl FaultLog {
    pub(super) fn new() -> FaultLog {
        FaultLog::default()
    }

    /// `failure` broke off `what`; it is tried again after `wait`.
    pub(super) fn warn(&mut self, failure: &Failure, wait: Duration, what: &str) {
        let (code, error) = (failure.code, failure.message.as_str());
        let same = |named: &&mut Named| named.code == code && is_alike(&named.message, error);
        let mut began = Instant::now();
        let mut repeated = None;
        if let Some(named) = self.0.as_mut().filter(same) {
            if named.at.elapsed() < NAMED_AGAIN_AFTER {
                named.silent += 1;
                debug!(%code, error, retry_in = ?wait, "{what}");
                return;
            }
            began = named.began;
            repeated = Some(named.silent + 1);
        }
        warn!(%code, error, remedy = failure.whole_remedy(), retry_in = ?wait, repeated, "{what}");
        let message = error.to_owned();
        self.0 = Some(Named { code, message, began, at: Instant::now(), silent: 0 });
    }

    /// It has passed: events are stored again.
    pub(super) fn passed(&mut self) {
        if let Some(named) = self.0.take() {
            info!(code = %named.code, after_seconds = named.began.elapsed().as_secs(), "streaming again");
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
        log.passed();
        log.passed();
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[1].contains("repeated=12") && lines[2].contains("repeated=12"), "{text}");
        assert!(lines[3].contains("PR0303") && lines[4].contains("streaming again"), "{text}");
    }
}
