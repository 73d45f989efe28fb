//! A shop to test: a pipeline with the example's tables and configuration, its writers and consumers, and
//! what its orders must come to.

use crate::language::Language;
use crate::support::{Pipeline, Relay, Servers, eventually, within};
use async_nats::jetstream::consumer::{Info, pull};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::NamedTempFile;

/// As in `postrider.toml`.
const BUCKETS: u32 = 4;

/// Far above what an effect takes; what a killed consumer held comes again after it.
const ACK_WAIT: &str = "1";

/// Above what a request for the next message waits.
const STOP_MAX: Duration = Duration::from_secs(20);

pub(crate) struct Shop {
    pub(crate) pipeline: Pipeline,
    _relay: Relay,
    environment: BTreeMap<String, String>,
    language: Language,
    stock: BTreeMap<String, i32>,
}

impl Shop {
    /// With `stock`, and with payloads encrypted where there are key files, of the relay and of the consumers.
    pub(crate) async fn open(
        language: Language,
        stock: &[(&str, i32)],
        keys: Option<&[NamedTempFile; 2]>,
    ) -> Shop {
        let mut pipeline = Pipeline::on(Servers::default()).await;
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        pipeline.set("POSTRIDER_CONFIG", &examples.join("postrider.toml").to_string_lossy());
        let database = pipeline.postgres.url("postgres");
        let jdbc = format!("jdbc:postgresql://127.0.0.1:{}/postgres?user=postgres", pipeline.postgres.port());
        let mut environment = BTreeMap::from([
            // lib/pq asks for TLS unless it is told not to.
            ("DATABASE_URL".to_owned(), format!("{database}?sslmode=disable")),
            ("JDBC_DATABASE_URL".to_owned(), jdbc),
            ("NATS_URL".to_owned(), pipeline.nats.url()),
            ("ACK_WAIT".to_owned(), ACK_WAIT.to_owned()),
        ]);
        if let Some([relay, consumers]) = keys.map(|keys| keys.each_ref().map(NamedTempFile::path)) {
            pipeline.set("POSTRIDER_ENCRYPT_KEY_FILE", &relay.to_string_lossy());
            environment.insert("KEY_FILE".to_owned(), consumers.to_string_lossy().into_owned());
        }
        pipeline.execute(include_str!("../../examples/shop.sql")).await;
        let sql = pipeline.sql().await;
        for (item, quantity) in stock {
            sql.execute("INSERT INTO stock VALUES ($1, $2)", &[item, quantity]).await.unwrap();
        }
        pipeline.init().await;
        let relay = pipeline.run().await;
        let stock = stock.iter().map(|(item, quantity)| ((*item).to_owned(), *quantity)).collect();
        Shop { pipeline, _relay: relay, environment, language, stock }
    }

    fn start(&self, command: Command) -> Program {
        Program::start(command, &self.environment)
    }

    pub(crate) fn consumer(&self) -> Program {
        self.start(self.language.consumer())
    }

    /// A consumer of these services alone.
    pub(crate) fn consumer_of(&self, services: &[&str]) -> Program {
        let mut consumer = self.language.consumer();
        consumer.args(services);
        self.start(consumer)
    }

    /// Sets a variable for programs that are started from now on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// A writer that places these orders, `<item> <quantity> [note]` a line.
    pub(crate) fn writer(&self, orders: impl IntoIterator<Item = String>) -> Program {
        let mut orders: String = orders.into_iter().map(|order| order + "\n").collect();
        let mut writer = self.start(self.language.writer());
        let mut stdin = writer.child.stdin.take().unwrap();
        std::thread::spawn(move || stdin.write_all(std::mem::take(&mut orders).as_bytes()));
        writer
    }

    pub(crate) async fn place(&self, orders: impl IntoIterator<Item = String>) {
        self.writer(orders).succeeds().await;
    }

    pub(crate) async fn count(&self, what: &str) -> usize {
        self.pipeline.ask(&format!("SELECT count(*) FROM {what}")).await.parse().unwrap()
    }

    /// Waits until so many orders are shipped or refused.
    pub(crate) async fn decides(&self, count: usize) {
        eventually(&format!("{count} orders are decided"), async || {
            (self.count("orders WHERE status <> 'placed'").await >= count).then_some(())
        })
        .await;
    }

