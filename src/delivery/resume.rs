//! The events that the slot sends again, told from the new ones.
//!
//! Until [`Resume::is_done`], nothing is published or confirmed:
//!
//! 1. *Skip.* Events up to the checkpoint's are stored and settled.
//! 2. *Proof.* While confirmed_flush_lsn is not beyond the checkpoint's event, the slot must send
//!    exactly that event there. Anything else is another history under the same name: a disk
//!    snapshot put back has the same system identifier and timeline.
//! 3. *Tail.* Each message behind the checkpoint's must be the next event, in order. A message that
//!    is gone (expired, purged) counts as one event: the stream has exactly one message an event.

use super::opening::differs;
use super::position::{Identity, Place};
use crate::error::Failure;
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use std::collections::VecDeque;

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
    /// Whether it is the event that a message says it is. The timeline is not compared: it is the
    /// sender's at the time, and the same event may be sent by a promoted standby.
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
    /// Every stored event was flushed before the session began.
    wal_end: Lsn,
}

impl Resume {
    /// After `last`, with the slot at `confirmed` and the WAL ending at `wal_end`.
    #[must_use]
    pub fn new(last: Option<Identity>, confirmed: Lsn, wal_end: Lsn) -> Resume {
        Resume {
            skip: last.as_ref().map(|last| last.position.place),
            proof: last.filter(|last| confirmed <= last.position.place.commit_lsn),
            tail: VecDeque::new(),
            wal_end,
        }
    }

    /// Adds the messages behind the checkpoint's.
    ///
    /// # Errors
    /// One of them, or the checkpoint's, lies beyond the end of the WAL.
    pub fn expect(&mut self, tail: Vec<Expected>) -> Result<(), Failure> {
        self.tail = tail.into();
        let events = self.tail.iter().filter_map(|expected| expected.event.as_ref()).chain(&self.proof);
        for event in events {
            if event.position.place.commit_lsn > self.wal_end {
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
                return Err(self.other(proof, seen));
            }
            if seen.place == place {
                self.proof = None;
            }
        }
        if self.skip.is_some_and(|skip| seen.place <= skip) {
            return Ok(Admit::Skip);
        }
        let Some(Expected { seq, event }) = self.tail.front() else { return Ok(Admit::New) };
        if let Some(event) = event.as_ref().filter(|event| !seen.is(event)) {
            return Err(self.other(event, seen));
        }
        let seq = *seq;
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

    fn other(&self, event: &Identity, seen: Seen<'_>) -> Failure {
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
