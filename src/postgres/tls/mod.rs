//! TLS through rustls, as libpq's `sslmode` means it (Postgres manual, "SSL Support"). One code for
//! both kinds of connection.
//!
//! Certificates and keys are read at each connection: replaced on disk, the next connection has them.

mod certificate;
mod verifier;

use super::error::Error;
use super::target::{Encryption, Host, Identity, Roots, SslMode, Versions};
use certificate::Certificate;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, SupportedProtocolVersion, version};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use verifier::{Trusted, Verifier};

/// What `sslnegotiation=direct` says it speaks (Postgres manual, "Direct SSL").
const ALPN: &[u8] = b"postgresql";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server answers that it has none.
    #[error("the server does not offer TLS, and sslmode={0} asks for it")]
    NotOffered(&'static str),
    /// `verify-ca` or `verify-full`, and nothing to verify by.
    #[error("the root certificate file {} does not exist, and sslmode={mode} verifies by it", .path.display())]
    NoRoots {
        /// Where it should be.
        path: PathBuf,
        /// The mode as written.
        mode: &'static str,
    },
    /// A file of ours cannot be used.
    #[error("{}: {problem}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The server's certificate is not what was asked for.
    #[error("the server's certificate {0}")]
    Certificate(CertificateProblem),
    /// The server ends the handshake because of the certificate that we show, or that we show none.
    #[error("the server refuses the client certificate: {0}")]
    ClientCertificate(String),
    /// Anything else.
    #[error("the handshake fails: {0}")]
    Handshake(String),
}

/// What is wrong with a server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateProblem {
    /// No root that is trusted has signed it.
    UnknownIssuer,
    /// It is for other names.
    WrongName {
        /// The name that was asked for.
        asked: String,
        /// What it is for.
        names: Vec<String>,
    },
    /// It has expired.
    Expired,
    /// It is from the future, or our clock is from the past.
    NotYetValid,
    /// Anything else that makes it unusable.
    Unusable(String),
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertificateProblem::UnknownIssuer => f.write_str("is signed by no root that is trusted"),
            CertificateProblem::WrongName { asked, names } => {
                write!(f, "is not for `{asked}` but for {}", names.join(", "))
            }
            CertificateProblem::Expired => f.write_str("has expired"),
            CertificateProblem::NotYetValid => f.write_str("is not valid yet"),
            CertificateProblem::Unusable(why) => write!(f, "cannot be used: {why}"),
        }
    }
}

/// A connection inside TLS.
pub(super) struct Secured<T> {
    pub(super) stream: TlsStream<T>,
    /// The hash of the server's certificate that SCRAM binds to (RFC 5929, tls-server-end-point); none
    /// for certificates whose signature has no such hash.
    pub(super) end_point: Option<Vec<u8>>,
}

/// Does the handshake over `io`.
pub(super) async fn connect<T>(io: T, encryption: &Encryption, host: &Host) -> Result<Secured<T>, Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let config = config(encryption, host.name())?;
    let name = ServerName::try_from(host.name().to_owned())
        .map_err(|error| TlsError::Handshake(format!("`{}`: {error}", host.name())))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, io).await.map_err(|error| failed(error, host.name()))?;
    let (_, session) = stream.get_ref();
    if encryption.direct && session.alpn_protocol() != Some(ALPN) {
        return Err(TlsError::Handshake("the server does not speak sslnegotiation=direct".to_owned()).into());
    }
    let end_point = session.peer_certificates().and_then(<[_]>::first).and_then(|der| {
        let certificate = Certificate::read(der)?;
        certificate.end_point_digest(der)
    });
    Ok(Secured { stream, end_point })
}

fn config(encryption: &Encryption, name: &str) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier {
        algorithms: provider.signature_verification_algorithms,
        trusted: trusted(encryption)?,
        name: (encryption.mode == SslMode::VerifyFull).then(|| name.to_owned()),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(encryption.versions))
        .map_err(|error| TlsError::Handshake(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity(encryption.identity.as_ref())? {
        None => builder.with_no_client_auth(),
        Some((chain, key, path)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| TlsError::File { path, problem: format!("does not fit its key: {error}") })?,
    };
    config.enable_sni = encryption.server_name;
    if encryption.direct {
        config.alpn_protocols = vec![ALPN.to_vec()];
    }
    Ok(config)
}

fn versions(wanted: Versions) -> Vec<&'static SupportedProtocolVersion> {
    let known = [(wanted.tls12, &version::TLS12), (wanted.tls13, &version::TLS13)];
    known.into_iter().filter(|(wanted, _)| *wanted).map(|(_, version)| version).collect()
}

