//! One Postgres server as a logical replication client sees it.
//!
//! Knows nothing of outboxes or NATS and imports nothing of its sibling modules: it could be
//! published as a crate.

pub mod lsn;
pub mod pgoutput;
pub mod text;
pub mod timestamp;
