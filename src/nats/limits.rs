//! What an event must not exceed, looked at before it is sent.

use super::stream_config::Config;
use crate::outbox::{Event, Poison, Reason, subject};
use crate::postgres::text::Text;
use async_nats::HeaderName;

/// What an event must not exceed.
#[derive(Debug, Clone)]
pub struct Limits {
    filters: Vec<String>,
    /// Headers and payload.
    message: usize,
    name: &'static str,
}

/// JetStream keeps a message's headers with a 16-bit length.
const HEADERS_MAX: usize = 65_535;

/// nats-server's own.
const DEFAULT_MAX_PAYLOAD: usize = 1 << 20;

/// What [`envelope`](super::envelope) adds, with names as long as they may be.
const OWN_HEADERS: usize = 768;

impl Limits {
    /// A stream's, of a server that takes `max_payload` bytes.
    #[must_use]
    pub fn of(stream: &Config, max_payload: usize) -> Limits {
        let filters = stream.subjects.clone();
        match usize::try_from(stream.max_msg_size) {
            Ok(size) if size > 0 && size < max_payload => {
                Limits { filters, message: size, name: "the stream's max_msg_size" }
            }
            _ => Limits { filters, message: max_payload, name: "the server's max_payload" },
        }
    }

    /// What nobody has asked a server for: its default, and a stream that `init` would make. What goes to
    /// the object store is not too large.
    #[must_use]
    pub fn without_server(object_store: bool) -> Limits {
        let message = if object_store { usize::MAX } else { DEFAULT_MAX_PAYLOAD };
        Limits { filters: vec![">".to_owned()], message, name: "nats-server's default max_payload" }
    }

    /// Whether JetStream can take the event.
    ///
    /// # Errors
    /// It would refuse it, or drop the connection.
    pub fn check(&self, event: &Event) -> Result<(), Poison> {
        if !self.filters.iter().any(|filter| subject::matches(filter, &event.subject)) {
            return Err(Poison::new(
                Reason::SubjectUnbound,
                format!("event {:?}: no subject of the stream matches `{}`", event.id, event.subject),
            ));
        }
        let line = |(name, value): &(HeaderName, Text)| AsRef::<str>::as_ref(name).len() + value.len() + 4;
        let headers = OWN_HEADERS + event.headers.iter().map(line).sum::<usize>();
        if headers > HEADERS_MAX {
            return Err(Poison::new(
                Reason::HeaderTooLarge,
                format!("event {:?}: {headers} bytes of headers, JetStream takes {HEADERS_MAX}", event.id),
            ));
        }
        let size = headers + event.payload.len();
        if size > self.message {
            return Err(Poison::new(
                Reason::Oversize,
                format!("event {:?}: {size} bytes exceed {} of {}", event.id, self.name, self.message),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn limits(max_msg_size: i64, max_payload: usize) -> Limits {
        let stream = format!(r#"{{"subjects": ["a.>", "b"], "max_msg_size": {max_msg_size}}}"#);
        Limits::of(&serde_json::from_str(&stream).unwrap(), max_payload)
    }

    /// With one header that takes so many bytes of the block.
    fn event(subject: &'static str, header: usize, payload: usize) -> Event {
        let value = "x".repeat(header - "Name".len() - 4);
        Event {
            id: Text::from_static("7"),
            subject: Text::from_static(subject),
            headers: vec![(HeaderName::from_static("Name"), Text::new(Bytes::from(value)).unwrap())],
            payload: Bytes::from(vec![b'x'; payload]),
        }
    }

    fn refused(limits: &Limits, event: &Event) -> Option<Reason> {
        limits.check(event).err().map(|poison| poison.reason)
    }

    #[test]
    fn the_smaller_of_both_limits_counts() {
        let limit = |max_msg_size| {
            let limits = limits(max_msg_size, 1000);
            (limits.message, limits.name.contains("stream"))
        };
        assert_eq!(limit(-1), (1000, false));
        assert_eq!(limit(0), (1000, false));
        assert_eq!(limit(1), (1, true));
        assert_eq!(limit(999), (999, true));
        assert_eq!(limit(1000), (1000, false));
        assert_eq!(limit(2000), (1000, false));
    }

    #[test]
    fn a_subject_that_no_filter_matches_is_refused() {
        let limits = limits(-1, 1 << 20);
        for bound in ["a.x", "a.x.y", "b"] {
            assert_eq!(refused(&limits, &event(bound, 20, 1)), None, "{bound}");
        }
        for unbound in ["a", "c", "b.x"] {
            assert_eq!(refused(&limits, &event(unbound, 20, 1)), Some(Reason::SubjectUnbound), "{unbound}");
        }
    }

    #[test]
    fn headers_and_payload_together_count() {
        let limits = limits(-1, 2000);
        let room = 2000 - OWN_HEADERS - 100;
        assert_eq!(refused(&limits, &event("b", 100, room)), None);
        assert_eq!(refused(&limits, &event("b", 100, room + 1)), Some(Reason::Oversize));
        assert_eq!(refused(&limits, &event("b", 101, room)), Some(Reason::Oversize));
    }

    #[test]
    fn headers_have_a_limit_of_their_own() {
        let limits = limits(-1, 1 << 20);
        assert_eq!(refused(&limits, &event("b", HEADERS_MAX - OWN_HEADERS, 1)), None);
        let larger = event("b", HEADERS_MAX - OWN_HEADERS + 1, 1);
        assert_eq!(refused(&limits, &larger), Some(Reason::HeaderTooLarge));
    }
}
