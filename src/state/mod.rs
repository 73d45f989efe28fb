//! What Postrider remembers, in Postgres: the same history as the outbox and the slot.

pub mod checkpoint;
pub mod dead_letter;
pub mod obstacles;
pub mod older;
pub mod replay;
pub mod survey;
