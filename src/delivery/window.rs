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
