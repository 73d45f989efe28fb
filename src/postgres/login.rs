//! Logging in: from a host of the target to a server that is ready for a query.
//!
//! One code for the replication connection and for ordinary SQL, so that both ask as much of the server
//! and give away as little. tokio-postgres cannot be asked to refuse a method, and keeps the channel
//! binding of its TLS to itself: it is given a connection that has logged in, see `Replay`.

use super::connection::{Frame, Frames, parse, server_error};
use super::error::Error;
use super::socket::{self, Io, Near, Offer, Privacy, Socket};
use super::target::{Address, ChannelBinding, Host, Login, Method, SslMode, Target};
use super::tls::{self, TlsError};
use bytes::BytesMut;
use postgres_protocol::authentication::{self, sasl};
use postgres_protocol::message::{backend, frontend};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;

/// TLS and login are done by then, or the server is as good as away.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Why we do not log in as the server asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// A password is asked for and none is known.
    #[error("the server asks for a password, and none is given")]
    NoPassword,
    /// The password itself is asked for where others can read along.
    #[error("the server asks for the password in clear, over a connection that is not encrypted")]
    Cleartext,
    /// `require_auth` does not have it.
    #[error("the server asks for `{0}`, which require_auth does not allow")]
    NotPermitted(&'static str),
    /// `channel_binding=require`, and there is none.
    #[error("channel_binding=require, and {0}")]
    Unbound(&'static str),
    /// It asks for something that we do not speak.
    #[error("the server asks for a way to log in that is not supported")]
    Unsupported,
    /// The exchange breaks off on our side: the server does not prove that it knows the password, or wants
    /// more iterations than 100,000.
    #[error("SCRAM: {0}")]
    Scram(String),
}

/// A server that waits for a query.
pub(super) struct Session {
    pub(super) frames: Frames,
    pub(super) near: Option<Near>,
    /// Everything it said since it let us in, ReadyForQuery last.
    pub(super) greeting: Vec<Frame>,
}

/// Connects to `host` and logs in with these parameters besides user, database, name and options.
pub(super) async fn log_in(
    target: &Target,
    host: &Host,
    parameters: &[(&str, &str)],
) -> Result<Session, Error> {
    let (first, second) = attempts(target, host);
    // Whether the server has asked for proof, or let us in: from then on no other attempt is made.
    let mut asked = false;
    let error = match first.make(target, host, parameters, &mut asked).await {
        Err(error @ (Error::Server(_) | Error::Tls(_))) if !asked => error,
        result => return result,
    };
    let Some(second) = second else { return Err(error) };
    if second == Attempt::Plain {
        tracing::warn!(%host, %error, "sslmode=prefer: trying without TLS");
    }
    second.make(target, host, parameters, &mut asked).await.map_err(|other| telling(error, other))
}

/// With TLS, or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Plain,
    /// `or_plain`: without, should the server have none.
    Tls {
        or_plain: bool,
    },
}

impl Attempt {
    async fn make(
        self,
        target: &Target,
        host: &Host,
        parameters: &[(&str, &str)],
        asked: &mut bool,
    ) -> Result<Session, Error> {
        let socket = socket::open(target, host).await?;
        let rest = async {
            let socket = match self {
                Attempt::Plain => socket,
                Attempt::Tls { or_plain } => match socket::secure(socket, target, host).await? {
                    Offer::Tls(socket) => socket,
                    Offer::None(socket) if or_plain => socket,
                    Offer::None(_) => return Err(TlsError::NotOffered(target.encryption.mode.name()).into()),
                },
            };
            start(socket, target, host, parameters, asked).await
        };
        timeout(ANSWER_MAX, rest).await.map_err(|_| Error::Timeout("the login"))?
    }
}

/// What is tried, and what is tried next if the server refuses that (Postgres manual, "sslmode").
fn attempts(target: &Target, host: &Host) -> (Attempt, Option<Attempt>) {
    let tls = Attempt::Tls { or_plain: target.encryption.mode <= SslMode::Prefer };
    match (&host.address, target.encryption.mode) {
        // As in libpq, TLS is never used over a Unix socket.
        (Address::Unix(_), _) | (_, SslMode::Disable) => (Attempt::Plain, None),
        (_, SslMode::Allow) => (Attempt::Plain, Some(tls)),
        (_, SslMode::Prefer) => (tls, Some(Attempt::Plain)),
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => (tls, None),
    }
}

