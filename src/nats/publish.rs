//! Publishing by the thousand.
//!
//! One wildcard inbox takes all answers. An answer's subject is `<inbox>.<epoch>.<sequence>`: the
//! sequence is the one that the message must get, so answers are matched by place, never by arrival,
//! and a late answer of an earlier epoch is dropped.

use super::answer::{Answer, parse};
use super::connect::Nats;
use super::envelope::{Envelope, Stamp};
use crate::error::{Code, Failure};
use crate::outbox::Event;
use async_nats::{Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use std::fmt::Write;

/// Sends events and receives their answers.
pub struct Publisher {
    nats: Nats,
    envelope: Envelope,
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
            envelope: Envelope::new(stream),
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
    pub async fn send(&mut self, seq: u64, event: Event, stamp: Stamp<'_>) -> Result<(), Failure> {
        let headers = self.envelope.headers(seq, &event, stamp);
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(seq);
        let mut reply = String::with_capacity(self.reply.len() + digits.len());
        reply.push_str(&self.reply);
        reply.push_str(digits);
        let subject = wire_subject(event.subject.into())?;
        let reply = wire_subject(reply.into())?;
        self.nats
            .client
            .publish_with_reply_and_headers(subject, reply, headers, event.payload)
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
