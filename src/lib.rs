//! Postrider: every row that a committed transaction inserted into the outbox table is stored in a
//! NATS JetStream stream once, in commit order.
//!
//! # The event's journey
//!
//! ```text
//!  Postgres ─► connection ─► replication ─► pgoutput ─► outbox ─► delivery ─► nats ─► JetStream
//!  walsender    frames        XLogData,      messages    Event      │  ▲        │
//!     ▲                       keepalive                             ▼  └─ acks ─┘
//!     └──────── standby status update (confirmed LSN) ◄────────── window
//! ```
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`postgres`] | one server: target, connection, replication stream, pgoutput, catalogues. Imports nothing of its siblings |
//! | [`outbox`] | from a row to an event: presets, templates, headers, encryption. No I/O |
//! | [`delivery`] | what may be sent, skipped and confirmed: position, opening, resume, window, confirm. No I/O, no clock |
//! | [`nats`] | the way into JetStream: requests over async-nats, publishing over a connection of our own |
//! | [`state`] | the checkpoint row in Postgres, fenced by session |
//! | [`relay`] | the sessions and the one loop that drives all of the above; the shadow beside a poller |
//! | [`config`], [`error`] | one table of keys; one catalogue of error codes, one disposition |
//! | [`doctor`] | every check at once, with what mends each fault |
//! | [`care`] | marks, deletes and archives rows behind a proof that their events are stored |
//! | [`reconcile`] | table against stream: what differs, and what publishes it (backfill, recover, verify) |
//! | [`cli`], [`ops`], [`demo`] | a file a command; HTTP and status; the demonstration on servers of its own |
//!
//! # Invariants
//!
//! * An LSN is confirmed only when every event before it is stored, a committed checkpoint row
//!   covers it, and it was received on the connection that confirms it.
//! * A publish carries the sequence it expects: the stream refuses whatever is out of place.
//! * Nothing is kept on disk: what must be remembered is one row in Postgres.
//! * No lock and no channel of ours lies on the path of an event.

pub mod care;
pub mod cli;
pub mod config;
pub mod delivery;
pub mod demo;
pub mod doctor;
pub mod error;
pub mod nats;
pub mod ops;
pub mod outbox;
pub mod postgres;
pub mod reconcile;
pub mod relay;
pub mod state;
