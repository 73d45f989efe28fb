//! What a dead letter keeps of its row: the parts that a person looks for, and the whole row, from
//! which it can be inserted again.

use super::table::Table;
use bytes::Bytes;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::BTreeMap;

/// The parts of a row that stand in columns of their own; None where the row has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// The id column's text.
    pub event_id: Option<String>,
    /// The type column's text.
    pub event_type: Option<String>,
    /// The key column's text.
    pub key: Option<String>,
    /// The subject, where the template gives a valid one.
    pub subject: Option<String>,
    /// The headers column's text, as JSON.
    pub headers: Option<String>,
    /// The payload, as it would have been the message's body.
    pub payload: Option<Bytes>,
}

impl Table {
    /// The parts of a row, whatever is wrong with it.
    #[must_use]
    pub fn parts<'r>(&self, cell: impl Fn(usize) -> Option<&'r Bytes>) -> Parts {
        let text = |index: Option<usize>| {
            index.and_then(&cell).map(|text| String::from_utf8_lossy(text).into_owned())
        };
        Parts {
            event_id: text(Some(self.id_index())),
            event_type: text(self.type_index()),
            key: text(self.key_index()),
            subject: self.subject_of(&cell).map(|subject| subject.to_string()),
            headers: text(self.headers_index()).map(json_or_string),
            payload: self.payload_or_text(&cell),
        }
    }
}

/// Text that is JSON as it is, other text as a JSON string.
fn json_or_string(text: String) -> String {
    match serde_json::from_str::<&RawValue>(&text) {
        Ok(_) => text,
        Err(_) => Value::String(text).to_string(),
    }
}

/// A row as a JSON object, as `to_jsonb` gives it but for what would change on the way back:
/// integers, booleans and jsonb are themselves, everything else is its text. `row ->> column` is
/// text that the column's type reads as the same value.
#[must_use]
pub fn row_json<'a>(columns: impl Iterator<Item = (&'a str, u32, Option<&'a Bytes>)>) -> String {
    let row: BTreeMap<&str, Option<Box<RawValue>>> = columns
        .map(|(name, type_oid, cell)| {
            (name, cell.and_then(|text| value(type_oid, String::from_utf8_lossy(text).into_owned())))
        })
        .collect();
    // A map of text and JSON has no fault that serde_json knows.
    serde_json::to_string(&row).unwrap_or_default()
}

/// The oids are fixed (`pg_type.dat`). Through a number of serde_json's a jsonb would lose digits.
fn value(type_oid: u32, text: String) -> Option<Box<RawValue>> {
    let as_it_is = match (type_oid, text.as_str()) {
        // bool
        (16, "t") => Some("true".to_owned()),
        (16, "f") => Some("false".to_owned()),
        // A jsonb null is a value: read back by ->> it must not be the column's NULL.
        (3802, "null") => None,
        // int8, int2, int4; jsonb
        (20 | 21 | 23 | 3802, _) => Some(text.clone()),
        _ => None,
    };
    as_it_is.and_then(|json| RawValue::from_string(json).ok()).or_else(|| to_raw_value(&text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(type_oid: u32, text: &'static str) -> String {
        let cell = Bytes::from_static(text.as_bytes());
        row_json(std::iter::once(("c", type_oid, Some(&cell))))
    }

    #[test]
    fn numbers_booleans_and_jsonb_are_themselves_in_a_row() {
        assert_eq!(json(20, "-9223372036854775808"), r#"{"c":-9223372036854775808}"#);
        assert_eq!(json(16, "t"), r#"{"c":true}"#);
        let digits = r#"{"a": [1.50, 12345678901234567890123, null]}"#;
        assert_eq!(json(3802, digits), format!(r#"{{"c":{digits}}}"#));
    }

    #[test]
    fn what_json_would_change_stays_text_in_a_row() {
        // json keeps its spelling, numeric may be NaN, and a date is no JSON.
        assert_eq!(json(114, r#"{"a" :1}"#), r#"{"c":"{\"a\" :1}"}"#);
        assert_eq!(json(1700, "NaN"), r#"{"c":"NaN"}"#);
        assert_eq!(json(1114, "2026-11-24 00:00:00"), r#"{"c":"2026-11-24 00:00:00"}"#);
    }

    #[test]
    fn null_is_null_in_a_row_and_a_jsonb_null_is_not() {
        assert_eq!(json(3802, "null"), r#"{"c":"null"}"#);
        assert_eq!(row_json(std::iter::once(("c", 25, None))), r#"{"c":null}"#);
    }

    #[test]
    fn headers_that_are_no_json_are_kept_as_a_string() {
        assert_eq!(json_or_string("{\"a\": 1}".into()), "{\"a\": 1}");
        assert_eq!(json_or_string("a=1".into()), "\"a=1\"");
    }
}
