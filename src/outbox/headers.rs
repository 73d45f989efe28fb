//! The names and values of headers that a row determines, and the headers column.
//!
//! A header is sent where its column is not null. An empty text is a value and is sent as one: the
//! server and the clients read `Name:` with nothing behind it as an empty value, and a consumer can
//! so tell it from a column that is null. White space around a value is lost to readers, who trim
//! it; it is not worth refusing an event.
//!
//! Besides names that are the application's to leave alone, a header must not *hold* the name of
//! one that steers JetStream. Servers before 2.11.11 and 2.12.2 find a header by the first
//! occurrence of its name anywhere in the block and give up if that is not at the beginning of a
//! line: `Postrider-Key: Nats-Expected-Last-Sequence` would switch off the check that makes a
//! publish safe.

use super::poison::{Poison, Reason, excerpt};
use crate::postgres::text::Text;
use async_nats::HeaderName;
use bytes::Bytes;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;

pub(crate) static EVENT_ID: HeaderName = HeaderName::from_static("Postrider-Event-Id");
pub(crate) static EVENT_TYPE: HeaderName = HeaderName::from_static("Postrider-Event-Type");
pub(crate) static KEY: HeaderName = HeaderName::from_static("Postrider-Key");
pub(super) static SCHEMA_VERSION: HeaderName = HeaderName::from_static("Postrider-Schema-Version");
pub(crate) static NULL: HeaderName = HeaderName::from_static("Postrider-Null");
pub(crate) static CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");
pub(super) static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Prefixes of names that only Postrider and NATS set.
const RESERVED: [&str; 2] = ["Nats-", "Postrider-"];

/// What the headers column gives. The three that may also have a column of their own stand apart,
/// found in any case, so that they are never sent twice.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) content_type: Option<Text>,
    pub(super) traceparent: Option<Text>,
    pub(super) tracestate: Option<Text>,
    /// Sorted by name.
    pub(super) others: Vec<(HeaderName, Text)>,
}

/// Where a header's value comes from, for messages. Values are not shown: they may be secrets.
#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    Column(&'a str),
    Entry(&'a str, &'a str),
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Column(column) => write!(f, "column `{column}`"),
            Source::Entry(column, name) => write!(f, "entry {} of column `{column}`", excerpt(name)),
        }
    }
}

/// The column's text as a header's value.
pub(super) fn value(column: &str, cell: &Bytes) -> Result<Text, Poison> {
    checked(Source::Column(column), cell.clone())
}

/// The entries of the headers column: a JSON object of strings, numbers, booleans and nulls.
///
/// JSON's own `null` counts as no headers: it is what SQLAlchemy and others write for "none".
pub(super) fn entries(column: &str, cell: &Bytes) -> Result<Entries, Poison> {
    // serde_json's own text would quote the value.
    let not_an_object = |error: serde_json::Error| {
        let (line, at) = (error.line(), error.column());
        Poison::new(
            Reason::BadHeader,
            format!("column `{column}` holds no JSON object (line {line}, column {at})"),
        )
    };
    // A map keeps the last of equal names, as jsonb does, and gives a fixed order.
    let object: Option<BTreeMap<String, &RawValue>> = serde_json::from_slice(cell).map_err(not_an_object)?;

    let mut entries = Entries::default();
    for (name, raw) in object.unwrap_or_default() {
        let source = Source::Entry(column, &name);
        if is_reserved(&name) {
            return Err(Poison::new(Reason::ReservedHeader, format!("{source} has a reserved name")));
        }
        let Some(value) = entry_value(source, cell, raw)? else { continue };
        if name.eq_ignore_ascii_case("Content-Type") {
            entries.content_type = Some(value);
        } else if name.eq_ignore_ascii_case("traceparent") {
            entries.traceparent = Some(value);
        } else if name.eq_ignore_ascii_case("tracestate") {
            entries.tracestate = Some(value);
        } else {
            entries.others.push((entry_name(source, &name)?, value));
        }
    }
    Ok(entries)
}

fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|prefix| starts_with_ignoring_case(name, prefix)) || steers_jetstream(name)
}

fn entry_name(source: Source<'_>, name: &str) -> Result<HeaderName, Poison> {
    // async-nats would send an empty name; readers would break on a line that begins with a colon.
    match HeaderName::try_from(name) {
        Ok(header) if !name.is_empty() => Ok(header),
        _ => Err(Poison::new(
            Reason::BadHeader,
            format!("{source}: a name is visible ASCII without a colon, not empty"),
        )),
    }
}

/// A string's text, a number or boolean as it is written (an `f64` would change it), None for null.
fn entry_value(source: Source<'_>, cell: &Bytes, raw: &RawValue) -> Result<Option<Text>, Poison> {
    let raw = raw.get();
    let text = match raw.as_bytes().first() {
        Some(b'n') => return Ok(None),
        Some(b'{' | b'[') => {
            return Err(Poison::new(
                Reason::BadHeader,
                format!("{source} is neither a string, a number nor a boolean"),
            ));
        }
        Some(b'"') if raw.contains('\\') => match serde_json::from_str::<String>(raw) {
            Ok(text) => Bytes::from(text),
            Err(_) => {
                return Err(Poison::new(Reason::BadHeader, format!("{source} is no valid JSON string")));
            }
        },
        // `raw` was borrowed from the cell, so it can go on as a slice of it.
        _ => cell.slice_ref(raw.trim_matches('"').as_bytes()),
    };
    checked(source, text).map(Some)
}

fn checked(source: Source<'_>, value: Bytes) -> Result<Text, Poison> {
    let Ok(text) = Text::new(value) else {
        return Err(Poison::new(Reason::BadHeader, format!("{source} is not UTF-8")));
    };
    if holds_control(&text) {
        return Err(Poison::new(
            Reason::BadHeader,
            format!("{source} holds a line break or another control character"),
        ));
    }
    if steers_jetstream(&text) {
        return Err(Poison::new(
            Reason::ReservedHeader,
            format!("{source} holds the name of a header of NATS's own"),
        ));
    }
    Ok(text)
}

fn holds_control(text: &str) -> bool {
    if text.is_ascii() {
        text.bytes().any(|byte| byte.is_ascii_control())
    } else {
        text.chars().any(char::is_control)
    }
}

