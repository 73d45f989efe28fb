//! How rows that the stream lacks get into it.
//!
//! Each must get a position that nothing from the slot has or can get, and behind which a session goes on
//! by its usual rules ([`Place::is_from_table`](crate::delivery::position::Place::is_from_table)):
//!
//! | the slot | rows are published at | and the slot goes on |
//! | --- | --- | --- |
//! | is made anew, with a snapshot | its consistent point − 1 | with what was committed after the snapshot |
//! | stays, and the stream has nothing that it will send again | its confirmed LSN − 1 | from its confirmed LSN |
//! | stays, and will send again what the stream has up to event E | E's commit LSN + 1 | behind E |
//!
//! A transaction can have exactly the consistent point as its commit LSN (measured on 15), hence − 1. The
//! number among those rows is the index; it goes on where an earlier attempt had left it.

use crate::delivery::position::Identity;
use crate::error::{Code, Failure};
use crate::postgres::lsn::Lsn;

/// What becomes of the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It goes on: behind this event, or from where it is confirmed.
    Keep {
        /// The slot's confirmed LSN.
        confirmed: Lsn,
        /// The last event of the stream that the slot would send again, and its sequence.
        behind: Option<(u64, Box<Identity>)>,
    },
    /// It is made anew, for this reason.
    Anew {
        /// In words.
        why: String,
        /// There is one to be dropped.
        drop: bool,
        /// The stream has events that this server never had.
        other_history: bool,
    },
}

/// What slot and stream say of each other.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The slot is of no use, with the reason; or there is none.
    pub(super) unusable: Option<String>,
    /// There is a slot.
    pub(super) exists: bool,
    pub(super) confirmed: Lsn,
    /// The stream's last event of this slot that it would send again.
    pub(super) last: Option<(u64, Box<Identity>)>,
    /// An event that the stream has there and the slot has not.
    pub(super) differs: Option<String>,
    /// Events that the slot will send and the stream has at another position.
    pub(super) doubled: u64,
}

impl Found {
    /// What is to be done.
    pub(super) fn way(self) -> Way {
        let anew = |why: String, other_history| Way::Anew { why, drop: self.exists, other_history };
        if let Some(why) = self.unusable {
            return anew(why, false);
        }
        if let Some(event) = self.differs {
            return anew(format!("the stream has {event}, which the slot has not: another history"), true);
        }
        if self.doubled > 0 {
            return anew(
                format!("the slot would send {} events again that the stream has", self.doubled),
                false,
            );
        }
        Way::Keep { confirmed: self.confirmed, behind: self.last }
    }
}

impl Way {
    /// The LSN of the rows' positions. `consistent`: where a slot that was made anew begins.
    pub(super) fn base(&self, consistent: Lsn) -> Lsn {
        match self {
            Way::Keep { behind: Some((_, event)), .. } => Lsn(aligned(event.position.place.commit_lsn).0 + 1),
            Way::Keep { confirmed, behind: None } => Lsn(confirmed.0.saturating_sub(1)),
            Way::Anew { .. } => Lsn(consistent.0.saturating_sub(1)),
        }
    }
}

/// The stream ends within a transaction of the slot: what is published behind it would hide its rest, of which
/// the table has not all.
pub(super) fn cut(event: &Identity) -> Failure {
    Failure::new(
        Code::CheckpointUnfit,
        format!(
            "the stream ends within the transaction of event `{}`, of whose other rows some were deleted",
            event.event_id
        ),
        "let a relay finish it first: postrider run, for some seconds. Then postrider recover again",
    )
}

fn aligned(lsn: Lsn) -> Lsn {
    Lsn(lsn.0 & !7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::position::{Place, Position};
    use crate::postgres::timestamp::Timestamp;

    fn event(lsn: u64) -> Box<Identity> {
        let place = Place { commit_lsn: Lsn(lsn), index: 3 };
        let position = Position { system_id: 7, timeline: 1, slot: "s".into(), place };
        Box::new(Identity { position, commit_time: Timestamp(0), event_id: "9".into() })
    }

    fn found() -> Found {
        Found { exists: true, confirmed: Lsn(80), ..Found::default() }
    }

    #[test]
    fn a_sound_slot_is_never_dropped() {
        assert_eq!(found().way(), Way::Keep { confirmed: Lsn(80), behind: None });
        let last = Some((5, event(88)));
        assert_eq!(
            Found { last: last.clone(), ..found() }.way(),
            Way::Keep { confirmed: Lsn(80), behind: last }
        );
    }

    #[test]
    fn a_slot_that_would_double_or_tells_another_history_is_made_anew() {
        let dropped = |way| matches!(way, Way::Anew { drop: true, .. });
        assert!(dropped(Found { doubled: 1, ..found() }.way()));
        assert!(dropped(Found { differs: Some("x".into()), ..found() }.way()));
        assert!(dropped(Found { unusable: Some("it is lost".into()), ..found() }.way()));
    }

    #[test]
    fn rows_from_the_table_stand_where_no_commit_can() {
        for way in [
            Found::default().way(),
            Found { last: Some((5, event(88))), ..found() }.way(),
            Found { unusable: Some("x".into()), ..found() }.way(),
        ] {
            for consistent in [8, 4096] {
                let place = Place { commit_lsn: way.base(Lsn(consistent)), index: 0 };
                assert!(place.is_from_table() || place.commit_lsn == Lsn::ZERO, "{way:?} {place:?}");
            }
        }
        assert!(!event(88).position.place.is_from_table());
    }

    #[test]
    fn they_stand_behind_what_the_stream_has_and_before_what_the_slot_sends() {
        let behind = Found { last: Some((5, event(88))), ..found() }.way();
        assert_eq!(behind.base(Lsn::ZERO), Lsn(89));
        let again = Found { last: Some((5, event(89))), ..found() }.way();
        assert_eq!(again.base(Lsn::ZERO), Lsn(89), "behind rows of an earlier recovery");
        assert_eq!(found().way().base(Lsn::ZERO), Lsn(79));
    }
}
