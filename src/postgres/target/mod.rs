//! Where the source database is and how to log in: libpq's connection strings, `PG*` variables
//! and `.pgpass`, resolved once into a [`Target`].
//!
//! Invariants: a setting that asks for more security than this version gives is an error, never
//! ignored; no error, `Debug` or `Display` in here shows a password or the connection string.
//!
//! tokio-postgres' own `Config` was the alternative. It reads neither the environment nor
//! `.pgpass`, refuses parameters that libpq accepts, and takes `tcp_user_timeout` in another unit.
//!
//! Differs from libpq on purpose: the default of target_session_attrs is read-write; a host that refuses
//! the login does not keep the next from being tried; a password in clear is not sent where others can
//! read it, unless require_auth names it; a `@` after the user and password must be written `%40`, since a bare
//! one nearly always means an unescaped password that would otherwise be taken for a host or a
//! database; connect_timeout=0 means the default, not forever.

mod account;
mod encryption;
mod hosts;
mod login;
mod parameters;
mod pgpass;
mod service;
mod tcp;
#[cfg(test)]
mod tests;
mod url;

use account::Account;
pub use encryption::{Encryption, Identity, Roots, SslMode, Versions};
pub use login::{ChannelBinding, Login, Method};
use parameters::Value;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
pub use tcp::Tcp;

/// Long enough for a server across the world to answer, short enough to try the next host soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Debian's and upstream's default, in the order in which they are looked at.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// A source database and how to log in to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The servers to try, in this order. Never empty.
    pub hosts: Vec<Host>,
    /// The role to log in as.
    pub user: String,
    /// The database to connect to.
    pub database: String,
    /// Whether to use TLS, and how.
    pub encryption: Encryption,
    /// How the server may ask for proof.
    pub login: Login,
    /// How a dead peer is noticed.
    pub tcp: Tcp,
    /// Command-line options for the server session, as in `-c name=value`.
    pub options: Option<String>,
    /// The name shown in `pg_stat_activity`.
    pub application_name: String,
    /// How long to wait for one host.
    pub connect_timeout: Duration,
    /// Which servers will do.
    pub session_attrs: SessionAttrs,
}

/// One server of a [`Target`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Where it listens.
    pub address: Address,
    /// Its port, which for a socket is part of the file's name.
    pub port: u16,
    /// The name that its certificate must be for, when `address` is not it (`hostaddr`).
    pub name: Option<String>,
    /// The password, if one was given or found.
    pub password: Option<Secret>,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A host name or an IP address, without brackets.
    Tcp(String),
    /// The directory of a Unix-domain socket.
    Unix(PathBuf),
}

/// Which servers will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAttrs {
    /// Every server that accepts the login.
    Any,
    /// Only one that is no standby.
    Primary,
    /// Only one that accepts writes, which a standby does not.
    ReadWrite,
}

/// Text that is not for showing: `Debug` and `Display` print `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a connection string or its environment cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The string has no shape that libpq knows.
    #[error("connection string: {0}")]
    Syntax(&'static str),
    /// One part of it has a value that is not possible.
    #[error("{part} {problem}")]
    Invalid {
        /// The parameter, the variable or the part of the URL.
        part: &'static str,
        /// What is wrong with it and what is possible.
        problem: String,
    },
    /// libpq would accept it, this version does not.
    #[error("{part} is not supported by this version of postrider: {remedy}")]
    Unsupported {
        /// The parameter or variable, with its value where that is a fixed word.
        part: String,
        /// What is possible.
        remedy: &'static str,
    },
    /// A parameter that libpq does not know either.
    #[error("unknown connection parameter `{name}`{}", did_you_mean(*.suggestion))]
    Unknown {
        /// The name as given.
        name: String,
        /// The parameter that was perhaps meant.
        suggestion: Option<&'static str>,
    },
    /// An unknown parameter whose name may be a piece of a password and is not shown.
    #[error(
        "unknown connection parameter: if it is a piece of the password, quote the password as \
         '...' (in a URL: write & as %26)"
    )]
    UnknownUnshown,
    /// Two lists that go together have different lengths.
    #[error("{left} has {left_count} entries but {right} has {right_count}")]
    Count {
        /// The list that is at fault.
        left: &'static str,
        /// Its length.
        left_count: usize,
        /// The list that it must match.
        right: &'static str,
        /// Its length.
        right_count: usize,
    },
}

