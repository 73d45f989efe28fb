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
                return self.frames.streams(self.near.take());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::connection::PARAMETERS;
    use crate::postgres::login;
    use crate::postgres::socket::{Privacy, Socket};
    use crate::postgres::target::Target;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    fn keepalive(wal_end: u64, reply: u8) -> Vec<u8> {
        frame(b'd', &[&b"k"[..], &wal_end.to_be_bytes(), &[0; 8], &[reply]].concat())
    }

    fn begin(lsn: u64) -> Vec<u8> {
        let message = [&b"B"[..], &lsn.to_be_bytes(), &[0; 8], &[0, 0, 0, 9]].concat();
        frame(b'd', &[&b"w"[..], &[0; 24], &message].concat())
    }

    fn stream() -> (ReplicationStream, DuplexStream) {
        let (ours, theirs) = duplex(1 << 20);
        (ReplicationStream { frames: Frames::new(Box::new(ours)), status: BytesMut::new() }, theirs)
    }

    #[tokio::test]
    async fn frames_are_the_same_however_the_bytes_arrive() {
        let bytes = [begin(7), keepalive(9, 1), begin(11)].concat();
        for cut in 0..=bytes.len() {
            let (mut stream, mut server) = stream();
            let (head, tail) = bytes.split_at(cut);
            server.write_all(head).await.unwrap();
            let mut seen = Vec::new();
            while let Some(received) = futures_util::FutureExt::now_or_never(stream.next()) {
                seen.push(format!("{:?}", received.unwrap()));
            }
            // The future that waited for more was dropped: nothing may be lost by that.
            server.write_all(tail).await.unwrap();
            while seen.len() < 3 {
                seen.push(format!("{:?}", stream.next().await.unwrap()));
            }
            let lsn = |text: &str, lsn: &str| assert!(text.contains(lsn), "cut at {cut}: {text}");
            lsn(&seen[0], "0/7");
            lsn(&seen[1], "wal_end: 0/9, reply_requested: true");
            lsn(&seen[2], "0/B");
        }
    }

    #[tokio::test]
    async fn a_length_that_lies_is_an_error_and_costs_no_memory() {
        for length in [0u32, 3, 1 << 31, u32::MAX, (1 << 30) + 1] {
            let (mut stream, mut server) = stream();
            server.write_all(&[&b"d"[..], &length.to_be_bytes(), b"kk"].concat()).await.unwrap();
            assert!(matches!(stream.next().await, Err(Error::Protocol(_))), "{length}");
        }
        let (mut stream, mut server) = stream();
        server.write_all(&[&b"d"[..], &(1u32 << 30).to_be_bytes(), b"kk"].concat()).await.unwrap();
        assert!(futures_util::FutureExt::now_or_never(stream.next()).is_none());
        assert!(stream.frames.capacity() < 1 << 20);
    }

    #[tokio::test]
    async fn the_end_of_the_stream_is_told_in_each_of_its_forms() {
        for end in
            [frame(b'c', b""), frame(b'C', b"COPY 0\0"), frame(b'Z', b"I"), Vec::new(), b"d\0".to_vec()]
        {
            let (mut stream, mut server) = stream();
            server.write_all(&end).await.unwrap();
            drop(server);
            assert!(matches!(stream.next().await, Err(Error::Closed)), "{end:?}");
        }
    }

    #[tokio::test]
    async fn an_error_keeps_its_sqlstate_and_a_notice_is_no_error() {
        let fields = b"SERROR\0VERROR\0C42704\0Mno publication\0Wslot\0\0";
        let (mut stream, mut server) = stream();
        let notice = b"SWARNING\0VWARNING\0C55000\0Mskipped loading publication \"p\"\0\0";
        server
            .write_all(&[frame(b'N', notice), frame(b'S', b"a\0b\0"), frame(b'E', fields)].concat())
            .await
            .unwrap();
        let Received::Notice(notice) = stream.next().await.unwrap() else { panic!("a notice") };
        assert_eq!(notice.code.code(), "55000");
        let Err(Error::Server(error)) = stream.next().await else { panic!("an error") };
        assert_eq!((error.code.code(), error.context.as_deref()), ("42704", Some("slot")));
    }

    #[tokio::test]
    async fn a_status_update_reports_received_as_written_and_confirmed_as_flushed() {
        let (mut stream, mut server) = stream();
        stream.send_status(Lsn(9), Lsn(5), true).await.unwrap();
        let mut sent = [0; 39];
        server.read_exact(&mut sent).await.unwrap();
        assert_eq!(sent[..6], *b"d\0\0\0\x26r");
        assert_eq!(sent[6..30], [9u64.to_be_bytes(), 5u64.to_be_bytes(), 5u64.to_be_bytes()].concat());
        assert_eq!(sent[38], 1, "asks for a reply");
    }

    #[tokio::test]
    async fn a_login_pins_the_settings_and_asks_for_replication() {
        let (ours, mut server) = duplex(1 << 16);
        let target = Target::parse(Some("postgres://me@h/db"), &|_| None).unwrap();
        let login = tokio::spawn(async move {
            let socket = Socket { io: Box::new(ours), privacy: Privacy::None, near: None };
            let session = login::start(socket, &target, &target.hosts[0], &PARAMETERS, &mut false).await?;
            Connection::begin(session).await.map(|connection| connection.server_version())
        });
        let length = server.read_u32().await.unwrap();
        let mut startup = vec![0; usize::try_from(length).unwrap() - 4];
        server.read_exact(&mut startup).await.unwrap();
        let startup = String::from_utf8_lossy(&startup);
        for pair in
            ["replication\0database\0", "client_encoding\0UTF8\0", "bytea_output\0hex\0", "user\0me\0"]
        {
            assert!(startup.contains(pair), "{pair:?} in {startup:?}");
        }
        let ready =
            [frame(b'R', &[0; 4]), frame(b'S', b"server_version\x0018.6 (Debian)\0"), frame(b'Z', b"I")]
                .concat();
        server.write_all(&ready).await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'Q');
        server.write_all(&[frame(b'C', b"SET\0"), frame(b'Z', b"I")].concat()).await.unwrap();
        assert_eq!(login.await.unwrap().unwrap(), 18);
    }
}
