//! The messages as values.

use crate::postgres::lsn::Lsn;
use crate::postgres::text::Text;
use crate::postgres::timestamp::Timestamp;
use bytes::Bytes;

/// One message of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A committed transaction begins.
    Begin(Begin),
    /// It ends.
    Commit(Commit),
    /// It was replicated to the server from elsewhere.
    Origin(Origin),
    /// How a table looks from here on.
    Relation(Relation),
    /// A type that is not built in.
    Type(Type),
    /// A row was inserted.
    Insert(Insert),
    /// A row was updated.
    Update(Update),
    /// A row was deleted.
    Delete(Delete),
    /// Tables were truncated.
    Truncate(Truncate),
    /// `pg_logical_emit_message` was called.
    Message(LogicalMessage),
}

/// A committed transaction begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// Start of the commit record: equals [`Commit::commit_lsn`].
    pub final_lsn: Lsn,
    /// When it committed; where an [`Origin`] follows, when it committed there.
    pub commit_time: Timestamp,
    /// Its transaction id.
    pub xid: u32,
}

/// A transaction ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Unused by Postgres so far.
    pub flags: u8,
    /// Start of the commit record.
    pub commit_lsn: Lsn,
    /// End of the commit record: confirming it means never to see this transaction again.
    pub end_lsn: Lsn,
    /// As in [`Begin`].
    pub commit_time: Timestamp,
}

/// The transaction was replicated to the server from elsewhere. Follows its [`Begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its commit on the server it came from.
    pub commit_lsn: Lsn,
    /// The replication origin's name.
    pub name: Text,
}

/// How a table looks from here on. Sent before its first row, again after changes, and at times
/// with nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// The table's oid, by which rows refer to it.
    pub oid: u32,
    /// The schema (`pg_catalog`, which is empty on the wire, is written out).
    pub namespace: Text,
    /// The table.
    pub name: Text,
    /// What an update or delete says of the old row.
    pub replica_identity: ReplicaIdentity,
    /// The columns in the order in which tuples have them.
    pub columns: Vec<RelationColumn>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// 1 when it is part of the key.
    pub flags: u8,
    /// Its name.
    pub name: Text,
    /// Its type's oid.
    pub type_oid: u32,
    /// Its type's modifier; -1 for none.
    pub type_modifier: i32,
}

/// `REPLICA IDENTITY` of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// No column.
    Nothing,
    /// Every column.
    Full,
    /// The columns of an index.
    Index,
}

/// A type that is not built in. Sent before the first [`Relation`] that uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    /// The type's oid.
    pub oid: u32,
    /// Its schema (`pg_catalog`, which is empty on the wire, is written out).
    pub namespace: Text,
    /// Its name. For a domain, namespace and name are those of its base type.
    pub name: Text,
}

/// A row was inserted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insert {
    /// The table.
    pub relation_oid: u32,
    /// The row.
    pub tuple: Tuple,
}

/// A row was updated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// The table.
    pub relation_oid: u32,
    /// The row before, when its key changed or the replica identity is full.
    pub old: Option<OldTuple>,
    /// The row after.
    pub new: Tuple,
}

/// A row was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// The table.
    pub relation_oid: u32,
    /// The row before.
    pub old: OldTuple,
}

/// A row as it was before a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldTuple {
    /// The columns of the key; the others are null.
    Key(Tuple),
    /// All columns.
    Full(Tuple),
}

/// Tables were truncated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// 1 for CASCADE, 2 for RESTART IDENTITY.
    pub options: u8,
    /// The tables.
    pub relation_oids: Vec<u32>,
}

/// What `pg_logical_emit_message` wrote. Only sent when asked for with `messages 'true'`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// 1 when it belongs to the transaction around it.
    pub flags: u8,
    /// What the function returned to its caller.
    pub lsn: Lsn,
    /// The function's prefix.
    pub prefix: Text,
    /// The function's content: any bytes.
    pub content: Bytes,
}

/// The columns of one row, in the order of its [`Relation`]: one allocation a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuple(pub(super) Vec<Column>);

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Column {
    /// SQL null.
    Null,
    /// A large value that an update did not change and that is therefore not sent.
    UnchangedToast,
    /// The value in its type's text form, not yet checked to be UTF-8.
    Text(Bytes),
    /// The value in its type's binary form: only when asked for with `binary 'true'`.
    Binary(Bytes),
}

impl Tuple {
    /// A row of these texts, as a table has it.
    #[must_use]
    pub fn of_texts(texts: impl IntoIterator<Item = Option<Bytes>>) -> Tuple {
        Tuple(texts.into_iter().map(|text| text.map_or(Column::Null, Column::Text)).collect())
    }

    /// How many columns it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no column: a table may have none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The column at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&Column> {
        self.0.get(index)
    }

    /// All columns in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Column> {
        self.0.iter()
    }
}

impl FromIterator<Column> for Tuple {
    fn from_iter<I: IntoIterator<Item = Column>>(columns: I) -> Tuple {
        Tuple(columns.into_iter().collect())
    }
}
