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

/// 64 MB/s from a server that is a millisecond away.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// What a connection runs over.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An open socket.
pub(super) struct Socket {
    pub(super) io: Box<dyn Io>,
    pub(super) privacy: Privacy,
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
        Address::Tcp(name) => connect(name, host.port, target).await.and_then(|stream| {
            tune(&stream, &target.tcp)?;
            Ok(Socket { io: Box::new(stream), privacy: Privacy::None })
        }),
        Address::Unix(folder) => {
            let socket = UnixStream::connect(folder.join(format!(".s.PGSQL.{}", host.port)));
            let stream = in_time(target.connect_timeout, socket).await;
            stream.map(|stream| Socket { io: Box::new(stream), privacy: Privacy::Local })
        }
    };
    opened.map_err(|source| Error::Connect { host: host.to_string(), source })
}

/// To the first of the name's addresses that answers; each has its time, as with libpq.
async fn connect(name: &str, port: u16, target: &Target) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses: Vec<_> = in_time(target.connect_timeout, lookup_host((name, port))).await?.collect();
    for address in addresses {
        let begun = Instant::now();
        match in_time(target.connect_timeout, TcpStream::connect(address)).await {
            Ok(stream) => {
                if let Some(bytes) = receive_buffer(begun.elapsed()) {
                    SockRef::from(&stream).set_recv_buffer_size(bytes)?;
                }
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// How much a server may have under way that is not read yet; none: what the kernel finds.
///
/// A walsender sends Begin, Insert and Commit one by one. Where the kernel's own buffer has grown to
/// megabytes, each of them is a segment of its own, and on one machine their whole way is the
/// walsender's work; where little may be under way, they gather in its socket and come in long
/// stretches. Postgres 15 on loopback, two cores, 200,000 single-row transactions:
///
/// | receive buffer | segments a row | rows/s |
/// | --- | --- | --- |
/// | the kernel's, most often | 0.7 to 2.1 | 64 to 82 k |
/// | the kernel's, now and then | 0.01 | 130 to 135 k |
/// | 32 KiB | 0.02 | 86 to 90 k |
/// | 64 KiB (this) | 0.01 | 110 to 123 k |
/// | 96 KiB | 0.01 to 0.03 | 106 to 123 k |
/// | 128 KiB | 0.01 to 0.6 | 51 to 114 k |
/// | 256 KiB | 1 to 3 | 58 to 91 k |
fn receive_buffer(round_trip: Duration) -> Option<usize> {
    (round_trip <= NEAR).then_some(RECEIVE_BUFFER)
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
    let Socket { mut io, privacy } = socket;
    if !target.encryption.direct {
        let mut request = bytes::BytesMut::new();
        postgres_protocol::message::frontend::ssl_request(&mut request);
        io.write_all(&request).await?;
        io.flush().await?;
        // Exactly one byte is read: whatever a man in the middle put behind it must not be taken for
        // something said inside TLS (CVE-2021-23222).
        match io.read_u8().await? {
            b'S' => {}
            b'N' => return Ok(Offer::None(Socket { io, privacy })),
            // It could not even start a process. The text of its error is not shown: until TLS is up it
            // may be anyone's (CVE-2024-10977).
            _ => return Err(Error::Protocol("an error in answer to the request for TLS".to_owned())),
        }
    }
    let tls::Secured { stream, end_point } = tls::connect(io, &target.encryption, host).await?;
    Ok(Offer::Tls(Socket { io: Box::new(stream), privacy: Privacy::Tls { end_point } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_of_a_near_server_little_may_be_under_way() {
        let taken =
            [0, 100, 1_000, 1_001, 40_000].map(|micros| receive_buffer(Duration::from_micros(micros)));
        assert_eq!(taken, [Some(65_536), Some(65_536), Some(65_536), None, None]);
    }
}
