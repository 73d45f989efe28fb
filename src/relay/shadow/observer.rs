//! From the slot's messages to what happened to rows: inserted, processed. No I/O, no clock.
//!
//! Processed is a row of which a mark column is set (a boolean that is true, a time that is not null), or
//! that is deleted. The event of an inserted row is made as the relay would make it, to hear whether it
//! would become a dead letter.

use crate::error::{Code, Failure};
use crate::nats::limits::Limits;
use crate::outbox::Poison;
use crate::postgres::lsn::Lsn;
use crate::postgres::pgoutput::{Column, Message, OldTuple, Relation, Tuple};
use crate::postgres::text::Text;
use crate::postgres::timestamp::Timestamp;
use crate::relay::intake::{Intake, Step};

/// What a message amounts to.
#[derive(Debug)]
pub(super) enum Observed {
    /// A row was inserted.
    Inserted(Inserted),
    /// The row of this id was marked or deleted.
    Processed(Text, Moment),
    /// A transaction ended there.
    Committed(Lsn),
    Nothing,
}

#[derive(Debug)]
pub(super) struct Inserted {
    /// None when it is null.
    pub(super) id: Option<Text>,
    pub(super) moment: Moment,
    /// It was marked from the beginning.
    pub(super) marked: bool,
    /// Why it would become a dead letter.
    pub(super) poison: Option<Poison>,
}

/// A transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) commit_lsn: Lsn,
    pub(super) committed: Timestamp,
}

/// Follows one replication stream.
pub(super) struct Observer {
    intake: Intake,
    outbox_oid: u32,
    id_column: String,
    mark_columns: Vec<String>,
    limits: Limits,
    columns: Option<Columns>,
    transaction: Option<Moment>,
}

/// Where the outbox's columns stand.
#[derive(Debug, Clone)]
struct Columns {
    id: usize,
    marks: Vec<usize>,
    /// A delete says the id.
    deletes: bool,
}

impl Observer {
    pub(super) fn new(
        intake: Intake,
        outbox_oid: u32,
        id_column: String,
        mark_columns: Vec<String>,
        limits: Limits,
    ) -> Observer {
        Observer { intake, outbox_oid, id_column, mark_columns, limits, columns: None, transaction: None }
    }

    /// Between Begin and Commit a keepalive says nothing about this transaction's rows.
    pub(super) fn in_transaction(&self) -> bool {
        self.intake.in_transaction()
    }

    pub(super) fn take(&mut self, message: Message) -> Result<Observed, Failure> {
        let marked = match &message {
            Message::Begin(begin) => {
                let (commit_lsn, committed) = (begin.final_lsn, begin.commit_time);
                self.transaction = Some(Moment { commit_lsn, committed });
                false
            }
            Message::Relation(relation) if relation.oid == self.outbox_oid => {
                self.columns = Some(self.find(relation)?);
                false
            }
            Message::Update(update) if update.relation_oid == self.outbox_oid => {
                let id = self.is_marked(&update.new).then(|| self.id(&update.new)).flatten();
                return Ok(self.processed(id));
            }
            Message::Delete(delete) if delete.relation_oid == self.outbox_oid => {
                let (OldTuple::Key(row) | OldTuple::Full(row)) = &delete.old;
                let id = self
                    .columns
                    .as_ref()
                    .is_some_and(|columns| columns.deletes)
                    .then(|| self.id(row))
                    .flatten();
                return Ok(self.processed(id));
            }
            Message::Insert(insert) => {
                insert.relation_oid == self.outbox_oid && self.is_marked(&insert.tuple)
            }
            _ => false,
        };
        Ok(match self.intake.take(message)? {
            Step::Event(taken) => {
                let event = taken.event().and_then(|event| self.limits.check(&event));
                let moment = Moment { commit_lsn: taken.place.commit_lsn, committed: taken.commit_time };
                Observed::Inserted(Inserted { id: taken.id, moment, marked, poison: event.err() })
            }
            Step::Commit { end_lsn, .. } => Observed::Committed(end_lsn),
            Step::Nothing => Observed::Nothing,
        })
    }

    fn find(&self, relation: &Relation) -> Result<Columns, Failure> {
        let index = |name: &str| relation.columns.iter().position(|column| *column.name == *name);
        let id = index(&self.id_column);
        let marks: Option<Vec<_>> = self.mark_columns.iter().map(|name| index(name)).collect();
        let (Some(id), Some(marks)) = (id, marks) else {
            return Err(Failure::new(
                Code::MarkUnclear,
                "the outbox has lost the column of ids, or the one that the poller marks",
                "begin again; --mark-column names another",
            ));
        };
        let deletes = relation.columns.get(id).is_some_and(|column| column.flags & 1 == 1);
        if marks.is_empty() && !deletes {
            let (column, schema, table) = (&self.id_column, &*relation.namespace, &*relation.name);
            return Err(Failure::new(
                Code::MarkUnclear,
                format!(
                    "no column of {schema}.{table} is a mark, and the deletion of a row does not say its `{column}`: \
                     it is unclear which rows are processed"
                ),
                "name the column that the poller sets with --mark-column; for a poller that deletes, ALTER TABLE … \
                 REPLICA IDENTITY USING INDEX, with a unique index of the id alone, which is NOT NULL",
            ));
        }
        Ok(Columns { id, marks, deletes })
    }

    fn is_marked(&self, row: &Tuple) -> bool {
        let is_set =
            |mark: &usize| matches!(row.get(*mark), Some(Column::Text(text)) if text.as_ref() != b"f");
        self.columns.as_ref().is_some_and(|columns| columns.marks.iter().any(is_set))
    }

    fn id(&self, row: &Tuple) -> Option<Text> {
        match row.get(self.columns.as_ref()?.id)? {
            Column::Text(id) => Text::new(id.clone()).ok(),
            _ => None,
        }
    }

    fn processed(&self, id: Option<Text>) -> Observed {
        match id.zip(self.transaction) {
            Some((id, moment)) => Observed::Processed(id, moment),
            None => Observed::Nothing,
        }
    }
}

#[cfg(test)]
mod tests;