    /// What NATS knows of a durable consumer.
    pub(crate) async fn durable(&self, name: &str) -> Info {
        self.try_durable(name).await.unwrap()
    }

    /// The same; none where there is no such consumer yet.
    pub(crate) async fn try_durable(&self, name: &str) -> Option<Info> {
        let consumer = self.pipeline.stream().await.get_consumer::<pull::Config>(name).await;
        Some(consumer.ok()?.cached_info().clone())
    }

    /// Waits until all `orders` are decided, and compares: each as if they had been handled one by one, in
    /// the order of the stream. So none is lost or handled twice, no piece is sold twice, and whoever ordered
    /// first gets it. How many are shipped.
    pub(crate) async fn sold_exactly(&self, orders: usize) -> usize {
        self.decides(orders).await;
        let sql = self.pipeline.sql().await;
        let placed = "SELECT id::text, key, (payload->>'order_id')::bigint, (payload->>'quantity')::integer \
             FROM outbox WHERE event_type = 'order_placed'";
        let placed = sql.query(placed, &[]).await.unwrap();
        let placed: BTreeMap<String, (String, i64, i32)> =
            placed.iter().map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3)))).collect();
        assert_eq!(placed.len(), orders);

        let mut left = self.stock.clone();
        let mut expected = BTreeMap::new();
        let (mut shipped, mut sold) = (0, 0);
        for message in self.pipeline.messages().await {
            let Some((item, order, quantity)) = placed.get(message.id()) else { continue };
            let stock = left.get_mut(item).unwrap();
            let status = if *stock >= *quantity { "shipped" } else { "refused" };
            if status == "shipped" {
                (*stock, shipped, sold) = (*stock - quantity, shipped + 1, sold + quantity);
            }
            expected.insert(*order, status.to_owned());
        }
        let actual = sql.query("SELECT id, status FROM orders", &[]).await.unwrap();
        let actual: BTreeMap<i64, String> = actual.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(actual, expected, "{:?}", self.language);
        let stock = sql.query("SELECT item, quantity FROM stock", &[]).await.unwrap();
        let stock: BTreeMap<String, i32> = stock.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(stock, left, "{:?}", self.language);
        let shipments =
            "SELECT count(*) || ' ' || count(DISTINCT order_id) || ' ' || sum(quantity) FROM shipments";
        assert_eq!(self.pipeline.ask(shipments).await, format!("{shipped} {shipped} {sold}"));
        shipped
    }
}

/// A running program of an example; its log is printed when the test fails.
pub(crate) struct Program {
    pub(crate) child: Child,
    log: NamedTempFile,
}

impl Program {
    fn start(program: Command, environment: &BTreeMap<String, String>) -> Program {
        // It must not outlive a killed test; the kernel sees to it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program.get_program()).args(program.get_args());
        command.env_clear().envs(environment).env("PYTHONDONTWRITEBYTECODE", "1");
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let log = NamedTempFile::new().unwrap();
        let append = || File::options().append(true).open(log.path()).unwrap();
        command.stdin(Stdio::piped()).stdout(append()).stderr(append());
        Program { child: command.spawn().unwrap(), log }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops all of it: a thread may go on for a moment after the signal.
    pub(crate) async fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        eventually("the program stands still", async || {
            let stands = |task: std::io::Result<std::fs::DirEntry>| {
                let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
            };
            std::fs::read_dir(&tasks).unwrap().all(stands).then_some(())
        })
        .await;
    }

    /// `kill -9`, and its end. It must not have ended by itself.
    pub(crate) fn kill(&mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "it has ended: {}", self.log());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and its end, which must be a good one and soon.
    pub(crate) async fn terminate(&mut self) {
        self.signal(Signal::TERM);
        within(STOP_MAX, "the program ends after SIGTERM", async || {
            let status = self.child.try_wait().unwrap()?;
            assert!(status.success(), "{status}: {}", self.log());
            Some(())
        })
        .await;
    }

    /// Waits for its end, which must be a good one.
    pub(crate) async fn succeeds(&mut self) {
        let status = eventually("the program ends", async || self.child.try_wait().unwrap()).await;
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the program's log ends with:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// The bucket of a key, as the README defines it.
pub(crate) fn bucket(key: &str) -> u32 {
    let hash = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    key.bytes().fold(0x811c_9dc5, hash) % BUCKETS
}
