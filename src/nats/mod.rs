//! The way into JetStream over async-nats: connection, stream, publishing, answers.
//!
//! async-nats reconnects by itself, replays commands that were queued and loses those that were in
//! its write buffer. Neither can reorder the stream: every publish carries the sequence it expects.

pub mod answer;
pub mod connect;
pub mod envelope;
pub mod limits;
mod login;
pub mod object_store;
pub mod publish;
pub mod sourcing;
pub mod stream;

use serde::Deserialize;

/// How JetStream says no, to a request and to a publish alike (ADR-1). Members may be missing: up to
/// 2.11 a leader change is told by `code` alone.
#[derive(Debug, Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}
