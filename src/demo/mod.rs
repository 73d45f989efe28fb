//! `postrider demo`: a whole outbox pipeline on servers of its own.

pub mod servers;
