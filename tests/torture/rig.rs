//! The servers, the proxies before them, and one or two relays.

use crate::cluster::free_port;
use crate::proxy::Proxy;
use crate::store::Sync;
use crate::support::{ARTICLE, DEADLINE, Relay, connect, within};
use crate::watch::{Seen, status, watch};
use async_nats::jetstream;
use postrider::demo::servers::{NatsServer, PostgresOptions, PostgresPrograms, PostgresServer, nats_program};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often a waiting driver looks whether the relays still run.
const TICK: Duration = Duration::from_millis(50);
/// After a fault, until events flow again: the relay's longest pause twice, and a busy machine.
const STANDSTILL_MAX: Duration = Duration::from_secs(120);
/// So many more events are a flow.
const FLOW: u64 = 200;

/// Which servers to run against.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) postgres: Option<u32>,
    pub(crate) nats: Option<String>,
    pub(crate) cluster: bool,
}

pub(crate) struct Rig {
    pub(crate) seed: u64,
    begun: Instant,
    notes: Vec<String>,
    // Before the servers: they end first.
    pub(crate) relays: [Option<Relay>; 2],
    environments: Vec<BTreeMap<String, String>>,
    ports: Vec<u16>,
    /// Told to end: that it does is no fault.
    ending: [bool; 2],
    /// Logs of relays that have ended.
    logs: Vec<String>,
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) sync: Sync,
    pub(crate) is_nats_2_9: bool,
    pub(crate) postgres: PostgresServer,
    pub(crate) nodes: Vec<NatsServer>,
    pub(crate) postgres_link: Proxy,
    pub(crate) nats_links: Vec<Proxy>,
    pub(crate) jetstream: jetstream::Context,
}

impl Rig {
    /// Everything but a relay; `init` has run.
    pub(crate) async fn start(pair: &Pair, seed: u64) -> Rig {
        let begun = Instant::now();
        let programs = PostgresPrograms::find(pair.postgres).unwrap();
        let settings = [("checkpoint_timeout", "30s"), ("log_checkpoints", "off")];
        let options = PostgresOptions { settings: &settings, ..PostgresOptions::default() };
        let postgres = PostgresServer::start_with(&programs, options).await.unwrap();
        let program = nats_program(pair.nats.as_deref()).unwrap();
        // A cluster takes longer until it stores again after a power loss.
        let sync = Sync(Duration::from_secs(if pair.cluster { 10 } else { 5 }));
        let interval = format!("{}s", sync.0.as_secs());
        // 2.9 has no such setting. What matters here is how much a played power loss takes.
        let printed = Command::new(&program).arg("--version").output().unwrap().stdout;
        let is_nats_2_9 = String::from_utf8(printed).unwrap().contains("v2.9.");
        let setting = if is_nats_2_9 { String::new() } else { format!(", sync_interval: {interval}") };
        let nodes = if pair.cluster {
            NatsServer::start_cluster(&program, &setting).await.unwrap()
        } else {
            let extra = format!("jetstream {{ store_dir: $STORE{setting} }}");
            vec![NatsServer::start(&program, &extra).await.unwrap()]
        };
        let postgres_link = Proxy::to(postgres.port()).await;
        let mut nats_links = Vec::new();
        for node in &nodes {
            nats_links.push(Proxy::to(node.port()).await);
        }
        let urls: Vec<_> =
            nats_links.iter().map(|link| format!("nats://127.0.0.1:{}", link.port())).collect();
        let ports = vec![free_port(), free_port()];
        let environment = |port: &u16| {
            let variables = [
                ("DATABASE_URL", format!("postgres://postgres@127.0.0.1:{}/postgres", postgres_link.port())),
                ("NATS_URL", urls.join(",")),
                ("POSTRIDER_NATS_SYNC_INTERVAL", interval.clone()),
                ("POSTRIDER_NATS_REPLICAS", nodes.len().to_string()),
                ("POSTRIDER_HTTP_LISTEN", format!("127.0.0.1:{port}")),
            ];
            variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        };
        let environments: Vec<BTreeMap<_, _>> = ports.iter().map(environment).collect();
        connect(&postgres.url("postgres")).await.unwrap().batch_execute(ARTICLE).await.unwrap();
        let init = Relay::spawn(&environments[0], &["init"]).ended().await;
        assert_eq!(init.code, Some(0), "{}{}", init.stdout, init.stderr);

        let direct: Vec<_> = nodes.iter().map(NatsServer::url).collect();
        let client = async_nats::ConnectOptions::new().ping_interval(Duration::from_secs(2));
        let client = client.connect(direct).await.unwrap();
        let version = client.server_info().version;
        let mut rig = Rig {
            seed,
            begun,
            notes: Vec::new(),
            relays: [None, None],
            ending: [false; 2],
            environments,
            seen: watch(&ports),
            ports,
            logs: Vec::new(),
            sync,
            is_nats_2_9,
            postgres,
            nodes,
            postgres_link,
            nats_links,
            jetstream: jetstream::new(client),
        };
        let nats = if pair.cluster { "three nats-servers" } else { "nats-server" };
        rig.note(&format!("seed {seed}, Postgres {}, {nats} {version}", programs.version));
        rig
    }

