//! What the window holds for an event.

use crate::delivery::opening::{Server, Stored};
use crate::delivery::resume::Seen;
use crate::error::Failure;
use crate::outbox::{Event, Poison};
use crate::relay::taken::Taken;
use tokio::time::Instant;

/// An event between intake and settled.
pub(super) struct Item {
    pub(super) taken: Taken,
    /// When it was last sent.
    pub(super) sent: Instant,
    /// Its payload is in the object store; this refers to it.
    pub(super) claim: Option<Event>,
}

impl Item {
    pub(super) fn new(taken: Taken) -> Item {
        Item { taken, sent: Instant::now(), claim: None }
    }

    /// What is to be published for it, the same each time: it is made when it is sent, and kept by
    /// nobody.
    pub(super) fn event(&self) -> Result<Event, Poison> {
        self.claim.clone().map_or_else(|| self.taken.event(), Ok)
    }

    pub(super) fn is(&self, stored: &Stored, server: &Server) -> bool {
        let taken = &self.taken;
        let seen = Seen { place: taken.place, commit_time: taken.commit_time, event_id: taken.id.as_deref() };
        match stored {
            // Purged or expired since: the stream has one message an event.
            Stored::Gone => true,
            Stored::Foreign(_) => false,
            Stored::Event(event) => {
                event.position.system_id == server.history.system_id
                    && event.position.slot == server.slot
                    && seen.is(event)
            }
        }
    }

    /// The relay halts at it.
    pub(super) fn halt(&self, poison: &Poison) -> Failure {
        let place = self.taken.place;
        let at = format!("{:016X}/{}", place.commit_lsn.0, place.index);
        Failure::new(
            poison.reason.code(),
            format!("{} (position {at}, reason {})", poison.message, poison.reason),
            "everything before it is published; nothing behind it is. Mend the cause (postrider explain shows how) \
             and start again, or set delivery.on_poison = \"dead_letter\" to put such events aside",
        )
    }
}
