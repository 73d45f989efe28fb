//! Publishing by the thousand.
//!
//! One wildcard inbox takes all answers. An answer's subject is `<inbox>.<epoch>.<sequence>`: the
//! sequence is the one that the message must get, so answers are matched by place, never by arrival,
//! and a late answer of an earlier epoch is dropped.

use super::answer::{Answer, parse};
use super::connect::Nats;
use crate::delivery::position::Place;
use crate::error::{Code, Failure};
use crate::outbox::Event;
use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use std::fmt::Write;

/// The header that says where in the log an event stands.
pub static POSITION: HeaderName = HeaderName::from_static("Postrider-Position");
/// The header that says when its transaction committed.
pub static COMMIT_TIME: HeaderName = HeaderName::from_static("Postrider-Commit-Time");

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
