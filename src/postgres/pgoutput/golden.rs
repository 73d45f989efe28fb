//! What Postgres 14 to 18 really send (`tests/golden`), each message with what it says as a decoder
//! in another language understood it.

#![allow(clippy::indexing_slicing, reason = "a test that indexes wrongly fails, as it should")]

use super::*;
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::LazyLock;

const VERSIONS: [u32; 5] = [14, 15, 16, 17, 18];

struct Golden {
    version: u32,
    body: Bytes,
    text: String,
}

static GOLDEN: LazyLock<Vec<Golden>> = LazyLock::new(|| VERSIONS.into_iter().flat_map(read).collect());

fn read(version: u32) -> Vec<Golden> {
    let path = format!("{}/tests/golden/pgoutput-{version}.txt", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::read_to_string(path).unwrap();
    let messages = file.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (hex, text) = line.split_once('\t').unwrap();
        Golden { version, body: unhex(hex).into(), text: text.to_owned() }
    });
    messages.collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).unwrap().try_into().unwrap()).collect();
    digits.as_chunks().0.iter().map(|[high, low]| high << 4 | low).collect()
}

/// The message in the words of `tests/golden/record.py`.
fn render(message: &Message) -> String {
    match message {
        Message::Begin(Begin { final_lsn, commit_time, xid }) => {
            format!("Begin final={final_lsn} time={commit_time} xid={xid}")
        }
        Message::Commit(Commit { flags, commit_lsn, end_lsn, commit_time }) => {
            format!("Commit flags={flags} commit={commit_lsn} end={end_lsn} time={commit_time}")
        }
        Message::Origin(Origin { commit_lsn, name }) => {
            format!("Origin commit={commit_lsn} name={}", quoted(name.bytes()))
        }
        Message::Relation(relation) => {
            let Relation { oid, namespace, name, replica_identity, columns } = relation;
            let identity = match replica_identity {
                ReplicaIdentity::Default => "default",
                ReplicaIdentity::Nothing => "nothing",
                ReplicaIdentity::Full => "full",
                ReplicaIdentity::Index => "index",
            };
            let columns = listed(columns.iter().map(|column| {
                let RelationColumn { flags, name, type_oid, type_modifier } = column;
                format!("{flags} {} {type_oid} {type_modifier}", quoted(name.bytes()))
            }));
            let (namespace, name) = (quoted(namespace.bytes()), quoted(name.bytes()));
            format!("Relation oid={oid} name={namespace}.{name} identity={identity} columns={columns}")
        }
        Message::Type(Type { oid, namespace, name }) => {
            format!("Type oid={oid} name={}.{}", quoted(namespace.bytes()), quoted(name.bytes()))
        }
        Message::Insert(Insert { relation_oid, tuple }) => {
            format!("Insert relation={relation_oid} new={}", row(tuple))
        }
        Message::Update(Update { relation_oid, old, new }) => {
            let old = old.as_ref().map(|old| old_row(old) + " ").unwrap_or_default();
            format!("Update relation={relation_oid} {old}new={}", row(new))
        }
        Message::Delete(Delete { relation_oid, old }) => {
            format!("Delete relation={relation_oid} {}", old_row(old))
        }
        Message::Truncate(Truncate { options, relation_oids }) => {
            let relations = listed(relation_oids.iter().map(u32::to_string));
            format!("Truncate options={options} relations={relations}")
        }
        Message::Message(LogicalMessage { flags, lsn, prefix, content }) => {
            let (prefix, content) = (quoted(prefix.bytes()), quoted(content));
            format!("Message flags={flags} lsn={lsn} prefix={prefix} content={content}")
        }
    }
}

fn old_row(old: &OldTuple) -> String {
    match old {
        OldTuple::Key(tuple) => format!("key={}", row(tuple)),
        OldTuple::Full(tuple) => format!("full={}", row(tuple)),
    }
}

fn row(tuple: &Tuple) -> String {
    listed(tuple.iter().map(|column| match column {
        Column::Null => "null".to_owned(),
        Column::UnchangedToast => "unchanged".to_owned(),
        Column::Text(value) => format!("text {}", quoted(value)),
        Column::Binary(value) => format!("binary {}", quoted(value)),
    }))
}

fn listed(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for &byte in bytes {
        match byte {
            b'"' | b'\\' | ..0x20 | 0x7F.. => write!(text, "\\x{byte:02x}").unwrap(),
            plain => text.push(char::from(plain)),
        }
    }
    text + "\""
}

#[test]
fn every_recorded_message_says_what_the_other_decoder_understood() {
    for Golden { version, body, text } in GOLDEN.iter() {
        let message = Message::decode(body.clone());
        assert_eq!(message.as_ref().map(render), Ok(text.clone()), "Postgres {version}");
    }
}

