//! The whole relay from outside: the binary between a real Postgres and a real nats-server.
//!
//! Each test has servers of its own and states one claim, which is its name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

mod adopt;
mod delivery;
mod failover;
mod letters;
mod mapping;
mod outages;
mod publication;
mod refusals;
mod rollback;
mod support;
mod takeover;
mod transactions;
mod versions;
