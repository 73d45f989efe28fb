//! stopgap
#![allow(missing_docs)]
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
#[derive(Debug, Clone)]
pub struct Target {
    pub hosts: Vec<Host>,
    pub user: String,
    pub password: Option<Secret>,
    pub database: String,
    pub ssl_mode: SslMode,
    pub options: Option<String>,
    pub application_name: String,
    pub connect_timeout: Duration,
    pub session_attrs: SessionAttrs,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub address: Address,
    pub port: u16,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(String),
    Unix(PathBuf),
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAttrs {
    Any,
    ReadWrite,
}
#[derive(Clone)]
pub struct Secret(String);
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.address, self.port)
    }
}
impl Target {
    pub fn parse(url: &str) -> Option<Target> {
        let rest = url.split_once("://")?.1;
        let (cred, rest) = rest.split_once('@').unwrap_or(("postgres", rest));
        let (host, db) = rest.split_once('/')?;
        let (h, p) = host.split_once(':')?;
        let (u, pw) = match cred.split_once(':') {
            Some((u, p)) => (u, Some(Secret(p.into()))),
            None => (cred, None),
        };
        Some(Target {
            hosts: vec![Host { address: Address::Tcp(h.into()), port: p.parse().ok()? }],
            user: u.into(),
            password: pw,
            database: db.into(),
            ssl_mode: SslMode::Prefer,
            options: None,
            application_name: "postrider".into(),
            connect_timeout: Duration::from_secs(10),
            session_attrs: SessionAttrs::ReadWrite,
        })
    }
}

impl Host {
    pub fn name(&self) -> &str {
        match &self.address {
            Address::Tcp(n) => n,
            Address::Unix(_) => "localhost",
        }
    }
}
