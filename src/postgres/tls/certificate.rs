//! What a certificate says, as far as rustls does not tell.

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use std::net::IpAddr;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// One that was parsed.
pub(super) struct Certificate {
    parsed: x509_cert::Certificate,
    names: Vec<GeneralName>,
}

impl Certificate {
    /// Parses it; `None` when it is malformed.
    pub(super) fn read(der: &CertificateDer<'_>) -> Option<Certificate> {
        let parsed = x509_cert::Certificate::from_der(der).ok()?;
        let found = parsed.tbs_certificate().get_extension::<SubjectAltName>().ok()?;
        let names = found.map_or_else(Vec::new, |(_critical, names)| names.0);
        Some(Certificate { parsed, names })
    }

    /// Its common name, where libpq looks for the host: when no alternative name is of the host's kind.
    pub(super) fn common_name_for(&self, host: &ServerName<'_>) -> Option<String> {
        let same_kind = |name: &GeneralName| match host {
            ServerName::IpAddress(_) => matches!(name, GeneralName::IpAddress(_)),
            _ => matches!(name, GeneralName::DnsName(_)),
        };
        if self.names.iter().any(same_kind) {
            return None;
        }
        self.common_name()
    }

    fn common_name(&self) -> Option<String> {
        let name = self.parsed.tbs_certificate().subject().common_name().ok()??;
        Some(name.value().into_owned())
    }

    /// All that it is for, to be shown.
    pub(super) fn names(&self) -> Vec<String> {
        let shown = self.names.iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.to_string()),
            GeneralName::IpAddress(bytes) => ip(bytes.as_bytes()).map(|ip| ip.to_string()),
            _ => None,
        });
        let shown: Vec<_> = shown.collect();
        if shown.is_empty() { self.common_name().into_iter().collect() } else { shown }
    }

    /// Whether it names itself as its issuer.
    pub(super) fn is_self_issued(&self) -> bool {
        let tbs = self.parsed.tbs_certificate();
        tbs.issuer() == tbs.subject()
    }

    /// Its key, whatever its version.
    pub(super) fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'static>> {
        self.parsed.tbs_certificate().subject_public_key_info().to_der().ok().map(Into::into)
    }

    /// Before, within, or behind its time.
    pub(super) fn age(&self, now: UnixTime) -> std::cmp::Ordering {
        let validity = self.parsed.tbs_certificate().validity();
        let now = now.as_secs();
        if now < validity.not_before.to_unix_duration().as_secs() {
            std::cmp::Ordering::Less
        } else if now > validity.not_after.to_unix_duration().as_secs() {
            std::cmp::Ordering::Greater
        } else {
            std::cmp::Ordering::Equal
        }
    }

    /// RFC 5929, tls-server-end-point: the hash of the certificate by the hash of its signature, SHA-256
    /// in place of MD5 and SHA-1. Ed25519 names no hash; that of RSA-PSS is not read here.
    pub(super) fn end_point_digest(&self, der: &CertificateDer<'_>) -> Option<Vec<u8>> {
        let algorithm = match self.parsed.signature_algorithm().oid.to_string().as_str() {
            // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256.
            "1.2.840.113549.1.1.4"
            | "1.2.840.113549.1.1.5"
            | "1.2.840.113549.1.1.11"
            | "1.2.840.10045.4.1"
            | "1.2.840.10045.4.3.2" => &digest::SHA256,
            "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
            "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
            _ => return None,
        };
        Some(digest::digest(algorithm, der).as_ref().to_vec())
    }
}

/// Whether a common name is the host's: the same but for case, or `*.` in place of its first label.
pub(super) fn common_name_matches(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(suffix), Some((label, rest))) = (name.strip_prefix("*."), host.split_once('.')) else {
        return false;
    };
    !label.is_empty() && suffix.eq_ignore_ascii_case(rest)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match *bytes {
        [a, b, c, d] => Some([a, b, c, d].into()),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}
