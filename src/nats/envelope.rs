//! The headers that the sender adds to an event's own: where it stands in the log, when it was
//! committed, and the chain.
//!
//! They are written as they go over the wire. A map of headers, which async-nats takes, cost 0.59 to 0.65
//! µs and 16 allocations a message.

use crate::delivery::position::Place;
use crate::outbox::Event;
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use async_nats::HeaderName;
use async_nats::header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_STREAM};
use bytes::BytesMut;
use std::fmt::Write;

/// The header that says where in the log an event stands.
pub static POSITION: HeaderName = HeaderName::from_static("Postrider-Position");
/// The header that says when its transaction committed.
pub static COMMIT_TIME: HeaderName = HeaderName::from_static("Postrider-Commit-Time");

static CE_SPECVERSION: HeaderName = HeaderName::from_static("ce-specversion");
static CE_SOURCE: HeaderName = HeaderName::from_static("ce-source");
static CE_TIME: HeaderName = HeaderName::from_static("ce-time");

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

impl Stamp<'_> {
    /// What [`POSITION`] says.
    #[must_use]
    pub fn position(&self) -> String {
        format!("{}{:016X}/{}", self.origin, self.place.commit_lsn.0, self.place.index)
    }
}

/// Writes one message after the other, as they go over the wire (`HPUB`; headers: ADR-4).
#[derive(Debug)]
pub struct Envelope {
    /// What all headers begin with.
    alike: Vec<u8>,
    /// Whether source and time are also sent as CloudEvents has them.
    cloudevents: bool,
    /// `/postrider/<system id>/<slot>`
    source: String,
    /// The headers of the message at hand.
    headers: Vec<u8>,
    /// Of which the texts below are. Rows that were read from the table have one LSN and a time each.
    transaction: Option<(Lsn, Timestamp)>,
    /// `<origin><commit LSN>/`
    position: String,
    commit_time: String,
}

impl Envelope {
    /// For messages to `stream`.
    #[must_use]
    pub fn new(stream: &str, cloudevents: bool) -> Envelope {
        let mut alike = b"NATS/1.0\r\n".to_vec();
        line(&mut alike, &NATS_EXPECTED_STREAM, &[stream]);
        if cloudevents {
            line(&mut alike, &CE_SPECVERSION, &["1.0"]);
        }
        Envelope {
            alike,
            cloudevents,
            source: String::new(),
            headers: Vec::new(),
            transaction: None,
            position: String::new(),
            commit_time: String::new(),
        }
    }

