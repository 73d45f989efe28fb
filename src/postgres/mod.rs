//! One Postgres server as a logical replication client sees it.
//!
//! Knows nothing of outboxes or NATS and imports nothing of its sibling modules: it could be
//! published as a crate.
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`target`] | where to connect and as whom: one parsed target drives both kinds of connection |
//! | [`hba`] | lines of `pg_hba.conf` for a person to add |
//! | [`login`] | socket, TLS and proof of who we are, for both kinds of connection |
//! | [`connection`], [`replication`] | the walsender: frames, the stream of one slot, status updates |
//! | [`temporary_slot`] | a slot for as long as a connection lives, and its snapshot |
//! | [`pgoutput`] | the output plugin's messages, decoded without a copy |
//! | [`client`], [`preflight`] | ordinary SQL: the connection, and what the catalogues say |
//! | [`snapshot`] | which transactions others can see |
//! | [`peek`] | what a slot holds that nobody reads |
//! | [`error`] | what can go wrong, with the SQLSTATE kept |

pub mod client;
pub mod connection;
pub mod error;
pub mod hba;
pub mod login;
pub mod lsn;
pub mod peek;
pub mod pgoutput;
pub mod preflight;
pub mod replication;
pub mod snapshot;
mod socket;
pub mod target;
pub mod temporary_slot;
pub mod text;
pub mod timestamp;
mod tls;
