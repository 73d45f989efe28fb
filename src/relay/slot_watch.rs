//! What becomes of the slot: on the board after each look at it, in the log when it is near its loss.
//!
//! The log names it once, and again when half of the time has gone or ten minutes have passed.

use crate::ops::advice;
use crate::ops::forecast::{Outlook, Trend};
use crate::ops::status::Board;
use crate::postgres::preflight::Slot;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// A shorter time is a burst, not a rate: looks are ten seconds apart.
const RATE_OVER: Duration = Duration::from_secs(9);

const NAMED_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// A disk that fills is named once it has done so for longer than a reconnection takes.
const FILLS_FOR: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct SlotWatch {
    trend: Trend,
    /// Since when nothing limits what the slot keeps, and it stands.
    fills_since: Option<Instant>,
    /// When the log named it, and how long the slot had then.
    named: Option<(Instant, Duration)>,
}

impl SlotWatch {
    pub(super) fn new() -> SlotWatch {
        SlotWatch { trend: Trend::over(RATE_OVER), fills_since: None, named: None }
    }

    /// The slot is so. `patience`: of the relay that reads it; none when nobody does.
    pub(super) fn saw(&mut self, board: &Board, slot: &Slot, patience: Option<Duration>) {
        let now = Instant::now();
        self.trend.saw(now, slot, patience);
        board.update(|status| status.foresee(&self.trend));
        let outlook = self.trend.outlook();
        self.fills_since = self.fills_since.or(Some(now)).filter(|_| outlook == Outlook::FillsDisk);
        let left = match outlook {
            Outlook::Lost(left) if left < advice::LOSS_WARNED => left,
            Outlook::FillsDisk if self.fills_since.is_some_and(|since| now >= since + FILLS_FOR) => {
                Duration::MAX
            }
            _ => return,
        };
        if self.is_due(now, left) {
            self.named = Some((now, left));
            let Some(advice) = advice::slot(&board.read()) else { return };
            warn!(
                code = advice.code,
                error = advice.message,
                remedy = advice.remedy,
                "the slot is in danger"
            );
        }
    }

    fn is_due(&self, now: Instant, left: Duration) -> bool {
        self.named.is_none_or(|(at, then)| left < then / 2 || now >= at + NAMED_AGAIN_AFTER)
    }

    /// Postgres cannot be asked: nothing is known.
    pub(super) fn lost_sight(&mut self, board: &Board) {
        self.trend = Trend::over(RATE_OVER);
        board.update(|status| status.foresee(&self.trend));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_names_a_loss_again_when_it_is_much_nearer_or_ten_minutes_later() {
        let mut watch = SlotWatch::new();
        let now = Instant::now();
        let seconds = Duration::from_secs;
        assert!(watch.is_due(now, seconds(3000)));
        watch.named = Some((now, seconds(3000)));
        assert!(
            !watch.is_due(now + seconds(10), seconds(2990))
                && !watch.is_due(now + seconds(10), seconds(1500))
        );
        assert!(watch.is_due(now + seconds(10), seconds(1499)));
        assert!(watch.is_due(now + seconds(600), seconds(3000)));
        watch.named = Some((now, Duration::ZERO));
        assert!(!watch.is_due(now + seconds(10), Duration::ZERO), "lost at any moment, and named");
    }
}
