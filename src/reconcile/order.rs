//! What one message after the other says of the stream: whether it is ours, and in its place.

use super::NAMED_MAX;
use crate::delivery::opening::Stored;
use crate::delivery::position::{Identity, Place};
use serde::Serialize;
use std::collections::HashMap;

/// A message that should not be where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stray {
    /// Its sequence in the stream.
    pub seq: u64,
    /// The event that it is, or its subject.
    pub what: String,
}

/// What a message is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// An event of this pipeline, or of the cluster that its database was moved from.
    Ours(Box<Identity>),
    /// Gone, or another's.
    Other,
}

/// Follows a stream from its beginning.
///
/// Positions of one history rise; a promotion begins a timeline at an LSN that the former one may have
/// passed. What a person has accepted (up to `passed_seq`) is not foreign.
#[derive(Debug)]
pub(super) struct Order {
    slot: String,
    system_id: u64,
    passed_seq: u64,
    /// A message behind `passed_seq` was seen.
    passed: bool,
    /// The latest position of each cluster: timeline and place.
    latest: HashMap<u64, (u32, Place)>,
    misordered: (u64, Vec<Stray>),
    foreign: (u64, Vec<Stray>),
}

impl Order {
    /// Of the slot of this cluster; what stands up to `passed_seq` is accepted.
    pub(super) fn new(slot: &str, system_id: u64, passed_seq: u64) -> Order {
        Order {
            slot: slot.to_owned(),
            system_id,
            passed_seq,
            passed: false,
            latest: HashMap::new(),
            misordered: (0, Vec::new()),
            foreign: (0, Vec::new()),
        }
    }

    /// The next message.
    pub(super) fn message(&mut self, seq: u64, stored: Stored) -> Seen {
        let event = match stored {
            Stored::Gone => return Seen::Other,
            Stored::Foreign(subject) => {
                if seq > self.passed_seq {
                    name(&mut self.foreign, seq, format!("on {subject}, without a position"));
                }
                return Seen::Other;
            }
            Stored::Event(event) => event,
        };
        let position = &event.position;
        let of_slot = position.slot == self.slot;
        if seq > self.passed_seq && !(of_slot && position.system_id == self.system_id) {
            name(&mut self.foreign, seq, format!("of another pipeline, at {position}"));
            return Seen::Other;
        }
        // Accepted; its id says nothing of our rows.
        if !of_slot {
            return Seen::Other;
        }
        // What was accepted may be of a history that was left: nothing rises from there.
        if seq > self.passed_seq && !std::mem::replace(&mut self.passed, true) {
            self.latest.clear();
        }
        // An event of the cluster that the database was moved from is an event all the same.
        let at = (position.timeline, position.place);
        let latest = self.latest.entry(position.system_id).or_insert(at);
        if at < *latest {
            name(&mut self.misordered, seq, format!("event {} at {position}", event.event_id));
        } else {
            *latest = at;
        }
        Seen::Ours(event)
    }

    pub(super) fn misordered(&self) -> (u64, Vec<Stray>) {
        self.misordered.clone()
    }

    pub(super) fn foreign(&self) -> (u64, Vec<Stray>) {
        self.foreign.clone()
    }
}

fn name((count, named): &mut (u64, Vec<Stray>), seq: u64, what: String) {
    *count += 1;
    if named.len() < NAMED_MAX {
        named.push(Stray { seq, what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::position::Position;
    use crate::postgres::lsn::Lsn;
    use crate::postgres::timestamp::Timestamp;

    fn order(passed_seq: u64) -> Order {
        Order::new("s", 7, passed_seq)
    }

    fn event(system_id: u64, timeline: u32, lsn: u64, index: u64) -> Stored {
        let place = Place { commit_lsn: Lsn(lsn), index };
        let position = Position { system_id, timeline, slot: "s".into(), place };
        let event_id = format!("{lsn}-{index}");
        Stored::Event(Box::new(Identity { position, commit_time: Timestamp(0), event_id }))
    }

    fn id(seen: Seen) -> String {
        let Seen::Ours(event) = seen else { panic!("{seen:?}") };
        event.event_id
    }

    fn seqs(found: &(u64, Vec<Stray>)) -> Vec<u64> {
        assert_eq!(found.0, found.1.len() as u64);
        found.1.iter().map(|stray| stray.seq).collect()
    }

    #[test]
    fn an_event_behind_a_later_one_is_misordered_and_the_ones_after_it_are_not() {
        let mut order = order(0);
        for (seq, stored) in (1..).zip([(10, 0), (10, 1), (30, 0), (20, 0), (30, 1)]) {
            order.message(seq, event(7, 1, stored.0, stored.1));
        }
        assert_eq!(seqs(&order.misordered()), [4]);
    }

    #[test]
    fn a_promotion_may_begin_behind_what_the_former_primary_reached() {
        let mut order = order(0);
        order.message(1, event(7, 1, 30, 0));
        order.message(2, event(7, 2, 20, 0));
        order.message(3, event(7, 1, 40, 0));
        assert_eq!(seqs(&order.misordered()), [3], "the former primary goes on writing");
    }

    #[test]
    fn messages_of_others_are_foreign_unless_they_were_accepted() {
        let mut order = order(2);
        for seq in [1, 3] {
            assert_eq!(order.message(seq, Stored::Foreign("x".into())), Seen::Other);
        }
        assert_eq!(order.message(4, event(8, 1, 10, 0)), Seen::Other);
        assert_eq!(seqs(&order.foreign()), [3, 4]);
    }

    #[test]
    fn behind_what_was_accepted_positions_rise_anew() {
        let mut order = order(1);
        for (seq, lsn) in [(1, 90), (2, 10), (3, 5)] {
            order.message(seq, event(7, 1, lsn, 0));
        }
        assert_eq!(seqs(&order.misordered()), [3]);
    }

    #[test]
    fn an_accepted_event_of_another_slot_has_an_id_of_its_own() {
        let place = Place { commit_lsn: Lsn(1), index: 0 };
        let position = Position { system_id: 7, timeline: 1, slot: "t".into(), place };
        let other = Identity { position, commit_time: Timestamp(0), event_id: "1".into() };
        assert_eq!(order(1).message(1, Stored::Event(Box::new(other))), Seen::Other);
    }

    #[test]
    fn an_accepted_event_of_the_former_cluster_is_an_event() {
        let mut order = order(1);
        assert_eq!(id(order.message(1, event(8, 1, 10, 0))), "10-0");
        assert_eq!(id(order.message(2, event(7, 1, 5, 0))), "5-0");
        assert_eq!((order.foreign().0, order.misordered().0), (0, 0));
    }
}
