//! What an operator sees: the status, and HTTP.

pub mod http;
pub mod status;
