//! What Postrider remembers, in Postgres: the same history as the outbox and the slot.

pub mod checkpoint;
