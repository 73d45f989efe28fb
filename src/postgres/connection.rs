//! A connection in replication mode: frames, simple queries.
//!
//! Own code because no crate speaks the replication protocol in a cancel-safe way with a bound on
//! what a peer may make it allocate; messages are built and parsed by `postgres-protocol`.
//!
//! Every read goes through `Frames::next`: bytes already read stay in its buffer, so a future
//! dropped by `select!` loses nothing.

use super::error::{Error, ServerError};
use super::login;
use super::socket::{Io, Near};
use super::target::{Host, Target};
use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::{backend, frontend};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Postgres itself makes no message longer than its largest allocation, 1 GiB.
const FRAME_MAX: usize = 1 << 30;

/// How much is read at once. Frames are slices of such a chunk.
const CHUNK: usize = 64 * 1024;

/// A catalogue query is done by then, or the server is as good as away.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The kernel takes a status update at once unless the peer has stopped reading for good.
const SEND_MAX: Duration = Duration::from_secs(10);

/// One message of the server: its tag and what follows the length.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

impl Frame {
    /// Adds it to `buffer` as it came.
    pub(super) fn write(&self, buffer: &mut BytesMut) {
        let length = u32::try_from(self.body.len() + 4).unwrap_or(u32::MAX);
        buffer.extend_from_slice(&[self.tag]);
        buffer.extend_from_slice(&length.to_be_bytes());
        buffer.extend_from_slice(&self.body);
    }
}

/// Cuts the byte stream into frames (Postgres manual, "Message Formats").
pub(super) struct Frames {
    io: Box<dyn Io>,
    read: BytesMut,
    /// Room is made for what comes; none before a slot is streamed, and for a server that is not near.
    near: Option<Near>,
}

impl Frames {
    pub(super) fn new(io: Box<dyn Io>) -> Frames {
        Frames { io, read: BytesMut::with_capacity(CHUNK), near: None }
    }

    /// From now on frames come one by one, and many of them.
    pub(super) fn streams(&mut self, near: Option<Near>) -> Result<(), Error> {
        self.near = near;
        self.make_room(0)
    }

    fn make_room(&mut self, frame: usize) -> Result<(), Error> {
        Ok(self.near.as_mut().map_or(Ok(()), |near| near.make_room(frame))?)
    }

    /// The socket, and what was read from it and not taken.
    pub(super) fn into_parts(self) -> (Box<dyn Io>, BytesMut) {
        (self.io, self.read)
    }

    /// What the buffer takes up.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.read.capacity()
    }

    /// A frame that is complete in the buffer already; reads nothing.
    pub(super) fn buffered(&mut self) -> Result<Option<Frame>, Error> {
        let Some((head, _)) = self.read.split_first_chunk::<5>() else { return Ok(None) };
        let [tag, length @ ..] = *head;
        let total = usize::try_from(i32::from_be_bytes(length))
            .ok()
            .filter(|length| (4..=FRAME_MAX).contains(length))
            .ok_or_else(|| Error::Protocol(format!("a frame of {} bytes", i32::from_be_bytes(length))))?
            + 1;
        self.make_room(total)?;
        if self.read.len() < total {
            // Grown as bytes arrive: a length that lies must not cost its memory.
            self.read.reserve((total - self.read.len()).min(self.read.len().max(CHUNK)));
            return Ok(None);
        }
        let mut body = self.read.split_to(total).freeze();
        body.advance(5);
        Ok(Some(Frame { tag, body }))
    }

    /// The next frame.
    ///
    /// # Cancel safety
    /// Bytes already read stay in the buffer; dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            if self.read.capacity() - self.read.len() < CHUNK / 4 {
                self.read.reserve(CHUNK);
            }
            if self.io.read_buf(&mut self.read).await? == 0 {
                return Err(Error::Closed);
            }
        }
    }

    /// Writes `message` whole. Not cancel safe: await it outside of `select!`.
    pub(super) async fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        let writing = async {
            self.io.write_all(message).await?;
            self.io.flush().await
        };
        timeout(SEND_MAX, writing).await.map_err(|_| Error::Timeout("sending to Postgres"))??;
        Ok(())
    }
}

/// A row of a simple query: text or NULL by column.
pub type Row = Vec<Option<String>>;

