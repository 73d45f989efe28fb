//! WAL that was written long ago and that the slot has not delivered: its walsender is behind, or hangs.
//!
//! What is behind the slot's reading may be an event. That it is behind is no fault by itself: on an idle
//! outbox the walsender tells of foreign WAL only now and then, and answers when it is asked.

use super::{CHECK_APART, SILENCE_ASK};
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// A walsender that keeps up has answered by then.
const LATE_AFTER: Duration = SILENCE_ASK.saturating_add(CHECK_APART);

/// Two hours of them.
const MARKS_MAX: usize = 720;

/// The WAL's end, at a time.
struct Mark {
    lsn: Lsn,
    at: Timestamp,
    seen: Instant,
}

/// Ends of the WAL that were seen and are not read yet, oldest first.
#[derive(Default)]
pub(super) struct Unread {
    marks: VecDeque<Mark>,
}

impl Unread {
    /// The WAL ended at `lsn`.
    pub(super) fn mark(&mut self, lsn: Lsn, at: Timestamp, seen: Instant) {
        if self.marks.back().is_some_and(|last| seen < last.seen + CHECK_APART) {
            return;
        }
        // The oldest one tells the age.
        self.marks.truncate(MARKS_MAX - 1);
        self.marks.push_back(Mark { lsn, at, seen });
    }

    /// Since when something is there that the slot does not deliver, though everything up to
    /// `received` was.
    pub(super) fn since(&mut self, received: Lsn, now: Instant) -> Option<Timestamp> {
        while self.marks.front().is_some_and(|mark| mark.lsn <= received) {
            self.marks.pop_front();
        }
        self.marks.front().filter(|mark| now >= mark.seen + LATE_AFTER).map(|mark| mark.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_that_is_not_delivered_in_time_tells_since_when() {
        let began = Instant::now();
        let mut unread = Unread::default();
        let after = |seconds| began + Duration::from_secs(seconds);
        for checks in 0..4 {
            let seconds = 10 * checks;
            unread.mark(Lsn(100 + seconds), Timestamp(seconds.cast_signed()), after(seconds));
        }
        assert_eq!(unread.since(Lsn(99), after(19)), None, "it may only not have been told yet");
        assert_eq!(unread.since(Lsn(99), after(20)), Some(Timestamp(0)));
        assert_eq!(unread.since(Lsn(109), after(30)), Some(Timestamp(10)), "it reads on, and is behind");
        assert_eq!(unread.since(Lsn(130), after(300)), None, "it has caught up");
    }

    #[test]
    fn checks_in_a_row_are_one_mark_and_a_long_silence_keeps_the_oldest() {
        let began = Instant::now();
        let mut unread = Unread::default();
        for seconds in 0..20_000_u64 {
            unread.mark(
                Lsn(1 + seconds),
                Timestamp(seconds.cast_signed()),
                began + Duration::from_secs(seconds),
            );
        }
        assert_eq!(unread.marks.len(), MARKS_MAX);
        let now = began + Duration::from_secs(20_000);
        assert_eq!(unread.since(Lsn(0), now), Some(Timestamp(0)));
        assert_eq!(unread.since(Lsn(1), now), Some(Timestamp(10)));
    }
}
