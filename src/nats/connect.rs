//! The connection for requests, and what becomes of it and of the one that publishes.

use super::login;
use crate::config::{Access, JetStream, masked_server};
use crate::error::{Code, Failure};
use async_nats::jetstream::{self, Context};
use async_nats::{AuthError, Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// No request must wait for a place in the client's queue.
const CLIENT_CAPACITY: usize = 1 << 17;

/// What does not fit is dropped silently by the client.
const ANSWERS_MAX: usize = 1 << 17;

const CONNECT_MAX: Duration = Duration::from_secs(5);
const REQUEST_MAX: Duration = Duration::from_secs(3);

/// A dead peer is noticed after two of them; the relay's own stall watch is quicker under load.
const PING_INTERVAL: Duration = Duration::from_secs(5);

const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);

/// What is known of the two connections: async-nats's, and the one that publishes.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Both are up.
    pub up: bool,
    /// How often one was lost.
    pub losses: u64,
    /// The last thing that the server complained about.
    pub complaint: Option<String>,
    /// How often it has complained.
    pub complaints: u64,
    client_down: bool,
    publishing_down: bool,
}

impl Link {
    /// Of a connection that has just been made.
    #[must_use]
    pub fn new() -> Link {
        Link { up: true, ..Link::default() }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Connected => self.client_down = false,
            Event::Disconnected | Event::Closed => self.client_down = true,
            Event::ServerError(ServerError::Other(text)) => self.complain(text.clone()),
            Event::ServerError(error) => self.complain(error.to_string()),
            Event::ClientError(error) => self.complain(error.to_string()),
            Event::LameDuckMode | Event::Draining | Event::SlowConsumer(_) => {}
        }
        self.look();
    }

    fn look(&mut self) {
        let up = !self.client_down && !self.publishing_down;
        if self.up && !up {
            self.losses += 1;
        }
        self.up = up;
    }

    fn complain(&mut self, text: String) {
        self.complaint = Some(text);
        self.complaints += 1;
    }
}

/// A connected client.
#[derive(Debug, Clone)]
pub struct Nats {
    /// To ask with.
    pub client: Client,
    /// How it got in.
    pub(super) access: Access,
    /// Its state, as it changes.
    pub link: watch::Receiver<Link>,
    changed: Arc<watch::Sender<Link>>,
}

/// Connects to one of the servers. At each connection, also the later ones, credentials and
/// certificates are read anew.
///
/// # Errors
/// PR0301 when none is reached, PR0302 when it refuses the login, PR0313 when TLS fails, PR0308 when it
/// is too old.
pub async fn connect(access: &Access) -> Result<Nats, Failure> {
    let (changed, link) = watch::channel(Link::new());
    let changed = Arc::new(changed);
    let changes = Arc::clone(&changed);
    let servers = access.servers();
    let shown: Vec<_> = servers.iter().map(|server| masked_server(server)).collect();
    let shown = shown.join(", ");
    let of_each_connection = access.clone();
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        std::future::ready(login::auth(&of_each_connection, &nonce).map_err(AuthError::new))
    })
    .name("postrider")
    .custom_inbox_prefix(&access.inbox_prefix)
    .client_capacity(CLIENT_CAPACITY)
    .subscription_capacity(ANSWERS_MAX)
    .connection_timeout(CONNECT_MAX)
    .request_timeout(Some(REQUEST_MAX))
    .ping_interval(PING_INTERVAL)
    .reconnect_delay_callback(|attempts| {
        let delay = Duration::from_millis(50) * u32::try_from(attempts.min(20)).unwrap_or(20);
        delay.min(RECONNECT_DELAY_MAX)
    })
    .event_callback(move |event| {
        changes.send_modify(|link| link.take(&event));
        std::future::ready(())
    });
    if asks_for_tls(access) {
        options = options.require_tls(true);
    }
    if let Some(ca) = &access.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &access.certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if access.tls_first {
        options = options.tls_first();
    }
    let client = options.connect(&servers).await.map_err(|error| refused(&error, access, &shown))?;
    let info = client.server_info();
    if !client.is_server_compatible(2, 9, 0) {
        return Err(Failure::new(
            Code::NatsVersion,
            format!("nats-server at {shown} is version {}", info.version),
            "upgrade nats-server to 2.9 or later",
        ));
    }
    Ok(Nats { client, access: access.clone(), link, changed })
}

