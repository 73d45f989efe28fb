//! stopgap
#![allow(missing_docs)]
use crate::outbox::*;
use crate::postgres::target::{Secret, Target};
use std::net::SocketAddr;
use std::time::Duration;
#[derive(Debug, Clone)]
pub struct Config {
    pub postgres: Postgres,
    pub outbox: Outbox,
    pub nats: Nats,
    pub delivery: Delivery,
    pub http: Http,
    pub start_timeout: Option<Duration>,
    pub log: Log,
}
#[derive(Debug, Clone)]
pub struct Postgres {
    pub target: Target,
    pub slot: String,
    pub publication: String,
    pub schema: String,
    pub release_after: Duration,
}
#[derive(Debug, Clone)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}
impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\".\"{}\"", self.schema, self.name)
    }
}
#[derive(Debug, Clone)]
pub struct Outbox {
    pub table: TableName,
    pub preset: PresetChoice,
    pub subject: Option<String>,
}
#[derive(Debug, Clone)]
pub struct Nats {
    pub servers: Vec<String>,
    pub stream: String,
    pub replicas: usize,
    pub max_age: Option<Duration>,
    pub max_bytes: Option<u64>,
    pub msg_id: bool,
}
#[derive(Debug, Clone)]
pub struct Delivery {
    pub window_messages: usize,
    pub window_bytes: usize,
    pub hold: Duration,
}
#[derive(Debug, Clone)]
pub struct Http {
    pub listen: Option<SocketAddr>,
    pub token: Option<Secret>,
    pub allow_anonymous: bool,
}
impl Delivery {
    pub fn hold_back(&self, _: &Nats) -> Duration {
        self.hold
    }
}
impl Outbox {
    pub fn settings(&self, nats: &Nats) -> Settings {
        Settings {
            preset: self.preset,
            columns: ColumnNames::default(),
            subject: self.subject.clone(),
            msg_id: nats.msg_id,
        }
    }
}
impl Config {
    pub fn env() -> Config {
        let e = |n: &str, d: &str| std::env::var(n).unwrap_or(d.into());
        Config {
            postgres: Postgres {
                target: Target::parse(Some(&e("DATABASE_URL", "")), &|n| std::env::var(n).ok()).unwrap(),
                slot: "postrider".into(),
                publication: "postrider".into(),
                schema: "postrider".into(),
                release_after: Duration::from_secs(5),
            },
            outbox: Outbox {
                table: TableName { schema: "public".into(), name: "outbox".into() },
                preset: PresetChoice::Auto,
                subject: None,
            },
            nats: Nats {
                servers: vec![e("NATS_URL", "127.0.0.1:4222")],
                stream: "OUTBOX".into(),
                replicas: 1,
                max_age: None,
                max_bytes: None,
                msg_id: false,
            },
            delivery: Delivery {
                window_messages: 2048,
                window_bytes: 8 << 20,
                hold: Duration::from_millis(e("HOLD", "0").parse().unwrap()),
            },
            http: Http {
                listen: e("POSTRIDER_HTTP_LISTEN", "127.0.0.1:9464").parse().ok(),
                token: None,
                allow_anonymous: false,
            },
            start_timeout: None,
            log: Log { level: "debug", format: LogFormat::Human },
        }
    }
}
#[derive(Debug, Clone)]
pub struct Log {
    pub level: &'static str,
    pub format: LogFormat,
}
#[derive(Debug, Clone, Copy)]
pub enum LogFormat {
    Auto,
    Human,
    Json,
}
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {}
