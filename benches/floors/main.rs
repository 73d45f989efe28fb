//! The relay beside the floors that it stands on, in one run on one Postgres and one nats-server.
//!
//! Numbers of one machine say little about another, and those of one minute little about the next:
//! each round measures the floors and the relay one after the other, in an order that rotates, and
//! what counts is the ratio within a round.
//!
//! * [`drain`]: a backlog through `pg_recvlogical`, through a bare async-nats publisher, through the
//!   relay. The goal is 0.9 of the slower floor.
//! * [`latency`]: at 1,000 rows a second, from commit to stored, against commit to received from the
//!   walsender plus publish to ack. The goal is 1.3 times that sum.

mod drain;
mod latency;
mod process;

use anyhow::{Context, Result, ensure};
use async_nats::header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_STREAM};
use async_nats::{HeaderMap, HeaderName, HeaderValue, jetstream};
use clap::Parser;
use postrider::demo::servers::{NatsServer, PostgresPrograms, PostgresServer, nats_program, program};
use postrider::nats::connect::{Nats, connect};
use postrider::nats::publish::{COMMIT_TIME, POSITION};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// What the servers have besides their own defaults and those of `postrider demo`: Postgres must not
/// vacuum or write a checkpoint in the middle of a measurement.
const POSTGRES_SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("shared_buffers", "256MB"),
    ("autovacuum", "off"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
];
/// The article's table.
const TABLE: &str = "CREATE TABLE outbox (id SERIAL PRIMARY KEY, event_type VARCHAR(50), payload JSONB, \
    created_at TIMESTAMP DEFAULT NOW(), processed BOOLEAN DEFAULT FALSE)";
/// Of row `i`; Postgres prints it with about 250 bytes.
const PAYLOAD: &str = "jsonb_build_object('order', i, 'customer', 'customer-' || i % 1000, 'cents', i % 100000, \
    'currency', 'EUR', 'note', repeat('x', 150))";
/// The slot and the stream of the floors. The stream's name and subjects are as long as the relay's.
const FLOORS: &str = "floors";
const FLOORS_STREAM: &str = "FLOORS";
const STREAM: &str = "OUTBOX";
const EVENT_ID: HeaderName = HeaderName::from_static("Postrider-Event-Id");
const EVENT_TYPE: HeaderName = HeaderName::from_static("Postrider-Event-Type");
const CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");
/// Without progress for that long, the run has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures the relay beside what it cannot beat.
#[derive(Debug, Parser)]
struct Args {
    /// Rows of a backlog; 0 leaves the drain out
    #[arg(long, default_value_t = 300_000)]
    rows: u32,
    /// How often each measurement is repeated
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Rows of a transaction of the backlog
    #[arg(long, value_delimiter = ',', default_value = "1,100")]
    transaction_size: Vec<u32>,
    /// Seconds of each latency measurement; 0 leaves it out
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Rows a second of the latency measurement
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// The servers, and connections of the benchmark's own.
struct Lab {
    programs: PostgresPrograms,
    postgres: PostgresServer,
    nats_server: NatsServer,
    sql: Client,
    nats: Nats,
    jetstream: jetstream::Context,
    folder: TempDir,
}

// One thread, as the relay has it: the bare publisher is to be as fast as it can.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.rounds > 0, "--rounds 0 measures nothing");
    let lab = Lab::start().await?;
    lab.print_surroundings()?;
    if args.rows > 0 {
        for size in &args.transaction_size {
            drain::measure(&lab, args.rows, *size, args.rounds).await?;
        }
    }
    if args.seconds > 0 {
        latency::measure(&lab, args.rate, args.seconds, args.rounds).await?;
    }
    Ok(())
}

impl Lab {
    async fn start() -> Result<Lab> {
        let programs = PostgresPrograms::find(None)?;
        let postgres = PostgresServer::start(&programs, POSTGRES_SETTINGS).await?;
        let nats_server = NatsServer::start(&nats_program(None)?, "").await?;
        let sql = sql(&postgres.url("postgres")).await?;
        // The relay's own client options.
        let nats = connect(&[nats_server.url()]).await?;
        let jetstream = jetstream::new(nats.client.clone());
        let folder = tempfile::tempdir()?;
        // An empty file hides /etc/postrider/postrider.toml.
        std::fs::write(folder.path().join("postrider.toml"), "")?;
        Ok(Lab { programs, postgres, nats_server, sql, nats, jetstream, folder })
    }

    fn print_surroundings(&self) -> Result<()> {
        let cores = std::thread::available_parallelism()?;
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let settings: Vec<_> =
            POSTGRES_SETTINGS.iter().map(|(name, value)| format!("{name}={value}")).collect();
        println!("{cores} cores, Linux {}, load average before the run {}", kernel.trim(), load.trim());
        println!(
            "postrider {}, Postgres {} ({}), nats-server {} (file storage, sync_interval 2m), hold-back 0",
            env!("CARGO_PKG_VERSION"),
            self.programs.version,
            settings.join(" "),
            self.nats.client.server_info().version,
        );
        Ok(())
    }

