//! When the checkpoint row is written, and which LSN is safe to confirm.
//!
//! A boundary is confirmed when
//!
//! 1. every event before it is stored or a dead letter (it was settled);
//! 2. a committed row covers it: `settled_lsn` at or beyond it, `confirmed_seq` at or beyond the
//!    sequence that it relies on. Otherwise a stream that lost that message could not be told from
//!    one that never had it;
//! 3. it has aged for `hold_back` since the last acknowledgement that it relies on: by then
//!    nats-server has synced the message to disk, so that a power loss there only takes what the
//!    slot can still send;
//! 4. the publication was seen whole after the WAL position `checked`, and it is not beyond that;
//! 5. it lies behind the commit of every dead letter before it: a standby that the slot fails over
//!    to has WAL up to what was confirmed, and so the letter.
//!
//! The row is written at most once a second while events are settled. While only foreign traffic
//! moves the boundary it is written once a MiB, and once more a minute after the last write: the
//! server logs its running transactions within 15 s of activity, and only past such a record can
//! `restart_lsn` move. That last write calls for no further one, so an idle server stays idle. It is
//! written sooner where clean-up waits for it.

use super::checkpoint::Checkpoint;
use super::position::{Identity, Place, Position};
use crate::postgres::lsn::Lsn;
use crate::postgres::text::Text;
use crate::postgres::timestamp::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// At most so many marks; neighbours are merged instead.
const MARKS_MAX: usize = 32;

/// Marks are at least so far apart: 32 of them span the 10 s between two looks at the publication.
const MARK_APART_MIN: Duration = Duration::from_millis(500);

const WRITE_APART: Duration = Duration::from_secs(1);
const WRITE_LAST: Duration = Duration::from_secs(60);
const WRITE_BYTES: u64 = 1 << 20;

/// A settled boundary, when it was settled, and the sequence that it relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    settled: Instant,
    lsn: Lsn,
    seq: u64,
}

/// Boundaries that come of age together.
#[derive(Debug)]
struct Mark {
    opened: Instant,
    latest: Point,
    /// As it was when a row was last written: what is settled later may wait long for its row.
    covered: Option<Point>,
}

/// A row to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Its values.
    pub row: Checkpoint,
    /// It is the one that calls for no further one.
    rests: bool,
}

/// The settled prefix of a session, the row, and the marks between them and the slot.
#[derive(Debug)]
pub struct Ledger {
    /// As last committed.
    row: Checkpoint,
    seq: u64,
    /// The last event that this session settled.
    last: Option<(u32, Place, Timestamp, Text)>,
    passed_seq: u64,
    settled: Lsn,
    /// The last event is settled, the boundary behind it is not.
    open: bool,
    /// The boundary behind the last settled event, and its letter.
    owed: Lsn,
    /// Every letter was committed before it.
    lettered: Lsn,
    confirmed: Lsn,
    checked: Lsn,
    hold_back: Duration,
    marks: VecDeque<Mark>,
    written: Instant,
    rested: bool,
    /// Someone waits for the row to cover this.
    wanted: Lsn,
}

impl Ledger {
    /// A session's, taken over from `row` at `now`; the slot is confirmed up to `confirmed`, all is
    /// settled up to `settled`. Marks begin anew: what an earlier session knew of time is gone.
    /// Letters of events that the slot is not confirmed past were committed before `lettered`.
    #[must_use]
    pub fn new(
        row: Checkpoint,
        confirmed: Lsn,
        settled: Lsn,
        lettered: Lsn,
        hold_back: Duration,
        now: Instant,
    ) -> Ledger {
        Ledger {
            seq: row.seq,
            last: None,
            passed_seq: row.passed_seq,
            row,
            settled,
            open: false,
            owed: Lsn::ZERO,
            lettered,
            confirmed,
            checked: Lsn::ZERO,
            hold_back,
            marks: VecDeque::new(),
            // The first write waits for nothing: a session that ends soon must not leave its tail to the next.
            written: now.checked_sub(WRITE_APART).unwrap_or(now),
            rested: false,
            wanted: Lsn::ZERO,
        }
    }

    /// Someone waits for a row that covers `lsn`, and for the slot to be confirmed past it.
    pub fn want(&mut self, lsn: Lsn) {
        self.wanted = lsn;
    }