#[test]
fn every_version_is_recorded_with_every_kind_of_message_and_column() {
    for version in VERSIONS {
        let texts = || GOLDEN.iter().filter(|golden| golden.version == version).map(|golden| &golden.text);
        let kinds: BTreeSet<&str> = texts().filter_map(|text| text.split(' ').next()).collect();
        let all = "Begin Commit Delete Insert Message Origin Relation Truncate Type Update";
        assert_eq!(kinds, all.split(' ').collect(), "Postgres {version}");
        for part in ["null", "unchanged", "text \"", "binary \"", "key=[", "full=["] {
            assert!(texts().any(|text| text.contains(part)), "Postgres {version}: {part}");
        }
    }
}

#[test]
fn what_was_rolled_back_is_in_no_recording() {
    assert!(GOLDEN.iter().all(|golden| !golden.text.contains("rolled back")));
}

#[test]
fn only_14_sends_transactions_without_a_published_row() {
    let is = |golden: &Golden, kind| golden.text.starts_with(kind);
    let mut versions: Vec<u32> = GOLDEN
        .windows(2)
        .filter_map(|pair| match pair {
            [begin, commit] if is(begin, "Begin") && is(commit, "Commit") => Some(begin.version),
            _ => None,
        })
        .collect();
    versions.dedup();
    assert_eq!(versions, [14]);
}

#[test]
fn every_strict_prefix_of_a_recorded_message_is_an_error() {
    for Golden { version, body, text } in GOLDEN.iter() {
        for len in 0..body.len() {
            let prefix = Message::decode(body.slice(..len));
            assert!(prefix.is_err(), "Postgres {version}: the first {len} bytes of {text}");
        }
    }
}

#[test]
fn a_byte_after_a_recorded_message_is_an_error() {
    for Golden { version, body, text } in GOLDEN.iter() {
        let longer = Message::decode([body, b"\0".as_slice()].concat().into());
        assert!(matches!(longer, Err(DecodeError::Trailing { bytes: 1, .. })), "Postgres {version}: {text}");
    }
}

#[test]
fn no_single_bit_flip_of_a_recorded_message_panics() {
    for Golden { body, .. } in GOLDEN.iter() {
        let mut flipped = body.to_vec();
        for at in 0..flipped.len() {
            for bit in 0..8 {
                flipped[at] ^= 1 << bit;
                let _ = Message::decode(Bytes::copy_from_slice(&flipped));
                flipped[at] ^= 1 << bit;
            }
        }
    }
}

/// How many items and bytes a message holds, both of which its body must have paid for.
fn size(message: &Message) -> (usize, usize) {
    let tuple = |tuple: &Tuple| {
        let bytes = tuple.iter().map(|column| match column {
            Column::Text(value) | Column::Binary(value) => value.len(),
            Column::Null | Column::UnchangedToast => 0,
        });
        (tuple.0.capacity(), bytes.sum())
    };
    let old = |old: &OldTuple| match old {
        OldTuple::Key(row) | OldTuple::Full(row) => tuple(row),
    };
    match message {
        Message::Insert(insert) => tuple(&insert.tuple),
        Message::Delete(delete) => old(&delete.old),
        Message::Update(update) => {
            let (before, after) = (update.old.as_ref().map(old).unwrap_or_default(), tuple(&update.new));
            (before.0 + after.0, before.1 + after.1)
        }
        Message::Relation(relation) => {
            let names = relation.columns.iter().map(|column| column.name.len()).sum();
            (relation.columns.capacity(), names)
        }
        Message::Truncate(truncate) => (truncate.relation_oids.capacity(), 0),
        Message::Message(message) => (0, message.content.len()),
        Message::Begin(_) | Message::Commit(_) | Message::Origin(_) | Message::Type(_) => (0, 0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_mutated_message_never_panics_and_never_holds_more_than_its_bytes(
        index in any::<prop::sample::Index>(),
        edits in vec((any::<prop::sample::Index>(), 0..3u8, any::<u8>()), 1..6),
    ) {
        let mut body = index.get(&GOLDEN).body.to_vec();
        for (at, edit, byte) in edits {
            let at = at.index(body.len().max(1));
            match edit {
                0 if at < body.len() => body[at] = byte,
                1 if at < body.len() => drop(body.remove(at)),
                _ => body.insert(at, byte),
            }
        }
        let len = body.len();
        if let Ok(message) = Message::decode(body.into()) {
            let (items, bytes) = size(&message);
            prop_assert!(items + bytes <= len, "{len} bytes became {message:?}");
        }
    }
}