impl Target {
    /// Resolves a URL or key=value string, `None` or empty for none. What it leaves out comes from
    /// the `PG*` variables, then the password file, then libpq's defaults.
    pub fn parse(url: Option<&str>, env: &dyn Fn(&str) -> Option<String>) -> Result<Target, TargetError> {
        let surroundings = Surroundings {
            env,
            account: Account::of_process(),
            socket_directories: &SOCKET_DIRECTORIES.map(Path::new),
        };
        resolve(url, &surroundings)
    }
}

/// What a connection string is completed from.
struct Surroundings<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    account: Account,
    socket_directories: &'a [&'a Path],
}

impl Surroundings<'_> {
    /// A variable; one that is empty counts as unset.
    fn variable(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    fn home(&self) -> Option<PathBuf> {
        self.variable("HOME").map(PathBuf::from).or_else(|| self.account.home.clone())
    }

    fn user(&self) -> String {
        let account = self.account.name.clone();
        let named = account.or_else(|| self.variable("USER")).or_else(|| self.variable("LOGNAME"));
        named.unwrap_or_else(|| "postgres".to_owned())
    }
}

fn resolve(url: Option<&str>, surroundings: &Surroundings<'_>) -> Result<Target, TargetError> {
    let mut settings = url::settings(url.unwrap_or_default())?;
    service::fill(&mut settings, surroundings)?;
    settings.fill(&|name| surroundings.variable(name));
    settings.check()?;

    let text = |name: &str| settings.get(name).map(|value| value.text.clone());
    let user = text("user").unwrap_or_else(|| surroundings.user());
    let database = text("dbname").unwrap_or_else(|| user.clone());
    let mut hosts = hosts::resolve(&settings, surroundings.socket_directories)?;
    match text("password") {
        Some(password) => hosts.iter_mut().for_each(|host| host.password = Some(Secret::new(&password))),
        None => {
            let named = text("passfile").map(PathBuf::from);
            let path = named.or_else(|| surroundings.home().map(|home| home.join(".pgpass")));
            if let Some(path) = path {
                pgpass::fill(&path, &mut hosts, surroundings.socket_directories, &database, &user);
            }
        }
    }
    if text("load_balance_hosts").as_deref() == Some("random") {
        fastrand::shuffle(&mut hosts);
    }

    Ok(Target {
        hosts,
        user,
        database,
        encryption: encryption::resolve(&settings, surroundings)?,
        login: login::resolve(&settings)?,
        tcp: tcp::resolve(&settings)?,
        options: text("options"),
        application_name: text("application_name")
            .or_else(|| text("fallback_application_name"))
            .unwrap_or_else(|| "postrider".to_owned()),
        connect_timeout: connect_timeout(settings.get("connect_timeout"))?,
        session_attrs: match text("target_session_attrs").as_deref() {
            Some("any") => SessionAttrs::Any,
            Some("primary") => SessionAttrs::Primary,
            _ => SessionAttrs::ReadWrite,
        },
    })
}

fn connect_timeout(value: Option<&Value>) -> Result<Duration, TargetError> {
    let seconds = value.map(Value::seconds).transpose()?;
    Ok(seconds.flatten().unwrap_or(CONNECT_TIMEOUT))
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

impl Host {
    /// The name that its certificate must be for.
    pub fn name(&self) -> &str {
        match (&self.name, &self.address) {
            (Some(name), _) | (None, Address::Tcp(name)) => name,
            (None, Address::Unix(_)) => "localhost",
        }
    }
}

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Address::Tcp(name) => write!(f, "{name}:{}", self.port),
            Address::Unix(path) => write!(f, "{}:{}", path.display(), self.port),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.user)?;
        for (index, host) in self.hosts.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{host}")?;
        }
        write!(f, "/{}", self.database)
    }
}
