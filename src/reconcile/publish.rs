//! Rows of the table into the stream, pipelined: each publish carries the sequence that it must get, as
//! the relay's do, so nothing else can come in between unseen.
//!
//! A fault ends the round: what came of the events in flight is read from the stream before the next.

use super::rows::{Reader, Row};
use crate::config::{Config, OnPoison, Oversize};
use crate::delivery::position::{Identity, Place, Position};
use crate::error::{Code, Disposition, Failure};
use crate::nats::answer::Answer;
use crate::nats::limits::Limits;
use crate::nats::object_store;
use crate::nats::publish::Publisher;
use crate::nats::stream::Stream;
use crate::outbox::{Event, Poison, Reason};
use crate::postgres::client::Sql;
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use crate::relay::taken::{At, Shape, Taken};
use crate::state::dead_letter::{self, Owner};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// No answer for so long, though some are due: something is wrong.
const STALL: Duration = Duration::from_secs(5);

/// Puts rows into the stream.
pub(super) struct Filler<'a> {
    pub(super) config: &'a Config,
    pub(super) stream: &'a Stream,
    pub(super) publisher: Publisher,
    pub(super) limits: Limits,
    /// For letters: they are committed while the rows are read.
    pub(super) side: &'a Sql,
    pub(super) owner: Owner,
    pub(super) session: i64,
    pub(super) shape: Arc<Shape>,
    pub(super) timeline: u32,
    /// `<system id>/<timeline>/<slot>/`
    pub(super) origin: Arc<str>,
    /// The LSN of all positions.
    pub(super) base: Lsn,
    /// The next row's index.
    pub(super) index: u64,
    /// Stands for the commit time of rows that do not say when they were created.
    pub(super) now: Timestamp,
    pub(super) done: Done,
}

/// What came of rows.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) published: u64,
    pub(super) lettered: u64,
    /// Ids of letters since they were last asked for.
    pub(super) lettered_ids: Vec<String>,
    /// The last event and its sequence.
    pub(super) last: Option<(u64, Identity)>,
    letters_in_a_row: usize,
}

/// An event that was sent.
struct Sent {
    seq: u64,
    bytes: usize,
    taken: Taken,
}