    /// Into the log of faults, which is shown as it grows.
    pub(crate) fn note(&mut self, what: &str) {
        let note = format!("{:7.1} s  {what}", self.begun.elapsed().as_secs_f64());
        println!("{note}");
        self.notes.push(note);
    }

    // ---- Relays ------------------------------------------------------------------------------

    pub(crate) fn start_relay(&mut self, relay: usize) {
        self.relays[relay] = Some(Relay::spawn(&self.environments[relay], &["run"]));
    }

    pub(crate) fn kill_relay(&mut self, relay: usize) {
        if let Some(mut ended) = self.relays[relay].take() {
            ended.kill();
            self.logs.push(ended.stderr());
        }
    }

    pub(crate) fn signal(&mut self, relay: usize, signal: Signal) {
        if let Some(running) = &mut self.relays[relay] {
            self.ending[relay] |= signal == Signal::TERM;
            running.signal(signal);
        }
    }

    /// Waits for the end of a relay that was told to end.
    pub(crate) async fn terminated(&mut self, relay: usize) {
        let Some(ending) = &mut self.relays[relay] else { return };
        let code = within(DEADLINE, "the relay ends after SIGTERM", async || ending.exit_code()).await;
        // None: it had no handler of the signal yet.
        assert!(matches!(code, Some(0) | None), "the relay ended with {code:?} after SIGTERM");
        self.logs.push(ending.stderr());
        (self.relays[relay], self.ending[relay]) = (None, false);
    }

    /// One that runs: this one, else the other.
    pub(crate) fn running(&self, relay: usize) -> usize {
        if self.relays[relay].is_some() { relay } else { 1 - relay }
    }

    fn check_relays(&mut self) {
        for (number, relay) in self.relays.iter_mut().enumerate() {
            let code = relay.as_mut().and_then(Relay::exit_code);
            assert!(
                code.is_none() || self.ending[number],
                "relay {number} has ended by itself, with {code:?}"
            );
        }
    }

    // ---- Waiting -----------------------------------------------------------------------------

    pub(crate) async fn pause_until(&mut self, end: Instant) {
        while Instant::now() < end {
            self.check_relays();
            tokio::time::sleep(TICK.min(end.saturating_duration_since(Instant::now()))).await;
        }
    }

    pub(crate) async fn last_seq(&self) -> Option<u64> {
        let stream = self.jetstream.get_stream("OUTBOX").await.ok()?;
        Some(stream.cached_info().state.last_sequence)
    }

    /// Waits until events are stored.
    pub(crate) async fn flows(&mut self) {
        let (mut from, begun) = (None, Instant::now());
        loop {
            self.check_relays();
            let last = self.last_seq().await;
            match (from, last) {
                (Some(from), Some(last)) if last >= from + FLOW => return,
                (None, Some(last)) => from = Some(last),
                // A store that was put back begins lower.
                (Some(before), Some(last)) => from = Some(before.min(last)),
                (_, None) => {}
            }
            if begun.elapsed() > STANDSTILL_MAX {
                let statuses = (status(self.ports[0]).await, status(self.ports[1]).await);
                panic!("the stream stands still at {last:?}: {statuses:?}");
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Waits until the stream has so many messages, and the table so many dead letters.
    pub(crate) async fn drains(&mut self, messages: u64, letters: i64, limit: Duration) {
        let begun = Instant::now();
        let client = connect(&self.postgres.url("postgres")).await.unwrap();
        loop {
            self.check_relays();
            let last = self.last_seq().await;
            let counted = client.query_one("SELECT count(*) FROM postrider.dead_letter", &[]).await.unwrap();
            let lettered: i64 = counted.get(0);
            if last >= Some(messages) && lettered >= letters {
                return;
            }
            if begun.elapsed() > limit {
                let statuses = (status(self.ports[0]).await, status(self.ports[1]).await);
                panic!(
                    "not drained in {limit:?}: {last:?} of {messages} are stored, \
                     {lettered} of {letters} lettered: {statuses:?}"
                );
            }
            tokio::time::sleep(TICK).await;
        }
    }

    // ---- Evidence ----------------------------------------------------------------------------

    fn keep_evidence(&mut self) -> std::io::Result<()> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("torture-{}", self.seed));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("faults.log"), self.notes.join("\n"))?;
        fs::write(folder.join("postgres.log"), self.postgres.log())?;
        for (number, node) in self.nodes.iter().enumerate() {
            fs::write(folder.join(format!("nats-{number}.log")), node.log())?;
        }
        self.logs.extend(self.relays.iter().flatten().map(Relay::stderr));
        for (number, log) in self.logs.iter().enumerate() {
            fs::write(folder.join(format!("relay-{number}.log")), log)?;
        }
        eprintln!("all logs are in {}", folder.display());
        Ok(())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}; what was done:\n{}", self.seed, self.notes.join("\n"));
            if let Err(error) = self.keep_evidence() {
                eprintln!("the logs are not kept: {error}");
            }
        }
    }
}
