//! A connection to NATS that publishes and hears the answers, and does nothing else.
//!
//! async-nats stays the client for every request. To publish with it costs 28 allocations a message, most
//! of them for a map of headers that is written out at once and dropped, and each message goes through a
//! queue to a task of its own. Here a message is written into the buffer that goes to the socket, and the
//! pump's loop itself reads the answers. Measured beside the same floors on two cores, before and after:
//!
//! | | over async-nats | over this |
//! | --- | --- | --- |
//! | allocations an event | 30 | 3 |
//! | relay's CPU / (async-nats publishing equal messages + our decoder) | 0.95 | 0.4 |
//! | drain / the slower floor, transactions of 1 and of 100 rows | 0.95, 0.72 | 1.02, 0.86 |
//! | commit → consumer at 1,000/s / (commit → walsender + publish → consumer), p50 | 1.18 | 1.03 |
//!
//! Nothing is lost by it: whatever this connection loses is refused or missing in the stream, and the loop
//! finds that at the chain. It never sends anything twice by itself.
//!
//! The protocol: NATS manual, "Client Protocol"; headers: ADR-4.

#[cfg(test)]
mod tests;

use super::answer::{Answer, parse};
use super::connect;
use super::login;
use crate::config::Access;
use crate::error::{Code, Failure};
use async_nats::ServerAddr;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::{Buf, BytesMut};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::json;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// INFO names all servers of a cluster; any other line is short.
const LINE_MAX: usize = 1 << 20;

/// An answer is a line of JSON.
const PAYLOAD_MAX: usize = 1 << 20;

const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A dead peer is noticed after two of them.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PINGS_MAX: u32 = 2;

/// What the connection runs over.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server does not answer pings")]
    Silent,
    #[error("the server is going away (lame duck)")]
    LameDuck,
    #[error("the server refuses the login: {0}")]
    Refused(String),
    #[error("login: {0}")]
    Login(#[from] login::LoginError),
    #[error("protocol violation: {0}")]
    Protocol(String),
}

/// What the server says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Info {
    max_payload: usize,
    nonce: String,
    tls_required: bool,
    ldm: bool,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// To a message: the end of the subject that it was sent to, behind the inbox.
    Answer(Option<u64>, Answer),
    /// The server's complaint: most often a missing permission.
    Complaint(String),
}

/// An open connection, subscribed to the answers.
pub(super) struct Wire {
    io: Box<dyn Io>,
    read: BytesMut,
    /// What is to be sent. Messages are written into it as they are.
    pub(super) write: BytesMut,
    /// The largest message that the server takes.
    pub(super) max_payload: usize,
    /// Something that was written waits inside of TLS.
    unflushed: bool,
    /// Writing failed; what the server had to say is still to be read.
    broken: Option<Broken>,
    pings: Interval,
    pings_out: u32,
}

impl Wire {
    /// Connects to `server` and subscribes to `<inbox>.*.*`.
    ///
    /// # Errors
    /// As [`connect::connect`].
    pub(super) async fn connect(access: &Access, server: &ServerAddr, inbox: &str) -> Result<Wire, Failure> {
        let connecting = Wire::log_in(access, server, inbox);
        let failed = |why: String| {
            let what = format!("the connection for publishing to {}:{}: {why}", server.host(), server.port());
            Failure::new(Code::NatsSession, what, "none is needed: the relay tries again")
        };
        match timeout(CONNECT_MAX, connecting).await {
            Ok(Ok(wire)) => Ok(wire),
            Ok(Err(broken)) => Err(failed(broken.to_string())),
            Err(_) => Err(failed("no answer in time".to_owned())),
        }
    }

