use super::*;
use crate::postgres::lsn::Lsn;
use crate::postgres::text::Text;
use crate::postgres::timestamp::Timestamp;
use bytes::{BufMut, Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

fn decode(body: &[u8]) -> Result<Message, DecodeError> {
    Message::decode(Bytes::copy_from_slice(body))
}

fn text(value: &'static str) -> Column {
    Column::Text(Bytes::from_static(value.as_bytes()))
}

#[test]
fn a_begin_is_decoded() {
    let body = b"B\0\0\0\x16\xB3\x74\xD8\x48\0\0\0\0\0\0\0\x05\0\0\x02\xDE";
    let begin = Begin { final_lsn: Lsn(0x16_B374_D848), commit_time: Timestamp(5), xid: 734 };
    assert_eq!(decode(body), Ok(Message::Begin(begin)));
}

#[test]
fn a_commit_is_decoded() {
    let body = b"C\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x20\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFE";
    let commit = Commit { flags: 0, commit_lsn: Lsn(0x10), end_lsn: Lsn(0x20), commit_time: Timestamp(-2) };
    assert_eq!(decode(body), Ok(Message::Commit(commit)));
}

#[test]
fn an_origin_is_decoded() {
    let origin = Origin { commit_lsn: Lsn(0xAB), name: Text::from_static("upstream") };
    assert_eq!(decode(b"O\0\0\0\0\0\0\0\xABupstream\0"), Ok(Message::Origin(origin)));
}

#[test]
fn a_relation_is_decoded() {
    let body = b"R\0\0\x40\0public\0outbox\0d\0\x02\
        \x01id\0\0\0\0\x17\xFF\xFF\xFF\xFF\0event type\0\0\0\x04\x13\0\0\0\x36";
    let column = |flags, name, type_oid, type_modifier| RelationColumn {
        flags,
        name: Text::from_static(name),
        type_oid,
        type_modifier,
    };
    let relation = Relation {
        oid: 16384,
        namespace: Text::from_static("public"),
        name: Text::from_static("outbox"),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![column(1, "id", 23, -1), column(0, "event type", 1043, 54)],
    };
    assert_eq!(decode(body), Ok(Message::Relation(relation)));
}

#[test]
fn columns_that_the_rest_cannot_hold_are_not_believed() {
    let relation = |columns: &[u8]| decode(&[b"R\0\0\x40\0\0t\0d\0\x01", columns].concat());
    assert!(relation(b"\0\0\0\0\0\x17\xFF\xFF\xFF\xFF").is_ok(), "a column without a name");
    assert_eq!(relation(b"\0\0\0\0\0\x17\xFF\xFF\xFF"), Err(DecodeError::Truncated("column count")));
}

#[test]
fn a_tuple_knows_how_many_columns_it_has() {
    assert_eq!((Tuple(vec![]).len(), Tuple(vec![]).is_empty()), (0, true));
    let one = Tuple(vec![Column::Null]);
    assert_eq!((one.len(), one.is_empty(), one.get(0), one.get(1)), (1, false, Some(&Column::Null), None));
}

#[test]
fn every_replica_identity_is_known_and_no_other() {
    use ReplicaIdentity::{Default, Full, Index, Nothing};
    for (byte, expected) in [(b'd', Default), (b'n', Nothing), (b'f', Full), (b'i', Index)] {
        let body = [b"R\0\0\0\x01\0t\0".as_slice(), &[byte], b"\0\0"].concat();
        let Ok(Message::Relation(relation)) = decode(&body) else { panic!("{byte}") };
        assert_eq!(relation.replica_identity, expected);
    }
    assert_eq!(
        decode(b"R\0\0\0\x01\0t\0x\0\0"),
        Err(DecodeError::UnknownKind { what: "replica identity", byte: b'x' })
    );
}

#[test]
fn an_empty_namespace_is_pg_catalog() {
    let int4 =
        Type { oid: 16406, namespace: Text::from_static("pg_catalog"), name: Text::from_static("int4") };
    assert_eq!(decode(b"Y\0\0\x40\x16\0int4\0"), Ok(Message::Type(int4)));
}

#[test]
fn an_insert_is_decoded_with_every_kind_of_column() {
    let body = b"I\0\0\x40\0N\0\x05nut\0\0\0\x02{}t\0\0\0\0b\0\0\0\x03\x00\xFF\x01";
    let tuple = Tuple(vec![
        Column::Null,
        Column::UnchangedToast,
        text("{}"),
        text(""),
        Column::Binary(Bytes::from_static(b"\x00\xFF\x01")),
    ]);
    assert_eq!(decode(body), Ok(Message::Insert(Insert { relation_oid: 16384, tuple })));
}

#[test]
fn an_update_is_decoded_with_and_without_its_old_row() {
    let update = |old| Update { relation_oid: 9, old, new: Tuple(vec![text("a")]) };
    for (body, old) in [
        (b"U\0\0\0\x09N\0\x01t\0\0\0\x01a".as_slice(), None),
        (b"U\0\0\0\x09K\0\x01nN\0\x01t\0\0\0\x01a", Some(OldTuple::Key(Tuple(vec![Column::Null])))),
        (b"U\0\0\0\x09O\0\x01t\0\0\0\x01bN\0\x01t\0\0\0\x01a", Some(OldTuple::Full(Tuple(vec![text("b")])))),
    ] {
        assert_eq!(decode(body), Ok(Message::Update(update(old))));
    }
}

#[test]
fn a_delete_is_decoded_with_its_key_or_its_row() {
    let delete = |old| Message::Delete(Delete { relation_oid: 9, old });
    let row = || Tuple(vec![text("a")]);
    assert_eq!(decode(b"D\0\0\0\x09K\0\x01t\0\0\0\x01a"), Ok(delete(OldTuple::Key(row()))));
    assert_eq!(decode(b"D\0\0\0\x09O\0\x01t\0\0\0\x01a"), Ok(delete(OldTuple::Full(row()))));
}

#[test]
fn a_truncate_is_decoded() {
    let truncate = Truncate { options: 3, relation_oids: vec![7, 8] };
    assert_eq!(decode(b"T\0\0\0\x02\x03\0\0\0\x07\0\0\0\x08"), Ok(Message::Truncate(truncate)));
}

#[test]
fn a_logical_message_is_decoded() {
    let message = LogicalMessage {
        flags: 1,
        lsn: Lsn(0xAB),
        prefix: Text::from_static("outbox"),
        content: Bytes::from_static(b"\x00\xFF"),
    };
    assert_eq!(decode(b"M\x01\0\0\0\0\0\0\0\xABoutbox\0\0\0\0\x02\x00\xFF"), Ok(Message::Message(message)));
}

#[test]
fn a_column_is_a_slice_of_its_message() {
    let body = Bytes::from_static(b"I\0\0\x40\0N\0\x01t\0\0\0\x02{}");
    let Ok(Message::Insert(insert)) = Message::decode(body.clone()) else { panic!("not an insert") };
    let Some(Column::Text(value)) = insert.tuple.get(0) else { panic!("not a text") };
    assert!(body.as_ptr_range().contains(&value.as_ptr()));
    assert_eq!((insert.tuple.len(), insert.tuple.get(1)), (1, None));
}

#[test]
fn a_count_or_length_that_lies_is_refused_before_anything_is_reserved() {
    for (body, what) in [
        (b"I\0\0\0\x01N\xFF\xFFnnnn".as_slice(), "column count"),
        (b"R\0\0\0\x01\0t\0d\xFF\xFF\0a\0\0\0\0\x17\xFF\xFF\xFF\xFF", "column count"),
        (b"T\xFF\xFF\xFF\xFF\0\0\0\0\x01", "relation count"),
        (b"I\0\0\0\x01N\0\x01t\xFF\xFF\xFF\xFFabc", "column value"),
        (b"I\0\0\0\x01N\0\x01b\x7F\xFF\xFF\xFFabc", "column value"),
        (b"M\0\0\0\0\0\0\0\0\0p\0\x80\0\0\0abc", "message content"),
    ] {
        assert_eq!(decode(body), Err(DecodeError::Truncated(what)));
    }
}

#[test]
fn what_is_not_a_message_is_an_error_that_says_why() {
    for (body, expected) in [
        (b"".as_slice(), "the message ends within its tag"),
        (b"Z", "unknown message 'Z'"),
        // Streamed transactions belong to protocol 2, prepared ones to 3.
        (b"S\0\0\0\x01\x01", "unknown message 'S'"),
        (b"\xFF", "unknown message 'ÿ'"),
        (b"T\0\0\0\0\0!!", "2 bytes follow the end of Truncate"),
        (b"O\0\0\0\0\0\0\0\xABno end", "the message ends within its origin name"),
        (b"O\0\0\0\0\0\0\0\xAB\xFF\0", "the origin name is not UTF-8"),
        (b"I\0\0\0\x01K\0\0", "unknown tuple kind 'K'"),
        (b"D\0\0\0\x01N\0\0", "unknown tuple kind 'N'"),
        (b"U\0\0\0\x01K\0\0K\0\0", "unknown tuple kind 'K'"),
        (b"I\0\0\0\x01N\0\x01x", "unknown column kind 'x'"),
    ] {
        assert_eq!(decode(body).map_err(|error| error.to_string()), Err(expected.to_owned()));
    }
}

/// Writes `tuple` as Postgres does: an independent way back for the properties below.
fn put_tuple(body: &mut BytesMut, tuple: &Tuple) {
    body.put_u16(u16::try_from(tuple.len()).unwrap());
    for column in tuple.iter() {
        let (kind, value) = match column {
            Column::Null => (b'n', None),
            Column::UnchangedToast => (b'u', None),
            Column::Text(value) => (b't', Some(value)),
            Column::Binary(value) => (b'b', Some(value)),
        };
        body.put_u8(kind);
        if let Some(value) = value {
            body.put_u32(u32::try_from(value.len()).unwrap());
            body.put_slice(value);
        }
    }
}

fn column() -> impl Strategy<Value = Column> {
    prop_oneof![
        Just(Column::Null),
        Just(Column::UnchangedToast),
        vec(any::<u8>(), 0..40).prop_map(|value| Column::Text(value.into())),
        vec(any::<u8>(), 0..40).prop_map(|value| Column::Binary(value.into())),
    ]
}

proptest! {
    #[test]
    fn every_row_that_is_written_is_read_back(
        relation_oid: u32,
        old in vec(column(), 0..20),
        new in vec(column(), 0..20),
    ) {
        let (old, new) = (Tuple(old), Tuple(new));
        let mut body = BytesMut::new();
        body.put_u8(b'U');
        body.put_u32(relation_oid);
        body.put_u8(b'O');
        put_tuple(&mut body, &old);
        body.put_u8(b'N');
        put_tuple(&mut body, &new);
        let update = Update { relation_oid, old: Some(OldTuple::Full(old)), new };
        prop_assert_eq!(Message::decode(body.freeze()), Ok(Message::Update(update)));
    }

    #[test]
    fn random_bytes_never_panic(
        tag in prop::sample::select(b"BCORYIUDTM".as_slice()),
        rest in vec(any::<u8>(), 0..200),
    ) {
        let mut body = vec![tag];
        body.extend(rest);
        let _ = decode(&body);
    }
}
