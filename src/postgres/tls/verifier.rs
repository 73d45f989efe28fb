//! Whether a server's certificate is good enough, by libpq's rules where they differ from webpki's.
//!
//! libpq (through OpenSSL) also takes a self-signed certificate that is itself in the root file, and a
//! host named by the common name alone: what the Postgres manual's example of a self-signed certificate
//! makes ("Creating Certificates"). webpki refuses both. It also refuses certificates of version 1, which
//! the manual's example of an authority makes: those are taken where nothing is to be verified.

use super::certificate::{Certificate, common_name_matches};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::cmp::Ordering;

/// The roots that may have signed a server's certificate.
#[derive(Debug)]
pub(super) struct Trusted {
    store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl Trusted {
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Trusted {
        let mut store = RootCertStore::empty();
        // One that does not parse can have signed nothing.
        store.add_parsable_certificates(certificates.iter().cloned());
        Trusted { store, certificates }
    }
}

/// Asks as much of a certificate as `sslmode` does; always that the server holds its key.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    /// None: any certificate will do.
    pub(super) trusted: Option<Trusted>,
    /// The name that it must be for; none: any.
    pub(super) name: Option<String>,
}

impl Verifier {
    fn verify_issuer(
        &self,
        trusted: &Trusted,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let Some(certificate) = Certificate::read(leaf) else {
            return Err(CertificateError::BadEncoding.into());
        };
        if certificate.is_self_issued() && trusted.certificates.iter().any(|root| root == leaf) {
            return match certificate.age(now) {
                Ordering::Less => Err(CertificateError::NotValidYet.into()),
                Ordering::Equal => Ok(()),
                Ordering::Greater => Err(CertificateError::Expired.into()),
            };
        }
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &trusted.store, intermediates, now, algorithms)
    }
}

/// Whether it is for that host.
fn verify_name(leaf: &CertificateDer<'_>, name: &str, host: &ServerName<'_>) -> Result<(), Error> {
    let Err(error) = verify_server_name(&ParsedCertificate::try_from(leaf)?, host) else { return Ok(()) };
    let Some(certificate) = Certificate::read(leaf) else { return Err(error) };
    if certificate.common_name_for(host).is_some_and(|common| common_name_matches(&common, name)) {
        return Ok(());
    }
    let presented = certificate.names();
    Err(CertificateError::NotValidForNameContext { expected: host.to_owned(), presented }.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trusted) = &self.trusted {
            self.verify_issuer(trusted, leaf, intermediates, now)?;
        }
        if let Some(name) = &self.name {
            verify_name(leaf, name, host)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match (verify_tls13_signature(message, certificate, signed, &self.algorithms), &self.trusted) {
            // webpki reads no certificate of version 1, which `openssl x509 -req` makes. Where none is
            // verified its key will do.
            (Err(Error::InvalidCertificate(problem)), None) => match Certificate::read(certificate) {
                Some(read) => {
                    let key = read.public_key().ok_or(Error::InvalidCertificate(problem))?;
                    verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
                }
                None => Err(Error::InvalidCertificate(problem)),
            },
            (result, _) => result,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
