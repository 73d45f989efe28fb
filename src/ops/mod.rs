//! What an operator sees: the status, metrics, and HTTP.
//!
//! The loop leaves copies on the [`Board`](status::Board); everything here reads them, beside the loop.

pub mod advice;
pub mod changes;
pub mod counters;
pub mod forecast;
pub mod http;
pub mod metrics;
pub mod obstacles;
mod page;
pub mod status;
pub mod systemd;