/// As in libpq, a root file that exists is verified by in every mode, and its absence is an error only
/// where the mode verifies.
fn trusted(encryption: &Encryption) -> Result<Option<Trusted>, TlsError> {
    match &encryption.roots {
        Roots::System => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                let problem = found.errors.first().map_or("no certificate".to_owned(), ToString::to_string);
                return Err(TlsError::File { path: "sslrootcert=system".into(), problem });
            }
            Ok(Some(Trusted::new(found.certs)))
        }
        Roots::File(path) if path.exists() => {
            if let Some(revoked) = encryption.revoked.as_ref().filter(|revoked| revoked.exists()) {
                let problem = "lists of revoked certificates are not read here: take it away, and issue server \
                               certificates for a short time";
                return Err(TlsError::File { path: revoked.clone(), problem: problem.to_owned() });
            }
            let roots = certificates(path)?;
            if roots.is_empty() {
                return Err(TlsError::File {
                    path: path.clone(),
                    problem: "holds no PEM certificate".into(),
                });
            }
            Ok(Some(Trusted::new(roots)))
        }
        Roots::File(path) => match encryption.mode {
            SslMode::VerifyCa | SslMode::VerifyFull => {
                Err(TlsError::NoRoots { path: path.clone(), mode: encryption.mode.name() })
            }
            _ => Ok(None),
        },
    }
}

type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, PathBuf);

/// What is shown to a server that asks for a certificate.
fn identity(identity: Option<&Identity>) -> Result<Option<Shown>, TlsError> {
    let Some(Identity { certificate, key }) = identity.filter(|files| files.certificate.exists()) else {
        return Ok(None);
    };
    let chain = certificates(certificate)?;
    let failed = |problem: String| TlsError::File { path: key.clone(), problem };
    let metadata = std::fs::metadata(key).map_err(|error| failed(error.to_string()))?;
    if !metadata.is_file() {
        return Err(failed("is no plain file".to_owned()));
    }
    if !is_private(&metadata) {
        return Err(failed(
            "others may read this private key: chmod 600 it (640 if it belongs to root)".to_owned(),
        ));
    }
    let text = std::fs::read(key).map_err(|error| failed(error.to_string()))?;
    if text.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED) {
        return Err(failed(
            "the private key is encrypted: openssl pkey -in it -out client.key; chmod 600 client.key"
                .to_owned(),
        ));
    }
    let key_read = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| failed(format!("holds no PEM private key: {error}")))?;
    Ok(Some((chain, key_read, certificate.clone())))
}

/// In the PEM label of PKCS #8, and in the header of older forms.
const ENCRYPTED: &[u8] = b"ENCRYPTED";

/// libpq's rule: nobody but the owner, or root's file that a group may read.
fn is_private(metadata: &std::fs::Metadata) -> bool {
    let others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    metadata.mode() & others == 0
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |problem: String| TlsError::File { path: path.to_owned(), problem };
    let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(format!("is not PEM: {error}")))
}

/// What an error of reading or writing means. With TLS 1.3 a server complains of the client's
/// certificate only when the handshake is over for the client.
pub(super) fn failed(error: io::Error, name: &str) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => sort(tls, name).into(),
        None => error.into(),
    }
}

fn sort(error: &rustls::Error, name: &str) -> TlsError {
    let problem = match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            CertificateError::UnknownIssuer => CertificateProblem::UnknownIssuer,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                CertificateProblem::Expired
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                CertificateProblem::NotYetValid
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                CertificateProblem::WrongName { asked: name.to_owned(), names: presented.clone() }
            }
            other => CertificateProblem::Unusable(other.to_string()),
        },
        rustls::Error::AlertReceived(alert) => {
            use rustls::AlertDescription::{
                AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
                CertificateUnknown, UnknownCA, UnsupportedCertificate,
            };
            return match alert {
                AccessDenied
                | BadCertificate
                | CertificateExpired
                | CertificateRequired
                | CertificateRevoked
                | CertificateUnknown
                | UnknownCA
                | UnsupportedCertificate => TlsError::ClientCertificate(format!("{alert:?}")),
                other => TlsError::Handshake(format!("the server says {other:?}")),
            };
        }
        other => return TlsError::Handshake(other.to_string()),
    };
    TlsError::Certificate(problem)
}
