//! How to reach NATS and who we are there. Files are read at each connection, so that they can be
//! rotated while the relay runs.

use super::load::{Origin, Value};
use super::sensitive::Sensitive;
use crate::error::{Code, Failure};
use std::path::PathBuf;

/// What a connection to NATS needs.
#[derive(Debug, Clone)]
pub struct Access {
    /// The servers' URLs, separated by commas, perhaps with user and password.
    pub url: Sensitive,
    /// Who we are.
    pub identity: Identity,
    /// The certificates of the authorities that sign servers' certificates; the system's without.
    pub ca: Option<PathBuf>,
    /// A client certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// TLS before the server says anything (`handshake_first`).
    pub tls_first: bool,
    /// The subjects of answers begin with this.
    pub inbox_prefix: String,
    /// Where JetStream answers.
    pub jetstream: JetStream,
}

impl Access {
    /// One server, with whom the URL names.
    #[must_use]
    pub fn at(url: &str) -> Access {
        Access {
            url: Sensitive::new(url, &Origin::Default),
            identity: Identity::Url,
            ca: None,
            certificate: None,
            tls_first: false,
            inbox_prefix: "_INBOX".to_owned(),
            jetstream: JetStream::Here,
        }
    }
}

impl Access {
    /// The servers of the URL, with their credentials: show them by
    /// [`masked_server`](super::masked_server).
    #[must_use]
    pub fn servers(&self) -> Vec<String> {
        self.url.current().expose().split(',').map(|server| server.trim().to_owned()).collect()
    }
}

/// Who we are to NATS.
#[derive(Debug, Clone)]
pub enum Identity {
    /// Whom the URL names, or no one.
    Url,
    /// A file with a JWT and its seed.
    Credentials(PathBuf),
    /// A file with the seed of an nkey.
    Nkey(PathBuf),
    /// A JWT and the seed that it is bound to; or the seed of an nkey alone.
    Seed {
        /// The JWT.
        jwt: Option<Sensitive>,
        /// The seed.
        seed: Sensitive,
    },
    /// A user with a password.
    User {
        /// The user.
        user: String,
        /// The password.
        password: Option<Sensitive>,
    },
    /// A token.
    Token(Sensitive),
}

/// Where JetStream answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JetStream {
    /// `$JS.API`
    Here,
    /// `$JS.<domain>.API`
    Domain(String),
    /// As another account's export is imported.
    Prefix(String),
}

/// The keys that say who we are, those of one way to log in together.
pub(super) const IDENTITIES: [&[&str]; 5] = [
    &["nats.creds"],
    &["nats.nkey"],
    &["nats.jwt", "nats.seed"],
    &["nats.user", "nats.password"],
    &["nats.token"],
];

/// The identity that is set; several at once, or half of one, are a problem.
pub(super) fn identity(values: &[Value], problems: &mut Vec<Failure>) -> Option<Identity> {
    let set = |name: &str| values.iter().find(|value| value.key.name == name && value.text.is_some());
    let mut named = IDENTITIES.iter().filter_map(|keys| keys.iter().find_map(|name| set(name)));
    if let (Some(first), Some(second)) = (named.next(), named.next()) {
        let message = format!(
            "{} ({}) and {} ({}) both say who we are to NATS",
            first.key.name, first.origin, second.key.name, second.origin
        );
        let remedy = format!("unset {} or {}", first.key.name, second.key.name);
        problems.push(Failure::new(Code::InvalidValue, message, remedy));
        return None;
    }
    for (part, whole) in [("nats.password", "nats.user"), ("nats.jwt", "nats.seed")] {
        if let (Some(value), None) = (set(part), set(whole)) {
            let message = format!("{part} ({}) is set, but not {whole}", value.origin);
            problems.push(Failure::new(Code::MissingValue, message, format!("set {whole}")));
            return None;
        }
    }
    let sensitive = |name: &str| set(name).and_then(Sensitive::of);
    let path = |name: &str| set(name).and_then(|value| value.text.as_ref()).map(PathBuf::from);
    Some(if let Some(path) = path("nats.creds") {
        Identity::Credentials(path)
    } else if let Some(path) = path("nats.nkey") {
        Identity::Nkey(path)
    } else if let Some(seed) = sensitive("nats.seed") {
        Identity::Seed { jwt: sensitive("nats.jwt"), seed }
    } else if let Some(user) = set("nats.user").and_then(|value| value.text.clone()) {
        Identity::User { user, password: sensitive("nats.password") }
    } else if let Some(token) = sensitive("nats.token") {
        Identity::Token(token)
    } else {
        Identity::Url
    })
}

/// A client certificate, when both halves are set.
pub(super) fn certificate(
    values: &[Value],
    problems: &mut Vec<Failure>,
) -> Option<Option<(PathBuf, PathBuf)>> {
    let set =
        |name: &str| values.iter().find(|value| value.key.name == name).and_then(|value| value.text.clone());
    match (set("nats.cert"), set("nats.key")) {
        (None, None) => Some(None),
        (Some(certificate), Some(key)) => Some(Some((certificate.into(), key.into()))),
        (certificate, _) => {
            let (there, missing) =
                if certificate.is_some() { ("nats.cert", "nats.key") } else { ("nats.key", "nats.cert") };
            let message = format!("{there} is set, but not {missing}");
            problems.push(Failure::new(
                Code::MissingValue,
                message,
                format!("set {missing} to its PEM file"),
            ));
            None
        }
    }
}

impl JetStream {
    /// What the subjects of its requests begin with.
    #[must_use]
    pub fn api(&self) -> String {
        match self {
            JetStream::Here => "$JS.API".to_owned(),
            JetStream::Domain(domain) => format!("$JS.{domain}.API"),
            JetStream::Prefix(prefix) => prefix.clone(),
        }
    }
}

/// Domain or prefix, not both.
pub(super) fn jetstream(
    domain: Option<String>,
    prefix: Option<String>,
    problems: &mut Vec<Failure>,
) -> Option<JetStream> {
    match (domain, prefix) {
        (None, None) => Some(JetStream::Here),
        (Some(domain), None) => Some(JetStream::Domain(domain)),
        (None, Some(prefix)) => Some(JetStream::Prefix(prefix)),
        (Some(domain), Some(_)) => {
            let message = "nats.domain and nats.js_prefix are both set";
            let remedy =
                format!("unset nats.domain, or nats.js_prefix: a domain is the prefix $JS.{domain}.API");
            problems.push(Failure::new(Code::InvalidValue, message, remedy));
            None
        }
    }
}

/// Whether a value was set by someone; defaults and contexts step back.
pub(super) fn is_explicit(value: &Value) -> bool {
    !matches!(value.origin, Origin::Default | Origin::Context(_))
}