    /// An empty table, slots at the end of the log, empty streams: nothing of an earlier measurement
    /// is read again by a walsender or lies in a stream.
    async fn reset(&self) -> Result<()> {
        self.drop_slot("postrider").await?;
        self.drop_slot(FLOORS).await?;
        for stream in [STREAM, FLOORS_STREAM] {
            // It may not exist yet.
            let _ = self.jetstream.delete_stream(stream).await;
        }
        let drop = "DROP SCHEMA IF EXISTS postrider CASCADE; DROP PUBLICATION IF EXISTS postrider; \
            DROP TABLE IF EXISTS outbox";
        self.sql.batch_execute(drop).await?;
        self.sql.batch_execute(TABLE).await?;
        let status = self.relay("init")?.wait()?;
        ensure!(status.success(), "postrider init: {status}\n{}", self.relay_log());
        self.create_floors_slot().await?;
        self.jetstream
            .create_stream(jetstream::stream::Config {
                name: FLOORS_STREAM.to_owned(),
                subjects: vec![format!("{FLOORS}.>")],
                discard: jetstream::stream::DiscardPolicy::New,
                ..Default::default()
            })
            .await?;
        Ok(())
    }

    async fn drop_slot(&self, name: &str) -> Result<()> {
        // Its walsender may still be ending.
        let terminate = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots \
            WHERE slot_name = $1 AND active";
        self.sql.query(terminate, &[&name]).await?;
        let drop =
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
        self.sql.query(drop, &[&name]).await.with_context(|| format!("drop slot {name}"))?;
        Ok(())
    }

    async fn create_floors_slot(&self) -> Result<()> {
        let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
        self.sql.query(create, &[&FLOORS]).await?;
        Ok(())
    }

    /// `postrider <command>`, told by nothing but this environment.
    fn relay(&self, command: &str) -> Result<Child> {
        let log = std::fs::File::options().create(true).append(true).open(self.relay_log_file())?;
        let child = Command::new(env!("CARGO_BIN_EXE_postrider"))
            .arg(command)
            .env_clear()
            .env("DATABASE_URL", self.postgres.url("postgres"))
            .env("NATS_URL", self.nats_server.url())
            .env("POSTRIDER_HTTP_LISTEN", "off")
            // No hold-back: the slot follows at once. The server itself keeps its default.
            .env("POSTRIDER_NATS_SYNC_INTERVAL", "always")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(child)
    }

    /// Drains and stops a running relay.
    async fn stop_relay(&self, mut relay: Child) -> Result<()> {
        process::terminate(&relay)?;
        let deadline = SystemTime::now() + PATIENCE;
        let status = loop {
            match relay.try_wait()? {
                Some(status) => break status,
                None if SystemTime::now() > deadline => relay.kill()?,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        ensure!(status.success(), "postrider run: {status} after SIGTERM\n{}", self.relay_log());
        Ok(())
    }

    /// Waits until a stream holds `messages`, and not one more.
    async fn wait_for(&self, stream: &str, messages: u64) -> Result<jetstream::stream::State> {
        let stream = self.jetstream.get_stream(stream).await?;
        let (mut last, mut deadline) = (0, SystemTime::now() + PATIENCE);
        loop {
            let state = stream.get_info().await?.state;
            if state.messages >= messages {
                ensure!(state.messages == messages, "{} messages of {messages} rows", state.messages);
                return Ok(state);
            }
            if state.messages > last {
                (last, deadline) = (state.messages, SystemTime::now() + PATIENCE);
            }
            ensure!(SystemTime::now() < deadline, "no progress after {last} messages\n{}", self.relay_log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Beside the server, else wherever there is one.
    fn pg_recvlogical(&self) -> Option<PathBuf> {
        let beside = self.programs.bin.join("pg_recvlogical");
        beside.is_file().then_some(beside).or_else(|| program("pg_recvlogical").ok())
    }

    fn relay_log_file(&self) -> PathBuf {
        self.folder.path().join("relay.log")
    }

    fn relay_log(&self) -> String {
        let log = std::fs::read_to_string(self.relay_log_file()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }
}

async fn sql(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// What a message of the relay carries, for a publisher that makes its own: it must follow message
/// `expected`.
fn headers(position: &str, commit_time: &str, id: &str, expected: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(POSITION.clone(), HeaderValue::from(position));
    headers.insert(COMMIT_TIME.clone(), HeaderValue::from(commit_time));
    headers.insert(EVENT_ID, HeaderValue::from(id));
    headers.insert(EVENT_TYPE, HeaderValue::from("order_created"));
    headers.insert(CONTENT_TYPE, HeaderValue::from("application/json"));
    headers.insert(NATS_EXPECTED_STREAM, HeaderValue::from(FLOORS_STREAM));
    headers.insert(NATS_EXPECTED_LAST_SEQUENCE, HeaderValue::from(expected));
    headers
}

/// The middle one of the rounds, or the mean of the two in the middle.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(values.len().saturating_sub(1) / 2), at(values.len() / 2))
}
