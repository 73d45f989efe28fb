//! Throwaway Postgres and NATS servers, for `postrider demo` and for the tests.
//!
//! A server lives in a folder of its own under the system's temporary folder and listens on
//! 127.0.0.1 only. It ends, and its folder goes, when its handle is dropped; when this process is
//! killed, the kernel ends the server and only the folder stays.
//!
//! * Any number may run at once, of any process and any user. A port is tried before it is chosen,
//!   and another is taken if it is gone by then. Ports lie below the range from which the system
//!   serves outgoing connections, so that a server that is down for a while finds its own again.
//! * Readiness is what the server itself says of this very process (`postmaster.pid`, the ports
//!   file of nats-server): a stranger who answers on the port is not taken for it.
//! * Postgres refuses to run as root; started by root, it runs as `nobody`.
//! * Durability against power loss is off (`fsync`), since the folder does not outlive the
//!   process; a killed server loses nothing by that.

mod nats;
mod place;
mod postgres;
mod process;
mod programs;

pub use nats::NatsServer;
pub(super) use place::{free_port, new_folder};
pub use postgres::{PostgresOptions, PostgresServer, Stop};
pub(super) use process::Process;
pub use programs::{PostgresPrograms, nats_program, program};

use crate::error::{Code, Failure};
use std::path::Path;
use std::time::Duration;

/// A start includes recovery after a kill, on a machine that is busy with other tests.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a server is asked whether it has started or ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Attempts at another port before giving up.
const PORT_ATTEMPTS: usize = 10;

/// How a start can go wrong: another port helps, or it does not.
enum StartError {
    AddressInUse,
    Other(Failure),
}

impl StartError {
    /// From the log of a server that ended or did not become ready.
    fn of(what: &str, log: &str) -> StartError {
        let lower = log.to_lowercase();
        if lower.contains("address already in use") {
            return StartError::AddressInUse;
        }
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n    ");
        StartError::Other(broken(format!("{what}; its log ends with:\n    {tail}")))
    }
}

/// A server or its surroundings do not work; nothing that a configuration could mend.
pub(super) fn broken(message: impl Into<String>) -> Failure {
    Failure::new(Code::Unexpected, message, "")
}

/// What the server wrote since `offset` of its log.
pub(super) fn log_since(log: &Path, offset: u64) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let from = usize::try_from(offset).unwrap_or(0).min(bytes.len());
    String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
}

fn log_length(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |meta| meta.len())
}
