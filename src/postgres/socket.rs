//! The socket below a connection: TCP or Unix, with TLS or without.

use super::error::Error;
use super::target::{Address, Host, Target, Tcp};
use super::tls;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout};

/// The handshake with a server that is near takes no longer: on the same machine or network.
const NEAR: Duration = Duration::from_millis(1);

/// What a connection runs over.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An open socket.
pub(super) struct Socket {
    pub(super) io: Box<dyn Io>,
    pub(super) privacy: Privacy,
    /// None where the server is not, or where it cannot be told.
    pub(super) near: Option<Near>,
}

/// Who can read along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Privacy {
    /// The network.
    None,
    /// This machine only.
    Local,
    /// Nobody; what SCRAM can bind to, if the server's certificate has such a hash.
    Tls {
        /// See [`tls::Secured`].
        end_point: Option<Vec<u8>>,
    },
}

/// Opens the socket to `host`.
pub(super) async fn open(target: &Target, host: &Host) -> Result<Socket, Error> {
    let opened = match &host.address {
        Address::Tcp(name) => connect(name, host.port, target).await.and_then(|(stream, round_trip)| {
            tune(&stream, &target.tcp)?;
            // On a busy machine its own answer takes longer than the network would.
            let is_near = round_trip <= NEAR || stream.peer_addr()?.ip().is_loopback();
            let near = is_near.then(|| Near::of(&stream)).transpose()?;
            Ok(Socket { io: Box::new(stream), privacy: Privacy::None, near })
        }),
        Address::Unix(folder) => {
            let socket = UnixStream::connect(folder.join(format!(".s.PGSQL.{}", host.port)));
            let stream = in_time(target.connect_timeout, socket).await;
            stream.map(|stream| Socket { io: Box::new(stream), privacy: Privacy::Local, near: None })
        }
    };
    opened.map_err(|source| Error::Connect { host: host.to_string(), source })
}

/// To the first of the name's addresses that answers, and how long it took; each has its time, as with libpq.
async fn connect(name: &str, port: u16, target: &Target) -> io::Result<(TcpStream, Duration)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses: Vec<_> = in_time(target.connect_timeout, lookup_host((name, port))).await?.collect();
    for address in addresses {
        let begun = Instant::now();
        match in_time(target.connect_timeout, TcpStream::connect(address)).await {
            Ok(stream) => return Ok((stream, begun.elapsed())),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The socket of a server that is near, by which little is let be under way that is not read yet.
///
/// A walsender sends Begin, Insert and Commit one by one. Where there is room, each of them is a segment
/// of its own, and on one machine their whole way is the walsender's work; where there is none, they
/// gather in its socket and come in long stretches. So there is room for what comes during half a rest
/// (`src/relay/pace.rs`), and for large rows for a score of them. Postgres 15 on loopback, two cores, a
/// drain through the relay, means (least to most) of 3 to 8 in turns, 1,000 rows/s:
///
/// | room | 250 B | 250 B, by cubic | 2 KB | 50 KB |
/// | --- | --- | --- | --- | --- |
/// | what the kernel finds | 108 (72 to 152) | 64 (61 to 68) | 69 (64 to 72) | 8.8 (7.3 to 9.7) |
/// | 32 KiB | 137 (137 to 138) | 125 (81 to 145) | 68 (66 to 69) | 5.6 (5.2 to 5.8) |
/// | 64 KiB | 121 (69 to 149) | 87 (62 to 150) | 80 (73 to 86) | 7.0 (6.5 to 7.5) |
/// | 128 KiB | 124 (101 to 143) | | 66 (48 to 88) | 7.0 (6.1 to 8.3) |
/// | 256 KiB | | | | 9.6 (8.8 to 10.3) |
/// | 1 MiB | | | | 9.8 (9.1 to 10.3) |
///
/// The congestion control was bbr, but for that column. Sizes are those asked for; Linux doubles them.
pub(super) struct Near {
    socket: socket2::Socket,
    room: usize,
}

const ROOM_MIN: usize = 32 * 1024;
const ROOM_MAX: usize = 1024 * 1024;
const ROOM_FRAMES: usize = 24;

impl Near {
    fn of(stream: &TcpStream) -> io::Result<Near> {
        Ok(Near { socket: SockRef::from(stream).try_clone()?, room: 0 })
    }

    /// Frames of `bytes` come one by one. Room is made, and never taken back.
    pub(super) fn make_room(&mut self, bytes: usize) -> io::Result<()> {
        let room = room(bytes);
        if room > self.room {
            self.room = room;
            self.socket.set_recv_buffer_size(room)?;
        }
        Ok(())
    }
}

fn room(frame: usize) -> usize {
    frame.saturating_mul(ROOM_FRAMES).clamp(ROOM_MIN, ROOM_MAX).next_power_of_two()
}

async fn in_time<T>(limit: Duration, doing: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, doing).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn tune(stream: &TcpStream, tcp: &Tcp) -> io::Result<()> {
    // Status updates are small and must not wait for an acknowledgement of the one before.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_keepalive(tcp.keepalives)?;
    if tcp.keepalives {
        let mut probes = TcpKeepalive::new();
        if let Some(idle) = tcp.keepalives_idle {
            probes = probes.with_time(idle);
        }
        if let Some(interval) = tcp.keepalives_interval {
            probes = probes.with_interval(interval);
        }
        if let Some(count) = tcp.keepalives_count {
            probes = probes.with_retries(count);
        }
        socket.set_tcp_keepalive(&probes)?;
    }
    #[cfg(target_os = "linux")]
    if tcp.user_timeout.is_some() {
        socket.set_tcp_user_timeout(tcp.user_timeout)?;
    }
    Ok(())
}

/// What the server says to the request for TLS.
pub(super) enum Offer {
    /// TLS, and here it is.
    Tls(Socket),
    /// None; the socket goes on without.
    None(Socket),
}

/// Asks for TLS, or begins it at once with `sslnegotiation=direct` (Postgres manual, "SSL Session
/// Encryption").
pub(super) async fn secure(socket: Socket, target: &Target, host: &Host) -> Result<Offer, Error> {
    let Socket { mut io, privacy, near } = socket;
    if !target.encryption.direct {
        let mut request = bytes::BytesMut::new();
        postgres_protocol::message::frontend::ssl_request(&mut request);
        io.write_all(&request).await?;
        io.flush().await?;
        // Exactly one byte is read: whatever a man in the middle put behind it must not be taken for
        // something said inside TLS (CVE-2021-23222).
        match io.read_u8().await? {
            b'S' => {}
            b'N' => return Ok(Offer::None(Socket { io, privacy, near })),
            // It could not even start a process. The text of its error is not shown: until TLS is up it
            // may be anyone's (CVE-2024-10977).
            _ => return Err(Error::Protocol("an error in answer to the request for TLS".to_owned())),
        }
    }
    let tls::Secured { stream, end_point } = tls::connect(io, &target.encryption, host).await?;
    Ok(Offer::Tls(Socket { io: Box::new(stream), privacy: Privacy::Tls { end_point }, near }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_little_and_for_a_score_of_large_rows() {
        let rooms = [0, 500, 1_400, 2_300, 50_000, 1 << 30].map(|frame| room(frame) >> 10);
        assert_eq!(rooms, [32, 32, 64, 64, 1024, 1024]);
    }
}
