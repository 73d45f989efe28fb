//! From configuration and columns to events, by value and by property.

use super::*;
use crate::outbox::{ColumnNames, Mapping, PresetChoice, Reason, Settings, subject};
use proptest::prelude::*;

const ARTICLE: &[&str] = &["id", "event_type", "payload", "created_at", "processed"];
const DEBEZIUM: &[&str] = &["id", "aggregatetype", "aggregateid", "type", "payload"];
const OPEN_OUTBOX: &[&str] =
    &["event_id", "event_type", "partition_key", "payload", "headers", "available_at", "created_at"];

/// Columns by name; `payload` and `headers` are jsonb.
fn columns<'a>(names: &[&'a str]) -> Vec<ColumnInfo<'a>> {
    let kind = |name| if matches!(name, "payload" | "headers") { Kind::Json } else { Kind::Other };
    names.iter().map(|name| ColumnInfo { name, kind: kind(*name) }).collect()
}

fn settings(preset: PresetChoice) -> Settings {
    Settings { preset, ..Settings::default() }
}

fn resolve(settings: &Settings, names: &[&str]) -> Result<Resolved, Failure> {
    Mapping::new(settings)?.resolve(&columns(names))
}

fn table(settings: &Settings, columns: &[ColumnInfo<'_>]) -> Table {
    Mapping::new(settings).unwrap().resolve(columns).unwrap().bind(columns).unwrap()
}

fn event(table: &Table, row: &[Option<&str>]) -> Result<Event, Poison> {
    let row: Vec<_> = row.iter().map(|cell| cell.map(|text| Bytes::from(text.to_owned()))).collect();
    table.event(|index| row.get(index)?.as_ref())
}

fn headers_of(event: &Event) -> Vec<(String, String)> {
    event.headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn header(event: &Event, wanted: &str) -> Option<String> {
    let all = headers_of(event);
    assert!(all.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).count() <= 1, "{all:?}");
    all.into_iter().find(|(name, _)| name == wanted).map(|(_, value)| value)
}

/// `preset = columns` over `id`, `payload` and the given names of further columns.
fn with_columns(named: ColumnNames) -> Settings {
    Settings {
        preset: PresetChoice::Columns,
        columns: named,
        subject: Some("outbox.all".into()),
        ..Settings::default()
    }
}

fn name(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[test]
fn an_article_row_becomes_its_event() {
    let table = table(&Settings::default(), &columns(ARTICLE));
    let row = [Some("17"), Some("order.created"), Some("{\"a\": 1.50}"), Some("2026-11-23"), Some("f")];
    assert_eq!(event(&table, &row).unwrap_err().reason.as_str(), "bad_subject");

    let row = [Some("17"), Some("order_created"), Some("{\"a\": 1.50}"), Some("2026-11-23"), Some("f")];
    let event = event(&table, &row).unwrap();
    assert_eq!(table.preset(), Preset::Article);
    assert_eq!(&*event.id, "17");
    assert_eq!(&*event.subject, "outbox.order_created");
    assert_eq!(event.payload, "{\"a\": 1.50}");
    let expected = [
        ("Postrider-Event-Id", "17"),
        ("Postrider-Event-Type", "order_created"),
        ("Content-Type", "application/json"),
    ];
    assert_eq!(headers_of(&event), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn a_debezium_row_becomes_its_event() {
    let table = table(&Settings::default(), &columns(DEBEZIUM));
    let row = [Some("e1"), Some("order"), Some("o-9"), Some("OrderCreated"), Some("{}")];
    let event = event(&table, &row).unwrap();
    assert_eq!(table.preset(), Preset::Debezium);
    assert_eq!(&*event.subject, "outbox.event.order");
    assert_eq!(header(&event, "Postrider-Event-Type").as_deref(), Some("OrderCreated"));
    assert_eq!(header(&event, "Postrider-Key").as_deref(), Some("o-9"));
}

#[test]
fn an_open_outbox_row_becomes_its_event() {
    let table = table(&Settings::default(), &columns(OPEN_OUTBOX));
    let row = [Some("e1"), Some("created"), Some("k"), Some("{}"), Some("{\"x\": 1}"), None, None];
    let event = event(&table, &row).unwrap();
    assert_eq!(table.preset(), Preset::OpenOutbox);
    assert_eq!(&*event.subject, "outbox.created");
    assert_eq!(header(&event, "Postrider-Key").as_deref(), Some("k"));
    assert_eq!(header(&event, "x").as_deref(), Some("1"));
}

#[test]
fn the_preset_columns_reads_only_what_is_named() {
    let settings = Settings { subject: Some("o.{topic}".into()), ..with_columns(ColumnNames::default()) };
    let table = table(&settings, &columns(&["topic", "id", "payload", "event_type"]));
    let event = event(&table, &[Some("t"), Some("1"), Some("{}"), Some("x")]).unwrap();
    assert_eq!(&*event.subject, "o.t");
    assert_eq!(header(&event, "Postrider-Event-Type"), None);
}

#[test]
fn the_preset_columns_needs_a_subject() {
    let failure = Mapping::new(&settings(PresetChoice::Columns)).unwrap_err();
    assert_eq!(failure.code, Code::MissingValue);
}

#[test]
fn a_wrong_template_is_found_without_a_table() {
    let settings = Settings { subject: Some("a..b".into()), ..Settings::default() };
    assert_eq!(Mapping::new(&settings).unwrap_err().code, Code::BadTemplate);
}

#[test]
fn overrides_replace_the_presets_names_also_in_its_subject() {
    let overrides = ColumnNames { id: name("no"), event_type: name("Kind"), ..ColumnNames::default() };
    let settings = Settings { columns: overrides, ..Settings::default() };
    let table = table(&settings, &columns(&["no", "Kind", "payload", "created_at", "processed"]));
    let event = event(&table, &[Some("1"), Some("paid"), Some("{}"), None, None]).unwrap();
    assert_eq!((table.preset(), &*event.id, &*event.subject), (Preset::Article, "1", "outbox.paid"));
}

#[test]
fn auto_does_not_mind_extra_columns() {
    let resolved = resolve(
        &Settings::default(),
        &["note", "processed", "created_at", "payload", "event_type", "id", "tenant"],
    );
    assert_eq!(resolved.unwrap().preset(), Preset::Article);
}

#[test]
fn auto_tells_for_each_preset_what_is_missing() {
    let failure = resolve(&Settings::default(), &["id", "event_type", "payload"]).unwrap_err();
    assert_eq!(failure.code, Code::PresetUnclear);
    for part in [
        "`article` it lacks created_at, processed;",
        "`debezium` it lacks type, aggregateid, aggregatetype;",
        "`open-outbox` it lacks event_id, partition_key, headers, created_at, available_at",
    ] {
        assert!(failure.message.contains(part), "{failure}");
    }
    assert!(failure.remedy.contains("outbox.preset = \"article\""), "{failure}");
}

#[test]
fn auto_refuses_a_table_that_fits_several_presets() {
    let both = [ARTICLE, DEBEZIUM].concat();
    let failure = resolve(&Settings::default(), &both).unwrap_err();
    assert_eq!(failure.code, Code::PresetUnclear);
    assert!(failure.message.contains("\"article\", \"debezium\""), "{failure}");
    assert!(
        failure.remedy.contains("outbox.preset = \"article\" or outbox.preset = \"debezium\""),
        "{failure}"
    );
}

#[test]
fn auto_wants_the_columns_that_overrides_name() {
    let overrides = ColumnNames { headers: name("meta"), ..ColumnNames::default() };
    let settings = Settings { columns: overrides, ..Settings::default() };
    let failure = resolve(&settings, ARTICLE).unwrap_err();
    assert!(failure.message.contains("`article` it lacks meta;"), "{failure}");
}

#[test]
fn a_chosen_preset_needs_only_the_columns_that_are_read() {
    let names = columns(&["id", "event_type", "payload"]);
    assert_eq!(table(&settings(PresetChoice::Article), &names).preset(), Preset::Article);
    let settings = Settings { subject: Some("o.{type}".into()), ..settings(PresetChoice::Debezium) };
    let names = columns(&["id", "type", "aggregateid", "payload"]);
    assert_eq!(table(&settings, &names).preset(), Preset::Debezium);
}

#[test]
fn a_missing_column_is_named_with_its_key() {
    let overrides = ColumnNames { key: name("customer"), ..ColumnNames::default() };
    let settings = Settings {
        columns: overrides,
        subject: Some("o.{region}.{event_type}".into()),
        ..settings(PresetChoice::Article)
    };
    let names = columns(&["id", "kind", "payload"]);
    let resolved = Mapping::new(&settings).unwrap().resolve(&names).unwrap();
    let failure = resolved.bind(&names).unwrap_err();
    assert_eq!(failure.code, Code::ColumnsMissing);
    assert_eq!(
        failure.message,
        "the outbox table lacks `event_type` (outbox.type), `customer` (outbox.key), `region` \
         (outbox.subject); it has id, kind, payload"
    );
    assert!(failure.remedy.contains("outbox.type, outbox.key, outbox.subject"), "{failure}");
}

#[test]
fn the_preset_stays_when_the_columns_that_told_it_are_dropped() {
    let resolved = resolve(&Settings::default(), ARTICLE).unwrap();
    let table = resolved.bind(&columns(&["payload", "new", "event_type", "id"])).unwrap();
    let event = event(&table, &[Some("{}"), Some("x"), Some("created"), Some("5")]).unwrap();
    assert_eq!((table.preset(), &*event.id, &*event.subject), (Preset::Article, "5", "outbox.created"));
}

#[test]
fn a_column_that_vanishes_while_running_is_named() {
    let resolved = resolve(&Settings::default(), ARTICLE).unwrap();
    let failure = resolved.bind(&columns(&["id", "event_type", "body"])).unwrap_err();
    assert_eq!(failure.code, Code::ColumnsMissing);
    assert!(failure.message.contains("`payload` (outbox.payload)"), "{failure}");
}

#[test]
fn null_payload_is_an_empty_body_with_a_header() {
    let table = table(&Settings::default(), &columns(ARTICLE));
    let event = event(&table, &[Some("1"), Some("a"), None, None, None]).unwrap();
    assert!(event.payload.is_empty());
    assert_eq!(header(&event, "Postrider-Null").as_deref(), Some("true"));
    assert_eq!(header(&event, "Content-Type").as_deref(), Some("application/json"));
}

#[test]
fn an_empty_payload_and_jsons_null_are_not_null() {
    let table = table(&Settings::default(), &columns(ARTICLE));
    for payload in ["", "null"] {
        let event = event(&table, &[Some("1"), Some("a"), Some(payload), None, None]).unwrap();
        assert_eq!(event.payload, payload);
        assert_eq!(header(&event, "Postrider-Null"), None);
    }
}

#[test]
fn a_bytea_payload_is_sent_raw_and_without_content_type() {
    let columns =
        [ColumnInfo { name: "id", kind: Kind::Other }, ColumnInfo { name: "payload", kind: Kind::Bytea }];
    let table = table(&with_columns(ColumnNames::default()), &columns);
    for (text, bytes) in [("\\x", &b""[..]), ("\\x00fF61", b"\x00\xffa")] {
        let event = event(&table, &[Some("1"), Some(text)]).unwrap();
        assert_eq!(event.payload, bytes);
        assert_eq!(header(&event, "Content-Type"), None);
    }
    for text in ["", "\\", "x00", "\\x0", "\\x0g", "\\000a"] {
        let poison = event(&table, &[Some("1"), Some(text)]).unwrap_err();
        assert_eq!(poison.reason, Reason::Refused, "{text}");
    }
}

#[test]
fn a_null_id_or_type_is_poison_of_its_own() {
    let table = table(&Settings::default(), &columns(ARTICLE));
    let poison = event(&table, &[None, Some("a"), Some("{}"), None, None]).unwrap_err();
    assert_eq!(poison.reason.as_str(), "null_id");
    let poison = event(&table, &[Some("1"), None, Some("{}"), None, None]).unwrap_err();
    assert_eq!(poison.reason.as_str(), "null_type");
}

#[test]
fn a_null_in_the_subject_is_a_bad_subject() {
    let table = table(&Settings::default(), &columns(DEBEZIUM));
    let poison = event(&table, &[Some("1"), None, Some("k"), Some("t"), Some("{}")]).unwrap_err();
    assert_eq!(poison.reason.as_str(), "bad_subject");
    assert!(poison.message.contains("event \"1\": column `aggregatetype` is null"), "{poison}");
}

#[test]
fn an_optional_null_is_no_header_and_an_empty_text_is_an_empty_one() {
    let table = table(&Settings::default(), &columns(DEBEZIUM));
    let no_key = event(&table, &[Some("1"), Some("o"), None, Some("t"), Some("{}")]).unwrap();
    assert_eq!(header(&no_key, "Postrider-Key"), None);
    let empty = event(&table, &[Some(""), Some("o"), Some(""), Some("t"), Some("{}")]).unwrap();
    assert_eq!(header(&empty, "Postrider-Key").as_deref(), Some(""));
    assert_eq!(header(&empty, "Postrider-Event-Id").as_deref(), Some(""));
}

#[test]
fn a_control_character_in_a_header_column_is_a_bad_header() {
    let table = table(&Settings::default(), &columns(DEBEZIUM));
    for row in [
        [Some("1\r\nNats-Rollup: all"), Some("o"), Some("k"), Some("t"), None],
        [Some("1"), Some("o"), Some("k\n"), Some("t"), None],
        [Some("1"), Some("o"), Some("k"), Some("t\0"), None],
    ] {
        assert_eq!(event(&table, &row).unwrap_err().reason.as_str(), "bad_header", "{row:?}");
    }
}

#[test]
fn the_message_id_is_sent_only_when_asked_for() {
    let row = [Some("7"), Some("a"), None, None, None];
    let without = event(&table(&Settings::default(), &columns(ARTICLE)), &row).unwrap();
    assert_eq!(header(&without, "Nats-Msg-Id"), None);
    let settings = Settings { msg_id: true, ..Settings::default() };
    let with = event(&table(&settings, &columns(ARTICLE)), &row).unwrap();
    assert_eq!(header(&with, "Nats-Msg-Id").as_deref(), Some("7"));
}

/// The values of Content-Type, traceparent and tracestate.
fn of_both_sources(headers: &str, columns_values: Option<&str>) -> [Option<String>; 3] {
    let named = ColumnNames {
        headers: name("headers"),
        content_type: name("ct"),
        traceparent: name("tp"),
        tracestate: name("ts"),
        ..ColumnNames::default()
    };
    let table = table(&with_columns(named), &columns(&["id", "payload", "headers", "ct", "tp", "ts"]));
    let row = [Some("1"), Some("{}"), Some(headers), columns_values, columns_values, columns_values];
    let event = event(&table, &row).unwrap();
    ["Content-Type", "traceparent", "tracestate"].map(|name| header(&event, name))
}

#[test]
fn a_column_goes_before_an_entry_and_an_entry_before_the_type() {
    let entries = r#"{"content-type": "e", "TraceParent": "e", "tracestate": "e"}"#;
    let all = |value: &str| [name(value), name(value), name(value)];
    assert_eq!(of_both_sources(entries, Some("c")), all("c"));
    assert_eq!(of_both_sources(entries, None), all("e"));
    assert_eq!(of_both_sources("{}", None), [name("application/json"), None, None]);
}

#[test]
fn every_optional_column_has_its_header() {
    let named = ColumnNames { schema_version: name("v"), key: name("k"), ..ColumnNames::default() };
    let table = table(&with_columns(named), &columns(&["id", "payload", "v", "k"]));
    let event = event(&table, &[Some("1"), Some("{}"), Some("2"), Some("key")]).unwrap();
    assert_eq!(header(&event, "Postrider-Schema-Version").as_deref(), Some("2"));
    assert_eq!(header(&event, "Postrider-Key").as_deref(), Some("key"));
}

#[test]
fn a_payload_shares_the_frame_that_brought_it() {
    let table = table(&Settings::default(), &columns(ARTICLE));
    let payload = Bytes::from(vec![b'1'; 64]);
    let (id, event_type) = (Bytes::from_static(b"1"), Bytes::from_static(b"a"));
    let row = [Some(&id), Some(&event_type), Some(&payload), None, None];
    let event = table.event(|index| row.get(index).copied().flatten()).unwrap();
    assert_eq!(event.payload.as_ptr(), payload.as_ptr());
}

#[test]
fn cloudevents_are_the_row_s_and_an_entry_beside_them_is_reserved() {
    let settings = Settings { cloudevents: true, ..Settings::default() };
    let table = table(&settings, &columns(OPEN_OUTBOX));
    let of = |headers| {
        event(&table, &[Some("a b"), Some("paid"), Some("é"), Some("{}"), Some(headers), None, None])
    };
    let paid = of(r#"{"ce-tenant": "t"}"#).unwrap();
    for (name, value) in [
        ("ce-id", "a%20b"),
        ("ce-type", "paid"),
        ("ce-subject", "%C3%A9"),
        ("ce-datacontenttype", "application/json"),
        ("ce-tenant", "t"),
    ] {
        assert_eq!(header(&paid, name).as_deref(), Some(value), "{name}");
    }
    for headers in [r#"{"ce-id": "x"}"#, r#"{"CE-Source": "x"}"#, r#"{"ce-time": "x"}"#] {
        assert_eq!(of(headers).unwrap_err().reason, Reason::ReservedHeader, "{headers}");
    }
    let empty = |id, key| event(&table, &[Some(id), Some("paid"), Some(key), Some("{}"), None, None, None]);
    assert_eq!(empty("", "k").unwrap_err().reason, Reason::NullId);
    assert_eq!(header(&empty("1", "").unwrap(), "ce-subject"), None);
}

#[test]
fn schemas_need_a_column_of_types() {
    let mapping = Mapping::new(&with_columns(ColumnNames::default())).unwrap();
    let schemas = Schemas::compile(Vec::new()).unwrap();
    let failure = mapping.validated(Arc::new(schemas)).resolve(&columns(&["id", "payload"])).unwrap_err();
    assert_eq!(failure.code, Code::MissingValue);
}

fn cell() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::weighted(
        0.9,
        prop_oneof![
            "[a-c.]{0,3}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..8),
            r#"\{("[a-cN:-]{0,2}": ?("x\\u00[0-9]a"|-?[0-9.]{1,3}|null|true|\[\]),?){0,2}\}"#
                .prop_map(String::into_bytes),
            r"\\x[0-9a-g]{0,4}".prop_map(String::into_bytes),
        ],
    )
}

proptest! {
    #[test]
    fn no_row_makes_the_mapping_panic(row in prop::collection::vec(cell(), 0..7), bytea: bool) {
        let mut columns = columns(OPEN_OUTBOX);
        columns[3].kind = if bytea { Kind::Bytea } else { Kind::Json };
        let settings = Settings { subject: Some("o.{partition_key:bucket(3)}.{event_type:tokens}".into()), msg_id: true, ..Settings::default() };
        let row: Vec<_> = row.into_iter().map(|cell| cell.map(Bytes::from)).collect();
        let table = table(&settings, &columns);
        let event = || table.event(|index| row.get(index)?.as_ref());
        prop_assert_eq!(event(), event());
        if let Ok(event) = event() {
            prop_assert_eq!(subject::tokens_fault(&event.subject), None);
            for (name, value) in headers_of(&event) {
                prop_assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'));
                prop_assert!(!value.contains(char::is_control));
            }
        }
    }
}
