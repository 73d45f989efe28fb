//! When the slot is lost if nothing changes: from how fast WAL is written, and from what the slot may
//! still keep. Does no I/O and knows no clock.
//!
//! The rate is the faster of the last minute's and the last five minutes': a burst counts at once, and a
//! short lull calms nobody.
//!
//! A slot that a relay reads stands still for a while and is sound all the same: nothing is confirmed
//! before the hold-back has passed, and `restart_lsn` moves only with Postgres's records of running
//! transactions. That long is its patience. A slot that nobody confirms has none.

use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::Slot;
use bytesize::ByteSize;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// WAL is watched over so long.
const WINDOW: Duration = Duration::from_secs(300);

/// What counts as now.
const LATELY: Duration = Duration::from_secs(60);

/// Postgres logs its running transactions each 15 s, `restart_lsn` follows one record behind, and the slot
/// is looked at each 10 s; doubled.
const SNAPSHOTS: Duration = Duration::from_secs(60);

/// Less is what an idle server writes.
const RATE_MIN: f64 = 1024.0;

/// What becomes of the slot.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Outlook {
    /// Too little was seen of it.
    #[default]
    Unknown,
    /// It follows, or no WAL is written.
    Follows,
    /// It stands, WAL is written, and nothing limits what it keeps: the disk fills.
    FillsDisk,
    /// It is lost after so long.
    Lost(Duration),
}

/// How long the slot of a relay that holds confirmations back may stand still.
#[must_use]
pub fn patience(hold_back: Duration) -> Duration {
    hold_back + SNAPSHOTS
}

/// A limit under which no slot is lost by being given it: twice what is retained, or the present limit
/// (-1: none), in bytes.
#[must_use]
pub fn enough_wal(limit: i64, retained: i64) -> String {
    const GIB: i64 = 1 << 30;
    let bytes = limit.max(retained).saturating_mul(2);
    format!("{}GB", (bytes / GIB + 1).max(20))
}

/// A rate in words.
#[must_use]
pub fn per_second(rate: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive rate to be shown"
    )]
    let bytes = rate as u64;
    format!("{}/s", ByteSize(bytes))
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    wal_end: Lsn,
}

/// What was seen of one slot, the last five minutes of it.
#[derive(Debug)]
pub struct Trend {
    /// A rate needs so long a time.
    span_min: Duration,
    samples: VecDeque<Sample>,
    /// `restart_lsn` when it moved, since a relay reads it.
    moves: VecDeque<(Instant, Lsn)>,
    restart: Option<Lsn>,
    /// Since when it stands, though a relay reads it.
    stands: Option<Instant>,
    outlook: Outlook,
}

impl Trend {
    /// Nothing was seen yet. A rate is told once `span_min` was watched.
    #[must_use]
    pub fn over(span_min: Duration) -> Trend {
        Trend {
            span_min,
            samples: VecDeque::new(),
            moves: VecDeque::new(),
            restart: None,
            stands: None,
            outlook: Outlook::Unknown,
        }
    }

    /// The slot is so. `patience`: of the relay that reads it; none when nobody does.
    pub fn saw(&mut self, at: Instant, slot: &Slot, patience: Option<Duration>) {
        let sample = Sample { at, wal_end: slot.wal_end };
        if self.samples.back().is_some_and(|last| last.wal_end > sample.wal_end) {
            // Another server's WAL.
            *self = Trend::over(self.span_min);
        }
        self.samples.push_back(sample);
        let old = |at_then: Instant| at.saturating_duration_since(at_then) > WINDOW;
        while self.samples.front().is_some_and(|sample| old(sample.at)) {
            self.samples.pop_front();
        }
        while self.moves.front().is_some_and(|(at, _)| old(*at)) {
            self.moves.pop_front();
        }
        if patience.is_none() {
            self.moves.clear();
            self.stands = None;
        } else if self.stands.is_none() || self.restart != slot.restart_lsn {
            if self.stands.is_some() {
                self.moves.extend(slot.restart_lsn.map(|restart| (at, restart)));
            }
            self.stands = Some(at);
        }
        self.restart = slot.restart_lsn;
        self.outlook = self.judge(at, slot, patience);
    }

    /// What becomes of it, as it was seen last.
    #[must_use]
    pub fn outlook(&self) -> Outlook {
        self.outlook
    }