/// Whoever names certificates or says tls:// does not want to go without TLS, also to servers that the
/// first one tells of.
pub(super) fn asks_for_tls(access: &Access) -> bool {
    let asks = access.servers().iter().any(|server| server.starts_with("tls://"));
    asks || access.ca.is_some() || access.certificate.is_some() || access.tls_first
}

impl Nats {
    /// The connection that publishes is up, or lost.
    pub(super) fn publishing(&self, up: bool) {
        self.changed.send_if_modified(|link| {
            let changes = link.publishing_down == up;
            link.publishing_down = !up;
            link.look();
            changes
        });
    }

    /// The server complains on the connection that publishes.
    pub(super) fn complains(&self, text: String) {
        self.changed.send_modify(|link| link.complain(text));
    }

    /// Where JetStream answers requests.
    #[must_use]
    pub fn api(&self) -> String {
        self.access.jetstream.api()
    }

    /// JetStream, asked where it answers.
    #[must_use]
    pub fn jetstream(&self) -> Context {
        let client = self.client.clone();
        match &self.access.jetstream {
            JetStream::Here => jetstream::new(client),
            JetStream::Domain(domain) => jetstream::with_domain(client, domain),
            JetStream::Prefix(prefix) => jetstream::with_prefix(client, prefix),
        }
    }
}

/// Sorts why there is no connection.
fn refused(error: &ConnectError, access: &Access, shown: &str) -> Failure {
    if let Some(tls) = tls_error(error) {
        let (what, remedy) = tls_problem(tls);
        return Failure::new(Code::NatsTls, format!("{shown}: {what}"), remedy);
    }
    let source = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => {
            let who = login::shown(access);
            Failure::new(
                Code::NatsAuth,
                format!("{shown}: authorization violation, as {who}"),
                "correct nats.creds, nats.nkey, nats.user and nats.password, or nats.token (or user and password in \
                 nats.url); `nats context` or the server's `authorization` and `accounts` tell whom it knows",
            )
        }
        ConnectErrorKind::Authentication => Failure::new(
            Code::NatsAuth,
            format!("{shown}: {source}"),
            "mend the file, or name another: nats.creds, nats.nkey",
        ),
        ConnectErrorKind::Tls => Failure::new(
            Code::NatsTls,
            format!("{shown}: {source}"),
            "mend the file that nats.ca, nats.cert or nats.key names",
        ),
        _ => Failure::new(
            Code::NatsUnreachable,
            format!("{shown}: {error}"),
            "start nats-server (nats-server -js), or correct nats.url / NATS_URL",
        ),
    }
}

/// rustls's own error, wherever it is in the chain.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn tls_problem(error: &rustls::Error) -> (String, &'static str) {
    use rustls::{AlertDescription as Alert, CertificateError as Problem};
    let (what, remedy) = match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            Problem::UnknownIssuer => (
                "no authority that is trusted signed the server's certificate".to_owned(),
                "name the authority's file: nats.ca / NATS_CA",
            ),
            Problem::Expired | Problem::ExpiredContext { .. } => (
                "the server's certificate has expired".to_owned(),
                "renew the server's certificate, then nats-server --signal reload",
            ),
            Problem::NotValidYet | Problem::NotValidYetContext { .. } => (
                "the server's certificate is not valid yet".to_owned(),
                "set this machine's clock, or the server's certificate",
            ),
            Problem::NotValidForName | Problem::NotValidForNameContext { .. } => (
                problem.to_string(),
                "put a name into nats.url that the certificate is for, or have it issued for this one (subjectAltName)",
            ),
            other => (
                other.to_string(),
                "have the server's certificate issued again: version 3, CA:FALSE, the host among its subjectAltName",
            ),
        },
        rustls::Error::InvalidMessage(_) => (
            "the server does not speak TLS".to_owned(),
            "switch TLS on at the server (tls { cert_file, key_file }), or unset nats.ca, nats.cert and nats.tls_first",
        ),
        rustls::Error::AlertReceived(
            Alert::CertificateRequired | Alert::BadCertificate | Alert::UnknownCA | Alert::CertificateUnknown,
        ) => (
            format!("the server refuses our client certificate, or asks for one: {error}"),
            "name one that the server's tls { ca_file } has signed: nats.cert and nats.key",
        ),
        other => (
            other.to_string(),
            "see nats-server's log; if it speaks TLS first (handshake_first): nats.tls_first = true",
        ),
    };
    (format!("TLS: {what}"), remedy)
}
