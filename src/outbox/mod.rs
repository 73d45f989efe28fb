//! From an outbox row to an event: what it is called, where it goes, what it carries.
//!
//! Owns the presets, the subject template, the headers that a row alone determines, the encryption of
//! payloads ([`seal`]), the judgement that a row cannot be published ([`Poison`]), and which column marks
//! a row as processed ([`MarkColumn`]). Does no I/O and knows no clock; position, commit time and expected sequence are the sender's to add.
//!
//! Three steps, from rare to hot:
//!
//! ```text
//!  Settings ──Mapping::new──► Mapping ──resolve──► Resolved ──bind──► Table ──event──► Event
//!  once, checks               once, chooses the     each Relation      each row
//!  the template               preset                message
//! ```
//!
//! Columns are found by name at every Relation message, because a migration may change their order
//! and number between two rows. The preset is chosen once: a column that only told `auto` which
//! preset it was (`processed`) may be dropped while the relay runs.
//!
//! Invariant: a row gives the same event whenever it is decoded, headers in the same order, so that
//! what is sent again after a reconnect is what was sent before.

mod cloudevents;
pub(crate) mod headers;
mod keys;
mod letter;
mod mark;
mod overlap;
mod poison;
mod preset;
mod schema;
pub mod seal;
pub mod subject;
mod table;
mod template;

pub use keys::{Fault, Keys};
pub use letter::{Parts, row_json};
pub use mark::{MarkColumn, MarkKind, NoMark};
pub(crate) use poison::excerpt;
pub use poison::{Poison, Reason};
pub use preset::{ColumnNames, Mapping, Preset, PresetChoice, Resolved, Settings};
pub use schema::Schemas;
pub use table::Table;
pub use template::Template;

use crate::postgres::text::Text;
use async_nats::HeaderName;
use bytes::Bytes;

/// A column of the outbox table, as the catalogue or a Relation message names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnInfo<'a> {
    /// Its name, as it is: unquoted, case kept.
    pub name: &'a str,
    /// What its text holds.
    pub kind: Kind,
}

/// What a column's text holds, as far as it matters to an event. A domain is of its base type's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `json` or `jsonb`.
    Json,
    /// `bytea`, printed as hex.
    Bytea,
    /// Any other type.
    Other,
}

/// What is published for a row, but for what the sender adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The id column's text.
    pub id: Text,
    /// A valid NATS subject.
    pub subject: Text,
    /// Every header that the row alone determines; no name stands twice.
    pub headers: Vec<(HeaderName, Text)>,
    /// The body; empty for a NULL payload.
    pub payload: Bytes,
}
