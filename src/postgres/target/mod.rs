//! Where the source database is and how to log in: libpq's connection strings, `PG*` variables
//! and `.pgpass`, resolved once into a [`Target`].
//!
//! Invariants: a setting that asks for more security than this version gives is an error, never
//! ignored; no error, `Debug` or `Display` in here shows a password or the connection string.
//!
//! tokio-postgres' own `Config` was the alternative. It reads neither the environment nor
//! `.pgpass`, refuses parameters that libpq accepts, and takes `tcp_user_timeout` in another unit.
//!
//! Differs from libpq on purpose: `PGHOST` and `PGHOSTADDR` count only when the string names no
//! host at all, so the environment cannot redirect a URL; a `@` after the user and password must
//! be written `%40`, since a bare one nearly always means an unescaped password that would
//! otherwise be taken for a host or a database; connect_timeout=0 means the default, not forever.

mod hosts;
mod parameters;
mod pgpass;
#[cfg(test)]
mod tests;
mod url;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parameters::Value;

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
    /// The password, if one was given or found.
    pub password: Option<Secret>,
    /// The database to connect to.
    pub database: String,
    /// Whether to use TLS.
    pub ssl_mode: SslMode,
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
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A host name or an IP address, without brackets.
    Tcp(String),
    /// The directory of a Unix-domain socket.
    Unix(PathBuf),
}

/// Whether the connection uses TLS. No mode of this version verifies the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// If the server offers it.
    Prefer,
    /// Always, or fail.
    Require,
}

/// Which servers will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAttrs {
    /// Every server that accepts the login.
    Any,
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
    /// The password file would give one of several hosts another password than the rest.
    #[error(
        "the password file does not give {0} the same password as the first host: use one line \
         for all of them (host `*`), or set PGPASSWORD"
    )]
    PasswordsDiffer(String),
}

impl Target {
    /// Resolves a URL or key=value string, `None` or empty for none. What it leaves out comes from
    /// the `PG*` variables, then the password file, then libpq's defaults.
    pub fn parse(url: Option<&str>, env: &dyn Fn(&str) -> Option<String>) -> Result<Target, TargetError> {
        resolve(url, env, &SOCKET_DIRECTORIES.map(Path::new))
    }
}

fn resolve(
    url: Option<&str>,
    env: &dyn Fn(&str) -> Option<String>,
    socket_directories: &[&Path],
) -> Result<Target, TargetError> {
    let mut settings = url::settings(url.unwrap_or_default())?;
    settings.fill(env);
    settings.check()?;

    let variable = |name: &str| env(name).filter(|value| !value.is_empty());
    let text = |name: &str| settings.get(name).map(|value| value.text.clone());
    let user = text("user")
        .or_else(|| variable("USER"))
        .or_else(|| variable("LOGNAME"))
        .unwrap_or_else(|| "postgres".to_owned());
    let database = text("dbname").unwrap_or_else(|| user.clone());
    let (hosts, names) = hosts::resolve(&settings, socket_directories)?;
    let password = match text("password") {
        Some(password) => Some(Secret(password)),
        None => match pgpass::path(&variable) {
            Some(path) => pgpass::password(&path, &hosts, &names, &database, &user)?,
            None => None,
        },
    };

    Ok(Target {
        hosts,
        user,
        password,
        database,
        ssl_mode: match text("sslmode").as_deref() {
            Some("disable") => SslMode::Disable,
            Some("require") => SslMode::Require,
            // `check` lets nothing else through.
            _ => SslMode::Prefer,
        },
        options: text("options"),
        application_name: text("application_name").unwrap_or_else(|| "postrider".to_owned()),
        connect_timeout: connect_timeout(settings.get("connect_timeout"))?,
        session_attrs: match text("target_session_attrs").as_deref() {
            Some("any") => SessionAttrs::Any,
            _ => SessionAttrs::ReadWrite,
        },
    })
}

fn connect_timeout(value: Option<&Value>) -> Result<Duration, TargetError> {
    let Some(value) = value else {
        return Ok(CONNECT_TIMEOUT);
    };
    match value.text.trim().parse::<i32>() {
        Ok(seconds) => Ok(match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => CONNECT_TIMEOUT,
        }),
        Err(_) => Err(TargetError::Invalid {
            part: value.part,
            problem: "must be a whole number of seconds".to_owned(),
        }),
    }
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

impl Host {
    /// The name to present in TLS.
    pub fn name(&self) -> &str {
        match &self.address {
            Address::Tcp(name) => name,
            Address::Unix(_) => "localhost",
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
