//! Publishing by the thousand, and the answers.
//!
//! One wildcard inbox takes all answers. An answer's subject is `<inbox>.<epoch>.<sequence>`: the
//! sequence is the one that the message must get, so answers are matched by place, never by arrival,
//! and a late answer of an earlier epoch is dropped.

use super::ApiError;
use super::connect::Nats;
use crate::delivery::position::Place;
use crate::error::{Code, Failure};
use crate::outbox::{Event, Poison, Reason, subject};
use crate::postgres::text::Text;
use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use std::fmt::Write;

/// The header that says where in the log an event stands.
pub static POSITION: HeaderName = HeaderName::from_static("Postrider-Position");
/// The header that says when its transaction committed.
pub static COMMIT_TIME: HeaderName = HeaderName::from_static("Postrider-Commit-Time");

/// What JetStream says to one publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Stored at this sequence.
    Stored(u64),
    /// It says `duplicate`: nothing was stored now.
    Duplicate(u64),
    /// It refuses.
    Refused {
        /// HTTP-like.
        code: u64,
        /// JetStream's own; 0 when it gives none.
        err_code: u64,
        /// In words.
        description: String,
    },
    /// No stream listens: none has a leader, or JetStream is shutting down.
    NoResponders,
}

impl Answer {
    /// What an answer other than stored means, sorted (ADR-22 and nats-server's `errors.json`).
    #[must_use]
    pub fn failure(&self, stream: &str, subject: &str) -> Failure {
        let retry = "none is needed: the relay tries again";
        let (err_code, code, said) = match self {
            Answer::Stored(seq) | Answer::Duplicate(seq) => {
                let message = format!("stream `{stream}` says that it has the event at sequence {seq}");
                return Failure::new(Code::NatsSession, message, retry);
            }
            Answer::NoResponders => {
                let message = format!("no stream listens on `{subject}`");
                return Failure::new(Code::NatsSession, message, retry);
            }
            Answer::Refused { code, err_code, description } => (*err_code, *code, description),
        };
        let (code, remedy) = match (err_code, code) {
            // The stream is full.
            (10_077 | 10_052, _) => (
                Code::PublishRefused,
                "raise the stream's limits (nats stream edit), or let consumers and max_age make room",
            ),
            // The account or the server is full.
            (10_002 | 10_023 | 10_028 | 10_047, _) => (
                Code::PublishRefused,
                "raise the account's or the server's JetStream limits (nats account info)",
            ),
            (10_109, _) => (Code::StreamUnfit, "the stream is sealed: choose another nats.stream"),
            (10_060, _) => {
                (Code::StreamUnbound, "another stream binds the subject: nats stream ls --subject")
            }
            (10_039 | 10_076, _) => (Code::NoJetStream, "enable JetStream for the account"),
            (10_054, _) => (Code::Oversize, "raise the stream's max_msg_size, or make the payload smaller"),
            (10_097, _) => (Code::HeaderTooLarge, "make the headers column's entries smaller"),
            (10_166 | 10_111, _) => (Code::EventRefused, "see the event's headers"),
            // Not the leader, in process, too many requests, starting up.
            (10_009 | 10_158 | 10_163 | 10_167 | 10_071 | 10_164 | 10_008, _) | (_, 429 | 503 | 0) => {
                (Code::NatsSession, retry)
            }
            _ => (Code::PublishRefused, "see nats-server's log and the stream's configuration"),
        };
        Failure::new(
            code,
            format!("stream `{stream}` refuses an event for `{subject}`: {said} (error {err_code})"),
            remedy,
        )
    }
}

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

/// `Nats-Expected-Stream`, `Nats-Expected-Last-Sequence` and the block's first and last line.
const OWN_HEADERS: usize = 512;

