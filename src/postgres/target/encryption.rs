//! What of a connection string says about TLS.

use super::parameters::Settings;
use super::{Surroundings, TargetError};
use std::path::PathBuf;

/// How a connection is encrypted, and what it proves (Postgres manual, "SSL Support").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// `sslmode`.
    pub mode: SslMode,
    /// `sslrootcert`: what the server's certificate is held against.
    pub roots: Roots,
    /// Where libpq looks for revoked certificates. A list there is more than we can check: with one, no
    /// certificate is taken as verified.
    pub revoked: Option<PathBuf>,
    /// `sslcert` and `sslkey`: what is shown to a server that asks.
    pub identity: Option<Identity>,
    /// `sslnegotiation=direct`: TLS from the first byte on (17 and later).
    pub direct: bool,
    /// `sslsni`: whether the server is told which name is meant.
    pub server_name: bool,
    /// `ssl_min_protocol_version` and `ssl_max_protocol_version`.
    pub versions: Versions,
}

/// Whether the connection uses TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never.
    Disable,
    /// If the server refuses to go without.
    Allow,
    /// If the server offers it.
    Prefer,
    /// Always, or fail.
    Require,
    /// The server's certificate must be signed by one of [`Roots`].
    VerifyCa,
    /// … and be for the host that was asked for.
    VerifyFull,
}

impl SslMode {
    /// As `sslmode` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
}

/// Who may have signed the server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Those of this file. If it does not exist, only the `verify` modes fail: they cannot verify.
    File(PathBuf),
    /// Those of the operating system.
    System,
}

/// A client certificate and its key, PEM files. They are read at each connection, so that both can
/// be replaced meanwhile; when the certificate's does not exist, none is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, with those between it and its root.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Which versions of TLS will do. Older ones than 1.2 are never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// TLS 1.2.
    pub tls12: bool,
    /// TLS 1.3.
    pub tls13: bool,
}

/// Reads it. What is not named lies in `~/.postgresql`, as for libpq.
pub(super) fn resolve(
    settings: &Settings,
    surroundings: &Surroundings<'_>,
) -> Result<Encryption, TargetError> {
    let text = |name: &str| settings.get(name).map(|value| value.text.as_str());
    let folder = surroundings.home().map(|home| home.join(".postgresql"));
    let file = |name: &str, default: &str| {
        text(name).map(PathBuf::from).or_else(|| folder.as_ref().map(|folder| folder.join(default)))
    };
    let roots = match text("sslrootcert") {
        Some("system") => Roots::System,
        _ => Roots::File(file("sslrootcert", "root.crt").unwrap_or_default()),
    };
    let mode = match text("sslmode") {
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        None if roots == Roots::System => SslMode::VerifyFull,
        _ => SslMode::Prefer,
    };
    if roots == Roots::System && mode < SslMode::VerifyFull {
        return Err(weak(
            settings,
            "sslrootcert=system: anyone can have a certificate from one of these roots",
            "verify-full",
        ));
    }
    let direct = text("sslnegotiation") == Some("direct");
    if direct && mode < SslMode::Require {
        return Err(weak(settings, "sslnegotiation=direct", "require, verify-ca or verify-full"));
    }
    let identity = match text("sslcertmode") {
        Some("disable") => None,
        _ => file("sslcert", "postgresql.crt").zip(file("sslkey", "postgresql.key")),
    };
    Ok(Encryption {
        mode,
        roots,
        revoked: folder.as_ref().map(|folder| folder.join("root.crl")),
        identity: identity.map(|(certificate, key)| Identity { certificate, key }),
        direct,
        server_name: text("sslsni") != Some("0"),
        versions: versions(text("ssl_min_protocol_version"), text("ssl_max_protocol_version"))?,
    })
}

fn weak(settings: &Settings, with: &str, strong: &str) -> TargetError {
    TargetError::Invalid {
        part: settings.get("sslmode").map_or("sslmode", |value| value.part),
        problem: format!("is too weak with {with} (use {strong})"),
    }
}

fn versions(least: Option<&str>, most: Option<&str>) -> Result<Versions, TargetError> {
    let versions =
        Versions { tls12: least != Some("TLSv1.3"), tls13: most.is_none_or(|most| most == "TLSv1.3") };
    let none_is_left = matches!(most, Some("TLSv1" | "TLSv1.1")) || (!versions.tls12 && !versions.tls13);
    if none_is_left {
        return Err(TargetError::Invalid {
            part: "ssl_max_protocol_version",
            problem: "leaves no version: TLSv1.2 and TLSv1.3 are spoken".to_owned(),
        });
    }
    Ok(versions)
}
