//! One connection to NATS, and what becomes of it.

use crate::error::{Code, Failure};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError};
use percent_encoding::percent_decode_str;
use std::time::Duration;
use tokio::sync::watch;

/// A publish inside the loop must never wait for a place in the client's queue: the largest window
/// fits, with room for requests.
const CLIENT_CAPACITY: usize = 1 << 17;

/// More answers than can be awaited: what does not fit is dropped silently by the client.
const ANSWERS_MAX: usize = 1 << 17;

const CONNECT_MAX: Duration = Duration::from_secs(5);
const REQUEST_MAX: Duration = Duration::from_secs(3);

/// A dead peer is noticed after two of them; the relay's own stall watch is quicker under load.
const PING_INTERVAL: Duration = Duration::from_secs(5);

const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);

/// What is known of the connection.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// It is up.
    pub up: bool,
    /// How often it was lost.
    pub losses: u64,
    /// The last thing that the server complained about.
    pub complaint: Option<String>,
    /// How often it has complained.
    pub complaints: u64,
}

impl Link {
    fn complain(&mut self, text: String) {
        self.complaint = Some(text);
        self.complaints += 1;
    }
}

/// A connected client.
#[derive(Debug, Clone)]
pub struct Nats {
    /// To ask and publish with.
    pub client: Client,
    /// Its state, as it changes.
    pub link: watch::Receiver<Link>,
}

/// Connects to one of `servers`.
///
/// # Errors
/// PR0301 when none is reached, PR0302 when it refuses the login, PR0308 when it is too old.
pub async fn connect(servers: &[String]) -> Result<Nats, Failure> {
    let (changed, link) = watch::channel(Link { up: true, ..Link::default() });
    let shown = shown(servers);
    let options = ConnectOptions::new()
        .name("postrider")
        .client_capacity(CLIENT_CAPACITY)
        .subscription_capacity(ANSWERS_MAX)
        .connection_timeout(CONNECT_MAX)
        .request_timeout(Some(REQUEST_MAX))
        .ping_interval(PING_INTERVAL)
        .reconnect_delay_callback(|attempts| {
            let delay = Duration::from_millis(50) * u32::try_from(attempts.min(20)).unwrap_or(20);
            delay.min(RECONNECT_DELAY_MAX)
        })
        // Ours is stricter, and was done when the event was made.
        .skip_subject_validation(true)
        .event_callback(move |event| {
            changed.send_modify(|link| match &event {
                Event::Connected => link.up = true,
                Event::Disconnected | Event::Closed => {
                    link.up = false;
                    link.losses += 1;
                }
                Event::ServerError(ServerError::Other(text)) => link.complain(text.clone()),
                Event::ServerError(error) => link.complain(error.to_string()),
                Event::ClientError(error) => link.complain(error.to_string()),
                Event::LameDuckMode | Event::Draining | Event::SlowConsumer(_) => {}
            });
            std::future::ready(())
        });
    let options = match credentials(servers)? {
        Some(Credentials { user, password: Some(password) }) => options.user_and_password(user, password),
        Some(Credentials { user: token, password: None }) => options.token(token),
        None => options,
    };
    let client = options.connect(servers).await.map_err(|error| {
        let refused = matches!(
            error.kind(),
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication
        );
        let code = if refused { Code::NatsAuth } else { Code::NatsUnreachable };
        let remedy = if refused {
            "give user and password or the token in nats.url: nats://user:password@host:4222"
        } else {
            "start nats-server (nats-server -js), or correct nats.url / NATS_URL"
        };
        Failure::new(code, format!("{shown}: {error}"), remedy)
    })?;
    let info = client.server_info();
    if !client.is_server_compatible(2, 9, 0) {
        return Err(Failure::new(
            Code::NatsVersion,
            format!("nats-server at {shown} is version {}", info.version),
            "upgrade nats-server to 2.9 or later",
        ));
    }
    Ok(Nats { client, link })
}

/// Who the URLs say that we are; async-nats leaves that to its options.
struct Credentials {
    user: String,
    password: Option<String>,
}

/// The first URL's that has any: `user:password@`, or a token alone. A cluster knows its users on
/// every server.
fn credentials(servers: &[String]) -> Result<Option<Credentials>, Failure> {
    for server in servers {
        let address: ServerAddr = server.parse().map_err(|error| {
            let server = shown(std::slice::from_ref(server));
            Failure::new(
                Code::InvalidValue,
                format!("nats.url `{server}`: {error}"),
                "write nats://host:4222",
            )
        })?;
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        if let Some(user) = address.username().filter(|user| !user.is_empty()) {
            return Ok(Some(Credentials { user: decoded(user), password: address.password().map(decoded) }));
        }
    }
    Ok(None)
}

/// The servers without user and password.
fn shown(servers: &[String]) -> String {
    let hosts: Vec<_> =
        servers.iter().map(|url| url.rsplit_once('@').map_or(url.as_str(), |(_, host)| host)).collect();
    hosts.join(", ")
}
