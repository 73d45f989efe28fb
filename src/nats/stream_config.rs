//! How a stream is configured: what makes it unfit for an outbox, and what one is created with.

use crate::error::{Code, Failure};
use crate::outbox::Template;
use serde::Deserialize;
use std::time::Duration;

/// What decides whether a stream can take an outbox (`STREAM.INFO`, ADR-33 and later).
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Subject filters.
    pub subjects: Vec<String>,
    /// `limits`, `interest`, `workqueue`.
    pub retention: String,
    /// `old` or `new`.
    pub discard: String,
    /// Largest message, headers included; -1: no limit.
    pub max_msg_size: i64,
    /// -1: no limit.
    pub max_msgs: i64,
    /// -1: no limit.
    pub max_bytes: i64,
    /// -1: no limit.
    pub max_msgs_per_subject: i64,
    /// Copies in a cluster.
    pub num_replicas: usize,
    storage: String,
    no_ack: bool,
    sealed: bool,
    mirror: Option<serde_json::Value>,
    sources: Option<Vec<serde_json::Value>>,
    persist_mode: Option<String>,
    subject_delete_marker_ttl: Option<u64>,
    allow_msg_schedules: bool,
    allow_msg_counter: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            subjects: Vec::new(),
            retention: String::new(),
            discard: String::new(),
            max_msg_size: -1,
            max_msgs: -1,
            max_bytes: -1,
            max_msgs_per_subject: -1,
            num_replicas: 1,
            storage: String::new(),
            no_ack: false,
            sealed: false,
            mirror: None,
            sources: None,
            persist_mode: None,
            subject_delete_marker_ttl: None,
            allow_msg_schedules: false,
            allow_msg_counter: false,
        }
    }
}

impl Config {
    /// Whether the stream can hold each event once and in order.
    ///
    /// # Errors
    /// PR0305 with the reason, PR0306 when it binds nothing that `template` can produce.
    pub fn fits(&self, name: &str, template: &Template) -> Result<(), Failure> {
        let unfit = [
            (self.mirror.is_some(), "is a mirror"),
            (self.sources.as_ref().is_some_and(|sources| !sources.is_empty()), "has sources"),
            (self.storage == "memory", "is kept in memory: a restart of its server loses it"),
            (self.sealed, "is sealed"),
            (self.no_ack, "does not acknowledge (no_ack)"),
            (
                self.persist_mode.as_deref() == Some("async"),
                "persists asynchronously: a crash loses what it acknowledged",
            ),
            (
                self.subject_delete_marker_ttl.is_some_and(|ttl| ttl > 0),
                "lets the server write delete markers into it",
            ),
            (self.allow_msg_schedules, "lets the server write scheduled messages into it"),
            (self.allow_msg_counter, "is a counter"),
        ];
        if let Some((_, why)) = unfit.iter().find(|(is, _)| *is) {
            return Err(Failure::new(
                Code::StreamUnfit,
                format!("stream `{name}` {why}"),
                "choose another nats.stream; postrider init creates one that fits",
            ));
        }
        if !self.subjects.iter().any(|filter| template.overlaps(filter)) {
            return Err(Failure::new(
                Code::StreamUnbound,
                format!(
                    "stream `{name}` binds {}, and outbox.subject is `{template}`",
                    if self.subjects.is_empty() { "nothing".to_owned() } else { self.subjects.join(", ") }
                ),
                format!("nats stream edit {name} --subjects '…', or change outbox.subject"),
            ));
        }
        Ok(())
    }

    /// Whether `nats.msg_id` is safe here; `fixed`: the server is 2.12 or later.
    ///
    /// # Errors
    /// PR0312
    pub fn takes_message_ids(&self, fixed: bool, version: &str) -> Result<(), Failure> {
        if fixed || self.num_replicas <= 1 {
            return Ok(());
        }
        let what = format!("nats.msg_id with {} replicas on nats-server {version}", self.num_replicas);
        Err(Failure::new(Code::MessageIdUnsafe, what, "set nats.msg_id = false"))
    }

    /// What is accepted, and to be known.
    #[must_use]
    pub fn warnings(&self) -> Vec<&'static str> {
        let limited = self.max_msgs > 0 || self.max_bytes > 0 || self.max_msgs_per_subject > 0;
        let mut warnings = Vec::new();
        if self.discard != "new" && limited {
            warnings.push(
                "the stream discards old messages when it is full: consumers that are slow lose events",
            );
        }
        warnings
    }
}

/// A stream to be created.
#[derive(Debug, Clone)]
pub struct New {
    /// Subject filters.
    pub subjects: Vec<String>,
    /// Copies in a cluster.
    pub replicas: usize,
    /// Messages older than that expire.
    pub max_age: Option<Duration>,
    /// Most bytes.
    pub max_bytes: Option<u64>,
}

impl New {
    /// As the configuration wants it, for the subjects that `subject` begins with.
    ///
    /// # Errors
    /// PR0107: it begins with a column.
    pub fn of(nats: &crate::config::Nats, subject: &Template) -> Result<New, Failure> {
        let subjects = subject.stream_subject().ok_or_else(|| {
            Failure::new(
                Code::SubjectsUnclear,
                format!(
                    "outbox.subject `{subject}` begins with a column: the stream's subjects cannot be derived"
                ),
                format!(
                    "nats stream add {} --subjects '…' --storage file --discard new --defaults, then again",
                    nats.stream
                ),
            )
        })?;
        Ok(New {
            subjects: vec![subjects],
            replicas: nats.replicas,
            max_age: nats.max_age,
            max_bytes: nats.max_bytes,
        })
    }
}