    /// An event that committed on `timeline` is settled: stored at `seq`.
    pub fn event(&mut self, seq: u64, timeline: u32, place: Place, commit_time: Timestamp, event_id: Text) {
        debug_assert!(seq > self.seq, "sequence {seq} after {}", self.seq);
        self.seq = seq;
        self.last = Some((timeline, place, commit_time, event_id));
        self.open = true;
    }

    /// An event is settled: a dead letter, committed before `lsn`.
    pub fn letter(&mut self, lsn: Lsn) {
        self.lettered = self.lettered.max(lsn);
        self.open = true;
    }

    /// An event whose transaction began to be settled before it is a dead letter only now, committed
    /// before `lsn`.
    pub fn late_letter(&mut self, lsn: Lsn) {
        self.letter(lsn);
        // Boundaries behind the event may be among them.
        self.marks.clear();
    }

    /// Messages up to `seq` are judged, and none behind it.
    pub fn passed(&mut self, seq: u64) {
        self.passed_seq = seq;
    }

    /// A boundary is settled at `now`.
    pub fn boundary(&mut self, lsn: Lsn, now: Instant) {
        self.settled = self.settled.max(lsn);
        if lsn < self.lettered {
            return;
        }
        if std::mem::take(&mut self.open) {
            self.owed = lsn;
        }
        let newest = self.marks.back().map_or(self.confirmed, |mark| mark.latest.lsn);
        if lsn <= newest {
            return;
        }
        let latest = Point { settled: now, lsn, seq: self.seq };
        let apart = (self.hold_back / 24).max(MARK_APART_MIN);
        match self.marks.back_mut() {
            Some(mark) if mark.opened + apart > now => mark.latest = latest,
            _ => self.marks.push_back(Mark { opened: now, latest, covered: None }),
        }
        if self.marks.len() > MARKS_MAX {
            // The oldest stays, so that something always comes of age.
            self.marks.remove(1);
        }
    }

    /// The publication was whole after the WAL stood at `lsn`.
    pub fn checked(&mut self, lsn: Lsn) {
        self.checked = self.checked.max(lsn);
    }

    /// What is waited for is settled, and no look at the publication covers it yet.
    #[must_use]
    pub fn wants_check(&self) -> bool {
        self.checked < self.wanted && self.wanted <= self.settled
    }

    /// The newest boundary that has come of age, up to `limit`.
    fn aged(&self, now: Instant, limit: Lsn) -> Option<Point> {
        let limit = limit.min(self.checked);
        let aged = |point: &Point| point.lsn <= limit && point.settled + self.hold_back <= now;
        self.marks.iter().rev().flat_map(|mark| [Some(mark.latest), mark.covered]).flatten().find(aged)
    }

    /// The row to write now, if one is owed.
    #[must_use]
    pub fn due(&mut self, now: Instant) -> Option<Write> {
        let since = now.saturating_duration_since(self.written);
        let moved = self.seq != self.row.seq || self.passed_seq != self.row.passed_seq;
        let owed = self.owed > self.row.settled_lsn;
        let far = self.settled.bytes_since(self.row.settled_lsn) >= WRITE_BYTES;
        let relied = self.aged(now, self.settled).is_some_and(|point| point.seq > self.row.confirmed_seq);
        let wanted = self.row.settled_lsn < self.wanted && self.settled >= self.wanted;
        let busy = since >= WRITE_APART && (moved || owed || far || relied || wanted);
        let rests = !self.rested && since >= WRITE_LAST && self.settled > self.row.settled_lsn;
        (busy || rests).then(|| Write { rests: !busy, ..self.write(now) })
    }

    /// The row as it should be now, due or not: at a drain and before a halt.
    #[must_use]
    pub fn write(&mut self, now: Instant) -> Write {
        if let Some(mark) = self.marks.back_mut() {
            mark.covered = Some(mark.latest);
        }
        let relied = self.aged(now, self.settled).map_or(0, |point| point.seq);
        let row = Checkpoint {
            seq: self.seq,
            last: self.last(),
            passed_seq: self.passed_seq,
            settled_lsn: self.settled,
            confirmed_seq: self.row.confirmed_seq.max(relied),
            ..self.row.clone()
        };
        Write { row, rests: false }
    }

    /// `write` is committed.
    pub fn written(&mut self, write: Write, now: Instant) {
        self.rested = write.rests;
        self.written = now;
        self.row = write.row;
    }

    /// The row as last committed.
    #[must_use]
    pub fn committed(&self) -> &Checkpoint {
        &self.row
    }

