//! The way into JetStream over async-nats: connection, stream, publishing.
//!
//! async-nats reconnects by itself, replays commands that were queued and loses those that were in
//! its write buffer. Neither can reorder the stream: every publish carries the sequence it expects.

pub mod connect;
pub mod publish;
pub mod stream;