    /// Adds message `seq`, which is to be `event`, to `out`; its answer goes to `<reply><seq>`.
    pub fn write(&mut self, out: &mut BytesMut, seq: u64, reply: &str, event: &Event, stamp: Stamp<'_>) {
        if self.transaction != Some((stamp.place.commit_lsn, stamp.commit_time)) {
            self.begin(stamp);
        }
        let mut digits = itoa::Buffer::new();
        let headers = &mut self.headers;
        headers.clear();
        headers.extend_from_slice(&self.alike);
        line(headers, &NATS_EXPECTED_LAST_SEQUENCE, &[digits.format(seq - 1)]);
        line(headers, &POSITION, &[&self.position, digits.format(stamp.place.index)]);
        line(headers, &COMMIT_TIME, &[&self.commit_time]);
        if self.cloudevents {
            line(headers, &CE_SOURCE, &[&self.source]);
            line(headers, &CE_TIME, &[&self.commit_time]);
        }
        for (name, value) in &event.headers {
            line(headers, name, &[value.as_str()]);
        }
        headers.extend_from_slice(b"\r\n");

        out.extend_from_slice(b"HPUB ");
        out.extend_from_slice(event.subject.as_bytes());
        out.extend_from_slice(b" ");
        out.extend_from_slice(reply.as_bytes());
        out.extend_from_slice(digits.format(seq).as_bytes());
        out.extend_from_slice(b" ");
        out.extend_from_slice(digits.format(headers.len()).as_bytes());
        out.extend_from_slice(b" ");
        out.extend_from_slice(digits.format(headers.len() + event.payload.len()).as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(headers);
        out.extend_from_slice(&event.payload);
        out.extend_from_slice(b"\r\n");
    }

    fn begin(&mut self, Stamp { origin, place, commit_time }: Stamp<'_>) {
        self.position.clear();
        let _ = write!(self.position, "{origin}{:016X}/", place.commit_lsn.0);
        // Without the timeline: a failover does not make it another source.
        let mut parts = origin.split('/');
        self.source.clear();
        if self.cloudevents
            && let (Some(system), _, Some(slot)) = (parts.next(), parts.next(), parts.next())
        {
            let _ = write!(self.source, "/postrider/{system}/{slot}");
        }
        self.commit_time.clear();
        let _ = write!(self.commit_time, "{commit_time}");
        self.transaction = Some((place.commit_lsn, commit_time));
    }
}

fn line(out: &mut Vec<u8>, name: &HeaderName, value: &[&str]) {
    out.extend_from_slice(AsRef::<str>::as_ref(name).as_bytes());
    out.extend_from_slice(b": ");
    value.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
    out.extend_from_slice(b"\r\n");
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
            payload: Bytes::from_static(b"{}"),
        }
    }

    /// The lines of the message.
    fn message(envelope: &mut Envelope, seq: u64, event: &Event, stamp: Stamp<'_>) -> Vec<String> {
        let mut out = BytesMut::new();
        envelope.write(&mut out, seq, "_INBOX.x.7.", event, stamp);
        std::str::from_utf8(&out).unwrap().split("\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn each_message_has_its_own_place_and_the_commit_time_of_its_transaction() {
        let mut envelope = Envelope::new("OUTBOX", false);
        let stamp = |lsn, index, micros| Stamp {
            origin: "7/1/postrider/",
            place: Place { commit_lsn: Lsn(lsn), index },
            commit_time: Timestamp(micros),
        };
        for (seq, lsn, index, micros, time, position) in [
            (1, 0xAB, 0, 0, "2000-01-01T00:00:00.000000Z", "7/1/postrider/00000000000000AB/0"),
            (2, 0xAB, 1, 0, "2000-01-01T00:00:00.000000Z", "7/1/postrider/00000000000000AB/1"),
            (3, 0xCD, 0, 1, "2000-01-01T00:00:00.000001Z", "7/1/postrider/00000000000000CD/0"),
            (4, 0xCD, 1, 2, "2000-01-01T00:00:00.000002Z", "7/1/postrider/00000000000000CD/1"),
        ] {
            assert_eq!(
                message(&mut envelope, seq, &event("e"), stamp(lsn, index, micros)),
                [
                    format!("HPUB outbox.a _INBOX.x.7.{seq} 203 205"),
                    "NATS/1.0".to_owned(),
                    "Nats-Expected-Stream: OUTBOX".to_owned(),
                    format!("Nats-Expected-Last-Sequence: {}", seq - 1),
                    format!("Postrider-Position: {position}"),
                    format!("Postrider-Commit-Time: {time}"),
                    "Postrider-Event-Id: e".to_owned(),
                    String::new(),
                    "{}".to_owned(),
                    String::new(),
                ]
            );
        }
    }

    #[test]
    fn an_event_gets_nothing_of_the_one_before_it() {
        let mut envelope = Envelope::new("OUTBOX", false);
        let place = Place { commit_lsn: Lsn(1), index: 0 };
        let stamp = Stamp { origin: "7/1/s/", place, commit_time: Timestamp(0) };
        let before = message(&mut envelope, 1, &event("before"), stamp);
        assert!(before.contains(&"Postrider-Event-Id: before".to_owned()));
        let bare = Event { headers: Vec::new(), payload: Bytes::new(), ..event("after") };
        let after = message(&mut envelope, 2, &bare, stamp);
        assert_eq!(after.len(), 9);
        assert!(after.first().is_some_and(|line| line.ends_with(" 172 172")), "{after:?}");
    }
}