    /// Bytes of WAL a second.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        let last = self.samples.back()?;
        let since = |first: &Sample| {
            let span = last.at.saturating_duration_since(first.at);
            (span >= self.span_min)
                .then(|| bytes(last.wal_end.bytes_since(first.wal_end)) / span.as_secs_f64())
        };
        let whole = self.samples.front().and_then(since)?;
        let is_late = |sample: &&Sample| last.at.saturating_duration_since(sample.at) <= LATELY;
        let lately = self.samples.iter().find(is_late).and_then(since);
        Some(lately.map_or(whole, |lately| lately.max(whole)))
    }

    fn judge(&self, at: Instant, slot: &Slot, patience: Option<Duration>) -> Outlook {
        let Some(rate) = self.rate() else { return Outlook::Unknown };
        if slot.wal_status.as_deref() == Some("lost") || rate < RATE_MIN {
            return Outlook::Follows;
        }
        let Some(safe) = slot.safe_wal_size else {
            return if patience.is_some() { Outlook::Follows } else { Outlook::FillsDisk };
        };
        let safe = bytes(u64::try_from(safe).unwrap_or(0));
        let lasts = |rate: f64| Duration::from_secs_f64((safe / rate).min(1e9));
        let Some(patience) = patience else { return Outlook::Lost(lasts(rate)) };
        let stood = self.stands.map_or(Duration::ZERO, |since| at.saturating_duration_since(since));
        // One that moves does so soon again.
        let moves = !self.moves.is_empty() && stood < SNAPSHOTS;
        let next_move = if moves { SNAPSHOTS } else { patience }.saturating_sub(stood);
        if next_move.is_zero() || lasts(rate) <= next_move {
            return Outlook::Lost(lasts(rate));
        }
        match self.falls_behind(rate) {
            // More of it than patience explains: the relay is too slow.
            Some(growth) if bytes(slot.retained().unwrap_or(0)) > 2.0 * rate * patience.as_secs_f64() => {
                Outlook::Lost(lasts(growth))
            }
            _ => Outlook::Follows,
        }
    }

    /// How much faster WAL is written than the slot moves; none where the two are about the same.
    fn falls_behind(&self, rate: f64) -> Option<f64> {
        let ((began, from), (ended, to)) = (self.moves.front()?, self.moves.back()?);
        let span = ended.saturating_duration_since(*began);
        let growth = rate - bytes(to.bytes_since(*from)) / span.as_secs_f64();
        (span >= LATELY && growth > rate / 4.0).then_some(growth)
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes for a rate")]
fn bytes(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const HOLD_BACK: Duration = Duration::from_secs(250);

    /// A slot under one MiB of WAL a second, looked at each 10 s.
    struct Watched {
        trend: Trend,
        began: Instant,
        seconds: u64,
        wal_end: u64,
        restart: u64,
        limit: Option<u64>,
    }

    impl Watched {
        fn new(limit: Option<u64>) -> Watched {
            let trend = Trend::over(Duration::from_secs(9));
            Watched { trend, began: Instant::now(), seconds: 0, wal_end: 0, restart: 0, limit }
        }

        /// Whether WAL is written, how far behind it the slot follows, and for how long.
        fn watch(&mut self, seconds: u64, rate: u64, behind: Option<u64>, patience: Option<Duration>) {
            for _ in 0..seconds / 10 {
                self.seconds += 10;
                self.wal_end += 10 * rate;
                self.restart =
                    self.restart.max(behind.map_or(0, |behind| self.wal_end.saturating_sub(behind)));
                let retained = self.wal_end - self.restart;
                let slot = Slot {
                    plugin: None,
                    database: None,
                    here: String::new(),
                    temporary: false,
                    two_phase: false,
                    active_pid: None,
                    wal_status: Some("extended".to_owned()),
                    invalidation: None,
                    restart_lsn: Some(Lsn(self.restart)),
                    confirmed: None,
                    wal_end: Lsn(self.wal_end),
                    safe_wal_size: self.limit.map(|limit| limit as i64 - retained as i64),
                };
                self.trend.saw(self.began + Duration::from_secs(self.seconds), &slot, patience);
            }
        }

        fn lost_in(&self) -> Option<u64> {
            match self.trend.outlook() {
                Outlook::Lost(after) => Some(after.as_secs()),
                _ => None,
            }
        }
    }

    #[test]
    fn a_slot_that_nobody_confirms_is_lost_when_the_present_rate_has_used_up_what_is_safe() {
        let mut slot = Watched::new(Some(1000 * MIB));
        slot.watch(10, MIB, None, None);
        assert_eq!(slot.trend.outlook(), Outlook::Unknown, "one sample is no rate");
        slot.watch(90, MIB, None, None);
        assert_eq!((slot.trend.rate(), slot.lost_in()), (Some(MIB as f64), Some(900)));
        slot.watch(1000, MIB, None, None);
        assert_eq!(slot.lost_in(), Some(0), "it may go at any checkpoint");
    }

    #[test]
    fn a_burst_counts_at_once_and_a_lull_does_not_calm_too_soon() {
        let mut slot = Watched::new(Some(10_000 * MIB));
        slot.watch(290, MIB, None, None);
        slot.watch(60, 10 * MIB, None, None);
        assert_eq!(slot.trend.rate(), Some(10.0 * MIB as f64));
        slot.watch(60, 0, None, None);
        assert!(slot.trend.rate() > Some(2.0 * MIB as f64), "{:?}", slot.trend.rate());
        slot.watch(310, 0, None, None);
        assert_eq!(slot.trend.outlook(), Outlook::Follows, "no WAL is written");
    }

    #[test]
    fn without_a_limit_it_is_the_disk_that_fills() {
        let mut slot = Watched::new(None);
        slot.watch(60, MIB, None, None);
        assert_eq!(slot.trend.outlook(), Outlook::FillsDisk);
        slot.watch(60, MIB, Some(MIB), Some(patience(HOLD_BACK)));
        assert_eq!(slot.trend.outlook(), Outlook::Follows);
    }

    #[test]
    fn a_busy_server_s_slot_is_sound_while_the_hold_back_runs_and_after() {
        let mut slot = Watched::new(Some(1000 * MIB));
        slot.watch(250, MIB, None, Some(patience(HOLD_BACK)));
        assert_eq!(slot.trend.outlook(), Outlook::Follows);
        slot.watch(3600, MIB, Some(260 * MIB), Some(patience(HOLD_BACK)));
        assert_eq!(slot.trend.outlook(), Outlook::Follows);
        // Twice as much is written, and is soon twice as far behind.
        slot.watch(250, 2 * MIB, Some(520 * MIB), Some(patience(HOLD_BACK)));
        assert_eq!(slot.trend.outlook(), Outlook::Follows);
    }

    #[test]
    fn a_hold_back_that_outlasts_the_slot_is_told() {
        let mut slot = Watched::new(Some(200 * MIB));
        slot.watch(60, MIB, None, Some(patience(HOLD_BACK)));
        assert_eq!(slot.lost_in(), Some(140));
    }

    #[test]
    fn a_slot_that_stands_for_longer_than_the_hold_back_explains_is_told() {
        let mut slot = Watched::new(Some(10_000 * MIB));
        slot.watch(300, MIB, Some(MIB), Some(patience(HOLD_BACK)));
        assert_eq!(slot.trend.outlook(), Outlook::Follows);
        slot.watch(320, MIB, None, Some(patience(HOLD_BACK)));
        assert_eq!(slot.lost_in(), Some(10_000 - 321));
    }

    #[test]
    fn after_an_outage_the_hold_back_begins_anew() {
        let mut slot = Watched::new(Some(10_000 * MIB));
        slot.watch(600, MIB, None, None);
        assert_eq!(slot.lost_in(), Some(9400));
        slot.watch(250, MIB, None, Some(patience(HOLD_BACK)));
        assert_eq!(slot.trend.outlook(), Outlook::Follows);
    }

    #[test]
    fn a_relay_that_is_too_slow_loses_the_slot_though_it_moves() {
        let mut slot = Watched::new(Some(4000 * MIB));
        for behind in 1..200 {
            slot.watch(10, MIB, Some(behind * 5 * MIB), Some(patience(Duration::ZERO)));
        }
        let lost_in = slot.lost_in();
        assert!(lost_in.is_some_and(|seconds| (5500..6500).contains(&seconds)), "{lost_in:?}");
    }

    #[test]
    fn another_server_s_wal_is_no_rate() {
        let mut slot = Watched::new(Some(1000 * MIB));
        slot.watch(100, MIB, None, None);
        slot.wal_end = 5 * MIB;
        slot.watch(10, 0, None, None);
        assert_eq!(slot.trend.outlook(), Outlook::Unknown);
    }

    #[test]
    fn a_limit_for_wal_lies_above_what_is_kept_and_what_was_allowed() {
        const GIB: i64 = 1 << 30;
        for (limit, retained, expected) in [
            (-1, 0, "20GB"),
            (-1, 30 * GIB, "61GB"),
            (100 * GIB, 60 * GIB, "201GB"),
            (64 << 20, 1 << 20, "20GB"),
        ] {
            assert_eq!(enough_wal(limit, retained), expected, "{limit} {retained}");
        }
    }
}
