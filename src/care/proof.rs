//! Witnesses, and what they prove. Does no I/O.

use crate::postgres::lsn::Lsn;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Enough to span a hold-back by sixteenths; while nothing is confirmed the newest is replaced.
const WITNESSES_MAX: usize = 24;

/// Every transaction below `horizon` ended before the WAL stood at `lsn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) horizon: u64,
    pub(super) lsn: Lsn,
}

/// What one connection has seen.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    waiting: VecDeque<Witness>,
    taken: Option<Instant>,
    /// Rows of transactions below it are proved.
    horizon: u64,
    confirmed: Lsn,
    /// Transactions that marked proved rows, at or above the horizon.
    marks: Vec<u64>,
}

impl Proofs {
    /// A witness of `now`. One whose horizon is known already proves nothing more, and waits longer.
    pub(super) fn take(&mut self, witness: Witness, now: Instant) {
        self.taken = Some(now);
        if witness.horizon <= self.waiting.back().map_or(self.horizon, |last| last.horizon) {
            return;
        }
        if self.waiting.len() == WITNESSES_MAX {
            self.waiting.pop_back();
        }
        self.waiting.push_back(witness);
    }

    /// Whether another one is worth taking.
    pub(super) fn may_take(&self, apart: Duration, now: Instant) -> bool {
        self.taken.is_none_or(|taken| now >= taken + apart)
    }

    /// The slot is confirmed up to `lsn`. Whether that proves anything new.
    pub(super) fn confirm(&mut self, lsn: Lsn) -> bool {
        if lsn < self.confirmed {
            // A slot never goes back by itself: this is another one.
            *self = Proofs::default();
        }
        self.confirmed = lsn;
        let before = self.horizon;
        while let Some(witness) = self.waiting.front().filter(|witness| witness.lsn <= lsn) {
            self.horizon = self.horizon.max(witness.horizon);
            self.waiting.pop_front();
        }
        let horizon = self.horizon;
        self.marks.retain(|xid| *xid >= horizon);
        horizon > before
    }

    /// Rows of transactions below `horizon` are proved by other means.
    pub(super) fn proved(horizon: u64) -> Proofs {
        Proofs { horizon, ..Proofs::default() }
    }

    /// Transaction `xid` marked proved rows.
    pub(super) fn marked(&mut self, xid: u64) {
        self.marks.push(xid);
    }

    /// As SQL takes it: transactions stay far below 2^63.
    pub(super) fn horizon(&self) -> i64 {
        i64::try_from(self.horizon).unwrap_or(i64::MAX)
    }

    pub(super) fn marks(&self) -> Vec<i64> {
        self.marks.iter().filter_map(|xid| i64::try_from(*xid).ok()).collect()
    }

    /// The LSN that all witnesses wait for.
    pub(super) fn wanted(&self) -> Option<Lsn> {
        self.waiting.back().map(|witness| witness.lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn witness(horizon: u64, lsn: u64) -> Witness {
        Witness { horizon, lsn: Lsn(lsn) }
    }

    #[test]
    fn a_witness_proves_once_the_slot_is_confirmed_past_it_and_not_before() {
        let mut proofs = Proofs::default();
        proofs.take(witness(10, 100), Instant::now());
        proofs.take(witness(20, 200), Instant::now());
        for (confirmed, proves, horizon) in
            [(99, false, 0), (100, true, 10), (199, false, 10), (250, true, 20)]
        {
            assert_eq!((proofs.confirm(Lsn(confirmed)), proofs.horizon()), (proves, horizon), "{confirmed}");
        }
        assert_eq!(proofs.wanted(), None);
    }

    #[test]
    fn marks_are_known_until_the_horizon_has_passed_them() {
        let mut proofs = Proofs::default();
        proofs.marked(15);
        proofs.take(witness(15, 100), Instant::now());
        proofs.take(witness(16, 200), Instant::now());
        proofs.confirm(Lsn(100));
        assert_eq!(proofs.marks(), [15]);
        proofs.confirm(Lsn(200));
        assert_eq!(proofs.marks(), [0_i64; 0]);
    }

    #[test]
    fn a_slot_that_went_back_is_another_one_and_proves_nothing() {
        let mut proofs = Proofs::default();
        proofs.take(witness(10, 100), Instant::now());
        proofs.take(witness(20, 300), Instant::now());
        proofs.marked(30);
        proofs.confirm(Lsn(200));
        assert_eq!(proofs.horizon(), 10);
        assert!(!proofs.confirm(Lsn(150)));
        assert_eq!((proofs.horizon(), proofs.marks(), proofs.wanted()), (0, vec![], None));
    }

    #[test]
    fn while_nothing_is_confirmed_the_newest_witness_is_replaced() {
        let mut proofs = Proofs::default();
        for number in 1..=100 {
            proofs.take(witness(number, number * 10), Instant::now());
        }
        assert!(proofs.waiting.len() <= WITNESSES_MAX);
        assert_eq!(proofs.wanted(), Some(Lsn(1000)));
        assert!(proofs.confirm(Lsn(10)), "the oldest is still there");
    }
}