    async fn log_in(access: &Access, server: &ServerAddr, inbox: &str) -> Result<Wire, Broken> {
        let socket = TcpStream::connect((server.host(), server.port())).await?;
        socket.set_nodelay(true)?;
        // What was not sent when this is dropped must not be sent later: it could fit into the chain again
        // where a letter has moved it.
        socket.set_zero_linger()?;
        let mut io: Box<dyn Io> = Box::new(socket);
        let asks = server.tls_required() || connect::asks_for_tls(access);
        if access.tls_first {
            io = secure(io, access, server).await?;
        }
        let mut read = BytesMut::with_capacity(CHUNK);
        let info = read_info(&mut io, &mut read).await?;
        if !access.tls_first && (asks || info.tls_required) {
            // What came behind INFO in the clear must not be taken for something said inside TLS.
            if !read.is_empty() {
                return Err(Broken::Protocol("bytes behind INFO".to_owned()));
            }
            io = secure(io, access, server).await?;
        }
        let auth = login::auth(access, info.nonce.as_bytes())?;
        let hello = json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "echo": false,
            "protocol": 1, "tls_required": asks, "name": "postrider publishing", "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"), "jwt": auth.jwt, "nkey": auth.nkey, "user": auth.username,
            "pass": auth.password, "auth_token": auth.token,
            "sig": auth.signature.map(|signature| BASE64_URL_SAFE_NO_PAD.encode(signature)),
        });
        io.write_all(format!("CONNECT {hello}\r\nSUB {inbox}.*.* 1\r\nPING\r\n").as_bytes()).await?;
        io.flush().await?;
        let mut pings = interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let max_payload = info.max_payload;
        let mut wire = Wire {
            io,
            read,
            write: BytesMut::with_capacity(CHUNK),
            max_payload,
            unflushed: false,
            broken: None,
            pings,
            pings_out: 1,
        };
        // Let in when it answers the ping.
        while wire.pings_out > 0 {
            if let Some(Heard::Complaint(text)) = wire.take("")? {
                return Err(Broken::Refused(text));
            }
            if wire.pings_out > 0 && wire.io.read_buf(&mut wire.read).await? == 0 {
                return Err(Broken::Closed);
            }
        }
        Ok(wire)
    }

    /// Sends what is to be sent, and hears what comes; `reply` is how the subjects of answers begin.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, reply: &str) -> Poll<Result<Heard, Broken>> {
        loop {
            if let Some(heard) = self.take(reply)? {
                return Poll::Ready(Ok(heard));
            }
            self.poll_send(cx);
            while self.pings.poll_tick(cx).is_ready() {
                self.pings_out += 1;
                if self.pings_out > PINGS_MAX {
                    return Poll::Ready(Err(Broken::Silent));
                }
                self.write.extend_from_slice(b"PING\r\n");
                self.poll_send(cx);
            }
            if self.read.capacity() - self.read.len() < CHUNK / 4 {
                self.read.reserve(CHUNK);
            }
            let reading = std::pin::pin!(self.io.read_buf(&mut self.read));
            let read = match reading.poll(cx) {
                Poll::Ready(read) => read,
                // Writing failed, and all that the server had said is read.
                Poll::Pending => {
                    return self.broken.take().map_or(Poll::Pending, |broken| Poll::Ready(Err(broken)));
                }
            };
            match (read, self.broken.take()) {
                (Ok(0) | Err(_), Some(broken)) => return Poll::Ready(Err(broken)),
                (Ok(0), None) => return Poll::Ready(Err(Broken::Closed)),
                (Err(error), None) => return Poll::Ready(Err(error.into())),
                (Ok(_), broken) => self.broken = broken,
            }
        }
    }

    /// Sends as much as the socket takes. That it fails is told by [`poll`](Wire::poll), once everything
    /// is read that the server had to say.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) {
        while !self.write.is_empty() && self.broken.is_none() {
            match Pin::new(&mut self.io).poll_write(cx, &self.write) {
                Poll::Ready(Ok(0)) => self.broken = Some(Broken::Closed),
                Poll::Ready(Ok(sent)) => {
                    self.write.advance(sent);
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => self.broken = Some(error.into()),
                Poll::Pending => break,
            }
        }
        if self.unflushed && self.broken.is_none() {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => self.broken = Some(error.into()),
                Poll::Pending => {}
            }
        }
    }

    /// What is here whole; lines that only the connection is about are dealt with.
    pub(super) fn take(&mut self, reply: &str) -> Result<Option<Heard>, Broken> {
        loop {
            let Some(end) = self.read.iter().position(|byte| *byte == b'\n') else {
                return match self.read.len() {
                    0..=LINE_MAX => Ok(None),
                    _ => Err(Broken::Protocol("a line without an end".to_owned())),
                };
            };
            let line = self.read.get(..end).unwrap_or_default().trim_ascii_end();
            let (verb, rest) =
                line.split_at(line.iter().position(|byte| *byte == b' ').unwrap_or(line.len()));
            let rest = rest.trim_ascii();
            let headed = verb.eq_ignore_ascii_case(b"HMSG");
            let mut size = 0;
            let heard = if headed || verb.eq_ignore_ascii_case(b"MSG") {
                let odd = || Broken::Protocol(String::from_utf8_lossy(line).into_owned());
                let (subject, header, total) = message(rest, headed).ok_or_else(odd)?;
                let Some(body) = self.read.get(end + 1..end + 1 + total + 2) else {
                    return Ok(None);
                };
                size = total + 2;
                let (head, payload) = body.split_at_checked(header).ok_or_else(odd)?;
                let payload = payload.strip_suffix(b"\r\n").ok_or_else(odd)?;
                let place = subject.strip_prefix(reply.as_bytes()).and_then(decimal);
                let answer =
                    if head.starts_with(b"NATS/1.0 503") { Answer::NoResponders } else { parse(payload) };
                Some(Heard::Answer(place, answer))
            } else if verb.eq_ignore_ascii_case(b"PING") {
                self.write.extend_from_slice(b"PONG\r\n");
                None
            } else if verb.eq_ignore_ascii_case(b"PONG") {
                self.pings_out = 0;
                None
            } else if verb.eq_ignore_ascii_case(b"INFO") {
                let info: Info =
                    serde_json::from_slice(rest).map_err(|error| Broken::Protocol(error.to_string()))?;
                if info.ldm {
                    return Err(Broken::LameDuck);
                }
                self.max_payload = info.max_payload;
                None
            } else if verb.eq_ignore_ascii_case(b"-ERR") {
                let text = String::from_utf8_lossy(rest);
                Some(Heard::Complaint(text.trim_matches('\'').to_owned()))
            } else if verb.eq_ignore_ascii_case(b"+OK") || verb.is_empty() {
                None
            } else {
                return Err(Broken::Protocol(String::from_utf8_lossy(line).into_owned()));
            };
            self.read.advance(end + 1 + size);
            if heard.is_some() {
                return Ok(heard);
            }
        }
    }
}