impl Limits {
    /// A stream's, of a server that takes `max_payload` bytes.
    #[must_use]
    pub fn of(stream: &super::stream::Config, max_payload: usize) -> Limits {
        let filters = stream.subjects.clone();
        match usize::try_from(stream.max_msg_size) {
            Ok(size) if size > 0 && size < max_payload => {
                Limits { filters, message: size, name: "the stream's max_msg_size" }
            }
            _ => Limits { filters, message: max_payload, name: "the server's max_payload" },
        }
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

/// What belongs to a transaction's events alike: formatted once.
#[derive(Debug, Clone)]
pub struct TransactionHeaders {
    /// `<system id>/<timeline>/<slot>/<commit LSN>/`, the index is appended.
    pub position: String,
    /// As the header has it.
    pub commit_time: String,
}

/// Sends events and receives their answers.
pub struct Publisher {
    nats: Nats,
    expected_stream: HeaderValue,
    answers: Subscriber,
    inbox: String,
    epoch: u64,
    reply: String,
    /// Of this epoch: sent, and answered.
    awaited: u64,
    /// Of earlier ones.
    unanswered: u64,
}

impl Publisher {
    /// Subscribes to the answers.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn new(nats: &Nats, stream: &str) -> Result<Publisher, Failure> {
        let inbox = nats.client.new_inbox();
        let answers = nats.client.subscribe(format!("{inbox}.*.*")).await.map_err(|error| gone(&error))?;
        Ok(Publisher {
            nats: nats.clone(),
            expected_stream: HeaderValue::from(stream),
            answers,
            inbox,
            epoch: 0,
            reply: String::new(),
            awaited: 0,
            unanswered: 0,
        })
    }

    /// The largest message that the server takes.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        self.nats.client.max_payload()
    }

    /// Begins anew: answers to what was sent before are dropped from now on.
    pub fn next_epoch(&mut self) {
        self.epoch += 1;
        self.unanswered += std::mem::take(&mut self.awaited);
        self.reply.clear();
        let _ = write!(self.reply, "{}.{}.", self.inbox, self.epoch);
    }

    /// Answers of this epoch that are due.
    #[must_use]
    pub fn awaited(&self) -> u64 {
        self.awaited
    }

    /// Publishes of earlier epochs that were never answered: they may still be on their way.
    #[must_use]
    pub fn unanswered(&self) -> u64 {
        self.unanswered
    }

    /// Sends `event`, which must become message `seq`.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn send(
        &mut self,
        seq: u64,
        event: &Event,
        place: Place,
        transaction: &TransactionHeaders,
    ) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        let mut digits = itoa::Buffer::new();
        let mut position = String::with_capacity(transaction.position.len() + 4);
        position.push_str(&transaction.position);
        position.push_str(digits.format(place.index));
        headers.insert(POSITION.clone(), HeaderValue::from(position));
        headers.insert(COMMIT_TIME.clone(), HeaderValue::from(transaction.commit_time.as_str()));
        for (name, value) in &event.headers {
            headers.insert(name.clone(), HeaderValue::from(value.as_str()));
        }
        headers.insert(async_nats::header::NATS_EXPECTED_STREAM, self.expected_stream.clone());
        let expected = HeaderValue::from(digits.format(seq - 1));
        headers.insert(async_nats::header::NATS_EXPECTED_LAST_SEQUENCE, expected);

        let digits = digits.format(seq);
        let mut reply = String::with_capacity(self.reply.len() + digits.len());
        reply.push_str(&self.reply);
        reply.push_str(digits);
        let subject = wire_subject(event.subject.bytes().clone())?;
        let reply = wire_subject(reply.into())?;
        self.nats
            .client
            .publish_with_reply_and_headers(subject, reply, headers, event.payload.clone())
            .await
            .map_err(|error| gone(&error))?;
        self.awaited += 1;
        Ok(())
    }

    /// The next answer: the sequence that its message must get, and what JetStream says.
    ///
    /// # Cancel safety
    /// Dropping the future loses no answer.
    pub async fn answer(&mut self) -> Option<(u64, Answer)> {
        loop {
            let message = self.answers.next().await?;
            if let Some(answer) = self.read(&message) {
                return Some(answer);
            }
        }
    }

    /// An answer that is here already.
    pub fn answered(&mut self) -> Option<(u64, Answer)> {
        loop {
            let message = self.answers.next().now_or_never()??;
            if let Some(answer) = self.read(&message) {
                return Some(answer);
            }
        }
    }

    fn read(&mut self, message: &async_nats::Message) -> Option<(u64, Answer)> {
        let Some(seq) = message.subject.as_str().strip_prefix(&self.reply) else {
            self.unanswered = self.unanswered.saturating_sub(1);
            return None;
        };
        let seq = seq.parse().ok()?;
        self.awaited = self.awaited.saturating_sub(1);
        let answer = match message.status {
            Some(async_nats::StatusCode::NO_RESPONDERS) => Answer::NoResponders,
            _ => parse(&message.payload),
        };
        Some((seq, answer))
    }
}

