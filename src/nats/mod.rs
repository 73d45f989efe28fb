//! The way into JetStream: requests over async-nats, publishing and its answers over a connection of our
//! own.
//!
//! Either connection may break and lose what was on its way, async-nats's may send late what was queued.
//! Nothing of it can reorder the stream: every publish carries the sequence it expects.
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`connect`] | the client for requests, what becomes of both connections, where JetStream answers |
//! | `login` | who we are, at each connection |
//! | [`stream`], [`stream_config`], [`limits`] | the stream as its leader knows it, whether it fits, and what it takes |
//! | `wire` | the connection that publishes |
//! | [`envelope`], [`publish`], [`answer`] | messages as they are sent, and what JetStream says to them |
//! | [`object_store`], [`sourcing`] | payloads that are too large; streams with other writers |

pub mod answer;
pub mod connect;
pub mod envelope;
pub mod limits;
mod login;
pub mod object_store;
pub mod publish;
pub mod sourcing;
pub mod stream;
pub mod stream_config;
mod wire;

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
