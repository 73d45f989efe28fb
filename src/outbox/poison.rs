//! Why a row cannot be published.

use crate::error::Code;
use std::fmt;

/// The closed list of reasons, as the dead-letter table has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A column of the template gives no valid subject.
    BadSubject,
    /// The stream does not bind the subject.
    SubjectUnbound,
    /// Payload and headers exceed what the server or the stream takes.
    Oversize,
    /// More than 64 KiB of headers.
    HeaderTooLarge,
    /// A header that cannot be sent.
    BadHeader,
    /// A header that is not the application's to set.
    ReservedHeader,
    /// The id is null.
    NullId,
    /// The type is null.
    NullType,
    /// The payload cannot be encrypted.
    Encrypt,
    /// The payload is not what the schema of its type demands.
    Schema,
    /// JetStream refuses this one message.
    Refused,
    /// The stream holds later events, but neither it nor a letter has this one.
    Unaccounted,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 12] = [
        Reason::BadSubject,
        Reason::SubjectUnbound,
        Reason::Oversize,
        Reason::HeaderTooLarge,
        Reason::BadHeader,
        Reason::ReservedHeader,
        Reason::NullId,
        Reason::NullType,
        Reason::Encrypt,
        Reason::Schema,
        Reason::Refused,
        Reason::Unaccounted,
    ];

    /// As the table and the metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::BadSubject => "bad_subject",
            Reason::SubjectUnbound => "subject_unbound",
            Reason::Oversize => "oversize",
            Reason::HeaderTooLarge => "header_too_large",
            Reason::BadHeader => "bad_header",
            Reason::ReservedHeader => "reserved_header",
            Reason::NullId => "null_id",
            Reason::NullType => "null_type",
            Reason::Encrypt => "encrypt",
            Reason::Schema => "schema",
            Reason::Refused => "refused",
            Reason::Unaccounted => "unaccounted",
        }
    }

    /// Its place in the catalogue of errors.
    #[must_use]
    pub const fn code(self) -> Code {
        match self {
            Reason::BadSubject => Code::BadSubject,
            Reason::SubjectUnbound => Code::SubjectUnbound,
            Reason::Oversize => Code::Oversize,
            Reason::HeaderTooLarge => Code::HeaderTooLarge,
            Reason::BadHeader => Code::BadHeader,
            Reason::ReservedHeader => Code::ReservedHeader,
            Reason::NullId => Code::NullId,
            Reason::NullType => Code::NullType,
            Reason::Encrypt => Code::NotEncrypted,
            Reason::Schema => Code::SchemaBroken,
            Reason::Refused => Code::EventRefused,
            Reason::Unaccounted => Code::Unaccounted,
        }
    }

    /// The reason behind a code of a server's answer.
    #[must_use]
    pub fn of(code: Code) -> Reason {
        Reason::ALL.into_iter().find(|reason| reason.code() == code).unwrap_or(Reason::Refused)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A row that cannot be published, now or ever.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Poison {
    /// Why.
    pub reason: Reason,
    /// What is wrong with which column, without a full stop.
    pub message: String,
}

impl Poison {
    /// A row with this fault.
    pub fn new(reason: Reason, message: impl Into<String>) -> Poison {
        Poison { reason, message: message.into() }
    }

    pub(super) fn null_id(column: &str) -> Poison {
        Poison::new(Reason::NullId, format!("the id column `{column}` is null"))
    }

    pub(super) fn null_type(column: &str) -> Poison {
        Poison::new(Reason::NullType, format!("the event type column `{column}` is null"))
    }

    // The replication connection pins bytea_output = hex, so this is not the row's fault.
    pub(super) fn not_hex(column: &str) -> Poison {
        Poison::new(Reason::Refused, format!("the bytea column `{column}` is not printed as hex"))
    }

    /// The same, naming the event for the person who looks for its row.
    pub(super) fn of(mut self, id: &str) -> Poison {
        self.message = format!("event {}: {}", excerpt(id), self.message);
        self
    }
}

/// Enough of a value to recognise it in a log.
pub(crate) fn excerpt(value: &str) -> String {
    const CHARS_MAX: usize = 60;
    match value.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", value.get(..end).unwrap_or_default()),
        None => format!("{value:?}"),
    }
}
