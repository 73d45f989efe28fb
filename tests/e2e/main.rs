//! The whole relay from outside: the binary between a real Postgres and a real nats-server.
//!
//! Each test has servers of its own and states one claim, which is its name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that fails fails its test"
)]

mod adopt;
mod backfill;
mod care;
mod causes;
mod certificates;
mod cloudevents;
mod delivery;
mod doctor;
mod encryption;
mod failover;
mod forecast;
mod letters;
mod mapping;
mod moving;
mod nats_access;
mod nodes;
mod outages;
mod paced;
mod partitions;
mod pipelines;
mod poller;
mod privileges;
mod provoked;
mod prune;
mod psql;
mod publication;
mod recover;
mod refusals;
mod remove;
mod rollback;
mod rotation;
mod schemas;
mod shadow;
mod sharding;
mod sourcing;
mod support;
mod switchover;
mod tail;
mod takeover;
mod tls;
mod transactions;
mod verify;
mod versions;