/// Subject, size of the headers, size of all, of what stands behind MSG or HMSG.
fn message(rest: &[u8], headed: bool) -> Option<(&[u8], usize, usize)> {
    let mut words = rest.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let subject = words.next()?;
    let _subscription = words.next()?;
    let mut sizes = words.rev();
    let total = usize::try_from(decimal(sizes.next()?)?).ok()?;
    let header = if headed { usize::try_from(decimal(sizes.next()?)?).ok()? } else { 0 };
    (total <= PAYLOAD_MAX).then_some((subject, header, total))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The first line, whatever it is.
async fn read_info(io: &mut Box<dyn Io>, read: &mut BytesMut) -> Result<Info, Broken> {
    loop {
        if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let line = read.split_to(end + 1);
            let info = line
                .strip_prefix(b"INFO ")
                .ok_or_else(|| Broken::Protocol("no INFO to begin with".into()))?;
            return serde_json::from_slice(info).map_err(|error| Broken::Protocol(error.to_string()));
        }
        if read.len() > LINE_MAX {
            return Err(Broken::Protocol("a line without an end".to_owned()));
        }
        if io.read_buf(read).await? == 0 {
            return Err(Broken::Closed);
        }
    }
}

async fn secure(io: Box<dyn Io>, access: &Access, server: &ServerAddr) -> Result<Box<dyn Io>, Broken> {
    let odd = |error: &dyn std::fmt::Display| Broken::Protocol(format!("TLS: {error}"));
    let mut roots = RootCertStore::empty();
    match &access.ca {
        Some(ca) => {
            for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| odd(&error))? {
                roots.add(certificate.map_err(|error| odd(&error))?).map_err(|error| odd(&error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    let config = match &access.certificate {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_file_iter(certificate).map_err(|error| odd(&error))?;
            let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|error| odd(&error))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| odd(&error))?;
            config.with_client_auth_cert(chain, key).map_err(|error| odd(&error))?
        }
    };
    let name = ServerName::try_from(server.host().to_owned()).map_err(|error| odd(&error))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, io).await?;
    Ok(Box::new(stream))
}

#[cfg(test)]
impl Wire {
    fn over(io: tokio::io::DuplexStream) -> Wire {
        let pings = interval(PING_INTERVAL);
        Wire {
            io: Box::new(io),
            read: BytesMut::new(),
            write: BytesMut::new(),
            max_payload: 1 << 20,
            unflushed: false,
            broken: None,
            pings,
            pings_out: 0,
        }
    }
}
