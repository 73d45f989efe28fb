//! CloudEvents 1.0 in NATS's binary mode: attributes are headers that begin with `ce-`, the payload is
//! the event's data.
//!
//! Here are the attributes that a row determines; source and time are the sender's. The NATS binding
//! (1.0.3) maps `datacontenttype` like any other, so it goes beside `Content-Type`, unlike in HTTP.
//! Entries of the headers column named `ce-…` are extension attributes and go as they are; one with
//! the name of an attribute that is set here is refused: which of the two a reader takes is not said.

use super::poison::{Poison, Reason, excerpt};
use crate::postgres::text::Text;
use async_nats::HeaderName;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::borrow::Cow;

/// Set by Postrider, here or by the sender.
const OURS: [&str; 7] =
    ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "ce-subject", "ce-datacontenttype"];

static ID: HeaderName = HeaderName::from_static("ce-id");
static TYPE: HeaderName = HeaderName::from_static("ce-type");
static SUBJECT: HeaderName = HeaderName::from_static("ce-subject");
static DATA_CONTENT_TYPE: HeaderName = HeaderName::from_static("ce-datacontenttype");

/// What the binding wants encoded; characters beyond ASCII always are.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// What a row says of its event.
pub(super) struct Attributes<'a> {
    pub(super) id: &'a Text,
    /// The subject, where there is no column of types.
    pub(super) event_type: &'a Text,
    pub(super) key: Option<&'a Text>,
    pub(super) content_type: Option<&'a Text>,
}

/// Adds the attributes to `headers`. An empty text is no attribute.
pub(super) fn add(headers: &mut Vec<(HeaderName, Text)>, attributes: &Attributes<'_>) -> Result<(), Poison> {
    if attributes.id.is_empty() {
        return Err(Poison::new(Reason::NullId, "the id is empty, which CloudEvents does not allow"));
    }
    if attributes.event_type.is_empty() {
        return Err(Poison::new(Reason::NullType, "the type is empty, which CloudEvents does not allow"));
    }
    headers.push((ID.clone(), encoded(attributes.id)));
    headers.push((TYPE.clone(), encoded(attributes.event_type)));
    let optional = [(&SUBJECT, attributes.key), (&DATA_CONTENT_TYPE, attributes.content_type)];
    for (name, value) in optional {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            headers.push((name.clone(), encoded(value)));
        }
    }
    Ok(())
}

/// Refuses entries of the headers column that would stand beside ours.
pub(super) fn refuse_ours(entries: &[(HeaderName, Text)]) -> Result<(), Poison> {
    let name = |(name, _): &(HeaderName, Text)| name.to_string();
    match entries.iter().map(name).find(|name| OURS.iter().any(|ours| ours.eq_ignore_ascii_case(name))) {
        Some(name) => Err(Poison::new(
            Reason::ReservedHeader,
            format!(
                "entry {} of the headers column is an attribute that outbox.cloudevents sets",
                excerpt(&name)
            ),
        )),
        None => Ok(()),
    }
}

fn encoded(value: &Text) -> Text {
    match Cow::from(utf8_percent_encode(value, ENCODED)) {
        Cow::Borrowed(_) => value.clone(),
        Cow::Owned(encoded) => Text::from(encoded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_encoded_as_the_binding_says() {
        let value = Text::from_static("Euro € 😀 \"100%\" a/b:c");
        assert_eq!(&*encoded(&value), "Euro%20%E2%82%AC%20%F0%9F%98%80%20%22100%25%22%20a/b:c");
    }
}
