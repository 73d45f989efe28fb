//! The events that the slot sends again, told from the new ones.
//!
//! Until [`Resume::is_done`], nothing is published or confirmed:
//!
//! 1. *Skip.* Events up to the checkpoint's are stored and settled.
//! 2. *Proof.* While confirmed_flush_lsn is not beyond the checkpoint's event, the slot must send
//!    exactly that event there. Anything else is another history under the same name: a disk
//!    snapshot put back has the same system identifier and timeline.
//! 3. *Tail.* Each message behind the checkpoint's must be the next event, in order. A message that
//!    is gone (expired, purged) counts as one event: the stream has exactly one message an event. But
//!    an event that was committed after the stream's last message was stored is none of them: with
//!    them gone, this alone tells a disk that was put back.
//!
//! Dead letters stand apart: their events are passed over wherever they come, whatever the present
//! configuration would make of them. An event that comes before the tail's next message and is no
//! letter is *unaccounted*: a letter that was lost with a former primary. It becomes one again, once
//! the tail's last message has come.

use super::opening::differs;
use super::position::{Identity, Place};
use crate::error::Failure;
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use std::collections::{BTreeSet, VecDeque};

/// More events than that which neither stream nor letters know: another history.
const UNACCOUNTED_MAX: usize = 1000;

/// The clocks of both servers are compared when the session begins, and may have been set since the
/// event was stored; in microseconds.
const CLOCK_DRIFT: i64 = 100_000;

/// A message of the stream that the slot has yet to account for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its sequence.
    pub seq: u64,
    /// Which event it is; none when the message is gone.
    pub event: Option<Identity>,
}

/// What to do with an event from the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// Settled before the checkpoint.
    Skip,
    /// Stored at this sequence.
    Stored(u64),
    /// A dead letter.
    Lettered,
    /// Neither, though the stream holds later ones: a dead letter once [`Resume::is_done`].
    Unaccounted,
    /// To be published.
    New,
}

/// An event as the log shows it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Where.
    pub place: Place,
    /// When its transaction committed.
    pub commit_time: Timestamp,
    /// Its id; none when the column is null.
    pub event_id: Option<&'a str>,
}

impl Seen<'_> {
    /// Whether it is the event that a message says it is.
    #[must_use]
    pub fn is(&self, event: &Identity) -> bool {
        self.place == event.position.place
            && self.commit_time == event.commit_time
            // NATS clients trim header values.
            && self.event_id.map(str::trim) == Some(event.event_id.trim())
    }
}

/// What is left to skip, prove and account for.
#[derive(Debug)]
pub struct Resume {
    skip: Option<Place>,
    proof: Option<Identity>,
    tail: VecDeque<Expected>,
    letters: BTreeSet<Place>,
    gone_before: Option<Timestamp>,
    unaccounted: usize,
    /// Every stored event was flushed before the session began.
    wal_end: Lsn,
}

impl Resume {
    /// After `last`, with the slot at `confirmed` and the WAL ending at `wal_end`.
    #[must_use]
    pub fn new(last: Option<Identity>, confirmed: Lsn, wal_end: Lsn) -> Resume {
        Resume {
            skip: last.as_ref().map(|last| last.position.place),
            // The slot sends no row that was read from the table.
            proof: last
                .filter(|last| confirmed <= last.position.place.commit_lsn)
                .filter(|last| !last.position.place.is_from_table()),
            tail: VecDeque::new(),
            letters: BTreeSet::new(),
            gone_before: None,
            unaccounted: 0,
            wal_end,
        }
    }

    /// Adds the dead letters.
    pub fn pass_over(&mut self, letters: BTreeSet<Place>) {
        self.letters = letters;
    }

