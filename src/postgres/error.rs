//! What can go wrong with a Postgres server, with the SQLSTATE kept.

use super::login::LoginError;
use super::pgoutput::DecodeError;
pub use super::tls::{CertificateProblem, TlsError};
use postgres_protocol::message::backend::ErrorFields;
use std::fmt;
use std::io;
use tokio_postgres::error::SqlState;

/// An error of a connection to Postgres. After any of them but [`Error::Server`] the connection is
/// of no more use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No TCP or socket connection comes about.
    #[error("cannot connect to {host}: {source}")]
    Connect {
        /// Host and port, or the socket.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// Reading or writing fails.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The server closed the connection without a word.
    #[error("the server closed the connection")]
    Closed,
    /// Nothing came in time; what was waited for.
    #[error("no answer in time: {0}")]
    Timeout(&'static str),
    /// The server says no.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The peer does not speak the protocol.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// A message of the output plugin does not decode.
    #[error("pgoutput does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// We do not log in as the server asks us to.
    #[error("login: {0}")]
    Login(#[from] LoginError),
    /// TLS is not offered or its handshake fails.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// None of several hosts can be used; each with its reason.
    #[error("no host can be used: {0}")]
    NoHost(String),
    /// The server takes no writes, and one that does is wanted.
    #[error("{0} takes no writes, and target_session_attrs asks for a server that does")]
    ReadOnly(String),
}

impl Error {
    /// Whether it may pass by itself: the server is away, starts or stops, or is full.
    #[must_use]
    pub fn passes(&self) -> bool {
        match self {
            Error::Server(error) => {
                let state = error.code.code();
                state == SqlState::LOCK_NOT_AVAILABLE.code()
                    || state == SqlState::READ_ONLY_SQL_TRANSACTION.code()
                    // Connection, rollback, resources, operator intervention.
                    || ["08", "40", "53", "57"].iter().any(|class| state.starts_with(class))
            }
            Error::Login(_) | Error::Tls(_) | Error::Decode(_) => false,
            _ => true,
        }
    }
}

/// An ErrorResponse or NoticeResponse (Postgres manual, "Error and Notice Message Fields").
#[derive(Debug, Clone)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, …, never translated.
    pub severity: String,
    /// The SQLSTATE.
    pub code: SqlState,
    /// The primary message.
    pub message: String,
    /// More of it.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
    /// Where: for a decoding error the slot, the plugin and the LSN.
    pub context: Option<String>,
}

/// Whether a notice says that decoding waits for a standby (17 and later): a walsender's, or that of a look
/// into a slot. The setting's name is in it in every language.
pub(super) fn awaits_standby(message: &str) -> bool {
    message.contains("synchronized_standby_slots")
}

impl ServerError {
    /// Whether a walsender says that it waits for a standby.
    #[must_use]
    pub fn awaits_standby(&self) -> bool {
        awaits_standby(&self.message)
    }

    /// Reads the fields of an ErrorResponse or a NoticeResponse; a message that is not UTF-8 (the
    /// login may fail before the encoding is set) is read lossily.
    ///
    /// # Errors
    /// The body is malformed.
    pub(super) fn read(mut fields: ErrorFields<'_>) -> io::Result<ServerError> {
        use fallible_iterator::FallibleIterator;
        let mut error = ServerError {
            severity: String::new(),
            code: SqlState::INTERNAL_ERROR,
            message: String::new(),
            detail: None,
            hint: None,
            context: None,
        };
        while let Some(field) = fields.next()? {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'V' => error.severity = text,
                b'C' => error.code = SqlState::from_code(&text),
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b'W' => error.context = Some(text),
                _ => {}
            }
        }
        Ok(error)
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> ServerError {
        ServerError {
            severity: error.severity().to_owned(),
            code: error.code().clone(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            context: error.where_().map(str::to_owned),
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        use std::error::Error as _;
        if let Some(server) = error.as_db_error() {
            return Error::Server(Box::new(server.into()));
        }
        if error.is_closed() {
            return Error::Closed;
        }
        let text = error.to_string();
        Error::Protocol(error.source().map_or_else(|| text.clone(), |source| format!("{text}: {source}")))
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code.code())?;
        for more in [&self.detail, &self.hint, &self.context].into_iter().flatten() {
            write!(f, "; {more}")?;
        }
        Ok(())
    }
}