/// Of two refusals the one that says more. That pg_hba.conf has no line for the connection without TLS
/// matters less than why there is none with it, and both less than a password that is wrong.
fn telling(first: Error, second: Error) -> Error {
    let of = |error: &Error| match error {
        Error::Server(error) if error.code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => 1,
        Error::Tls(_) => 2,
        Error::Server(_) | Error::Login(_) => 3,
        _ => 0,
    };
    if of(&second) > of(&first) { second } else { first }
}

/// Startup and proof over an open socket (Postgres manual, "Start-up").
pub(super) async fn start(
    socket: Socket,
    target: &Target,
    host: &Host,
    parameters: &[(&str, &str)],
    asked: &mut bool,
) -> Result<Session, Error> {
    let mut all = vec![
        ("user", target.user.as_str()),
        ("database", target.database.as_str()),
        ("application_name", target.application_name.as_str()),
        ("client_encoding", "UTF8"),
    ];
    all.extend_from_slice(parameters);
    if let Some(options) = &target.options {
        all.push(("options", options));
    }
    let mut message = BytesMut::new();
    frontend::startup_message(all, &mut message)?;
    let Socket { io, privacy, near } = socket;
    let mut frames = Frames::new(io);
    frames.send(&message).await?;
    let proof = Proof { login: &target.login, user: &target.user, host, privacy };
    let mut greeting = vec![proof.give(&mut frames, asked).await.map_err(|error| match error {
        Error::Io(error) => tls::failed(error, host.name()),
        other => other,
    })?];
    loop {
        let frame = frames.next().await?;
        let ready = match parse(&frame)? {
            backend::Message::ErrorResponse(error) => return Err(server_error(&error)?),
            message => matches!(message, backend::Message::ReadyForQuery(_)),
        };
        greeting.push(frame);
        if ready {
            return Ok(Session { frames, near, greeting });
        }
    }
}

/// How we prove who we are.
struct Proof<'a> {
    login: &'a Login,
    user: &'a str,
    host: &'a Host,
    privacy: Privacy,
}

/// A SCRAM exchange.
struct Scram {
    exchange: sasl::ScramSha256,
    bound: bool,
    finished: bool,
}

