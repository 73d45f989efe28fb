//! The replication stream of one slot (Postgres manual, "Streaming Replication Protocol").
//!
//! ```text
//! CopyData 'w'  start u64 | end u64 | clock i64 | pgoutput message      XLogData
//! CopyData 'k'  end u64   | clock i64 | reply u8                        keepalive
//! CopyData 'r'  write u64 | flush u64 | apply u64 | clock i64 | reply u8  status update, ours
//! ```
//!
//! The LSNs of XLogData say nothing about progress (a Relation carries 0, a Begin the first LSN of
//! its transaction), so they are dropped here. What may be confirmed is `Commit.end_lsn`, and a
//! keepalive's end: the walsender sends it after everything below has been sent.

use super::connection::{Connection, Frame, Frames, parse, server_error};
use super::error::{Error, ServerError};
use super::lsn::Lsn;
use super::pgoutput::Message;
use super::timestamp::Timestamp;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::escape::escape_identifier;
use postgres_protocol::message::{backend, frontend};
use std::time::Duration;
use tokio::time::timeout;

/// How long START_REPLICATION may take to answer: it reads the slot's state and then confirms.
const START_MAX: Duration = Duration::from_secs(60);

/// What the server sends on a started slot.
#[derive(Debug)]
pub enum Received {
    /// A message of the output plugin, and the bytes that its frame took.
    Data(Message, usize),
    /// Everything below `wal_end` has been sent.
    Keepalive {
        /// End of what the walsender has read.
        wal_end: Lsn,
        /// The server wants a status update now.
        reply_requested: bool,
    },
    /// A warning; 18 says so, and no more, when it skips rows for want of the publication.
    Notice(Box<ServerError>),
}

/// A slot being streamed.
pub struct ReplicationStream {
    frames: Frames,
    status: BytesMut,
}

impl Connection {
    /// Starts `slot` at `start` (0/0: at its confirmed_flush_lsn), decoding through `publication`.
    ///
    /// # Errors
    /// [`Error::Server`] with 55006 when another reader holds the slot (the connection stays good),
    /// 42704 when it does not exist, 55000 when it is lost or another database's.
    pub async fn start_replication(
        &mut self,
        slot: &str,
        start: Lsn,
        publication: &str,
    ) -> Result<(), Error> {
        // The publication is an identifier inside a literal: both quotings apply, in that order.
        let publication = escape_identifier(publication).replace('\'', "''");
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', publication_names '{publication}')",
            escape_identifier(slot)
        );
        let mut message = BytesMut::new();
        frontend::query(&command, &mut message)?;
        self.frames.send(&message).await?;
        timeout(START_MAX, self.started()).await.map_err(|_| Error::Timeout("START_REPLICATION"))?
    }

    async fn started(&mut self) -> Result<(), Error> {
        let mut failed = None;
        loop {
            let frame = self.frames.next().await?;
            if frame.tag == b'W' {
                return Ok(());
            }
            match parse(&frame)? {
                backend::Message::ErrorResponse(error) => failed = Some(server_error(&error)?),
                backend::Message::ReadyForQuery(_) => {
                    let error = failed.unwrap_or_else(|| Error::Protocol("no CopyBothResponse".into()));
                    return Err(error);
                }
                _ => {}
            }
        }
    }

    /// The connection as a stream, once [`start_replication`](Connection::start_replication) succeeded.
    #[must_use]
    pub fn into_stream(self) -> ReplicationStream {
        ReplicationStream { frames: self.frames, status: BytesMut::with_capacity(64) }
    }
}

impl ReplicationStream {
    /// The next thing that the server sends.
    ///
    /// # Cancel safety
    /// Bytes already read stay in the buffer; dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error::Server`] when decoding fails or the server ends the stream; [`Error::Closed`] at
    /// its end.
    pub async fn next(&mut self) -> Result<Received, Error> {
        loop {
            let frame = self.frames.next().await?;
            if let Some(received) = receive(frame)? {
                return Ok(received);
            }
        }
    }

    /// What has been read already, without reading more.
    ///
    /// # Errors
    /// As [`next`](ReplicationStream::next).
    pub fn buffered(&mut self) -> Result<Option<Received>, Error> {
        while let Some(frame) = self.frames.buffered()? {
            if let Some(received) = receive(frame)? {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }

    /// Reports `received` as written and `flush` as flushed and applied. Only flush moves the slot.
    /// With `reply` the server answers by a keepalive: on an idle connection the only sign of life.
    ///
    /// # Errors
    /// The server takes no more bytes, or the connection broke.
    pub async fn send_status(&mut self, received: Lsn, flush: Lsn, reply: bool) -> Result<(), Error> {
        let mut status = [0; 34];
        let mut body = &mut status[..];
        body.put_u8(b'r');
        body.put_u64(received.0.max(flush.0));
        body.put_u64(flush.0);
        body.put_u64(flush.0);
        body.put_i64(Timestamp::now().0);
        body.put_u8(u8::from(reply));
        self.status.clear();
        frontend::CopyData::new(&status[..])?.write(&mut self.status);
        self.frames.send(&self.status).await
    }

    /// Says goodbye, so that the slot is free at once. What the server still sends is not read.
    pub async fn close(mut self) {
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        frontend::terminate(&mut message);
        // The socket closes in any case; the server notices that too.
        let _ = timeout(Duration::from_secs(1), self.frames.send(&message)).await;
    }
}

fn receive(frame: Frame) -> Result<Option<Received>, Error> {
    match frame.tag {
        b'd' => copy_data(frame.body).map(Some),
        b'N' => match parse(&frame)? {
            backend::Message::NoticeResponse(notice) => {
                Ok(Some(Received::Notice(Box::new(ServerError::read(notice.fields())?))))
            }
            _ => Err(Error::Protocol("a notice that is none".into())),
        },
        b'E' => match parse(&frame)? {
            backend::Message::ErrorResponse(error) => Err(server_error(&error)?),
            _ => Err(Error::Protocol("an error that is none".into())),
        },
        // ParameterStatus after a reload of the server's configuration.
        b'S' => Ok(None),
        // CopyDone, CommandComplete, ReadyForQuery: the server has ended the stream.
        b'c' | b'C' | b'Z' => Err(Error::Closed),
        tag => Err(Error::Protocol(format!("an unexpected message `{}`", tag.escape_ascii()))),
    }
}

fn copy_data(mut body: Bytes) -> Result<Received, Error> {
    let short = || Error::Protocol("CopyData cut short".into());
    let bytes = body.len() + 5;
    match body.try_get_u8().map_err(|_| short())? {
        b'w' => {
            if body.len() < 24 {
                return Err(short());
            }
            body.advance(24);
            Ok(Received::Data(Message::decode(body)?, bytes))
        }
        b'k' => {
            let wal_end = Lsn(body.try_get_u64().map_err(|_| short())?);
            body.try_get_i64().map_err(|_| short())?;
            let reply_requested = body.try_get_u8().map_err(|_| short())? != 0;
            if body.has_remaining() {
                return Err(Error::Protocol("a keepalive with more behind it".into()));
            }
            Ok(Received::Keepalive { wal_end, reply_requested })
        }
        tag => Err(Error::Protocol(format!("CopyData of kind `{}`", tag.escape_ascii()))),
    }
}