fn wire_subject(bytes: Bytes) -> Result<Subject, Failure> {
    Subject::from_utf8(bytes)
        .map_err(|error| Failure::new(Code::Unexpected, format!("a subject that is not UTF-8: {error}"), ""))
}

fn gone(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::NatsSession, format!("the NATS client has ended: {error}"), "")
}

#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

/// Reads a PubAck. By far most are `{"stream":"S","seq":17}` or, up to 2.11, `{"stream":"S", "seq":17}`;
/// anything else, such as a domain, is left to serde.
#[must_use]
pub fn parse(payload: &[u8]) -> Answer {
    if let Some(seq) = plain(payload) {
        return Answer::Stored(seq);
    }
    match serde_json::from_slice::<PubAck>(payload) {
        Ok(PubAck { error: Some(ApiError { code, err_code, description }), .. }) => {
            Answer::Refused { code, err_code, description }
        }
        Ok(PubAck { duplicate: true, seq, .. }) => Answer::Duplicate(seq),
        Ok(PubAck { seq, .. }) if seq > 0 => Answer::Stored(seq),
        _ => Answer::Refused {
            code: 0,
            err_code: 0,
            description: format!("an answer that does not parse: {}", payload.escape_ascii()),
        },
    }
}

fn plain(payload: &[u8]) -> Option<u64> {
    let rest = payload.strip_prefix(b"{\"stream\":\"")?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    let (name, rest) = rest.split_at_checked(end)?;
    let rest = rest.strip_prefix(b"\",")?;
    if !name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'\\') {
        return None;
    }
    let rest = rest.strip_prefix(b" ").unwrap_or(rest).strip_prefix(b"\"seq\":")?;
    let rest = rest.strip_prefix(b" ").unwrap_or(rest).strip_suffix(b"}")?;
    let digits = rest.first().is_some_and(|first| *first != b'0') && rest.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(rest).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_spellings_of_a_plain_answer_are_read() {
        assert_eq!(parse(br#"{"stream":"OUTBOX","seq":17}"#), Answer::Stored(17));
        assert_eq!(parse(br#"{"stream":"OUTBOX", "seq":18}"#), Answer::Stored(18));
        assert_eq!(parse(br#"{"stream":"OUTBOX","domain":"hub","seq":19}"#), Answer::Stored(19));
    }

    #[test]
    fn a_duplicate_is_not_taken_for_stored() {
        assert_eq!(parse(br#"{"stream":"S","seq":0,"duplicate":true}"#), Answer::Duplicate(0));
        assert_eq!(parse(br#"{"stream":"S","seq":5,"duplicate": true}"#), Answer::Duplicate(5));
    }

    #[test]
    fn an_answer_without_a_sequence_is_not_taken_for_stored() {
        for garbage in [
            &b""[..],
            b"{}",
            br#"{"stream":"S","seq":0}"#,
            br#"{"stream":"S","seq":07}"#,
            br#"{"stream":"S\x","seq":7}"#,
            br#"{"stream":"S","seq":}"#,
            b"+OK",
        ] {
            assert!(matches!(parse(garbage), Answer::Refused { .. }), "{}", garbage.escape_ascii());
        }
    }

    #[test]
    fn a_refusal_keeps_its_codes() {
        let refusal = br#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 7"},"stream":"S","seq":0}"#;
        let description = "wrong last sequence: 7".to_owned();
        assert_eq!(parse(refusal), Answer::Refused { code: 400, err_code: 10_071, description });
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_a_panic(payload in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&payload);
        }
    }
}