impl Filler<'_> {
    /// Publishes what `rows` gives, behind message `last_seq`.
    ///
    /// # Errors
    /// Whatever came in between. What is in flight then may be stored or not.
    pub(super) async fn fill(
        &mut self,
        rows: &mut Reader,
        last_seq: u64,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Failure> {
        self.publisher.next_epoch();
        let mut seq = last_seq;
        let mut sent: VecDeque<Sent> = VecDeque::new();
        let mut bytes = 0;
        let delivery = &self.config.delivery;
        let (messages_max, bytes_max) = (delivery.window_messages, delivery.window_bytes);
        while let Some(row) = rows.next().await? {
            let taken = self.taken(row);
            let event = match self.event(&taken).await? {
                Ok(event) => event,
                Err(poison) => {
                    self.letter(&taken, poison).await?;
                    continue;
                }
            };
            seq += 1;
            let size = event.payload.len();
            self.publisher.send(seq, &event, taken.stamp());
            bytes += size;
            sent.push_back(Sent { seq, bytes: size, taken });
            while let Some(answer) = self.publisher.answered() {
                bytes -= self.settle(&mut sent, answer).await?;
            }
            while sent.len() >= messages_max || bytes >= bytes_max && sent.len() > 1 {
                bytes -= self.answer(&mut sent).await?;
            }
            progress(self.done.published);
        }
        while !sent.is_empty() {
            self.answer(&mut sent).await?;
        }
        progress(self.done.published);
        Ok(())
    }

    fn taken(&mut self, row: Row) -> Taken {
        let at = At {
            origin: Arc::clone(&self.origin),
            timeline: self.timeline,
            place: Place { commit_lsn: self.base, index: self.index },
            commit_time: row.created_at.unwrap_or(self.now),
            xid: 0,
        };
        self.index += 1;
        Taken::new(&self.shape, at, row.tuple)
    }

    /// What is to be published; a payload that is too large is in the object store by then, where that is
    /// wanted.
    async fn event(&self, taken: &Taken) -> Result<Result<Event, Poison>, Failure> {
        let event = match taken.event() {
            Ok(event) => event,
            Err(poison) => return Ok(Err(poison)),
        };
        match self.limits.check(&event) {
            Ok(()) => Ok(Ok(event)),
            Err(poison)
                if poison.reason == Reason::Oversize
                    && self.config.delivery.oversize == Oversize::ObjectStore =>
            {
                let event = object_store::claim_check(self.stream, event, taken.place).await?;
                Ok(self.limits.check(&event).map(|()| event))
            }
            Err(poison) => Ok(Err(poison)),
        }
    }

    /// Awaits an answer: the bytes that it frees.
    async fn answer(&mut self, sent: &mut VecDeque<Sent>) -> Result<usize, Failure> {
        let answer = timeout(STALL, self.publisher.answer()).await.map_err(|_| {
            Failure::new(
                Code::NatsSession,
                "JetStream does not answer publishes",
                "see nats-server's log; then the same command again: it goes on where it was",
            )
        })?;
        self.settle(sent, answer).await
    }

    async fn settle(
        &mut self,
        sent: &mut VecDeque<Sent>,
        (seq, answer): (u64, Answer),
    ) -> Result<usize, Failure> {
        let Some(Sent { bytes, taken, .. }) = sent.pop_front_if(|first| first.seq == seq) else {
            return Err(out_of_order(seq));
        };
        if answer == Answer::Stored(seq) {
            self.done.published += 1;
            self.done.letters_in_a_row = 0;
            self.done.last = Some((seq, self.identity(&taken)));
            return Ok(bytes);
        }
        if answer.is_consequence() {
            return Err(Failure::new(
                Code::NatsSession,
                format!("the stream took another message at sequence {seq}"),
                "find who else writes into the stream, and stop it; then the same command again",
            ));
        }
        let subject = taken.event().map_or_else(|_| "?".to_owned(), |event| event.subject.to_string());
        let failure = answer.failure(self.stream.name(), &subject);
        if failure.code.disposition() != Disposition::Poison {
            return Err(failure);
        }
        // What was sent behind it is refused as well: the next round sends it again.
        self.letter(&taken, Poison::new(Reason::of(failure.code), failure.message)).await?;
        Err(Failure::new(Code::NatsSession, "an event became a dead letter", ""))
    }

    fn identity(&self, taken: &Taken) -> Identity {
        let position = Position {
            system_id: self.owner.system_id,
            timeline: self.timeline,
            slot: self.owner.slot.clone(),
            place: taken.place,
        };
        let event_id = taken.id.as_ref().map(ToString::to_string).unwrap_or_default();
        Identity { position, commit_time: taken.commit_time, event_id }
    }

    async fn letter(&mut self, taken: &Taken, poison: Poison) -> Result<(), Failure> {
        let delivery = &self.config.delivery;
        let halts = delivery.on_poison == OnPoison::Halt
            || poison.reason == Reason::Oversize && delivery.oversize == Oversize::Halt;
        if halts {
            return Err(Failure::new(
                poison.reason.code(),
                format!("{} (reason {})", poison.message, poison.reason),
                "mend the row, or set delivery.on_poison = \"dead_letter\"; then the same command again",
            ));
        }
        if self.done.letters_in_a_row >= delivery.dead_letters_max {
            return Err(Failure::new(
                Code::DeadLettersMax,
                format!("{} dead letters in a row; the next: {poison}", self.done.letters_in_a_row),
                "postrider dlq list. Mend the cause, or raise delivery.dead_letters_max; then the same command again",
            ));
        }
        let letter = taken.letter(poison);
        let schema = &self.config.postgres.schema;
        if dead_letter::insert(self.side, schema, &self.owner, self.session, &letter).await?.is_none() {
            return Err(fenced());
        }
        self.done.letters_in_a_row += 1;
        self.done.lettered += 1;
        self.done.lettered_ids.extend(taken.id.as_ref().map(ToString::to_string));
        Ok(())
    }
}

fn out_of_order(seq: u64) -> Failure {
    Failure::new(
        Code::NatsSession,
        format!("JetStream answers publish {seq} out of its turn"),
        "the same command again: it goes on where it was",
    )
}

/// Another command or relay took the row.
pub(super) fn fenced() -> Failure {
    Failure::new(
        Code::SessionTaken,
        "another command took the checkpoint row meanwhile",
        "let one of them end, then the same command again: it goes on where it was",
    )
}
