//! What the plugin `pgoutput` says in protocol version 1: bytes in, messages out.
//!
//! Pure: no I/O, no state. Which table an [`Insert`] belongs to is said by the last [`Relation`] with
//! its oid, and remembering that is the caller's part.
//!
//! Invariants:
//! * Zero-copy: a column is a slice of the body it came in, so it keeps that whole frame alive.
//! * Every read is checked, and no length or count is believed before the bytes for it are there:
//!   what is reserved is at most one [`Column`] for each byte of the body.
//! * Strict: an unknown tag, a byte too few and a byte too many are errors. Reading on after a
//!   misunderstanding would publish something that nobody wrote.
//! * Names are checked to be UTF-8 here; a text column is checked where it becomes text, because most
//!   columns of most rows are never looked at.
//!
//! Only version 1: its bytes are the same from Postgres 13 on, and what later versions add, rows of
//! transactions that have not committed yet, an outbox must not show. `tests/golden` holds what
//! Postgres 14 to 18 send.
//!
//! ```text
//! Begin     B  final_lsn:u64  commit_time:i64  xid:u32
//! Commit    C  flags:u8  commit_lsn:u64  end_lsn:u64  commit_time:i64
//! Origin    O  commit_lsn:u64  name:cstr
//! Relation  R  oid:u32  namespace:cstr  name:cstr  identity:u8
//!              n:u16  n × (flags:u8  name:cstr  type:u32  modifier:i32)
//! Type      Y  oid:u32  namespace:cstr  name:cstr
//! Insert    I  relation:u32  N tuple
//! Update    U  relation:u32  [K tuple | O tuple]  N tuple
//! Delete    D  relation:u32  (K tuple | O tuple)
//! Truncate  T  n:u32  options:u8  n × relation:u32
//! Message   M  flags:u8  lsn:u64  prefix:cstr  len:u32  content
//!
//! tuple        n:u16  n × (n | u | t len:u32 bytes | b len:u32 bytes)
//! ```

#![deny(clippy::indexing_slicing, clippy::as_conversions)]

mod decode;
#[cfg(test)]
mod golden;
mod message;
mod reader;
#[cfg(test)]
mod tests;

pub use message::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, Relation,
    RelationColumn, ReplicaIdentity, Truncate, Tuple, Type, Update,
};

/// The bytes are not a message of protocol version 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends before what it announces.
    #[error("the message ends within its {0}")]
    Truncated(&'static str),
    /// The message goes on after its end.
    #[error("{bytes} bytes follow the end of {message}")]
    Trailing {
        /// The message that was read.
        message: &'static str,
        /// How many bytes are left.
        bytes: usize,
    },
    /// No message begins like this.
    #[error("unknown message {:?}", char::from(*.0))]
    UnknownTag(u8),
    /// A byte that says what follows says something unknown.
    #[error("unknown {what} {:?}", char::from(*.byte))]
    UnknownKind {
        /// What the byte decides.
        what: &'static str,
        /// The byte.
        byte: u8,
    },
    /// A name is not UTF-8.
    #[error("the {0} is not UTF-8")]
    NotUtf8(&'static str),
}
