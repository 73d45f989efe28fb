//! What is wrong with the whole chain, and what mends it: every check at once, none of which changes
//! anything. `run` refuses what it must at the first fault; this goes on and tells all of them, and what
//! will become one.
//!
//! | file | what it looks at |
//! | --- | --- |
//! | `postgres` | server, role, table, publication, slot; what holds WAL back |
//! | `care` | clean-up of the outbox, and its size |
//! | `nats` | login, JetStream, stream, permissions |
//! | `pair` | whether both sides belong together; clocks; forecasts |
//! | [`canary`] | one event from end to end |

pub mod canary;
mod care;
mod nats;
mod pair;
mod postgres;

use crate::config::Config;
use crate::error::{Code, Failure};
use crate::outbox::Resolved;
use serde::Serialize;
use std::time::Duration;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The relay does not run, or events are lost.
    Error,
    /// It will come to that.
    Warning,
    /// It could be better.
    Advice,
}

/// One thing that is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Its place in the catalogue.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
    /// Statements that mend it.
    pub sql: Vec<String>,
    /// Commands that mend it.
    pub command: Vec<String>,
}

/// All that was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// What is right, in a few words each.
    pub sound: Vec<String>,
    /// What will be, if nothing changes.
    pub forecasts: Vec<String>,
}

impl Report {
    fn error(&mut self, failure: Failure) {
        self.found(Level::Error, failure);
    }

    fn warning(&mut self, failure: Failure) {
        self.found(Level::Warning, failure);
    }

    fn advice(&mut self, failure: Failure) {
        self.found(Level::Advice, failure);
    }

    fn found(&mut self, level: Level, failure: Failure) {
        let code = failure.code.as_str();
        let whole = failure.whole_remedy();
        let Failure { message, remedy, sql, commands, .. } = failure;
        let remedy = if remedy.is_empty() { whole } else { remedy };
        // One fault may be met on several ways.
        if !self.findings.iter().any(|known| known.code == code && known.message == message) {
            self.findings.push(Finding { level, code, message, remedy, sql, command: commands });
        }
    }

    /// The answer, or none and an error.
    fn told<T, E: Into<Failure>>(&mut self, answer: Result<T, E>) -> Option<T> {
        answer.map_err(|error| self.error(error.into())).ok()
    }

    fn sound(&mut self, text: impl Into<String>) {
        self.sound.push(text.into());
    }

    fn forecast(&mut self, text: impl Into<String>) {
        self.forecasts.push(text.into());
    }

    /// Whether anything is worse than advice.
    #[must_use]
    pub fn is_alarming(&self) -> bool {
        self.findings.iter().any(|finding| finding.level < Level::Advice)
    }
}

/// Looks at everything; a transaction that has been writing for `old` is old.
pub async fn examine(config: &Config, old: Duration) -> Report {
    let mut report = Report::default();
    let base = postgres::examine(config, old, &mut report).await;
    let template = base.as_ref().and_then(|base| base.resolved.as_ref()).map(Resolved::subject);
    let broker = nats::examine(config, template, &mut report).await;
    pair::examine(config, base.as_ref(), broker.as_ref(), &mut report).await;
    let written =
        broker.as_ref().and_then(|broker| broker.look.as_ref()).is_some_and(|look| look.end.last_seq > 0);
    if base.is_some_and(|base| base.row.is_some() || base.slot.is_some() && written) {
        // There was a pipeline: what is missing of it is not made anew without saying what is given up.
        let parts =
            [Code::PublicationMissing, Code::SlotMissing, Code::CheckpointMissing, Code::StreamMissing];
        let parts = parts.map(Code::as_str);
        for finding in report.findings.iter_mut().filter(|finding| parts.contains(&finding.code)) {
            let row_only = finding.code == Code::CheckpointMissing.as_str();
            let adopting =
                if row_only { "postrider recover --adopt --yes" } else { "postrider init --adopt" };
            for command in finding.command.iter_mut().filter(|command| *command == "postrider init") {
                *command = adopting.to_owned();
            }
        }
    }
    if let Some(broker) = &broker {
        nats::payloads(config, broker, &mut report).await;
    }
    report.findings.sort_by_key(|finding| finding.level);
    report
}
