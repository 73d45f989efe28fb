//! Publishing by the thousand.
//!
//! One wildcard inbox takes all answers. An answer's subject is `<inbox>.<epoch>.<sequence>`: the
//! sequence is the one that the message must get, so answers are matched by place, never by arrival,
//! and a late answer of an earlier epoch is dropped.

use super::answer::Answer;
use super::connect::Nats;
use super::envelope::{Envelope, Stamp};
use super::wire::{Broken, Heard, Wire};
use crate::error::{Code, Failure};
use crate::outbox::Event;
use async_nats::ServerAddr;
use std::fmt::Write;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

/// So much is gathered before it is sent without waiting for anything: what a socket takes at once.
const GATHERED: usize = 32 * 1024;

const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// Sends events and receives their answers.
pub struct Publisher {
    nats: Nats,
    state: State,
    /// How long the next attempt to connect waits.
    back_off: Duration,
    envelope: Envelope,
    inbox: String,
    epoch: u64,
    reply: String,
    max_payload: usize,
    /// Of this epoch: sent, and answered.
    awaited: u64,
    /// Of earlier ones.
    unanswered: u64,
}

enum State {
    Up(Box<Wire>),
    Down(Pin<Box<dyn Future<Output = Result<Wire, Failure>> + Send>>),
}

impl Publisher {
    /// Connects, and subscribes to the answers.
    ///
    /// # Errors
    /// No server of `nats` lets us in.
    pub async fn new(nats: &Nats, stream: &str, cloudevents: bool) -> Result<Publisher, Failure> {
        let inbox = nats.client.new_inbox();
        let wire = connect(nats.clone(), inbox.clone(), Duration::ZERO).await?;
        nats.publishing(true);
        Ok(Publisher {
            nats: nats.clone(),
            max_payload: wire.max_payload,
            state: State::Up(Box::new(wire)),
            back_off: RECONNECT_MIN,
            envelope: Envelope::new(stream, cloudevents),
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
        self.max_payload
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

    /// Sends `event`, which must become message `seq`. Without a connection it is lost, as it would be on
    /// one that breaks: no answer comes.
    pub fn send(&mut self, seq: u64, event: &Event, stamp: Stamp<'_>) {
        self.awaited += 1;
        let State::Up(wire) = &mut self.state else { return };
        self.envelope.write(&mut wire.write, seq, &self.reply, event, stamp);
        if wire.write.len() >= GATHERED {
            wire.poll_send(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// The next answer: the sequence that its message must get, and what JetStream says. Sends what is to
    /// be sent, and connects anew where that is to be done.
    ///
    /// # Cancel safety
    /// Dropping the future loses no answer.
    pub async fn answer(&mut self) -> (u64, Answer) {
        poll_fn(|cx| self.poll_answer(cx)).await
    }

    /// An answer that is here already.
    pub fn answered(&mut self) -> Option<(u64, Answer)> {
        loop {
            let State::Up(wire) = &mut self.state else { return None };
            match wire.take(&self.reply) {
                Ok(Some(heard)) => {
                    if let Some(answer) = self.heard(heard) {
                        return Some(answer);
                    }
                }
                Ok(None) => return None,
                Err(broken) => self.lost(&broken),
            }
        }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<(u64, Answer)> {
        loop {
            match &mut self.state {
                State::Up(wire) => match ready!(wire.poll(cx, &self.reply)) {
                    Ok(heard) => {
                        self.max_payload = wire.max_payload;
                        if let Some(answer) = self.heard(heard) {
                            return Poll::Ready(answer);
                        }
                    }
                    Err(broken) => self.lost(&broken),
                },
                State::Down(connecting) => match ready!(connecting.as_mut().poll(cx)) {
                    Ok(wire) => {
                        self.back_off = RECONNECT_MIN;
                        self.max_payload = wire.max_payload;
                        self.state = State::Up(Box::new(wire));
                        self.nats.publishing(true);
                    }
                    Err(failure) => {
                        self.nats.complains(failure.message);
                        self.back_off = (self.back_off * 2).min(RECONNECT_MAX);
                        self.reconnect();
                    }
                },
            }
        }
    }

    fn heard(&mut self, heard: Heard) -> Option<(u64, Answer)> {
        match heard {
            Heard::Answer(Some(seq), answer) => {
                self.awaited = self.awaited.saturating_sub(1);
                Some((seq, answer))
            }
            Heard::Answer(None, _) => {
                self.unanswered = self.unanswered.saturating_sub(1);
                None
            }
            Heard::Complaint(text) => {
                self.nats.complains(text);
                None
            }
        }
    }

    fn lost(&mut self, broken: &Broken) {
        tracing::debug!(why = %broken, "the connection for publishing is lost");
        self.nats.publishing(false);
        self.reconnect();
    }

    fn reconnect(&mut self) {
        let connecting = connect(self.nats.clone(), self.inbox.clone(), self.back_off);
        self.state = State::Down(Box::pin(connecting));
    }
}

/// To the first server that lets us in: those of nats.url, then those of the cluster that they told of.
async fn connect(nats: Nats, inbox: String, wait: Duration) -> Result<Wire, Failure> {
    tokio::time::sleep(wait).await;
    let mut told = None;
    let named = nats.access.servers();
    let told_of = nats.client.server_info().connect_urls;
    for server in named.iter().chain(&told_of) {
        let Ok(server) = server.parse::<ServerAddr>() else { continue };
        match Wire::connect(&nats.access, &server, &inbox).await {
            Ok(wire) => return Ok(wire),
            // What the servers of nats.url have against us says more than what those do that they told of.
            Err(failure) => _ = told.get_or_insert(failure),
        }
    }
    Err(told.unwrap_or_else(|| Failure::new(Code::NatsSession, "nats.url names no server", "")))
}