    /// Adds the messages behind the checkpoint's. None of them was stored after `gone_before`, by
    /// Postgres's clock.
    ///
    /// # Errors
    /// One of them, or the checkpoint's, lies beyond the end of the WAL.
    pub fn expect(&mut self, tail: Vec<Expected>, gone_before: Option<Timestamp>) -> Result<(), Failure> {
        self.tail = tail.into();
        self.gone_before = gone_before;
        let events = self.tail.iter().filter_map(|expected| expected.event.as_ref()).chain(&self.proof);
        for event in events {
            if event.position.place.commit_lsn >= self.wal_end {
                return Err(differs(format!(
                    "the stream holds the event at {}, but the server's WAL ends at {}",
                    event.position, self.wal_end
                )));
            }
        }
        Ok(())
    }

    /// Whether everything is accounted for.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.proof.is_none() && self.tail.is_empty()
    }

    /// How many messages of the stream are not accounted for yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.tail.len() + usize::from(self.proof.is_some())
    }

    /// Takes the next event from the slot.
    ///
    /// # Errors
    /// It is not the one that must come here.
    pub fn event(&mut self, seen: Seen<'_>) -> Result<Admit, Failure> {
        if let Some(proof) = &self.proof {
            let place = proof.position.place;
            if seen.place == place && !seen.is(proof) || seen.place > place {
                return Err(Self::other(proof, seen));
            }
            if seen.place == place {
                self.proof = None;
            }
        }
        if self.skip.is_some_and(|skip| seen.place <= skip) {
            return Ok(Admit::Skip);
        }
        if self.letters.contains(&seen.place) {
            return Ok(Admit::Lettered);
        }
        let Some(Expected { seq, event }) = self.tail.front() else { return Ok(Admit::New) };
        if let Some(event) = event.as_ref().filter(|event| !seen.is(event)) {
            if seen.place >= event.position.place || self.unaccounted == UNACCOUNTED_MAX {
                return Err(Self::other(event, seen));
            }
            self.unaccounted += 1;
            return Ok(Admit::Unaccounted);
        }
        let seq = *seq;
        let latest = self.gone_before.map(|before| Timestamp(before.0.saturating_add(CLOCK_DRIFT)));
        if event.is_none() && latest.is_some_and(|latest| seen.commit_time > latest) {
            return Err(differs(format!(
                "message {seq} of the stream is gone, and the event that would be it was committed at {}, after \
                 the stream's last message had been stored",
                seen.commit_time
            )));
        }
        self.tail.pop_front();
        Ok(Admit::Stored(seq))
    }

    /// Takes a Commit at `commit_lsn`. Whether its end is a boundary that counts.
    ///
    /// # Errors
    /// The event to be proved was in it or before it, and did not come.
    pub fn commit(&self, commit_lsn: Lsn) -> Result<bool, Failure> {
        match &self.proof {
            Some(proof) if commit_lsn >= proof.position.place.commit_lsn => {
                Err(Self::missing(proof, commit_lsn))
            }
            Some(_) => Ok(false),
            None => Ok(true),
        }
    }

    /// Takes a keepalive outside of a transaction. Whether `wal_end` is a boundary that counts.
    ///
    /// # Errors
    /// Everything up to `wal_end` was sent, and an event that the stream holds did not come.
    pub fn keepalive(&self, wal_end: Lsn) -> Result<bool, Failure> {
        let tail = self.tail.iter().find_map(|expected| expected.event.as_ref());
        if let Some(event) =
            self.proof.as_ref().or(tail).filter(|event| wal_end > event.position.place.commit_lsn)
        {
            return Err(Self::missing(event, wal_end));
        }
        if !self.tail.is_empty() && wal_end >= self.wal_end {
            return Err(differs(format!(
                "the stream holds {} messages that the slot did not send up to {wal_end}",
                self.tail.len()
            )));
        }
        Ok(self.is_done())
    }

    fn missing(event: &Identity, reached: Lsn) -> Failure {
        differs(format!(
            "the slot reached {reached} without sending event `{}` at {}, which the stream holds",
            event.event_id, event.position
        ))
    }

    fn other(event: &Identity, seen: Seen<'_>) -> Failure {
        differs(format!(
            "the slot sends event `{}` of {} at {:016X}/{} where the stream holds `{}` of {} at {}",
            seen.event_id.unwrap_or("null"),
            seen.commit_time,
            seen.place.commit_lsn.0,
            seen.place.index,
            event.event_id,
            event.commit_time,
            event.position
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::position::Position;
    use super::*;
    use crate::error::Code;
    use proptest::prelude::*;

    fn event(lsn: u64, index: u64) -> Identity {
        let place = Place { commit_lsn: Lsn(lsn), index };
        let position = Position { system_id: 7, timeline: 1, slot: "s".into(), place };
        Identity {
            position,
            commit_time: Timestamp(i64::try_from(lsn).unwrap()),
            event_id: format!("{lsn}-{index}"),
        }
    }

    fn seen(event: &Identity) -> Seen<'_> {
        Seen { place: event.position.place, commit_time: event.commit_time, event_id: Some(&event.event_id) }
    }

    fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> Code {
        result.unwrap_err().code
    }

    fn tail(events: &[Identity], from: u64) -> Vec<Expected> {
        (from..).zip(events).map(|(seq, event)| Expected { seq, event: Some(event.clone()) }).collect()
    }

    #[test]
    fn without_a_checkpoint_everything_is_new() {
        let mut resume = Resume::new(None, Lsn(5), Lsn(100));
        assert!(resume.is_done());
        assert_eq!(resume.event(seen(&event(10, 0))).unwrap(), Admit::New);
    }

    #[test]
    fn events_up_to_the_proved_one_are_skipped_and_the_next_is_new() {
        let mut resume = Resume::new(Some(event(20, 1)), Lsn(10), Lsn(100));
        assert!(!resume.is_done());
        for known in [event(10, 0), event(20, 0), event(20, 1)] {
            assert_eq!(resume.event(seen(&known)).unwrap(), Admit::Skip);
        }
        assert!(resume.is_done());
        assert_eq!(resume.event(seen(&event(20, 2))).unwrap(), Admit::New);
    }

    #[test]
    fn another_event_at_the_position_is_another_history() {
        let mut resume = Resume::new(Some(event(20, 0)), Lsn(10), Lsn(100));
        let mut other = event(20, 0);
        other.event_id = "x".into();
        assert_eq!(code(resume.event(seen(&other))), Code::HistoryDiffers);
    }

    #[test]
    fn another_commit_time_at_the_position_is_another_history() {
        let mut resume = Resume::new(Some(event(20, 0)), Lsn(10), Lsn(100));
        let mut other = event(20, 0);
        other.commit_time = Timestamp(0);
        assert_eq!(code(resume.event(seen(&other))), Code::HistoryDiffers);
    }

    #[test]
    fn an_event_or_commit_or_keepalive_beyond_the_unproved_one_is_another_history() {
        let mut resume = Resume::new(Some(event(20, 0)), Lsn(10), Lsn(100));
        assert_eq!(code(resume.event(seen(&event(20, 1)))), Code::HistoryDiffers);
        assert_eq!(code(resume.commit(Lsn(20))), Code::HistoryDiffers);
        assert_eq!(code(resume.keepalive(Lsn(21))), Code::HistoryDiffers);
        assert!(!resume.commit(Lsn(19)).unwrap() && !resume.keepalive(Lsn(20)).unwrap());
    }

    #[test]
    fn nothing_is_to_be_proved_once_the_slot_is_beyond() {
        let resume = Resume::new(Some(event(20, 0)), Lsn(21), Lsn(100));
        assert!(resume.is_done());
    }

    #[test]
    fn an_event_beyond_the_wal_is_another_history() {
        let mut resume = Resume::new(Some(event(200, 0)), Lsn(10), Lsn(100));
        assert_eq!(code(resume.expect(Vec::new(), None)), Code::HistoryDiffers);
        let mut resume = Resume::new(None, Lsn(10), Lsn(100));
        assert_eq!(code(resume.expect(tail(&[event(100, 0)], 1), None)), Code::HistoryDiffers);
    }

    #[test]
    fn the_tail_must_come_one_by_one() {
        let mut resume = Resume::new(None, Lsn(10), Lsn(100));
        resume.expect(tail(&[event(20, 0), event(30, 0)], 6), None).unwrap();
        assert_eq!(resume.outstanding(), 2);
        assert_eq!(resume.event(seen(&event(20, 0))).unwrap(), Admit::Stored(6));
        let mut other = event(30, 0);
        other.event_id = "x".into();
        assert_eq!(code(resume.event(seen(&other))), Code::HistoryDiffers);
        assert_eq!(code(resume.event(seen(&event(35, 0)))), Code::HistoryDiffers);
    }

    #[test]
    fn an_event_before_the_tails_next_message_is_unaccounted() {
        let mut resume = Resume::new(None, Lsn(10), Lsn(100));
        resume.expect(tail(&[event(20, 0), event(30, 0)], 6), None).unwrap();
        assert_eq!(resume.event(seen(&event(15, 0))).unwrap(), Admit::Unaccounted);
        assert_eq!(resume.event(seen(&event(20, 0))).unwrap(), Admit::Stored(6));
        assert_eq!(resume.event(seen(&event(25, 0))).unwrap(), Admit::Unaccounted);
        assert_eq!(resume.event(seen(&event(30, 0))).unwrap(), Admit::Stored(7));
        assert!(resume.is_done());
        assert_eq!(resume.event(seen(&event(35, 0))).unwrap(), Admit::New);
    }

    #[test]
    fn more_unaccounted_events_than_letters_get_lost_are_another_history() {
        let mut resume = Resume::new(None, Lsn(10), Lsn(100));
        resume.expect(tail(&[event(20, 0)], 6), None).unwrap();
        let early = (0..).map(|index| event(15, index)).take(UNACCOUNTED_MAX);
        assert!(early.into_iter().all(|event| resume.event(seen(&event)).unwrap() == Admit::Unaccounted));
        assert_eq!(code(resume.event(seen(&event(16, 0)))), Code::HistoryDiffers);
    }

    #[test]
    fn letters_are_passed_over_in_the_tail_and_behind_it() {
        let mut resume = Resume::new(Some(event(10, 0)), Lsn(11), Lsn(100));
        resume.pass_over([event(15, 0), event(25, 0)].map(|event| event.position.place).into());
        resume
            .expect(
                vec![Expected { seq: 6, event: None }, Expected { seq: 7, event: Some(event(30, 0)) }],
                None,
            )
            .unwrap();
        let admitted = [15, 20, 25, 30, 40].map(|lsn| resume.event(seen(&event(lsn, 0))).unwrap());
        let expected = [Admit::Lettered, Admit::Stored(6), Admit::Lettered, Admit::Stored(7), Admit::New];
        assert_eq!(admitted, expected);
    }

    #[test]
    fn a_message_that_is_gone_counts_as_one_event() {
        let mut resume = Resume::new(None, Lsn(10), Lsn(100));
        resume
            .expect(
                vec![Expected { seq: 6, event: None }, Expected { seq: 7, event: Some(event(30, 0)) }],
                None,
            )
            .unwrap();
        assert_eq!(resume.event(seen(&event(20, 0))).unwrap(), Admit::Stored(6));
        assert_eq!(resume.event(seen(&event(30, 0))).unwrap(), Admit::Stored(7));
        assert_eq!(resume.event(seen(&event(40, 0))).unwrap(), Admit::New);
    }

    #[test]
    fn an_event_committed_after_the_streams_last_message_is_none_that_is_gone() {
        let gone = || vec![Expected { seq: 6, event: None }];
        let committed = |at| {
            let mut resume = Resume::new(None, Lsn(10), Lsn(100));
            resume.expect(gone(), Some(Timestamp(1_000_000))).unwrap();
            resume.event(Seen { commit_time: Timestamp(at), ..seen(&event(20, 0)) })
        };
        assert_eq!(committed(1_000_000 + CLOCK_DRIFT).unwrap(), Admit::Stored(6));
        assert_eq!(code(committed(1_000_001 + CLOCK_DRIFT)), Code::HistoryDiffers);
    }

    #[test]
    fn an_event_that_is_there_proves_itself_whatever_the_clocks_say() {
        let mut resume = Resume::new(None, Lsn(10), Lsn(100));
        let late = Identity { commit_time: Timestamp(10 * CLOCK_DRIFT), ..event(20, 0) };
        resume.expect(tail(std::slice::from_ref(&late), 6), Some(Timestamp(0))).unwrap();
        assert_eq!(resume.event(seen(&late)).unwrap(), Admit::Stored(6));
    }

    #[test]
    fn a_wal_that_ends_before_the_tail_is_accounted_for_is_another_history() {
        let mut resume = Resume::new(None, Lsn(10), Lsn(100));
        resume.expect(vec![Expected { seq: 6, event: None }], None).unwrap();
        assert!(!resume.keepalive(Lsn(99)).unwrap());
        assert_eq!(code(resume.keepalive(Lsn(100))), Code::HistoryDiffers);
    }

    #[test]
    fn ids_compare_as_headers_carry_them() {
        let mut resume = Resume::new(Some(event(20, 0)), Lsn(10), Lsn(100));
        let padded = format!("{} ", event(20, 0).event_id);
        let seen = Seen { event_id: Some(&padded), ..seen(&event(20, 0)) };
        assert_eq!(resume.event(seen).unwrap(), Admit::Skip);
    }

    proptest! {
        /// However the log was cut into checkpoint, tail and rest, and whatever in it was lettered:
        /// each event is skipped, accounted for or new exactly where the cut lies.
        #[test]
        fn every_event_is_admitted_once(sizes in proptest::collection::vec(1u64..4, 1..20), lettered in proptest::collection::vec(0usize..60, 0..6), a in 0usize..60, b in 0usize..60, confirmed in 0usize..60) {
            let all: Vec<_> = (1u64..).zip(&sizes).flat_map(|(tx, size)| (0..*size).map(move |index| event(tx * 10, index))).collect();
            let letters: BTreeSet<_> = lettered.iter().filter_map(|at| Some(all.get(*at)?.position.place)).collect();
            let log: Vec<_> = all.iter().filter(|event| !letters.contains(&event.position.place)).cloned().collect();
            if log.is_empty() { return Ok(()); }
            let known = a % (log.len() + 1);
            let stored = known + b % (log.len() - known + 1);
            // The slot sends whole transactions from some point not beyond the checkpoint's event.
            let first = log.iter().position(|e| known > 0 && e.position.place.commit_lsn == log[known - 1].position.place.commit_lsn).unwrap_or(0);
            let first = first.min(confirmed % (first + 1));
            let first = log.iter().position(|e| e.position.place.commit_lsn == log[first].position.place.commit_lsn).unwrap();
            let last = known.checked_sub(1).map(|last| log[last].clone());
            let mut resume = Resume::new(last, Lsn(log[first].position.place.commit_lsn.0 - 1), Lsn(10_000));
            resume.expect(tail(&log[known..stored], known as u64 + 1), None).unwrap();
            resume.pass_over(letters.clone());
            let skip = known.checked_sub(1).map(|last| log[last].position.place);
            let from = log[first].position.place.commit_lsn;
            for event in all.iter().filter(|event| event.position.place.commit_lsn >= from) {
                let at = log.partition_point(|known| known.position.place < event.position.place);
                let expected = match at {
                    _ if skip.is_some_and(|skip| event.position.place <= skip) => Admit::Skip,
                    _ if letters.contains(&event.position.place) => Admit::Lettered,
                    _ if at < known => Admit::Skip,
                    _ if at < stored => Admit::Stored(at as u64 + 1),
                    _ => Admit::New,
                };
                prop_assert_eq!(resume.event(seen(event)).unwrap(), expected);
            }
            prop_assert!(resume.is_done());
        }
    }
}
