//! One shape of the outbox table, and the event of a row of that shape.
//!
//! The hot path: a row costs an allocation for its subject and one for its list of headers; ids,
//! keys and payloads are slices of the frame that brought them. JSON is parsed only where there is
//! a headers column.

use super::cloudevents::{self, Attributes};
use super::headers::{self, Entries};
use super::preset::{Preset, Resolved, names};
use super::schema::Schemas;
use super::template::BoundTemplate;
use super::{ColumnInfo, Event, Kind, Poison};
use crate::error::{Code, Failure};
use crate::postgres::text::Text;
use async_nats::HeaderName;
use async_nats::header::NATS_MESSAGE_ID;
use bytes::Bytes;
use std::sync::Arc;

/// Room for what most rows carry, and for the sender's own headers behind it.
const HEADERS_CAPACITY: usize = 12;

/// The outbox table with its columns found.
#[derive(Debug, Clone)]
pub struct Table {
    preset: Preset,
    subject: BoundTemplate,
    msg_id: bool,
    cloudevents: bool,
    schemas: Option<Arc<Schemas>>,
    id: Column,
    event_type: Option<Column>,
    key: Option<Column>,
    payload: Column,
    payload_kind: Kind,
    headers: Option<Column>,
    schema_version: Option<Column>,
    content_type: Option<Column>,
    traceparent: Option<Column>,
    tracestate: Option<Column>,
}

#[derive(Debug, Clone)]
struct Column {
    index: usize,
    name: String,
}

impl Table {
    pub(super) fn bind(resolved: &Resolved, columns: &[ColumnInfo<'_>]) -> Result<Table, Failure> {
        let index_of = |name: &str| columns.iter().position(|column| column.name == name);
        let find = |name: &Option<String>| {
            let name = name.as_deref()?;
            Some(Column { index: index_of(name)?, name: name.to_owned() })
        };
        let missing = missing(resolved, columns);
        let named = &resolved.columns;
        let (Some(id), Some(payload), Some(subject), true) =
            (find(&named.id), find(&named.payload), resolved.subject.bind(index_of), missing.is_empty())
        else {
            return Err(lacks(columns, &missing));
        };
        Ok(Table {
            preset: resolved.preset,
            subject,
            msg_id: resolved.msg_id,
            cloudevents: resolved.cloudevents,
            schemas: resolved.schemas.clone(),
            id,
            event_type: find(&named.event_type),
            key: find(&named.key),
            payload_kind: columns.get(payload.index).map_or(Kind::Other, |column| column.kind),
            payload,
            headers: find(&named.headers),
            schema_version: find(&named.schema_version),
            content_type: find(&named.content_type),
            traceparent: find(&named.traceparent),
            tracestate: find(&named.tracestate),
        })
    }

    /// The preset by which the columns were found.
    #[must_use]
    pub fn preset(&self) -> Preset {
        self.preset
    }

    /// The index of the id column.
    #[must_use]
    pub fn id_index(&self) -> usize {
        self.id.index
    }

    pub(super) fn type_index(&self) -> Option<usize> {
        self.event_type.as_ref().map(|column| column.index)
    }

    pub(super) fn key_index(&self) -> Option<usize> {
        self.key.as_ref().map(|column| column.index)
    }

    pub(super) fn headers_index(&self) -> Option<usize> {
        self.headers.as_ref().map(|column| column.index)
    }

    /// The subject, where the template gives one.
    pub(super) fn subject_of<'r>(&self, cell: &impl Fn(usize) -> Option<&'r Bytes>) -> Option<Text> {
        self.subject.subject(cell).ok()
    }

