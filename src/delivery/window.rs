//! What waits and what is in flight, and the chain that keeps it in order.
//!
//! ```text
//!            in flight           waiting
//!        ┌──────────────────┐┌─────────────┐
//!  base  base+1 …            next                 sequences
//!  [ e0 ][ e1 ][ e2 ][ e3 ] [ e4 ][ e5 ]          events, oldest first
//!             ▲                     ▲
//!             boundary              boundary      Commit.end_lsn, keepalive's wal_end
//! ```
//!
//! The event in flight at place i must be stored at `base + i`, so it is published expecting
//! `base + i - 1` as the stream's last sequence: a message lost on the way makes the server refuse
//! everything behind it. Answers are matched by sequence, never by arrival.
//!
//! Events leave at the front, in order, once stored; a boundary leaves when every event before it
//! has left. An event is kept until then, so a resend needs nothing from Postgres.
//!
//! A dead letter takes no sequence. It leaves when it is at the front and nothing is in flight.

use crate::postgres::lsn::Lsn;
use std::collections::VecDeque;

/// How much may be between intake and settled.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Events.
    pub messages: usize,
    /// Bytes of their frames. An empty window takes one event of any size.
    pub bytes: usize,
}

/// What is settled next.
#[derive(Debug, PartialEq, Eq)]
pub enum Settled<T> {
    /// An event, stored at this sequence.
    Event(u64, T),
    /// Every event before this LSN is settled.
    Boundary(Lsn),
}

/// An answer that no event in flight waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sequence {0} is not in flight")]
pub struct NotInFlight(pub u64);

#[derive(Debug)]
struct Entry<T> {
    item: T,
    bytes: usize,
    stored: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Window<T> {
    room: Room,
    entries: VecDeque<Entry<T>>,
    in_flight: usize,
    bytes: usize,
    /// The sequence that the front entry has or will get.
    base: u64,
    /// How many events have left.
    left: u64,
    /// Behind how many events, counted from the first ever, and where.
    boundaries: VecDeque<(u64, Lsn)>,
}

impl<T> Window<T> {
    /// Empty, behind a stream that ends at `last_seq`.
    #[must_use]
    pub fn new(room: Room, last_seq: u64) -> Window<T> {
        Window {
            room,
            entries: VecDeque::new(),
            in_flight: 0,
            bytes: 0,
            base: last_seq + 1,
            left: 0,
            boundaries: VecDeque::new(),
        }
    }

    /// Whether intake may go on.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.entries.is_empty() || self.entries.len() < self.room.messages && self.bytes < self.room.bytes
    }

    /// Whether at least half of it is free.
    #[must_use]
    pub fn is_half_empty(&self) -> bool {
        self.entries.len() <= self.room.messages / 2 && self.bytes <= self.room.bytes / 2
    }

    /// Takes an event, to be published behind all others.
    pub fn push(&mut self, item: T, bytes: usize) {
        self.bytes += bytes;
        self.entries.push_back(Entry { item, bytes, stored: false });
    }

    /// Notes that everything before `lsn` has been taken.
    pub fn boundary(&mut self, lsn: Lsn) {
        let behind = self.left + self.entries.len() as u64;
        match self.boundaries.back_mut() {
            // Nothing came in between: the later one says it all.
            Some((events, last)) if *events == behind => *last = lsn.max(*last),
            _ => self.boundaries.push_back((behind, lsn)),
        }
    }

    /// Takes the front event out of the chain: it is a dead letter. None while anything is in flight.
    pub fn letter(&mut self) -> Option<T> {
        let entry = self.entries.pop_front_if(|_| self.in_flight == 0)?;
        self.left += 1;
        self.bytes -= entry.bytes;
        Some(entry.item)
    }

    /// The first event that is not in flight, to be changed.
    pub fn waiting_mut(&mut self) -> Option<&mut T> {
        self.entries.get_mut(self.in_flight).map(|entry| &mut entry.item)
    }

    /// The first event that is not in flight.
    #[must_use]
    pub fn waiting(&self) -> Option<&T> {
        self.entries.get(self.in_flight).map(|entry| &entry.item)
    }

    /// The event that was taken first.
    #[must_use]
    pub fn oldest(&self) -> Option<&T> {
        self.entries.front().map(|entry| &entry.item)
    }

