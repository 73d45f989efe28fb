//! The headers that the sender adds to an event's own: where it stands in the log, when it was
//! committed, and the chain.
//!
//! Header maps are half of what a publish costs a client: each insert hashes its name, and all of them
//! are hashed again whenever the map grows. Seven headers take 0.65 µs from an empty map, 0.59 from a
//! copy of one that holds the stream's name (this). Tried besides: a copy with places for the names
//! that every message has, whose empty values are replaced, 0.77; with the headers that the event
//! before had alike, 0.41 to 0.46, but twice the time when rows of two kinds come in turns.

use crate::delivery::position::Place;
use crate::outbox::Event;
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use async_nats::header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_STREAM};
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use std::fmt::Write;

/// The header that says where in the log an event stands.
pub static POSITION: HeaderName = HeaderName::from_static("Postrider-Position");
/// The header that says when its transaction committed.
pub static COMMIT_TIME: HeaderName = HeaderName::from_static("Postrider-Commit-Time");

/// What the log says of an event.
#[derive(Debug, Clone, Copy)]
pub struct Stamp<'a> {
    /// `<system id>/<timeline>/<slot>/`, what positions of one log begin with.
    pub origin: &'a str,
    /// Where it stands.
    pub place: Place,
    /// When its transaction committed.
    pub commit_time: Timestamp,
}

/// Makes the headers of one message after the other.
#[derive(Debug)]
pub struct Envelope {
    /// What all messages have alike.
    alike: HeaderMap,
    /// Of which the texts below are.
    transaction: Option<Lsn>,
    /// `<origin><commit LSN>/`
    position: String,
    commit_time: String,
}

impl Envelope {
    /// For messages to `stream`.
    #[must_use]
    pub fn new(stream: &str) -> Envelope {
        let mut alike = HeaderMap::new();
        alike.insert(NATS_EXPECTED_STREAM, stream);
        Envelope { alike, transaction: None, position: String::new(), commit_time: String::new() }
    }

    /// All headers of message `seq`, which is to be `event`.
    pub fn headers(&mut self, seq: u64, event: &Event, stamp: Stamp<'_>) -> HeaderMap {
        if self.transaction != Some(stamp.place.commit_lsn) {
            self.begin(stamp);
        }
        let mut headers = self.alike.clone();
        let mut digits = itoa::Buffer::new();
        let index = digits.format(stamp.place.index);
        let mut position = String::with_capacity(self.position.len() + index.len());
        position.push_str(&self.position);
        position.push_str(index);
        headers.insert(POSITION.clone(), HeaderValue::from(position));
        headers.insert(COMMIT_TIME.clone(), HeaderValue::from(self.commit_time.as_str()));
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, HeaderValue::from(digits.format(seq - 1)));
        for (name, value) in &event.headers {
            headers.insert(name.clone(), HeaderValue::from(value.as_str()));
        }
        headers
    }

    fn begin(&mut self, Stamp { origin, place, commit_time }: Stamp<'_>) {
        self.position.clear();
        let _ = write!(self.position, "{origin}{:016X}/", place.commit_lsn.0);
        self.commit_time.clear();
        let _ = write!(self.commit_time, "{commit_time}");
        self.transaction = Some(place.commit_lsn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::text::Text;
    use bytes::Bytes;

    fn event(id: &'static str) -> Event {
        Event {
            id: Text::from_static(id),
            subject: Text::from_static("outbox.a"),
            headers: vec![(HeaderName::from_static("Postrider-Event-Id"), Text::from_static(id))],
            payload: Bytes::new(),
        }
    }

    /// Names and values, sorted.
    fn headers(envelope: &mut Envelope, seq: u64, id: &'static str, stamp: Stamp<'_>) -> Vec<String> {
        let headers = envelope.headers(seq, &event(id), stamp);
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, values)| {
                let [value] = values.as_slice() else { panic!("{name} has {} values", values.len()) };
                format!("{name}: {value}")
            })
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn each_message_has_its_own_place_and_the_commit_time_of_its_transaction() {
        let mut envelope = Envelope::new("OUTBOX");
        let stamp = |lsn, index, micros| Stamp {
            origin: "7/1/postrider/",
            place: Place { commit_lsn: Lsn(lsn), index },
            commit_time: Timestamp(micros),
        };
        for (seq, lsn, index, micros, time, position) in [
            (1, 0xAB, 0, 0, "2000-01-01T00:00:00.000000Z", "7/1/postrider/00000000000000AB/0"),
            (2, 0xAB, 1, 0, "2000-01-01T00:00:00.000000Z", "7/1/postrider/00000000000000AB/1"),
            (3, 0xCD, 0, 1, "2000-01-01T00:00:00.000001Z", "7/1/postrider/00000000000000CD/0"),
        ] {
            assert_eq!(
                headers(&mut envelope, seq, "e", stamp(lsn, index, micros)),
                [
                    format!("Nats-Expected-Last-Sequence: {}", seq - 1),
                    "Nats-Expected-Stream: OUTBOX".to_owned(),
                    format!("Postrider-Commit-Time: {time}"),
                    "Postrider-Event-Id: e".to_owned(),
                    format!("Postrider-Position: {position}"),
                ]
            );
        }
    }

    #[test]
    fn an_event_gets_nothing_of_the_one_before_it() {
        let mut envelope = Envelope::new("OUTBOX");
        let place = Place { commit_lsn: Lsn(1), index: 0 };
        let stamp = Stamp { origin: "7/1/s/", place, commit_time: Timestamp(0) };
        let before = headers(&mut envelope, 1, "before", stamp);
        assert!(before.contains(&"Postrider-Event-Id: before".to_owned()));
        let bare = Event { headers: Vec::new(), ..event("after") };
        assert_eq!(envelope.headers(2, &bare, stamp).len(), 4);
    }
}
