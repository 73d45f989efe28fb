//! From the slot's messages to events with a place: follows transactions and relations.

use super::preflight::kind;
use super::taken::{At, Shape, Taken};
use crate::delivery::history::History;
use crate::delivery::position::Place;
use crate::error::{Code, Failure};
use crate::outbox::seal::Key;
use crate::outbox::{ColumnInfo, Kind, Resolved};
use crate::postgres::lsn::Lsn;
use crate::postgres::pgoutput::{Column, Insert, Message, Relation};
use crate::postgres::timestamp::Timestamp;
use std::collections::HashMap;
use std::sync::Arc;

/// What a message of the slot amounts to.
#[derive(Debug)]
pub(super) enum Step {
    Event(Taken),
    /// A transaction ended.
    Commit {
        commit_lsn: Lsn,
        end_lsn: Lsn,
    },
    /// Nothing to be done.
    Nothing,
}

#[derive(Debug)]
struct Transaction {
    timeline: u32,
    commit_lsn: Lsn,
    commit_time: Timestamp,
    xid: u32,
    /// The next insert's.
    index: u64,
}

/// Follows one replication stream.
#[derive(Debug)]
pub(super) struct Intake {
    history: History,
    slot: String,
    /// `<system id>/<timeline>/<slot>/` of that timeline: it changes once in a session at most, behind
    /// what was committed before a promotion.
    origin: (u32, Arc<str>),
    outbox_oid: u32,
    resolved: Resolved,
    key: Option<Arc<Key>>,
    shape: Option<Arc<Shape>>,
    /// Types that are not built in; a domain is of its base type's kind.
    kinds: HashMap<u32, Kind>,
    transaction: Option<Transaction>,
}

impl Intake {
    pub(super) fn new(
        history: History,
        slot: String,
        outbox_oid: u32,
        resolved: Resolved,
        key: Option<Arc<Key>>,
    ) -> Intake {
        let kinds = HashMap::new();
        let origin = (0, Arc::default());
        Intake { history, slot, origin, outbox_oid, resolved, key, shape: None, kinds, transaction: None }
    }

    /// Between Begin and Commit a keepalive says nothing about this transaction's rows.
    pub(super) fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    pub(super) fn take(&mut self, message: Message) -> Result<Step, Failure> {
        match message {
            Message::Insert(insert) if insert.relation_oid == self.outbox_oid => {
                self.insert(insert).map(Step::Event)
            }
            Message::Begin(begin) => {
                self.transaction = Some(Transaction {
                    timeline: self.history.timeline_of(begin.final_lsn),
                    commit_lsn: begin.final_lsn,
                    commit_time: begin.commit_time,
                    xid: begin.xid,
                    index: 0,
                });
                Ok(Step::Nothing)
            }
            Message::Commit(commit) => {
                self.transaction = None;
                Ok(Step::Commit { commit_lsn: commit.commit_lsn, end_lsn: commit.end_lsn })
            }
            Message::Relation(relation) if relation.oid == self.outbox_oid => {
                self.relation(&relation)?;
                Ok(Step::Nothing)
            }
            Message::Type(kind) => {
                let of = match (kind.namespace.as_str(), kind.name.as_str()) {
                    ("pg_catalog", "json" | "jsonb") => Kind::Json,
                    ("pg_catalog", "bytea") => Kind::Bytea,
                    _ => Kind::Other,
                };
                self.kinds.insert(kind.oid, of);
                Ok(Step::Nothing)
            }
            // Other tables of the publication, and what an insert-only publication does not send.
            Message::Insert(_)
            | Message::Relation(_)
            | Message::Origin(_)
            | Message::Update(_)
            | Message::Delete(_)
            | Message::Truncate(_)
            | Message::Message(_) => Ok(Step::Nothing),
        }
    }

    fn relation(&mut self, relation: &Relation) -> Result<(), Failure> {
        let columns: Vec<_> = relation
            .columns
            .iter()
            .map(|column| ColumnInfo {
                name: &column.name,
                kind: self.kinds.get(&column.type_oid).copied().unwrap_or_else(|| kind(column.type_oid)),
            })
            .collect();
        let table = self.resolved.bind(&columns)?;
        let columns =
            relation.columns.iter().map(|column| (column.name.to_string(), column.type_oid)).collect();
        self.shape = Some(Arc::new(Shape { columns, table, key: self.key.clone() }));
        Ok(())
    }

    fn insert(&mut self, insert: Insert) -> Result<Taken, Failure> {
        let odd = |what: &str| Failure::new(Code::Unexpected, format!("pgoutput: {what}"), "report it");
        let transaction =
            self.transaction.as_mut().ok_or_else(|| odd("an Insert outside of a transaction"))?;
        let shape = self.shape.as_ref().ok_or_else(|| odd("an Insert before its Relation"))?;
        if insert.tuple.len() != shape.columns.len() {
            return Err(odd("an Insert with another number of columns than its Relation"));
        }
        if insert.tuple.iter().any(|column| matches!(column, Column::UnchangedToast | Column::Binary(_))) {
            return Err(odd("an Insert with a column that is not text"));
        }
        let place = Place { commit_lsn: transaction.commit_lsn, index: transaction.index };
        transaction.index += 1;
        let &mut Transaction { timeline, commit_time, xid, .. } = transaction;
        if self.origin.0 != timeline {
            let origin = format!("{}/{timeline}/{}/", self.history.system_id, self.slot);
            self.origin = (timeline, origin.into());
        }
        let at = At { origin: Arc::clone(&self.origin.1), timeline, place, commit_time, xid };
        Ok(Taken::new(shape, at, insert.tuple))
    }
}
