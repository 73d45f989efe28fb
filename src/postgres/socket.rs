//! The socket below a connection: TCP or Unix, with TLS when asked. One code for the replication
//! connection and for ordinary SQL.

use super::error::Error;
use super::target::{Address, Host, SslMode, Target};
use super::tls;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// What a connection runs over.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Opens the socket to `host`, without TLS.
pub(super) async fn open(target: &Target, host: &Host) -> Result<Box<dyn Io>, Error> {
    let opening = async {
        Ok::<Box<dyn Io>, io::Error>(match &host.address {
            Address::Tcp(name) => {
                let stream = TcpStream::connect((name.as_str(), host.port)).await?;
                // Status updates are small and must not wait for an acknowledgement of the one before.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Address::Unix(folder) => {
                Box::new(UnixStream::connect(folder.join(format!(".s.PGSQL.{}", host.port))).await?)
            }
        })
    };
    match timeout(target.connect_timeout, opening).await {
        Ok(opened) => opened.map_err(|source| Error::Connect { host: host.to_string(), source }),
        Err(_) => Err(Error::Connect { host: host.to_string(), source: io::ErrorKind::TimedOut.into() }),
    }
}

/// Negotiates TLS as `sslmode` asks (Postgres manual, "SSL Session Encryption").
pub(super) async fn secure(mut io: Box<dyn Io>, target: &Target, host: &Host) -> Result<Box<dyn Io>, Error> {
    let wanted = match (&host.address, target.ssl_mode) {
        // As in libpq, TLS is never used over a Unix socket.
        (Address::Unix(_), _) | (_, SslMode::Disable) => return Ok(io),
        (_, mode) => mode,
    };
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    io.write_all(&request).await?;
    io.flush().await?;
    // Exactly one byte is read: whatever a man in the middle put behind it must not be taken for
    // something said inside TLS (CVE-2021-23222).
    match io.read_u8().await? {
        b'S' => Ok(Box::new(tls::connect(io, host.name()).await?)),
        _ if wanted == SslMode::Require => {
            Err(Error::Tls("the server does not offer it, and sslmode=require asks for it".to_owned()))
        }
        _ => Ok(io),
    }
}