/// Whether it would hide one of the headers that the sender sets; see the module's text.
pub(super) fn steers_jetstream(text: &str) -> bool {
    text.contains("Nats-") && (text.contains("Nats-Expected-") || text.contains("Nats-Msg-Id"))
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others(json: &str) -> Vec<(String, String)> {
        let entries = entries("headers", &Bytes::from(json.to_owned())).unwrap();
        entries.others.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn one(json: &str) -> String {
        let mut all = others(json);
        assert_eq!(all.len(), 1, "{json}");
        all.remove(0).1
    }

    fn reason(json: &str) -> &'static str {
        entries("headers", &Bytes::from(json.to_owned())).unwrap_err().reason.as_str()
    }

    #[test]
    fn strings_go_as_they_are() {
        assert_eq!(one(r#"{"a": "b c"}"#), "b c");
        assert_eq!(one(r#"{"a": ""}"#), "");
        assert_eq!(one(r#"{"a": "\"q\" \\ \u00e9 \/"}"#), "\"q\" \\ é /");
        assert_eq!(one(r#"{"a": "null"}"#), "null");
    }

    #[test]
    fn numbers_and_booleans_go_exactly_as_written() {
        for text in ["1", "-0", "1.50", "1e400", "123456789012345678901234567890", "true", "false"] {
            assert_eq!(one(&format!("{{\"a\": {text} }}")), text);
        }
    }

    #[test]
    fn a_string_that_is_not_escaped_is_not_copied() {
        let cell = Bytes::from_static(br#"{"a": "value"}"#);
        let entries = entries("headers", &cell).unwrap();
        assert!(cell.as_ptr_range().contains(&entries.others[0].1.bytes().as_ptr()));
    }

    #[test]
    fn nulls_are_left_out() {
        assert!(others(r#"{"a": null}"#).is_empty());
        assert!(others("null").is_empty());
        assert!(others("{}").is_empty());
    }

    #[test]
    fn of_equal_names_the_last_wins() {
        assert_eq!(one(r#"{"a": "1", "a": "2"}"#), "2");
        assert!(others(r#"{"a": "1", "a": null}"#).is_empty());
    }

    #[test]
    fn the_order_is_that_of_the_names() {
        let names: Vec<_> = others(r#"{"b": 1, "a": 2, "B": 3}"#).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["B", "a", "b"]);
    }

    #[test]
    fn headers_with_a_column_of_their_own_are_found_in_any_case() {
        let json = r#"{"content-TYPE": "a", "Traceparent": "b", "TRACESTATE": "c"}"#;
        let entries = entries("headers", &Bytes::from_static(json.as_bytes())).unwrap();
        assert_eq!(entries.content_type.as_deref(), Some("a"));
        assert_eq!(entries.traceparent.as_deref(), Some("b"));
        assert_eq!(entries.tracestate.as_deref(), Some("c"));
        assert!(entries.others.is_empty());
    }

    #[test]
    fn anything_but_an_object_of_scalars_is_bad() {
        for json in ["", "[]", "\"a\"", "1", "{", "{\"a\": {}}", "{\"a\": [1]}", "{\"a\": 1} x"] {
            assert_eq!(reason(json), "bad_header", "{json}");
        }
    }

    #[test]
    fn names_and_values_that_a_header_cannot_hold_are_bad() {
        for json in [
            r#"{"": 1}"#,
            r#"{"a b": 1}"#,
            r#"{"a:b": 1}"#,
            r#"{"é": 1}"#,
            r#"{"a\n": 1}"#,
            r#"{"a": "x\r\ny"}"#,
            r#"{"a": "\u0000"}"#,
            r#"{"a": "\u007f"}"#,
            r#"{"a": "\u0085"}"#,
            r#"{"a": "\ud800"}"#,
        ] {
            assert_eq!(reason(json), "bad_header", "{json}");
        }
    }

    #[test]
    fn names_of_nats_and_postrider_are_reserved_in_any_case() {
        for json in
            [r#"{"Nats-TTL": "1s"}"#, r#"{"nats-msg-id": 1}"#, r#"{"POSTRIDER-x": 1}"#, r#"{"Nats-": null}"#]
        {
            assert_eq!(reason(json), "reserved_header", "{json}");
        }
        assert_eq!(others(r#"{"Nats": 1, "Postrider": 2, "X-Nats-TTL": 3}"#).len(), 3);
    }

    #[test]
    fn a_header_that_would_hide_one_of_ours_is_reserved() {
        for json in [
            r#"{"X-Nats-Expected-Last-Sequence": 1}"#,
            r#"{"a": "Nats-Expected-Last-Sequence: 5"}"#,
            r#"{"a": "see Nats-Msg-Id"}"#,
        ] {
            assert_eq!(reason(json), "reserved_header", "{json}");
        }
        assert_eq!(
            value("key", &Bytes::from_static(b"Nats-Msg-Id")).unwrap_err().reason.as_str(),
            "reserved_header"
        );
    }

    #[test]
    fn a_value_is_never_shown_in_a_message() {
        for json in [r#"{"auth": "secret\n"}"#, r#"{"auth": "secret\ud800"}"#, r#""secret""#, r#"["secret"]"#]
        {
            let poison = entries("headers", &Bytes::from_static(json.as_bytes())).unwrap_err();
            assert!(!poison.message.contains("secret"), "{poison}");
        }
    }
}