    /// The sequence that the [`waiting`](Window::waiting) event must get.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.base + self.in_flight as u64
    }

    /// The sequence behind which the stream cannot end, unless someone else wrote into it.
    #[must_use]
    pub fn last_sent(&self) -> u64 {
        self.next_seq() - 1
    }

    /// Puts the [`waiting`](Window::waiting) event in flight.
    pub fn send(&mut self) {
        debug_assert!(self.in_flight < self.entries.len(), "nothing is waiting");
        self.in_flight += 1;
    }

    /// The event in flight that must get `seq`.
    #[must_use]
    pub fn at(&self, seq: u64) -> Option<&T> {
        let place = usize::try_from(seq.checked_sub(self.base)?).ok()?;
        (place < self.in_flight).then(|| self.entries.get(place).map(|entry| &entry.item))?
    }

    /// The server stored the event in flight that must get `seq`.
    ///
    /// # Errors
    /// None in flight must; an answer that comes twice is fine.
    pub fn ack(&mut self, seq: u64) -> Result<(), NotInFlight> {
        let place = seq.checked_sub(self.base).and_then(|place| usize::try_from(place).ok());
        let entry =
            place.filter(|place| *place < self.in_flight).and_then(|place| self.entries.get_mut(place));
        entry.ok_or(NotInFlight(seq))?.stored = true;
        Ok(())
    }

    /// What is settled next, in order.
    pub fn settle(&mut self) -> Option<Settled<T>> {
        if let Some((_, lsn)) = self.boundaries.pop_front_if(|(events, _)| *events <= self.left) {
            return Some(Settled::Boundary(lsn));
        }
        let entry = self.entries.pop_front_if(|entry| entry.stored)?;
        let seq = self.base;
        self.base += 1;
        self.left += 1;
        self.bytes -= entry.bytes;
        self.in_flight -= 1;
        Some(Settled::Event(seq, entry.item))
    }

    /// Begins the chain anew behind `last_seq`. `stored` are the stream's messages behind the last
    /// settled event: they must be the window's first events, in order; the rest is sent again.
    ///
    /// # Errors
    /// The sequence of the first message that is not the event that must come there.
    pub fn restart<S>(
        &mut self,
        last_seq: u64,
        stored: &[(u64, S)],
        same: impl Fn(&T, &S) -> bool,
    ) -> Result<(), u64> {
        let fits = |(entry, (_, message)): &(&Entry<T>, &(u64, S))| same(&entry.item, message);
        let matched = self.entries.iter().zip(stored).take_while(fits).count();
        if let Some((seq, _)) = stored.get(matched) {
            return Err(*seq);
        }
        for (place, entry) in self.entries.iter_mut().enumerate() {
            entry.stored = place < matched;
        }
        self.in_flight = matched;
        self.base = last_seq + 1 - matched as u64;
        Ok(())
    }

    /// Events between intake and settled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Events that an answer is awaited for, or that wait for an earlier one's.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Bytes of all events in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: Room = Room { messages: 4, bytes: 100 };

    fn window(last_seq: u64, items: &[u32]) -> Window<u32> {
        let mut window = Window::new(ROOM, last_seq);
        items.iter().for_each(|item| window.push(*item, 10));
        window
    }

    fn settled(window: &mut Window<u32>) -> Vec<Settled<u32>> {
        std::iter::from_fn(|| window.settle()).collect()
    }

    #[test]
    fn events_settle_in_order_however_the_answers_arrive() {
        let mut window = window(10, &[1, 2, 3]);
        (0..3).for_each(|_| window.send());
        window.ack(13).unwrap();
        window.ack(12).unwrap();
        assert_eq!(settled(&mut window), []);
        window.ack(11).unwrap();
        assert_eq!(
            settled(&mut window),
            [Settled::Event(11, 1), Settled::Event(12, 2), Settled::Event(13, 3)]
        );
    }

    #[test]
    fn a_boundary_waits_for_every_event_before_it() {
        let mut window = window(0, &[1]);
        window.boundary(Lsn(5));
        window.push(2, 10);
        window.boundary(Lsn(9));
        window.send();
        assert_eq!(settled(&mut window), []);
        window.ack(1).unwrap();
        assert_eq!(settled(&mut window), [Settled::Event(1, 1), Settled::Boundary(Lsn(5))]);
    }

    #[test]
    fn a_boundary_without_events_before_it_settles_at_once() {
        let mut window = window(0, &[]);
        window.boundary(Lsn(5));
        window.boundary(Lsn(7));
        assert_eq!(settled(&mut window), [Settled::Boundary(Lsn(7))]);
    }

    #[test]
    fn an_answer_for_what_is_not_in_flight_is_an_error() {
        let mut window = window(10, &[1, 2]);
        window.send();
        assert_eq!(window.ack(10), Err(NotInFlight(10)));
        assert_eq!(window.ack(12), Err(NotInFlight(12)));
        assert_eq!(window.ack(u64::MAX), Err(NotInFlight(u64::MAX)));
        assert!(window.ack(11).is_ok() && window.ack(11).is_ok(), "twice is fine");
    }

    #[test]
    fn an_empty_window_takes_an_event_of_any_size() {
        let mut window = window(0, &[]);
        assert!(window.has_room());
        window.push(1, 1_000_000);
        assert!(!window.has_room());
    }

    #[test]
    fn the_window_is_full_at_its_number_of_events() {
        assert!(window(0, &[1, 2, 3]).has_room());
        assert!(!window(0, &[1, 2, 3, 4]).has_room());
    }

    #[test]
    fn the_window_is_full_at_its_bytes() {
        let bytes = |bytes| {
            let mut window = window(0, &[]);
            window.push(1, bytes);
            window.has_room()
        };
        assert!(bytes(99) && !bytes(100));
    }

    #[test]
    fn the_window_is_half_empty_by_events_and_by_bytes() {
        let half_empty = |sizes: &[usize]| {
            let mut window = window(0, &[]);
            sizes.iter().for_each(|bytes| window.push(1, *bytes));
            window.is_half_empty()
        };
        assert!(half_empty(&[25, 25]));
        assert!(!half_empty(&[1, 1, 1]));
        assert!(!half_empty(&[25, 26]));
    }

    #[test]
    fn each_view_shows_its_event() {
        let mut window = window(10, &[1, 2, 3]);
        window.send();
        assert_eq!((window.oldest(), window.waiting()), (Some(&1), Some(&2)));
        assert_eq!(window.waiting_mut(), Some(&mut 2));
        assert_eq!((window.at(10), window.at(11), window.at(12)), (None, Some(&1), None));
        assert_eq!((window.in_flight(), window.len(), window.is_empty()), (1, 3, false));
        window.send();
        assert_eq!((window.at(12), window.in_flight()), (Some(&2), 2));
        assert!(Window::<u32>::new(ROOM, 10).is_empty());
    }

    #[test]
    fn a_restart_takes_stored_events_as_answered_and_sends_the_rest_again() {
        let mut window = window(10, &[1, 2, 3]);
        (0..3).for_each(|_| window.send());
        window.ack(13).unwrap();
        // The stream has the first; the answer for the third was void.
        window.restart(11, &[(11, 1)], |item, stored| item == stored).unwrap();
        assert_eq!(settled(&mut window), [Settled::Event(11, 1)]);
        assert_eq!((window.in_flight(), window.next_seq(), window.waiting()), (0, 12, Some(&2)));
    }

    #[test]
    fn a_restart_names_the_message_that_is_not_the_event_that_must_come() {
        let mut window = window(10, &[1, 2]);
        assert_eq!(window.restart(12, &[(11, 1), (12, 7)], |item, stored| item == stored), Err(12));
        assert_eq!(window.restart(13, &[(11, 1), (12, 2), (13, 3)], |item, stored| item == stored), Err(13));
    }

    #[test]
    fn a_letter_takes_no_sequence() {
        let mut window = window(10, &[1, 2]);
        assert_eq!((window.letter(), window.len(), window.bytes()), (Some(1), 1, 10));
        window.send();
        window.ack(11).unwrap();
        assert_eq!(settled(&mut window), [Settled::Event(11, 2)]);
    }

    #[test]
    fn a_boundary_behind_a_letter_waits_for_it() {
        let mut window = window(10, &[1]);
        window.boundary(Lsn(5));
        assert_eq!(settled(&mut window), []);
        assert_eq!(window.letter(), Some(1));
        assert_eq!(settled(&mut window), [Settled::Boundary(Lsn(5))]);
    }

    #[test]
    fn nothing_is_lettered_while_anything_is_in_flight() {
        let mut window = window(10, &[1, 2]);
        window.send();
        assert_eq!((window.letter(), window.len()), (None, 2));
    }

    proptest! {
        /// Whatever is sent, answered, lettered and restarted: events settle once, in order, stored
        /// ones at sequences without a gap, and no boundary before an event that was taken before it.
        #[test]
        fn events_settle_once_and_in_order(steps in proptest::collection::vec((0u8..7, any::<u64>()), 1..200)) {
            let mut window = Window::new(ROOM, 100);
            let (mut taken, mut out, mut last_seq) = (0u64, 0u64, 100u64);
            let mut chain = VecDeque::new();
            for (step, at) in steps {
                match step {
                    0 if window.has_room() => { window.push(taken, 10); chain.push_back(taken); taken += 1; }
                    1 => window.boundary(Lsn(taken)),
                    2 if window.waiting().is_some() => window.send(),
                    3 if window.in_flight() > 0 => {
                        let first = window.next_seq() - window.in_flight() as u64;
                        let seq = first + at % window.in_flight() as u64;
                        window.ack(seq).unwrap();
                    }
                    4 => {
                        // The stream stored some prefix of what is in flight behind the last settled.
                        let kept = at % (window.in_flight() as u64 + 1);
                        let stored: Vec<_> = (last_seq + 1..).zip(chain.iter().copied()).take(usize::try_from(kept).unwrap()).collect();
                        window.restart(last_seq + kept, &stored, |item, stored| item == stored).unwrap();
                        prop_assert_eq!(window.last_sent(), last_seq + kept);
                    }
                    5 => if let Some(item) = window.letter() {
                        prop_assert_eq!((Some(item), item), (chain.pop_front(), out));
                        out += 1;
                    },
                    _ => {}
                }
                while let Some(settled) = window.settle() {
                    match settled {
                        Settled::Event(seq, item) => {
                            prop_assert_eq!((item, seq), (out, last_seq + 1));
                            prop_assert_eq!(chain.pop_front(), Some(item));
                            (out, last_seq) = (out + 1, seq);
                        }
                        Settled::Boundary(lsn) => prop_assert!(lsn.0 <= out),
                    }
                }
                prop_assert_eq!(window.len(), chain.len());
                prop_assert_eq!(window.bytes(), 10 * chain.len());
            }
        }
    }
}