/// A logged-in walsender that waits for a command.
pub struct Connection {
    pub(super) frames: Frames,
    pub(super) near: Option<Near>,
    pub(super) server_version: u32,
}

impl Connection {
    /// Connects to `host` and logs in with `replication=database`.
    ///
    /// # Errors
    /// The host cannot be reached, TLS fails, or the server refuses the login.
    pub async fn connect(target: &Target, host: &Host) -> Result<Connection, Error> {
        Connection::begin(login::log_in(target, host, &PARAMETERS).await?).await
    }

    /// A connection that has logged in over this socket.
    #[cfg(test)]
    pub(crate) fn over(io: tokio::io::DuplexStream) -> Connection {
        Connection { frames: Frames::new(Box::new(io)), near: None, server_version: 18 }
    }

    /// Prepares a connection that has logged in.
    pub(super) async fn begin(session: login::Session) -> Result<Connection, Error> {
        let mut server_version = 0;
        for frame in &session.greeting {
            if let backend::Message::ParameterStatus(status) = parse(frame)?
                && status.name()? == "server_version"
            {
                server_version = major_version(status.value()?);
            }
        }
        let mut connection = Connection { frames: session.frames, near: session.near, server_version };
        // An idle standby must not be ended; the setting exists since 14 and is no startup parameter of 13.
        connection.query("SET idle_session_timeout = 0").await.or_else(not_on_old_servers)?;
        Ok(connection)
    }

    /// The server's major version: 14 … 18.
    #[must_use]
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// Has the walsender end this connection when its peer has been silent for `timeout`.
    ///
    /// # Errors
    /// As [`query`](Connection::query).
    pub async fn end_after_silence(&mut self, timeout: Duration) -> Result<(), Error> {
        self.query(&format!("SET wal_sender_timeout = {}", timeout.as_millis())).await.map(drop)
    }

    /// Runs one statement or replication command by the simple protocol.
    ///
    /// # Errors
    /// What the server answers; after [`Error::Server`] the connection is still good.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        timeout(ANSWER_MAX, self.run(sql)).await.map_err(|_| Error::Timeout("a query"))?
    }

    async fn run(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message)?;
        self.frames.send(&message).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let frame = self.frames.next().await?;
            match parse(&frame)? {
                backend::Message::DataRow(row) => rows.push(texts(&row)?),
                backend::Message::ErrorResponse(error) => failed = Some(server_error(&error)?),
                backend::Message::ReadyForQuery(_) => break,
                _ => {}
            }
        }
        failed.map_or(Ok(rows), Err)
    }
}

/// They pin how values are printed, whatever the role's own settings are, and keep a role's time limits
/// away from a stream without end.
pub(super) const PARAMETERS: [(&str, &str); 12] = [
    ("replication", "database"),
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("client_min_messages", "warning"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("search_path", "pg_catalog"),
    ("wal_sender_timeout", WAL_SENDER_TIMEOUT),
];

/// The walsender ends a connection whose peer has been silent for so long; see
/// [`Connection::end_after_silence`].
const WAL_SENDER_TIMEOUT: &str = "30s";

fn not_on_old_servers(error: Error) -> Result<Vec<Row>, Error> {
    match error {
        Error::Server(_) => Ok(Vec::new()),
        other => Err(other),
    }
}

fn major_version(text: &str) -> u32 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

fn texts(row: &backend::DataRowBody) -> Result<Row, Error> {
    use fallible_iterator::FallibleIterator;
    let buffer = row.buffer();
    let columns = row
        .ranges()
        .map(|range| {
            Ok(range
                .and_then(|range| buffer.get(range))
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
        })
        .collect()?;
    Ok(columns)
}

/// Parses a frame by postgres-protocol. `W` (CopyBothResponse) is not known to it: look at the tag first.
pub(super) fn parse(frame: &Frame) -> Result<backend::Message, Error> {
    let mut whole = BytesMut::with_capacity(frame.body.len() + 5);
    frame.write(&mut whole);
    backend::Message::parse(&mut whole)?.ok_or_else(|| Error::Protocol("a frame cut short".into()))
}

pub(super) fn server_error(error: &backend::ErrorResponseBody) -> Result<Error, Error> {
    Ok(Error::Server(Box::new(ServerError::read(error.fields())?)))
}
