//! A row of the outbox with its place in the log: what is published, lettered and stamped for it.

use crate::delivery::position::Place;
use crate::nats::envelope::Stamp;
use crate::outbox::seal::Key;
use crate::outbox::{Event, Poison, Table, row_json};
use crate::postgres::pgoutput::{Column, Tuple};
use crate::postgres::text::Text;
use crate::postgres::timestamp::Timestamp;
use crate::state::dead_letter::Letter;
use bytes::Bytes;
use std::sync::Arc;

/// A row of the outbox: as the slot sent it, or as the table has it.
#[derive(Debug)]
pub(crate) struct Taken {
    /// On which it committed.
    pub(crate) timeline: u32,
    pub(crate) place: Place,
    pub(crate) commit_time: Timestamp,
    /// Its transaction's id; 0 of a row that was read from the table.
    pub(crate) xid: u32,
    /// None when the id column is null or no text.
    pub(crate) id: Option<Text>,
    origin: Arc<str>,
    shape: Arc<Shape>,
    tuple: Tuple,
}

/// Where in which log a row stands, and when it was committed.
#[derive(Debug, Clone)]
pub(crate) struct At {
    /// `<system id>/<timeline>/<slot>/`
    pub(crate) origin: Arc<str>,
    pub(crate) timeline: u32,
    pub(crate) place: Place,
    pub(crate) commit_time: Timestamp,
    pub(crate) xid: u32,
}

impl Taken {
    /// The row `tuple`, which has as many columns as `shape`.
    pub(crate) fn new(shape: &Arc<Shape>, at: At, tuple: Tuple) -> Taken {
        let At { origin, timeline, place, commit_time, xid } = at;
        let id = cell(&tuple, shape.table.id_index()).and_then(|id| Text::new(id.clone()).ok());
        Taken { timeline, place, commit_time, xid, id, origin, shape: Arc::clone(shape), tuple }
    }

    /// What the log says of it.
    pub(crate) fn stamp(&self) -> Stamp<'_> {
        Stamp { origin: &self.origin, place: self.place, commit_time: self.commit_time }
    }

    /// What is to be published for it.
    pub(crate) fn event(&self) -> Result<Event, Poison> {
        let event = self.shape.table.event(|index| cell(&self.tuple, index))?;
        match &self.shape.key {
            Some(key) => key.seal(event, &self.stamp().position()),
            None => Ok(event),
        }
    }

    /// What is kept of it when it cannot be published.
    pub(crate) fn letter(&self, poison: Poison) -> Letter {
        let columns = self.shape.columns.iter().enumerate();
        Letter {
            timeline: self.timeline,
            place: self.place,
            reason: poison.reason,
            error: poison.message,
            parts: self.shape.table.parts(|index| cell(&self.tuple, index)),
            row: row_json(columns.map(|(at, (name, oid))| (name.as_str(), *oid, cell(&self.tuple, at)))),
        }
    }
}

/// The outbox as its last Relation message, or the catalogue, has it.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Names and types.
    pub(crate) columns: Vec<(String, u32)>,
    pub(crate) table: Table,
    /// Payloads are encrypted with it.
    pub(crate) key: Option<Arc<Key>>,
}

fn cell(tuple: &Tuple, index: usize) -> Option<&Bytes> {
    match tuple.get(index)? {
        Column::Text(text) => Some(text),
        Column::Null | Column::UnchangedToast | Column::Binary(_) => None,
    }
}
