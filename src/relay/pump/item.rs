//! What the window holds for an event.

use super::*;

/// An event between intake and settled.
pub(super) struct Item {
    pub(super) place: Place,
    pub(super) commit_time: Timestamp,
    pub(super) id: Option<Text>,
    pub(super) transaction: Arc<TransactionHeaders>,
    pub(super) event: Result<Event, Poison>,
}

impl Item {
    pub(super) fn new(taken: Taken, event: Result<Event, Poison>) -> Item {
        let Taken { place, commit_time, id, transaction, .. } = taken;
        Item { place, commit_time, id, transaction, event }
    }

    pub(super) fn is(&self, stored: &Stored, server: &Server) -> bool {
        let seen = Seen { place: self.place, commit_time: self.commit_time, event_id: self.id.as_deref() };
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

    pub(super) fn poison(&self, poison: &Poison) -> Failure {
        let at = format!("{:016X}/{}", self.place.commit_lsn.0, self.place.index);
        Failure::new(
            poison.code,
            format!("{} (position {at}, reason {})", poison.message, poison.reason),
            "everything before it is published; nothing behind it is. Mend the cause (postrider explain \
             shows how) and start again; an event that must never go out: postrider init --adopt after \
             dropping the slot goes on from now",
        )
    }
}