    /// The body; its text where that is not what its type prints.
    pub(super) fn payload_or_text<'r>(&self, cell: &impl Fn(usize) -> Option<&'r Bytes>) -> Option<Bytes> {
        self.payload(cell).unwrap_or_else(|_| cell(self.payload.index).cloned())
    }

    /// The event of a row. `cell` gives the text of the column at an index, None for NULL; the
    /// caller has checked that the row has as many columns as the relation.
    ///
    /// # Errors
    /// The row cannot be published, now or ever.
    pub fn event<'r>(&self, cell: impl Fn(usize) -> Option<&'r Bytes>) -> Result<Event, Poison> {
        let Some(id) = value(&self.id, &cell)? else {
            return Err(Poison::null_id(&self.id.name));
        };
        self.event_of(&id, &cell).map_err(|poison| poison.of(&id))
    }

    fn event_of<'r>(&self, id: &Text, cell: &impl Fn(usize) -> Option<&'r Bytes>) -> Result<Event, Poison> {
        let event_type = optional(self.event_type.as_ref(), cell)?;
        if let (Some(column), None) = (&self.event_type, &event_type) {
            return Err(Poison::null_type(&column.name));
        }
        let subject = self.subject.subject(cell)?;
        let payload = self.payload(cell)?;
        let schema_version = optional(self.schema_version.as_ref(), cell)?;
        if let (Some(schemas), Some(event_type)) = (&self.schemas, &event_type) {
            schemas.check(event_type, schema_version.as_deref(), payload.as_deref())?;
        }
        let key = optional(self.key.as_ref(), cell)?;
        let entries = self.entries(cell)?;
        let by_type = matches!(self.payload_kind, Kind::Json).then(|| Text::from_static("application/json"));
        let content_type = optional(self.content_type.as_ref(), cell)?;
        let content_type = content_type.or(entries.content_type).or(by_type);

        let mut headers = Vec::with_capacity(HEADERS_CAPACITY);
        if self.cloudevents {
            cloudevents::refuse_ours(&entries.others)?;
            let event_type = event_type.as_ref().unwrap_or(&subject);
            let (key, content_type) = (key.as_ref(), content_type.as_ref());
            cloudevents::add(&mut headers, &Attributes { id, event_type, key, content_type })?;
        }
        let mut add = |name: &HeaderName, value: Option<Text>| {
            if let Some(value) = value {
                headers.push((name.clone(), value));
            }
        };
        add(&headers::EVENT_ID, Some(id.clone()));
        add(&headers::EVENT_TYPE, event_type);
        add(&headers::KEY, key);
        add(&headers::SCHEMA_VERSION, schema_version);
        add(&headers::NULL, payload.is_none().then(|| Text::from_static("true")));
        add(&NATS_MESSAGE_ID, self.msg_id.then(|| id.clone()));
        add(&headers::CONTENT_TYPE, content_type);
        add(&headers::TRACEPARENT, optional(self.traceparent.as_ref(), cell)?.or(entries.traceparent));
        add(&headers::TRACESTATE, optional(self.tracestate.as_ref(), cell)?.or(entries.tracestate));
        headers.extend(entries.others);
        Ok(Event { id: id.clone(), subject, headers, payload: payload.unwrap_or_default() })
    }

    fn payload<'r>(&self, cell: &impl Fn(usize) -> Option<&'r Bytes>) -> Result<Option<Bytes>, Poison> {
        match (cell(self.payload.index), self.payload_kind) {
            (None, _) => Ok(None),
            (Some(text), Kind::Json | Kind::Other) => Ok(Some(text.clone())),
            (Some(text), Kind::Bytea) => match unhex(text) {
                Some(bytes) => Ok(Some(bytes)),
                None => Err(Poison::not_hex(&self.payload.name)),
            },
        }
    }

    fn entries<'r>(&self, cell: &impl Fn(usize) -> Option<&'r Bytes>) -> Result<Entries, Poison> {
        let Some(column) = &self.headers else { return Ok(Entries::default()) };
        match cell(column.index) {
            Some(text) => headers::entries(&column.name, text),
            None => Ok(Entries::default()),
        }
    }
}

fn optional<'r>(
    column: Option<&Column>,
    cell: &impl Fn(usize) -> Option<&'r Bytes>,
) -> Result<Option<Text>, Poison> {
    column.map_or(Ok(None), |column| value(column, cell))
}

fn value<'r>(column: &Column, cell: &impl Fn(usize) -> Option<&'r Bytes>) -> Result<Option<Text>, Poison> {
    cell(column.index).map(|text| headers::value(&column.name, text)).transpose()
}

/// The bytes of a bytea in Postgres's hex output, `\x0aff`.
fn unhex(text: &[u8]) -> Option<Bytes> {
    let digits = text.strip_prefix(b"\\x")?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?)).collect()
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// (key, column) of all that is read and not there. Nothing reads the time of creation.
fn missing<'a>(resolved: &'a Resolved, columns: &[ColumnInfo<'_>]) -> Vec<(&'static str, &'a str)> {
    let named = resolved.columns.entries().into_iter();
    let named =
        named.filter_map(|(key, name)| Some((key, name?))).filter(|(key, _)| *key != "outbox.created_at");
    let templates = resolved.subject.columns().map(|name| ("outbox.subject", name));
    let mut missing: Vec<(&str, &str)> = Vec::new();
    for (key, name) in named.chain(templates) {
        let found = columns.iter().any(|column| column.name == name);
        if !found && !missing.iter().any(|(_, known)| *known == name) {
            missing.push((key, name));
        }
    }
    missing
}

fn lacks(columns: &[ColumnInfo<'_>], missing: &[(&str, &str)]) -> Failure {
    let list: Vec<_> = missing.iter().map(|(key, name)| format!("`{name}` ({key})")).collect();
    let mut keys: Vec<_> = missing.iter().map(|(key, _)| *key).collect();
    keys.dedup();
    Failure::new(
        Code::ColumnsMissing,
        format!("the outbox table lacks {}; it has {}", list.join(", "), names(columns)),
        format!("set {} to what the table has, or choose another outbox.preset", keys.join(", ")),
    )
}

#[cfg(test)]
mod tests;