impl Proof<'_> {
    /// Answers what the server asks until it is content; its last word.
    async fn give(&self, frames: &mut Frames, asked: &mut bool) -> Result<Frame, Error> {
        let mut answer = BytesMut::new();
        let mut method = Method::None;
        let mut scram: Option<Scram> = None;
        loop {
            let frame = frames.next().await?;
            answer.clear();
            *asked |= frame.tag == b'R';
            match parse(&frame)? {
                backend::Message::AuthenticationOk => {
                    self.permit(method)?;
                    if scram.as_ref().is_some_and(|scram| !scram.finished) {
                        let what = "the server lets us in without having proved that it knows the password";
                        return Err(LoginError::Scram(what.to_owned()).into());
                    }
                    if self.login.channel_binding == ChannelBinding::Require
                        && !scram.is_some_and(|scram| scram.bound)
                    {
                        return Err(LoginError::Unbound("the server lets us in without it").into());
                    }
                    return Ok(frame);
                }
                backend::Message::AuthenticationCleartextPassword => {
                    method = self.permit(Method::Password)?;
                    self.unbound()?;
                    if self.privacy == Privacy::None && !self.login.cleartext {
                        return Err(LoginError::Cleartext.into());
                    }
                    frontend::password_message(self.password()?, &mut answer)?;
                }
                backend::Message::AuthenticationMd5Password(body) => {
                    method = self.permit(Method::Md5)?;
                    self.unbound()?;
                    let hash = authentication::md5_hash(self.user.as_bytes(), self.password()?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut answer)?;
                }
                backend::Message::AuthenticationSasl(body) => {
                    method = self.permit(Method::ScramSha256)?;
                    let begun = self.scram(&body)?;
                    let mechanism = if begun.bound { sasl::SCRAM_SHA_256_PLUS } else { sasl::SCRAM_SHA_256 };
                    frontend::sasl_initial_response(mechanism, begun.exchange.message(), &mut answer)?;
                    scram = Some(begun);
                }
                backend::Message::AuthenticationSaslContinue(body) => {
                    let scram = scram.as_mut().ok_or_else(out_of_order)?;
                    scram.exchange.update(body.data()).map_err(broken_off)?;
                    frontend::sasl_response(scram.exchange.message(), &mut answer)?;
                }
                backend::Message::AuthenticationSaslFinal(body) => {
                    let scram = scram.as_mut().ok_or_else(out_of_order)?;
                    scram.exchange.finish(body.data()).map_err(broken_off)?;
                    scram.finished = true;
                    continue;
                }
                backend::Message::ErrorResponse(error) => return Err(server_error(&error)?),
                backend::Message::NoticeResponse(_) => continue,
                _ => return Err(LoginError::Unsupported.into()),
            }
            frames.send(&answer).await?;
        }
    }

    fn permit(&self, method: Method) -> Result<Method, LoginError> {
        if self.login.permits(method) { Ok(method) } else { Err(LoginError::NotPermitted(method.name())) }
    }

    /// A password that is not bound to the channel is not sent where one is to be.
    fn unbound(&self) -> Result<(), LoginError> {
        match self.login.channel_binding {
            ChannelBinding::Require => Err(LoginError::Unbound("the server asks for a password without it")),
            ChannelBinding::Prefer | ChannelBinding::Disable => Ok(()),
        }
    }

    fn password(&self) -> Result<&[u8], LoginError> {
        let password = self.host.password.as_ref().ok_or(LoginError::NoPassword)?;
        Ok(password.expose().as_bytes())
    }

    /// Begins SCRAM, bound to the channel where both sides can (RFC 5802, section 6).
    fn scram(&self, body: &backend::AuthenticationSaslBody) -> Result<Scram, Error> {
        use fallible_iterator::FallibleIterator;
        let offered: Vec<_> = body.mechanisms().map(|mechanism| Ok(mechanism.to_owned())).collect()?;
        let offers = |mechanism: &str| offered.iter().any(|offered| offered == mechanism);
        let wanted = self.login.channel_binding != ChannelBinding::Disable;
        let end_point = match &self.privacy {
            Privacy::Tls { end_point } if wanted => end_point.clone(),
            _ => None,
        };
        let password = self.password()?;
        let scram = |binding, bound| {
            Ok(Scram { exchange: sasl::ScramSha256::new(password, binding), bound, finished: false })
        };
        match end_point {
            Some(hash) if offers(sasl::SCRAM_SHA_256_PLUS) => {
                scram(sasl::ChannelBinding::tls_server_end_point(hash), true)
            }
            _ if self.login.channel_binding == ChannelBinding::Require => {
                Err(LoginError::Unbound(match &self.privacy {
                    Privacy::Tls { end_point: Some(_) } => "the server does not offer SCRAM-SHA-256-PLUS",
                    Privacy::Tls { end_point: None } => {
                        "the server's certificate has a signature without a hash to bind to"
                    }
                    Privacy::None | Privacy::Local => "the connection has no TLS to bind to",
                })
                .into())
            }
            _ if !offers(sasl::SCRAM_SHA_256) => Err(LoginError::Unsupported.into()),
            // We could have: a man in the middle who took the offer out is found by that.
            Some(_) => scram(sasl::ChannelBinding::unrequested(), false),
            None => scram(sasl::ChannelBinding::unsupported(), false),
        }
    }
}

fn broken_off(error: io::Error) -> Error {
    LoginError::Scram(error.to_string()).into()
}

fn out_of_order() -> Error {
    Error::Protocol("SASL messages out of order".into())
}

/// A connection that has logged in, for a client that wants to log in itself: what it sends to begin with
/// is dropped, and it reads what the server said when it let us in.
pub(super) struct Replay {
    io: Box<dyn Io>,
    greeting: BytesMut,
    dropping: Dropping,
}

/// How much of the startup message is still to come: its length is its first four bytes.
enum Dropping {
    Length(Vec<u8>),
    Rest(usize),
}

impl From<Session> for Replay {
    fn from(session: Session) -> Replay {
        let mut greeting = BytesMut::new();
        session.greeting.iter().for_each(|frame| frame.write(&mut greeting));
        let (io, unread) = session.frames.into_parts();
        greeting.unsplit(unread);
        Replay { io, greeting, dropping: Dropping::Length(Vec::new()) }
    }
}

impl Dropping {
    /// How many of these bytes belong to the startup message.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        if let Dropping::Length(known) = self {
            let missing = 4 - known.len();
            let part = bytes.get(..missing.min(bytes.len())).unwrap_or_default();
            known.extend_from_slice(part);
            taken = part.len();
            let Ok(length) = <[u8; 4]>::try_from(known.as_slice()) else { return taken };
            *self =
                Dropping::Rest(usize::try_from(u32::from_be_bytes(length)).unwrap_or(4).saturating_sub(4));
        }
        if let Dropping::Rest(rest) = self {
            let part = (*rest).min(bytes.len() - taken);
            *rest -= part;
            taken += part;
        }
        taken
    }
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.greeting.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.greeting.len().min(buf.remaining());
        buf.put_slice(&self.greeting.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.dropping.take(bytes) {
            0 => Pin::new(&mut self.io).poll_write(cx, bytes),
            dropped => Poll::Ready(Ok(dropped)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
