//! Logs go to stderr: for people on a terminal, as JSON elsewhere.

use crate::config::{Log, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging for the process.
pub(super) fn start(log: &Log) {
    // Libraries speak up only when something is wrong. async-nats does so at each connect that is
    // refused, which the relay tells by itself, with a code.
    let filter = EnvFilter::new(format!("warn,async_nats=off,postrider={}", log.level));
    // Whoever read the log may be gone: what cannot be written is not complained of there either, by a panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let human = match log.format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let started = if human {
        builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
    } else {
        builder.json().flatten_event(true).with_target(false).with_current_span(false).try_init()
    };
    if let Err(error) = started {
        eprintln!("logging cannot be started: {error}");
    }
}
