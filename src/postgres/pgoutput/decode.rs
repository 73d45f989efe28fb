//! From bytes to messages: each type reads its fields in the order of the wire.

use super::reader::Reader;
use super::{
    Begin, Column, Commit, DecodeError, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, Relation,
    RelationColumn, ReplicaIdentity, Truncate, Tuple, Type, Update,
};
use crate::postgres::text::Text;
use bytes::Bytes;

/// A column of a [`Relation`] without its name's letters: flags, zero byte, type, modifier.
const RELATION_COLUMN_MIN: usize = 1 + 1 + 4 + 4;
/// A null: its kind alone.
const TUPLE_COLUMN_MIN: usize = 1;
const OID: usize = 4;

impl Message {
    /// Decodes one message: the whole of `body` and nothing else.
    ///
    /// # Errors
    /// Whatever is not exactly one message of protocol version 1.
    pub fn decode(body: Bytes) -> Result<Message, DecodeError> {
        let mut reader = Reader::new(body);
        let tag = reader.u8("tag")?;
        let (message, name) = match tag {
            b'I' => (Message::Insert(Insert::decode(&mut reader)?), "Insert"),
            b'B' => (Message::Begin(Begin::decode(&mut reader)?), "Begin"),
            b'C' => (Message::Commit(Commit::decode(&mut reader)?), "Commit"),
            b'R' => (Message::Relation(Relation::decode(&mut reader)?), "Relation"),
            b'Y' => (Message::Type(Type::decode(&mut reader)?), "Type"),
            b'M' => (Message::Message(LogicalMessage::decode(&mut reader)?), "Message"),
            b'O' => (Message::Origin(Origin::decode(&mut reader)?), "Origin"),
            b'U' => (Message::Update(Update::decode(&mut reader)?), "Update"),
            b'D' => (Message::Delete(Delete::decode(&mut reader)?), "Delete"),
            b'T' => (Message::Truncate(Truncate::decode(&mut reader)?), "Truncate"),
            tag => return Err(DecodeError::UnknownTag(tag)),
        };
        reader.finish(name)?;
        Ok(message)
    }
}

impl Begin {
    fn decode(reader: &mut Reader) -> Result<Begin, DecodeError> {
        Ok(Begin {
            final_lsn: reader.lsn("final LSN")?,
            commit_time: reader.timestamp("commit time")?,
            xid: reader.u32("transaction id")?,
        })
    }
}

impl Commit {
    fn decode(reader: &mut Reader) -> Result<Commit, DecodeError> {
        Ok(Commit {
            flags: reader.u8("commit flags")?,
            commit_lsn: reader.lsn("commit LSN")?,
            end_lsn: reader.lsn("end LSN")?,
            commit_time: reader.timestamp("commit time")?,
        })
    }
}

impl Origin {
    fn decode(reader: &mut Reader) -> Result<Origin, DecodeError> {
        Ok(Origin { commit_lsn: reader.lsn("origin LSN")?, name: reader.cstr("origin name")? })
    }
}

impl Relation {
    fn decode(reader: &mut Reader) -> Result<Relation, DecodeError> {
        let oid = reader.u32("relation oid")?;
        let namespace = namespace(reader)?;
        let name = reader.cstr("relation name")?;
        let replica_identity = ReplicaIdentity::decode(reader)?;
        let count = reader.count_u16(RELATION_COLUMN_MIN, "column count")?;
        let mut columns = Vec::with_capacity(count);
        for _ in 0..count {
            columns.push(RelationColumn::decode(reader)?);
        }
        Ok(Relation { oid, namespace, name, replica_identity, columns })
    }
}

impl RelationColumn {
    fn decode(reader: &mut Reader) -> Result<RelationColumn, DecodeError> {
        Ok(RelationColumn {
            flags: reader.u8("column flags")?,
            name: reader.cstr("column name")?,
            type_oid: reader.u32("type oid")?,
            type_modifier: reader.i32("type modifier")?,
        })
    }
}

