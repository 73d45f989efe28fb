//! The two sides that a session stands between, as it sees them.
//!
//! Behind them are real servers (`servers`), or a model of both (`simulation`), so that the whole
//! relay, loop and sessions, can be run under faults that no real server shows on demand.

use crate::delivery::checkpoint::{Checkpoint, Objects};
use crate::delivery::opening::{KnownLetter, Stored};
use crate::delivery::position::Place;
use crate::error::Failure;
use crate::nats::answer::Answer;
use crate::nats::connect::Link;
use crate::nats::envelope::Stamp;
use crate::nats::stream::Look;
use crate::outbox::{Event, Resolved};
use crate::postgres::connection::Connection;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{Slot, Table, TableSize};
use crate::postgres::snapshot::Snapshot;
use crate::postgres::timestamp::Timestamp;
use crate::state::dead_letter::{Letter, Owner};
use crate::state::obstacles::Obstacles;
use crate::state::survey::Survey;
use tokio::sync::watch;

/// Where connections come from; each session makes its own.
pub(super) trait Sides {
    type Base: Base;
    type Stream: Stream;
    type Publisher: Publisher;

    /// Connects to NATS.
    async fn nats(&self) -> Result<Broker<Self::Stream, Self::Publisher>, Failure>;

    /// Connects to Postgres by SQL: to the first writable host, beginning with the one of this number.
    async fn postgres(&self, first: usize) -> Result<Self::Base, Failure>;

    /// What Postgres has of the pipeline while no session looks: over a connection of its own, which is
    /// closed again.
    async fn survey(&self, first: usize) -> Result<Survey, Failure>;
}

/// A connection to NATS.
pub(super) struct Broker<S, P> {
    pub(super) stream: S,
    pub(super) publisher: P,
    pub(super) link: watch::Receiver<Link>,
    /// The server's version.
    pub(super) version: String,
    /// Replicated streams take a `Nats-Msg-Id` and keep their word.
    pub(super) msg_id_is_safe: bool,
}

/// SQL beside the slot. Clones share one connection.
pub(super) trait Base: Clone + 'static {
    /// Waits until the connection has ended, and says why.
    async fn closed(&self) -> String;

    /// The server is fit, and the outbox is a table that can be streamed.
    async fn table(&self) -> Result<Table, Failure>;

    /// The clean-up that is configured can be done.
    async fn fits_care(&self, table: &Table, resolved: &Resolved) -> Result<(), Failure>;

    /// The publication and the slot are fit; what identifies publication and table.
    async fn objects(&self, table: &Table) -> Result<Objects, Failure>;

    /// The slot, fit.
    async fn slot(&self) -> Result<Slot, Failure>;

    /// Whether a walsender has it.
    async fn slot_is_active(&self) -> Result<bool, Failure>;

    /// When this server started: two connections with the same answer are to one server.
    async fn started_at(&self) -> Result<String, Failure>;

    /// Postgres's clock.
    async fn now(&self) -> Result<Timestamp, Failure>;

    /// A replication connection to the same host.
    async fn walsender(&self) -> Result<Connection, Failure>;

    /// What the walsender waits for, in Postgres's words.
    async fn walsender_waits_for(&self) -> Result<Option<String>, Failure>;

    /// What others can see.
    async fn snapshot(&self) -> Result<Snapshot, Failure>;

    /// The checkpoint row.
    async fn row(&self) -> Result<Option<Checkpoint>, Failure>;

    /// Takes the row for `session` and reads it.
    async fn take(&self, session: i64) -> Result<Option<Checkpoint>, Failure>;

    /// Writes it, unless another session has it.
    async fn write(&self, row: &Checkpoint) -> Result<bool, Failure>;

    /// Looks whether publication and table are still `objects`: the WAL's end before, the slot after.
    async fn check(&self, objects: Objects) -> Result<(Lsn, Slot), Failure>;

    /// The letters of transactions from `from` on, and the LSN that all were committed before.
    async fn letters(&self, owner: &Owner, from: Lsn) -> Result<(Vec<KnownLetter>, Lsn), Failure>;

    /// Commits a letter, unless another session has the row: the LSN that it was committed before.
    async fn letter(&self, owner: &Owner, session: i64, letter: &Letter) -> Result<Option<Lsn>, Failure>;

    /// The stream has these all the same.
    async fn void_letters(&self, owner: &Owner, places: &[Place]) -> Result<(), Failure>;

    /// How much room the outbox takes.
    async fn outbox_size(&self) -> Result<TableSize, Failure>;

    /// What keeps rows from being published though all is sound.
    async fn obstacles(&self) -> Result<Obstacles, Failure>;

    /// What Postgres has of the pipeline, fit or not.
    async fn survey(&self) -> Result<Survey, Failure>;

    /// How many letters are open; removes those whose time has passed.
    async fn tend_letters(&self, owner: &Owner, id_column: &str) -> Result<u64, Failure>;
}

/// The stream, asked at its leader.
pub(super) trait Stream: Clone + 'static {
    fn name(&self) -> &str;

    /// How it is configured, and where it ends.
    async fn look(&self) -> Result<Look, Failure>;

    /// What stands at `seq`.
    async fn message(&self, seq: u64) -> Result<Stored, Failure>;

    /// What stands at `first` to `last`.
    async fn messages(&self, first: u64, last: u64) -> Result<Vec<(u64, Stored)>, Failure>;

    /// Whether the store for large payloads exists.
    async fn has_object_store(&self) -> Result<bool, Failure>;

    /// Puts the event's payload there: the event that refers to it.
    async fn claim_check(&self, event: Event, place: Place) -> Result<Event, Failure>;
}

/// Publishes, and receives the answers.
pub(super) trait Publisher {
    /// The largest message that the server takes.
    fn max_payload(&self) -> usize;

    /// Begins anew: answers to what was sent before are dropped from now on.
    fn next_epoch(&mut self);

    /// Answers of this epoch that are due.
    fn awaited(&self) -> u64;

    /// Publishes of earlier epochs that were never answered: they may still be on their way.
    fn unanswered(&self) -> u64;

    /// Sends `event`, which must become message `seq`. What gets lost is not answered.
    fn send(&mut self, seq: u64, event: &Event, stamp: Stamp<'_>);

    /// The next answer: the sequence that its message must get, and what JetStream says. Cancel safe.
    async fn answer(&mut self) -> (u64, Answer);

    /// An answer that is here already.
    fn answered(&mut self) -> Option<(u64, Answer)>;
}
