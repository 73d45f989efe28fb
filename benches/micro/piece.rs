//! What is measured, on rows of the article's table and of Debezium's outbox.

#![allow(clippy::expect_used, reason = "made-up material is as the pieces want it")]

use bytes::{BufMut, Bytes, BytesMut};
use postrider::delivery::position::Place;
use postrider::nats::answer;
use postrider::nats::envelope::{Envelope, Stamp};
use postrider::outbox::{ColumnInfo, ColumnNames, Event, Kind, Mapping, PresetChoice, Settings, Table};
use postrider::postgres::lsn::Lsn;
use postrider::postgres::pgoutput::{Column, Message, Tuple};
use postrider::postgres::timestamp::Timestamp;
use std::hint::black_box;

/// A piece of the way.
pub(crate) struct Piece {
    pub(crate) name: &'static str,
    pub(crate) work: fn(&mut Material),
}

impl Piece {
    pub(crate) const ALL: [Piece; 6] = [
        Piece { name: "decode_transaction_of_one", work: decode },
        Piece { name: "map_row", work: |material| map(&material.article) },
        Piece { name: "map_row_with_headers_and_key", work: |material| map(&material.debezium) },
        Piece { name: "headers_of_a_transaction_of_one", work: headers },
        Piece { name: "answer", work: |material| drop(black_box(answer::parse(&material.answer))) },
        Piece {
            name: "answer_with_domain",
            work: |material| drop(black_box(answer::parse(&material.domain))),
        },
    ];
}

/// What the pieces work on.
pub(crate) struct Material {
    /// Begin, Insert and Commit.
    transaction: [Bytes; 3],
    article: Row,
    debezium: Row,
    envelope: Envelope,
    out: BytesMut,
    event: Event,
    lsn: u64,
    answer: Vec<u8>,
    domain: Vec<u8>,
}

/// A row, and the shape of its table.
struct Row {
    table: Table,
    tuple: Tuple,
}

impl Material {
    pub(crate) fn new() -> Material {
        let payload = format!(r#"{{"order": 17, "cents": 1999, "note": "{}"}}"#, "x".repeat(200));
        let columns = ["17", "order_created", &payload, "2026-11-18 11:06:40.12345", "f"];
        let article =
            row(PresetChoice::Auto, &["id", "event_type", "payload", "created_at", "processed"], &columns);
        let debezium = row(
            PresetChoice::Auto,
            &["id", "aggregatetype", "aggregateid", "type", "payload", "headers"],
            &[
                "0b5f3c1e-6a53-4a38-9d2c-0a4d3d9b7a11",
                "order",
                "17",
                "OrderCreated",
                &payload,
                r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tenant": "a"}"#,
            ],
        );
        let event = article.event();
        Material {
            transaction: [begin(), insert(&columns), commit()],
            article,
            debezium,
            envelope: Envelope::new("OUTBOX", false),
            out: BytesMut::new(),
            event,
            lsn: 1,
            answer: br#"{"stream":"OUTBOX","seq":1234567}"#.to_vec(),
            domain: br#"{"stream":"OUTBOX","domain":"hub","seq":1234567}"#.to_vec(),
        }
    }
}

impl Row {
    fn event(&self) -> Event {
        let cell = |index| match self.tuple.get(index)? {
            Column::Text(text) => Some(text),
            _ => None,
        };
        self.table.event(cell).expect("an event")
    }
}

fn decode(material: &mut Material) {
    for frame in &material.transaction {
        black_box(Message::decode(frame.clone()).expect("a message"));
    }
}

fn map(row: &Row) {
    black_box(row.event());
}

fn headers(material: &mut Material) {
    material.lsn += 1;
    let stamp = Stamp {
        origin: "7345678901234567890/1/postrider/",
        place: Place { commit_lsn: Lsn(material.lsn), index: 0 },
        commit_time: Timestamp(850_000_000_123_456),
    };
    material.out.clear();
    material.envelope.write(
        &mut material.out,
        1_234_567,
        "_INBOX.0123456789abcdefghijkl.7.",
        &material.event,
        stamp,
    );
    black_box(&material.out);
}

fn row(preset: PresetChoice, names: &[&str], values: &[&str]) -> Row {
    let kind = |name: &str| if matches!(name, "payload" | "headers") { Kind::Json } else { Kind::Other };
    let columns: Vec<_> = names.iter().map(|name| ColumnInfo { name, kind: kind(name) }).collect();
    let settings = Settings {
        preset,
        columns: ColumnNames::default(),
        subject: None,
        msg_id: false,
        cloudevents: false,
    };
    let mapping = Mapping::new(&settings).expect("a mapping");
    let table = mapping.resolve(&columns).expect("a preset").bind(&columns).expect("its columns");
    let Message::Insert(insert) = Message::decode(insert(values)).expect("a message") else {
        unreachable!("an Insert")
    };
    Row { table, tuple: insert.tuple }
}

fn begin() -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(b'B');
    frame.put_u64(0x16_B374_D848);
    frame.put_i64(850_000_000_123_456);
    frame.put_u32(746);
    frame.freeze()
}

fn insert(columns: &[&str]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(b'I');
    frame.put_u32(16_385);
    frame.put_u8(b'N');
    frame.put_u16(u16::try_from(columns.len()).expect("a few columns"));
    for column in columns {
        frame.put_u8(b't');
        frame.put_u32(u32::try_from(column.len()).expect("a short column"));
        frame.put_slice(column.as_bytes());
    }
    frame.freeze()
}

fn commit() -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(b'C');
    frame.put_u8(0);
    frame.put_u64(0x16_B374_D848);
    frame.put_u64(0x16_B374_D878);
    frame.put_i64(850_000_000_123_456);
    frame.freeze()
}
