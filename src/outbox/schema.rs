//! JSON Schemas of payloads: compiled once, asked for every row that has one.
//!
//! A file `<event_type>.json` is the schema of a type, `<event_type>.v<version>.json` of one version of
//! it, where the row's schema_version column says so and the file is there. A type without a schema
//! passes. A NULL payload counts as JSON's `null`: it passes no schema but one that admits null.
//!
//! A `$ref` reaches the other files of the folder, by name or by their `$id`, and nothing else: what a
//! row may be must not depend on a network. A file that is no schema is a fault of the folder, told
//! before anything runs; it would else make a dead letter of every row.
//!
//! Messages name the place in the payload and what the schema wants there, not what stands there.

use super::poison::{Poison, Reason};
use jsonschema::{Retrieve, Uri, ValidationError, Validator};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// The folder, as `$ref` sees it.
const BASE: &str = "postrider:///";

/// Names of properties are the payload's own, and a path is made of them.
const CHARS_MAX: usize = 200;

/// Compiled schemas by the names of their files, without `.json`.
#[derive(Debug)]
pub struct Schemas {
    by_name: HashMap<String, Validator>,
}

impl Schemas {
    /// Compiles files, given as (name, content).
    ///
    /// # Errors
    /// What is wrong, for each file that is no schema.
    pub fn compile(files: Vec<(String, Vec<u8>)>) -> Result<Schemas, Vec<String>> {
        let mut faults = Vec::new();
        let mut documents = HashMap::new();
        for (name, content) in files {
            match serde_json::from_slice::<Value>(&content) {
                Ok(document) => {
                    documents.insert(name, document);
                }
                Err(error) => faults.push(format!("{name} is no JSON: {error}")),
            }
        }
        let documents = Arc::new(documents);
        let mut by_name = HashMap::new();
        for (name, document) in documents.iter() {
            let options = jsonschema::options()
                .with_base_uri(format!("{BASE}{}", utf8_percent_encode(name, NON_ALPHANUMERIC)))
                .with_retriever(Folder(Arc::clone(&documents)));
            match options.build(document) {
                Ok(validator) => {
                    by_name.insert(name.strip_suffix(".json").unwrap_or(name).to_owned(), validator);
                }
                Err(error) => {
                    faults.push(format!("{name} is no JSON Schema: {}", told(&error, &error.to_string())))
                }
            }
        }
        faults.sort();
        if faults.is_empty() { Ok(Schemas { by_name }) } else { Err(faults) }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    /// Whether the payload is what the schema of its type demands.
    pub(super) fn check(
        &self,
        event_type: &str,
        version: Option<&str>,
        payload: Option<&[u8]>,
    ) -> Result<(), Poison> {
        let versioned = version.and_then(|version| self.by_name.get(&format!("{event_type}.v{version}")));
        let Some(validator) = versioned.or_else(|| self.by_name.get(event_type)) else { return Ok(()) };
        // serde_json's own text may quote the payload.
        let payload = match payload {
            None => Value::Null,
            Some(text) => serde_json::from_slice(text).map_err(|error| {
                let (line, column) = (error.line(), error.column());
                poison(format!(
                    "the payload is no JSON (line {line}, column {column}), and its type has a schema"
                ))
            })?,
        };
        validator
            .validate(&payload)
            .map_err(|error| poison(told(&error, &error.masked_with("the value").to_string())))
    }
}

fn poison(message: String) -> Poison {
    Poison::new(Reason::Schema, message)
}

/// The place as a JSON Pointer, and what is wrong there.
fn told(error: &ValidationError<'_>, what: &str) -> String {
    let place = error.instance_path().as_str();
    let place = if place.is_empty() { "the whole".to_owned() } else { shortened(place) };
    format!("{place}: {}", shortened(what))
}

fn shortened(text: &str) -> String {
    let mut short: String =
        text.chars().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

/// Where a `$ref` finds what it names.
struct Folder(Arc<HashMap<String, Value>>);

impl Retrieve for Folder {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let uri = uri.as_str();
        let by_name = uri
            .strip_prefix(BASE)
            .and_then(|name| self.0.get(percent_decode_str(name).decode_utf8_lossy().as_ref()));
        let by_id =
            || self.0.values().find(|document| document.get("$id").and_then(Value::as_str) == Some(uri));
        by_name.or_else(by_id).cloned().ok_or_else(|| "no file of the folder is this".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(files: &[(&str, &str)]) -> Result<Schemas, Vec<String>> {
        let file = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
        Schemas::compile(files.iter().map(file).collect())
    }

    fn fault(schemas: &Schemas, event_type: &str, version: Option<&str>, payload: Option<&str>) -> String {
        let checked = schemas.check(event_type, version, payload.map(str::as_bytes));
        checked.map_or_else(|poison| poison.to_string(), |()| "passes".to_owned())
    }

    const ORDER: (&str, &str) = (
        "order.json",
        r#"{"type": "object", "properties": {"items": {"items": {"properties": {"qty": {"minimum": 1}}}}}}"#,
    );

    #[test]
    fn a_fault_is_told_by_its_place_and_not_by_the_value() {
        let schemas =
            compile(&[ORDER, ("pin.json", r#"{"properties": {"pin": {"type": "integer"}}}"#)]).unwrap();
        assert_eq!(
            fault(&schemas, "order", None, Some(r#"{"items": [{"qty": 0}]}"#)),
            "schema: /items/0/qty: the value is less than the minimum of 1"
        );
        assert_eq!(
            fault(&schemas, "pin", None, Some(r#"{"pin": "secret"}"#)),
            "schema: /pin: the value is not of type \"integer\""
        );
        assert!(
            fault(&schemas, "pin", None, Some("{\"pin\": secret}"))
                .starts_with("schema: the payload is no JSON")
        );
        assert_eq!(fault(&schemas, "order", None, Some(r#"{"items": [{"qty": 1}]}"#)), "passes");
        assert_eq!(fault(&schemas, "other", None, Some("no JSON")), "passes");
    }

    #[test]
    fn the_version_s_file_goes_before_the_type_s() {
        let schemas = compile(&[("a.json", "false"), ("a.v2.json", "true")]).unwrap();
        assert_eq!(fault(&schemas, "a", Some("2"), Some("1")), "passes");
        for version in [None, Some("3")] {
            assert!(fault(&schemas, "a", version, Some("1")).starts_with("schema: "));
        }
    }

    #[test]
    fn a_null_payload_passes_only_where_null_is_admitted() {
        let schemas = compile(&[ORDER, ("gone.json", r#"{"type": ["object", "null"]}"#)]).unwrap();
        assert!(fault(&schemas, "order", None, None).starts_with("schema: the whole: "));
        assert_eq!(fault(&schemas, "gone", None, None), "passes");
    }

    #[test]
    fn a_ref_reaches_the_folder_s_files_and_nothing_else() {
        let schemas = compile(&[
            ("a.json", r#"{"properties": {"to": {"$ref": "address book.json#/$defs/zip"}}}"#),
            ("b.json", r#"{"$ref": "https://shop.example/zip"}"#),
            ("address book.json", r#"{"$defs": {"zip": {"maxLength": 5}}}"#),
            ("zip.json", r#"{"$id": "https://shop.example/zip", "maxLength": 5}"#),
        ]);
        // A space is no part of a URI-reference as it is.
        assert!(schemas.is_err());
        let schemas = compile(&[
            ("a.json", r#"{"properties": {"to": {"$ref": "address%20book.json#/$defs/zip"}}}"#),
            ("b.json", r#"{"$ref": "https://shop.example/zip"}"#),
            ("address book.json", r#"{"$defs": {"zip": {"maxLength": 5}}}"#),
            ("zip.json", r#"{"$id": "https://shop.example/zip", "maxLength": 5}"#),
        ])
        .unwrap();
        assert!(fault(&schemas, "a", None, Some(r#"{"to": "123456"}"#)).starts_with("schema: /to: "));
        assert!(fault(&schemas, "b", None, Some("\"123456\"")).starts_with("schema: the whole: "));
        let faults = compile(&[("c.json", r#"{"$ref": "https://example.com/c.json"}"#)]).unwrap_err();
        assert!(faults.len() == 1 && faults[0].starts_with("c.json is no JSON Schema"), "{faults:?}");
    }

    #[test]
    fn all_files_that_are_no_schemas_are_told_at_once() {
        let faults = compile(&[ORDER, ("x.json", "{"), ("y.json", r#"{"type": "strng"}"#)]).unwrap_err();
        let names: Vec<_> = faults.iter().map(|fault| fault.split(' ').next().unwrap()).collect();
        assert_eq!(names, ["x.json", "y.json"], "{faults:?}");
    }
}