impl ReplicaIdentity {
    fn decode(reader: &mut Reader) -> Result<ReplicaIdentity, DecodeError> {
        let what = "replica identity";
        match reader.u8(what)? {
            b'd' => Ok(ReplicaIdentity::Default),
            b'n' => Ok(ReplicaIdentity::Nothing),
            b'f' => Ok(ReplicaIdentity::Full),
            b'i' => Ok(ReplicaIdentity::Index),
            byte => Err(DecodeError::UnknownKind { what, byte }),
        }
    }
}

impl Type {
    fn decode(reader: &mut Reader) -> Result<Type, DecodeError> {
        Ok(Type {
            oid: reader.u32("type oid")?,
            namespace: namespace(reader)?,
            name: reader.cstr("type name")?,
        })
    }
}

impl Insert {
    fn decode(reader: &mut Reader) -> Result<Insert, DecodeError> {
        let relation_oid = reader.u32("relation oid")?;
        match reader.u8("tuple kind")? {
            b'N' => Ok(Insert { relation_oid, tuple: Tuple::decode(reader)? }),
            byte => Err(DecodeError::UnknownKind { what: "tuple kind", byte }),
        }
    }
}

impl Update {
    fn decode(reader: &mut Reader) -> Result<Update, DecodeError> {
        let relation_oid = reader.u32("relation oid")?;
        let mut kind = reader.u8("tuple kind")?;
        let mut old = None;
        if kind != b'N' {
            old = Some(OldTuple::decode(kind, reader)?);
            kind = reader.u8("tuple kind")?;
        }
        match kind {
            b'N' => Ok(Update { relation_oid, old, new: Tuple::decode(reader)? }),
            byte => Err(DecodeError::UnknownKind { what: "tuple kind", byte }),
        }
    }
}

impl Delete {
    fn decode(reader: &mut Reader) -> Result<Delete, DecodeError> {
        let relation_oid = reader.u32("relation oid")?;
        let kind = reader.u8("tuple kind")?;
        Ok(Delete { relation_oid, old: OldTuple::decode(kind, reader)? })
    }
}

impl OldTuple {
    fn decode(kind: u8, reader: &mut Reader) -> Result<OldTuple, DecodeError> {
        match kind {
            b'K' => Tuple::decode(reader).map(OldTuple::Key),
            b'O' => Tuple::decode(reader).map(OldTuple::Full),
            byte => Err(DecodeError::UnknownKind { what: "tuple kind", byte }),
        }
    }
}

impl Truncate {
    fn decode(reader: &mut Reader) -> Result<Truncate, DecodeError> {
        let count = reader.count_u32(OID, "relation count")?;
        let options = reader.u8("truncate options")?;
        let mut relation_oids = Vec::with_capacity(count);
        for _ in 0..count {
            relation_oids.push(reader.u32("relation oid")?);
        }
        Ok(Truncate { options, relation_oids })
    }
}

impl LogicalMessage {
    fn decode(reader: &mut Reader) -> Result<LogicalMessage, DecodeError> {
        Ok(LogicalMessage {
            flags: reader.u8("message flags")?,
            lsn: reader.lsn("message LSN")?,
            prefix: reader.cstr("message prefix")?,
            content: reader.sized("message content")?,
        })
    }
}

impl Tuple {
    fn decode(reader: &mut Reader) -> Result<Tuple, DecodeError> {
        let count = reader.count_u16(TUPLE_COLUMN_MIN, "column count")?;
        let mut columns = Vec::with_capacity(count);
        for _ in 0..count {
            columns.push(Column::decode(reader)?);
        }
        Ok(Tuple(columns))
    }
}

impl Column {
    fn decode(reader: &mut Reader) -> Result<Column, DecodeError> {
        let what = "column kind";
        match reader.u8(what)? {
            b't' => reader.sized("column value").map(Column::Text),
            b'n' => Ok(Column::Null),
            b'u' => Ok(Column::UnchangedToast),
            b'b' => reader.sized("column value").map(Column::Binary),
            byte => Err(DecodeError::UnknownKind { what, byte }),
        }
    }
}

/// The empty name stands for `pg_catalog`.
fn namespace(reader: &mut Reader) -> Result<Text, DecodeError> {
    let name = reader.cstr("namespace")?;
    Ok(if name.is_empty() { Text::from_static("pg_catalog") } else { name })
}
