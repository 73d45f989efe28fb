//! The servers, and what is made in them for each measurement.

use crate::process::Cpu;
use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, stream};
use clap::ValueEnum;
use futures_util::TryStreamExt;
use postrider::config::Access;
use postrider::demo::servers::{NatsServer, PostgresPrograms, PostgresServer, nats_program, program};
use postrider::nats::connect::{Nats, connect};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// What Postgres has besides its own defaults and those of `postrider demo`: it must not write a
/// checkpoint in the middle of a measurement.
const POSTGRES_SETTINGS: &[(&str, &str)] =
    &[("fsync", "on"), ("shared_buffers", "256MB"), ("max_wal_size", "8GB"), ("checkpoint_timeout", "1h")];

const CREATE_AGAIN: Duration = Duration::from_millis(100);
const CREATE_AGAIN_MAX: usize = 20;

/// The article's table.
const TABLE: &str = "CREATE TABLE outbox (id SERIAL PRIMARY KEY, event_type VARCHAR(50), payload JSONB, \
    created_at TIMESTAMP DEFAULT NOW(), processed BOOLEAN DEFAULT FALSE)";

/// What contenders publish to.
pub(crate) const STREAM: &str = "OUTBOX";

/// The slot and the stream of the floors. The stream's name and subjects are as long as the relay's.
pub(crate) const FLOORS: &str = "floors";
pub(crate) const FLOORS_STREAM: &str = "FLOORS";

/// Without progress for that long, the run has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The payload of row `i`, an SQL expression; Postgres prints it with about `bytes` bytes.
pub(crate) fn payload(bytes: u32) -> String {
    let note = note(bytes);
    format!(
        "jsonb_build_object('order', i, 'customer', 'customer-' || i % 1000, 'cents', i % 100000, \
         'currency', 'EUR', 'note', repeat('x', {note}))"
    )
}

/// How long a filling makes a payload of about so many bytes.
pub(crate) fn note(bytes: u32) -> usize {
    bytes.saturating_sub(100) as usize
}

/// How JetStream keeps messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Storage {
    /// One server, synced every two minutes: the default.
    One,
    /// One server that syncs each message before it answers.
    Always,
    /// Three servers, three replicas.
    Cluster,
}

impl Storage {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Storage::One => "one server, file storage, sync_interval 2m",
            Storage::Always => "one server, file storage, sync_interval always",
            Storage::Cluster => "three servers, three replicas, file storage, sync_interval 2m",
        }
    }

    fn replicas(self) -> usize {
        if self == Storage::Cluster { 3 } else { 1 }
    }

    async fn start(self) -> Result<Vec<NatsServer>> {
        let program = nats_program(None)?;
        Ok(match self {
            Storage::One => vec![NatsServer::start(&program, "").await?],
            Storage::Always => {
                let always = "jetstream { store_dir: $STORE, sync_interval: always }";
                vec![NatsServer::start(&program, always).await?]
            }
            Storage::Cluster => NatsServer::start_cluster(&program, "").await?,
        })
    }
}

/// The servers, and connections of the benchmark's own.
pub(crate) struct Lab {
    pub(crate) programs: PostgresPrograms,
    pub(crate) postgres: PostgresServer,
    nats_servers: Vec<NatsServer>,
    pub(crate) sql: Client,
    pub(crate) nats: Nats,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) folder: TempDir,
    pub(crate) storage: Storage,
}

impl Lab {
    pub(crate) async fn start(storage: Storage) -> Result<Lab> {
        let programs = PostgresPrograms::find(None)?;
        let postgres = PostgresServer::start(&programs, POSTGRES_SETTINGS).await?;
        let nats_servers = storage.start().await?;
        let sql = sql(&postgres.url("postgres")).await?;
        // The relay's own client options.
        let nats = connect(&Access::at(&url(&nats_servers)?)).await?;
        let jetstream = jetstream::new(nats.client.clone());
        let folder = tempfile::tempdir()?;
        // An empty file hides /etc/postrider/postrider.toml.
        std::fs::write(folder.path().join("postrider.toml"), "")?;
        Ok(Lab { programs, postgres, nats_servers, sql, nats, jetstream, folder, storage })
    }

    /// Where everyone connects to; in a cluster, one of its servers.
    pub(crate) fn nats_url(&self) -> Result<String> {
        url(&self.nats_servers)
    }

    /// Machine, versions and settings, a line each.
    pub(crate) fn surroundings(&self) -> Result<Vec<String>> {
        let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
        let model = read("/proc/cpuinfo")?;
        let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let settings: Vec<_> =
            POSTGRES_SETTINGS.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Ok(vec![
            format!(
                "{} cores ({}), Linux {}, load average before the run {}",
                std::thread::available_parallelism()?,
                model.map_or("unknown", |(_, model)| model),
                read("/proc/sys/kernel/osrelease")?,
                read("/proc/loadavg")?,
            ),
            format!("postrider {}", env!("CARGO_PKG_VERSION")),
            format!("Postgres {}: {}", self.programs.version, settings.join(" ")),
            format!("nats-server {}: {}", self.nats.client.server_info().version, self.storage.text()),
        ])
    }