    /// What could be confirmed now: look at the stream first, then [`confirm`](Ledger::confirm).
    #[must_use]
    pub fn confirmable(&self, now: Instant) -> Option<Lsn> {
        let row = &self.row;
        let point = self.aged(now, row.settled_lsn).filter(|point| point.seq <= row.confirmed_seq)?;
        (point.lsn > self.confirmed).then_some(point.lsn)
    }

    /// `lsn` is confirmed to Postgres from now on.
    pub fn confirm(&mut self, lsn: Lsn) {
        self.confirmed = self.confirmed.max(lsn);
        self.marks.retain(|mark| mark.latest.lsn > lsn);
    }

    /// The LSN that status updates carry.
    #[must_use]
    pub fn confirmed_lsn(&self) -> Lsn {
        self.confirmed
    }

    /// The highest settled boundary.
    #[must_use]
    pub fn settled_lsn(&self) -> Lsn {
        self.settled
    }

    /// The sequence of the last settled event.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Messages behind this one are to be judged at a SYNC.
    #[must_use]
    pub fn judged_seq(&self) -> u64 {
        self.seq.max(self.passed_seq)
    }

    /// The last settled event.
    #[must_use]
    pub fn last(&self) -> Option<Identity> {
        let Some((timeline, place, commit_time, event_id)) = &self.last else { return self.row.last.clone() };
        let (system_id, timeline, slot) = (self.row.system_id, *timeline, self.row.slot.clone());
        Some(Identity {
            position: Position { system_id, timeline, slot, place: *place },
            commit_time: *commit_time,
            event_id: event_id.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::Objects;
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FAR: Lsn = Lsn(u64::MAX);

    fn row() -> Checkpoint {
        Checkpoint {
            slot: "s".into(),
            stream: "S".into(),
            stream_created: Timestamp(5),
            system_id: 7,
            timeline: 1,
            objects: Objects { publication: 1, membership: 2, table: 3 },
            phase: "ready".into(),
            session: 9,
            seq: 0,
            last: None,
            passed_seq: 0,
            settled_lsn: Lsn(10),
            confirmed_seq: 0,
        }
    }

    fn ledger(hold_back: Duration, now: Instant) -> Ledger {
        let mut ledger = Ledger::new(row(), Lsn(10), Lsn(10), Lsn::ZERO, hold_back, now);
        ledger.checked(FAR);
        ledger
    }

    fn event(ledger: &mut Ledger, seq: u64, lsn: u64, now: Instant) {
        let place = Place { commit_lsn: Lsn(lsn), index: 0 };
        ledger.event(seq, 1, place, Timestamp(1), Text::from_static("e"));
        ledger.boundary(Lsn(lsn + 1), now);
    }

    fn write_due(ledger: &mut Ledger, now: Instant) -> bool {
        let write = ledger.due(now);
        let due = write.is_some();
        if let Some(write) = write {
            ledger.written(write, now);
        }
        due
    }

    #[test]
    fn a_row_that_someone_waits_for_is_written_once_what_it_shall_cover_is_settled() {
        let now = Instant::now();
        let mut ledger = ledger(Duration::ZERO, now);
        ledger.want(Lsn(20));
        ledger.boundary(Lsn(19), now);
        assert!(!write_due(&mut ledger, now + SECOND), "it would not suffice");
        ledger.boundary(Lsn(20), now);
        assert!(write_due(&mut ledger, now + SECOND));
        assert!(!write_due(&mut ledger, now + 2 * SECOND), "it is covered");
        assert_eq!(ledger.confirmable(now + SECOND), Some(Lsn(20)));
    }

    #[test]
    fn a_look_at_the_publication_is_wanted_once_what_waits_for_it_is_settled() {
        let now = Instant::now();
        let mut ledger = Ledger::new(row(), Lsn(10), Lsn(10), Lsn::ZERO, Duration::ZERO, now);
        ledger.want(Lsn(20));
        assert!(!ledger.wants_check());
        ledger.boundary(Lsn(20), now);
        assert!(ledger.wants_check());
        ledger.checked(Lsn(20));
        assert!(!ledger.wants_check());
    }

    #[test]
    fn nothing_is_confirmed_before_a_row_covers_it() {
        let now = Instant::now();
        let mut ledger = ledger(Duration::ZERO, now);
        event(&mut ledger, 1, 20, now);
        assert_eq!(ledger.confirmable(now), None);
        assert!(write_due(&mut ledger, now + SECOND));
        assert_eq!(ledger.confirmable(now + SECOND), Some(Lsn(21)));
    }

    #[test]
    fn nothing_is_confirmed_before_the_hold_back_has_passed() {
        let now = Instant::now();
        let mut ledger = ledger(10 * SECOND, now);
        event(&mut ledger, 1, 20, now);
        assert!(write_due(&mut ledger, now + SECOND));
        assert_eq!(ledger.confirmable(now + 9 * SECOND), None);
        // It relies on sequence 1, which the row must name first.
        assert_eq!(ledger.confirmable(now + 10 * SECOND), None);
        assert!(write_due(&mut ledger, now + 10 * SECOND));
        assert_eq!(ledger.committed().confirmed_seq, 1);
        assert_eq!(ledger.confirmable(now + 10 * SECOND), Some(Lsn(21)));
    }

    #[test]
    fn what_is_confirmed_takes_no_mark() {
        let now = Instant::now();
        let mut ledger = ledger(Duration::ZERO, now);
        event(&mut ledger, 1, 20, now);
        assert!(write_due(&mut ledger, now + SECOND));
        let lsn = ledger.confirmable(now + SECOND).unwrap();
        ledger.confirm(lsn);
        assert!(ledger.marks.is_empty());
    }

    #[test]
    fn a_row_that_names_what_it_relies_on_owes_nothing_while_the_confirmation_waits() {
        let now = Instant::now();
        let mut ledger = ledger(10 * SECOND, now);
        event(&mut ledger, 1, 20, now);
        assert!(write_due(&mut ledger, now + SECOND) && write_due(&mut ledger, now + 10 * SECOND));
        assert!(ledger.due(now + 12 * SECOND).is_none());
    }

    #[test]
    fn nothing_is_confirmed_beyond_where_the_publication_was_seen_whole() {
        let now = Instant::now();
        let mut ledger = Ledger::new(row(), Lsn(10), Lsn(10), Lsn::ZERO, Duration::ZERO, now);
        ledger.checked(Lsn(20));
        event(&mut ledger, 1, 20, now);
        write_due(&mut ledger, now + SECOND);
        assert_eq!(ledger.confirmable(now + SECOND), None);
        ledger.checked(Lsn(21));
        write_due(&mut ledger, now + 2 * SECOND);
        assert_eq!(ledger.confirmable(now + 2 * SECOND), Some(Lsn(21)));
    }

    #[test]
    fn the_row_is_written_once_a_second_at_most() {
        let now = Instant::now();
        let mut ledger = ledger(Duration::ZERO, now);
        event(&mut ledger, 1, 20, now);
        assert!(write_due(&mut ledger, now), "a session's first is not kept waiting");
        event(&mut ledger, 2, 30, now);
        assert!(ledger.due(now + SECOND / 2).is_none());
        assert!(write_due(&mut ledger, now + SECOND));
    }

    #[test]
    fn the_boundary_behind_the_last_event_is_owed() {
        let now = Instant::now();
        let mut ledger = ledger(60 * SECOND, now);
        let place = Place { commit_lsn: Lsn(20), index: 0 };
        ledger.event(1, 1, place, Timestamp(1), Text::from_static("e"));
        assert!(write_due(&mut ledger, now + SECOND));
        ledger.boundary(Lsn(21), now + SECOND);
        assert!(write_due(&mut ledger, now + 2 * SECOND));
        assert!(!write_due(&mut ledger, now + 3 * SECOND));
    }

    #[test]
    fn foreign_traffic_alone_is_written_by_the_mebibyte_and_once_more_when_it_rests() {
        let now = Instant::now();
        let mut ledger = ledger(Duration::ZERO, now);
        ledger.boundary(Lsn(10 + WRITE_BYTES - 1), now);
        assert!(!write_due(&mut ledger, now + SECOND));
        ledger.boundary(Lsn(10 + WRITE_BYTES), now + SECOND);
        assert!(write_due(&mut ledger, now + SECOND));
        // The write's own WAL, and what the server logs by itself.
        ledger.boundary(Lsn(10 + WRITE_BYTES + 300), now + 2 * SECOND);
        assert!(!write_due(&mut ledger, now + 60 * SECOND));
        assert!(write_due(&mut ledger, now + 61 * SECOND));
        ledger.boundary(Lsn(10 + WRITE_BYTES + 600), now + 62 * SECOND);
        assert!(!write_due(&mut ledger, now + 600 * SECOND), "an idle server stays idle");
    }

    #[test]
    fn what_the_last_write_covered_is_confirmed_though_more_was_settled_since() {
        let now = Instant::now();
        let mut ledger = ledger(20 * SECOND, now);
        ledger.boundary(Lsn(10 + WRITE_BYTES), now);
        assert!(write_due(&mut ledger, now + SECOND));
        ledger.boundary(Lsn(10 + WRITE_BYTES + 300), now + SECOND / 2);
        assert_eq!(ledger.confirmable(now + 21 * SECOND), Some(Lsn(10 + WRITE_BYTES)));
    }

    #[test]
    fn what_the_slot_sends_again_is_confirmed_up_to_what_the_row_covers_already() {
        let now = Instant::now();
        let row = Checkpoint { settled_lsn: Lsn(50), ..row() };
        let mut ledger = Ledger::new(row, Lsn(10), Lsn(50), Lsn::ZERO, Duration::ZERO, now);
        ledger.checked(FAR);
        ledger.boundary(Lsn(40), now);
        assert_eq!(ledger.confirmable(now), Some(Lsn(40)));
    }

    #[test]
    fn the_row_names_the_last_settled_event_its_sequence_and_the_boundary_behind_it() {
        let now = Instant::now();
        let mut ledger = ledger(Duration::ZERO, now);
        event(&mut ledger, 1, 20, now);
        event(&mut ledger, 2, 30, now);
        assert_eq!((ledger.seq(), ledger.settled_lsn()), (2, Lsn(31)));
        let row = ledger.write(now).row;
        let last = row.last.unwrap();
        assert_eq!((row.seq, row.settled_lsn, last.position.place.commit_lsn), (2, Lsn(31), Lsn(30)));
        assert_eq!((last.event_id.as_str(), last.position.timeline, last.position.system_id), ("e", 1, 7));
    }

    #[test]
    fn a_row_that_names_all_already_is_not_written_again() {
        let now = Instant::now();
        let mut ledger = ledger(Duration::ZERO, now);
        event(&mut ledger, 1, 20, now);
        assert!(write_due(&mut ledger, now));
        assert_eq!(ledger.committed().confirmed_seq, 1);
        assert!(!write_due(&mut ledger, now + 2 * SECOND), "though it is not confirmed yet");
    }

    #[test]
    fn boundaries_that_come_shortly_after_one_another_share_a_mark() {
        let now = Instant::now();
        // A mark every 2 s.
        let mut ledger = ledger(48 * SECOND, now);
        ledger.boundary(Lsn(20), now);
        ledger.boundary(Lsn(30), now + 2 * SECOND - Duration::from_millis(1));
        assert_eq!(ledger.marks.len(), 1);
        ledger.boundary(Lsn(40), now + 2 * SECOND);
        assert_eq!(ledger.marks.len(), 2);
    }

    #[test]
    fn there_are_never_more_marks_than_that_and_the_oldest_and_the_newest_stay() {
        let now = Instant::now();
        let mut ledger = ledger(600 * SECOND, now);
        for (lsn, at) in (20u64..).zip((0..40).map(|n| now + n * 30 * SECOND)) {
            ledger.boundary(Lsn(lsn), at);
            assert!(ledger.marks.len() <= MARKS_MAX);
        }
        let ends = (ledger.marks.front().unwrap().latest.lsn, ledger.marks.back().unwrap().latest.lsn);
        assert_eq!((ledger.marks.len(), ends), (MARKS_MAX, (Lsn(20), Lsn(59))));
    }

    #[test]
    fn messages_that_were_passed_over_are_in_the_next_row() {
        let now = Instant::now();
        let mut ledger = ledger(Duration::ZERO, now);
        ledger.passed(5);
        assert!(write_due(&mut ledger, now));
        assert_eq!((ledger.committed().passed_seq, ledger.judged_seq()), (5, 5));
        ledger.passed(3);
        assert!(write_due(&mut ledger, now + SECOND), "they may be lost like others");
        assert_eq!(ledger.committed().passed_seq, 3);
    }

    #[test]
    fn nothing_is_confirmed_between_a_letters_event_and_its_commit() {
        let now = Instant::now();
        let mut ledger = ledger(Duration::ZERO, now);
        ledger.boundary(Lsn(15), now);
        ledger.letter(Lsn(40));
        ledger.boundary(Lsn(30), now);
        let write = ledger.write(now);
        ledger.written(write, now);
        assert_eq!(ledger.confirmable(now), Some(Lsn(15)));
        ledger.boundary(Lsn(40), now + SECOND);
        assert!(write_due(&mut ledger, now + 2 * SECOND), "the boundary behind the letter is owed");
        assert_eq!(ledger.confirmable(now + 2 * SECOND), Some(Lsn(40)));
    }

    #[test]
    fn a_session_confirms_nothing_before_the_commits_of_the_letters_that_it_finds() {
        let now = Instant::now();
        let mut ledger = Ledger::new(row(), Lsn(10), Lsn(10), Lsn(40), Duration::ZERO, now);
        ledger.checked(FAR);
        event(&mut ledger, 1, 30, now);
        write_due(&mut ledger, now + SECOND);
        assert_eq!(ledger.confirmable(now + SECOND), None);
    }

    #[test]
    fn a_late_letter_voids_the_boundaries_that_came_before_it() {
        let now = Instant::now();
        let mut ledger = ledger(Duration::ZERO, now);
        event(&mut ledger, 1, 30, now);
        ledger.late_letter(Lsn(50));
        write_due(&mut ledger, now + SECOND);
        assert_eq!(ledger.confirmable(now + SECOND), None);
        ledger.boundary(Lsn(50), now + SECOND);
        write_due(&mut ledger, now + 2 * SECOND);
        assert_eq!(ledger.confirmable(now + 2 * SECOND), Some(Lsn(50)));
    }

    proptest! {
        /// Under any mix of settling, lettering, writing and checking: what is confirmed is covered by
        /// the committed row, aged, below the check, behind its letters, and never goes back.
        #[test]
        fn what_is_confirmed_is_safe(steps in proptest::collection::vec((0u8..7, 1u64..3000), 1..300), hold in 0u64..40) {
            let hold_back = Duration::from_secs(hold);
            let mut now = Instant::now();
            let mut ledger = Ledger::new(row(), Lsn(10), Lsn(10), Lsn::ZERO, hold_back, now);
            let (mut lsn, mut seq, mut checked, mut confirmed) = (10u64, 0u64, 0u64, 10u64);
            let mut settled: Vec<(u64, u64, Instant)> = Vec::new();
            let mut letters: Vec<(u64, u64)> = Vec::new();
            for (step, amount) in steps {
                match step {
                    0 => { seq += 1; lsn += amount; event(&mut ledger, seq, lsn - 1, now); settled.push((lsn, seq, now)); }
                    1 => { lsn += amount * 500; ledger.boundary(Lsn(lsn), now); settled.push((lsn, seq, now)); }
                    2 => { write_due(&mut ledger, now); }
                    3 => { checked = lsn; ledger.checked(Lsn(lsn)); }
                    4 => now += Duration::from_millis(amount * 4),
                    5 => { ledger.letter(Lsn(lsn + amount)); letters.push((lsn, lsn + amount)); }
                    _ => if let Some(point) = ledger.confirmable(now) {
                        let row = ledger.committed();
                        prop_assert!(point.0 > confirmed && point <= row.settled_lsn && point.0 <= checked);
                        let (_, relied, at) = settled.iter().find(|(lsn, ..)| *lsn == point.0).copied().unwrap();
                        prop_assert!(relied <= row.confirmed_seq && at + hold_back <= now);
                        prop_assert!(letters.iter().all(|(event, commit)| *event >= point.0 || *commit <= point.0));
                        ledger.confirm(point);
                        confirmed = point.0;
                    },
                }
                prop_assert!(ledger.marks.len() <= MARKS_MAX);
            }
        }

        /// Nothing waits for ever: when all rests, everything settled is confirmed in the end.
        #[test]
        fn everything_is_confirmed_in_the_end(gaps in proptest::collection::vec((0u64..30, 1u64..2_000_000), 1..60), hold in 0u64..300) {
            let mut now = Instant::now();
            let mut ledger = ledger(Duration::from_secs(hold), now);
            let mut lsn = 10;
            for (seq, (gap, bytes)) in (1u64..).zip(gaps) {
                for _ in 0..gap { now += SECOND; write_due(&mut ledger, now); if let Some(lsn) = ledger.confirmable(now) { ledger.confirm(lsn); } }
                lsn += bytes;
                event(&mut ledger, seq, lsn - 1, now);
            }
            for _ in 0..hold + 130 { now += SECOND; write_due(&mut ledger, now); if let Some(lsn) = ledger.confirmable(now) { ledger.confirm(lsn); } }
            prop_assert_eq!(ledger.confirmed_lsn(), Lsn(lsn));
        }
    }
}
