//! Where an event stands in the log of one Postgres cluster.
//!
//! `Postrider-Position: <system id>/<timeline>/<slot>/<commit LSN>/<index>`, the commit LSN being
//! Begin.final_lsn as 16 upper-case hexadecimal digits, the index in decimal. The timeline is the one
//! on which the transaction committed, not the sending server's: an event has the same position
//! whichever promoted standby sends it, also one that never followed the server that sent it first. The index counts every
//! Insert of the outbox in its transaction from 0, so it is the same however often the transaction
//! is sent.

use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use std::fmt;
use std::str::FromStr;

/// An event's place in the log: positions of one history compare by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Begin.final_lsn of its transaction.
    pub commit_lsn: Lsn,
    /// Its number among the transaction's inserts into the outbox, from 0.
    pub index: u64,
}

impl Place {
    /// Whether the event was read from the table by `init --backfill` or `recover`, not sent by the slot: a
    /// commit record begins at a multiple of eight (MAXALIGN), these stand one before or behind.
    #[must_use]
    pub fn is_from_table(self) -> bool {
        matches!(self.commit_lsn.0 % 8, 1 | 7)
    }
}

/// A place together with the history that gives it a meaning.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    /// The cluster (`IDENTIFY_SYSTEM`).
    pub system_id: u64,
    /// The timeline on which its transaction committed.
    pub timeline: u32,
    /// The slot it was read from.
    pub slot: String,
    /// The place.
    pub place: Place,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { system_id, timeline, slot, place } = self;
        write!(f, "{system_id}/{timeline}/{slot}/{:016X}/{}", place.commit_lsn.0, place.index)
    }
}

/// The text is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a position")]
pub struct ParsePositionError(String);

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Position, ParsePositionError> {
        let parse = || {
            let mut parts = text.split('/');
            let mut next = || parts.next();
            let position = Position {
                system_id: decimal(next()?)?,
                timeline: u32::try_from(decimal(next()?)?).ok()?,
                slot: next().filter(|slot| !slot.is_empty())?.to_owned(),
                place: Place { commit_lsn: hexadecimal(next()?)?, index: decimal(next()?)? },
            };
            next().is_none().then_some(position)
        };
        parse().ok_or_else(|| ParsePositionError(text.to_owned()))
    }
}

/// Strict: what prints differently is another text (`+1`, `01` are refused).
fn decimal(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with(['0', '+']);
    canonical.then(|| text.parse().ok()).flatten()
}

fn hexadecimal(text: &str) -> Option<Lsn> {
    let canonical = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    canonical.then(|| u64::from_str_radix(text, 16).ok()).flatten().map(Lsn)
}

/// What a stored message says of itself, and what the log says of an event: equal for the same
/// event. The commit time and the id tell histories apart that reached the same LSN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Where in which log.
    pub position: Position,
    /// When its transaction committed.
    pub commit_time: Timestamp,
    /// The id column's text.
    pub event_id: String,
}

impl Identity {
    /// Whether both name one event of one history. NATS clients trim header values: that makes no other
    /// event.
    #[must_use]
    pub fn is_same_event(&self, other: &Identity) -> bool {
        self.position.place == other.position.place
            && self.commit_time == other.commit_time
            && self.event_id.trim() == other.event_id.trim()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_position_reads_back_as_it_prints(
            system_id: u64, timeline: u32, slot in "[a-z0-9_]{1,63}", lsn: u64, index: u64,
        ) {
            let place = Place { commit_lsn: Lsn(lsn), index };
            let position = Position { system_id, timeline, slot, place };
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }

        #[test]
        fn any_text_parses_only_to_what_prints_the_same(text in "[0-9A-Fa-f+/_]{0,60}") {
            if let Ok(position) = text.parse::<Position>() {
                prop_assert_eq!(position.to_string(), text);
            }
        }
    }

    #[test]
    fn a_position_prints_as_the_contract_says() {
        let place = Place { commit_lsn: Lsn(0x16_B374_D848), index: 12 };
        let position =
            Position { system_id: 7_345_678_901_234_567_890, timeline: 2, slot: "postrider".into(), place };
        assert_eq!(position.to_string(), "7345678901234567890/2/postrider/00000016B374D848/12");
    }

    #[test]
    fn places_compare_by_commit_then_index() {
        let place = |lsn, index| Place { commit_lsn: Lsn(lsn), index };
        assert!(place(1, 9) < place(2, 0) && place(2, 0) < place(2, 1));
    }
}