    /// An empty table and empty streams; no slot, no publication, nothing in the schema of the relay.
    pub(crate) async fn empty(&self) -> Result<()> {
        let slots = "SELECT slot_name::text FROM pg_replication_slots";
        for slot in self.sql.query(slots, &[]).await? {
            self.drop_slot(slot.get(0)).await?;
        }
        for publication in self.sql.query("SELECT pubname::text FROM pg_publication", &[]).await? {
            let drop = format!("DROP PUBLICATION \"{}\"", publication.get::<_, &str>(0));
            self.sql.batch_execute(&drop).await?;
        }
        let schemas = "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '^postrider'";
        for schema in self.sql.query(schemas, &[]).await? {
            self.sql.batch_execute(&format!("DROP SCHEMA {} CASCADE", schema.get::<_, &str>(0))).await?;
        }
        self.sql.batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await?;
        self.sql.batch_execute(TABLE).await?;
        for stream in self.jetstream.stream_names().try_collect::<Vec<_>>().await? {
            self.jetstream.delete_stream(stream).await?;
        }
        for (name, subjects) in [(STREAM, "outbox.>".to_owned()), (FLOORS_STREAM, format!("{FLOORS}.>"))] {
            let config = stream::Config {
                name: name.to_owned(),
                subjects: vec![subjects],
                discard: stream::DiscardPolicy::New,
                num_replicas: self.storage.replicas(),
                ..Default::default()
            };
            // The directory of the one just deleted may still be going (error 10049).
            let mut created = self.jetstream.create_stream(config.clone()).await;
            for _ in 0..CREATE_AGAIN_MAX {
                if created.is_ok() {
                    break;
                }
                tokio::time::sleep(CREATE_AGAIN).await;
                created = self.jetstream.create_stream(config.clone()).await;
            }
            created.with_context(|| format!("create stream {name}"))?;
        }
        Ok(())
    }

    /// A slot over the relay's publication.
    pub(crate) async fn create_floors_slot(&self) -> Result<()> {
        let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
        self.sql.query(create, &[&FLOORS]).await?;
        Ok(())
    }

    /// The publication as the relay makes it.
    pub(crate) async fn create_publication(&self) -> Result<()> {
        let create = "CREATE PUBLICATION postrider FOR TABLE outbox WITH (publish = 'insert')";
        Ok(self.sql.batch_execute(create).await?)
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

    /// `postrider`, told by nothing but this environment.
    pub(crate) fn postrider(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        command
            .env_clear()
            .env("DATABASE_URL", self.postgres.url("postgres"))
            .envs(self.nats_url().map(|url| ("NATS_URL", url)))
            .env("POSTRIDER_NATS_REPLICAS", self.storage.replicas().to_string())
            .env("POSTRIDER_HTTP_LISTEN", "off")
            // No hold-back: the slot follows at once. The server itself keeps its setting.
            .env("POSTRIDER_NATS_SYNC_INTERVAL", "always")
            .current_dir(self.folder.path());
        command
    }

    /// Waits until a stream holds `messages`, or has not moved for [`PATIENCE`].
    pub(crate) async fn wait_for(&self, stream: &str, messages: u64) -> Result<stream::State> {
        let stream = self.jetstream.get_stream(stream).await?;
        let (mut last, mut deadline) = (0, SystemTime::now() + PATIENCE);
        loop {
            let state = stream.get_info().await?.state;
            if state.messages >= messages {
                return Ok(state);
            }
            if state.messages > last {
                (last, deadline) = (state.messages, SystemTime::now() + PATIENCE);
            }
            ensure!(SystemTime::now() < deadline, "no progress after {last} messages of {messages}");
            // Asked more often, the benchmark itself would be a load.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Beside the server, else wherever there is one.
    pub(crate) fn pg_recvlogical(&self) -> Option<PathBuf> {
        let beside = self.programs.bin.join("pg_recvlogical");
        beside.is_file().then_some(beside).or_else(|| program("pg_recvlogical").ok())
    }

    /// CPU time so far: `client`'s, Postgres's, nats-server's.
    pub(crate) fn cpu(&self, client: Duration) -> Result<Cpu> {
        let postgres = self.postgres.pid().context("Postgres has ended")?;
        let nats = self.nats_servers.iter().map(|server| server.pid().context("nats-server has ended"));
        Cpu::now(client, postgres, &nats.collect::<Result<Vec<_>>>()?)
    }

    /// The end of the log.
    pub(crate) async fn wal_end(&self) -> Result<u64> {
        let end: String = self.sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        Ok(end.parse::<postrider::postgres::lsn::Lsn>()?.0)
    }
}

fn url(servers: &[NatsServer]) -> Result<String> {
    Ok(servers.first().context("no nats-server")?.url())
}

pub(crate) async fn sql(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
