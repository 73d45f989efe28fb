//! A pipeline to test: its servers, the binary, what Postgres committed and what the stream holds.

use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer::pull::OrderedConfig};
use bytes::Bytes;
use futures_util::StreamExt;
use postrider::demo::servers::{NatsServer, PostgresOptions, PostgresPrograms, PostgresServer, nats_program};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

/// Far above what anything takes, also on a machine that is busy with other things.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// The table of the articles, as it stands in them.
pub(crate) const ARTICLE: &str = "CREATE TABLE outbox (id SERIAL PRIMARY KEY, event_type VARCHAR(50), \
     payload JSONB, created_at TIMESTAMP DEFAULT NOW(), processed BOOLEAN DEFAULT FALSE)";

const POLL: Duration = Duration::from_millis(20);

/// Asks until there is an answer.
pub(crate) async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    within(DEADLINE, what, probe).await
}

/// Asks until there is an answer, which must come in time.
pub(crate) async fn within<T>(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

pub(crate) async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Of this checkout.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// On PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The newest psql, without an environment, over the libpq with TLS that `scripts/servers.sh all` installs.
pub(crate) fn psql() -> Command {
    let libpq = file(".servers/libpq");
    let library = std::fs::read_dir(&libpq).into_iter().flatten().flatten().map(|entry| entry.path());
    let library = library.into_iter().find(|path| path.to_string_lossy().contains("/libpq-"));
    let library = library.expect("no .servers/libpq: scripts/servers.sh all installs it");
    let mut psql = Command::new(PostgresPrograms::find(Some(18)).unwrap().bin.join("psql"));
    psql.env_clear().env("LD_PRELOAD", library).args(["-X", "-w", "-At"]);
    psql
}

/// What the servers of a pipeline are started with.
#[derive(Default)]
pub(crate) struct Servers<'a> {
    pub(crate) postgres: Option<u32>,
    pub(crate) nats: Option<&'a str>,
    pub(crate) settings: &'a [(&'a str, &'a str)],
    pub(crate) hba: Option<&'a str>,
    pub(crate) nats_extra: &'a str,
}

/// A Postgres, a nats-server, and the environment that points the binary at them.
pub(crate) struct Pipeline {
    pub(crate) postgres: PostgresServer,
    pub(crate) nats: NatsServer,
    environment: BTreeMap<String, String>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A stored message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) seq: u64,
    /// When nats-server stored it.
    pub(crate) stored_at: SystemTime,
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }

    pub(crate) fn id(&self) -> &str {
        self.header("Postrider-Event-Id").unwrap()
    }

    /// All but those that differ from run to run, sorted, as `name: value`.
    pub(crate) fn plain_headers(&self) -> Vec<String> {
        const VARYING: [&str; 4] = [
            "Postrider-Position",
            "Postrider-Commit-Time",
            "Nats-Expected-Last-Sequence",
            "Nats-Expected-Stream",
        ];
        let all =
            self.headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
        let all = all.map(|(name, value)| (name.to_string(), value));
        let plain = all.filter(|(name, _)| !VARYING.contains(&name.as_str()));
        let mut plain: Vec<_> = plain.map(|(name, value)| format!("{name}: {value}")).collect();
        plain.sort();
        plain
    }
}

impl Pipeline {
    pub(crate) async fn start() -> Pipeline {
        Pipeline::on(Servers::default()).await
    }

    pub(crate) async fn on(servers: Servers<'_>) -> Pipeline {
        let programs = PostgresPrograms::find(servers.postgres).unwrap();
        let options =
            PostgresOptions { settings: servers.settings, hba: servers.hba, ..PostgresOptions::default() };
        let postgres = PostgresServer::start_with(&programs, options).await.unwrap();
        let nats = NatsServer::start(&nats_program(servers.nats).unwrap(), servers.nats_extra).await.unwrap();
        let mut pipeline = Pipeline { postgres, nats, environment: BTreeMap::new() };
        let (postgres, nats) = (pipeline.postgres.url("postgres"), pipeline.nats.url());
        pipeline.set("DATABASE_URL", &postgres);
        pipeline.set("NATS_URL", &nats);
        pipeline.set("POSTRIDER_HTTP_LISTEN", "127.0.0.1:0");
        pipeline.set("POSTRIDER_NATS_SYNC_INTERVAL", "always");
        pipeline
    }

    /// The article table, and `init`.
    pub(crate) async fn article() -> Pipeline {
        Pipeline::with_table(ARTICLE).await
    }

    pub(crate) async fn with_table(table: &str) -> Pipeline {
        let pipeline = Pipeline::start().await;
        pipeline.execute(table).await;
        pipeline.init().await;
        pipeline
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// What the binary is started with.
    pub(crate) fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    pub(crate) fn unset(&mut self, name: &str) {
        self.environment.remove(name);
    }

    // ---- The binary --------------------------------------------------------------------------

    /// Starts a command and leaves it running.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Relay {
        Relay::spawn(self.environment(), arguments)
    }

    /// Runs a command to its end.
    pub(crate) async fn postrider(&self, arguments: &[&str]) -> Ended {
        self.spawn(arguments).ended().await
    }

    pub(crate) async fn init(&self) {
        let ended = self.postrider(&["init"]).await;
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    }

    /// A relay that streams.
    pub(crate) async fn run(&self) -> Relay {
        let mut relay = self.spawn(&["run"]);
        relay.streams().await;
        relay
    }

    // ---- Postgres ----------------------------------------------------------------------------

    pub(crate) async fn sql(&self) -> Client {
        connect(&self.postgres.url("postgres")).await.unwrap()
    }

    pub(crate) async fn execute(&self, statements: &str) {
        self.sql().await.batch_execute(statements).await.unwrap();
    }

    /// One value, as text.
    pub(crate) async fn ask(&self, expression: &str) -> String {
        let row = self.sql().await.query_one(&format!("SELECT ({expression})::text"), &[]).await.unwrap();
        row.get::<_, Option<String>>(0).unwrap_or_default()
    }

    pub(crate) async fn confirmed_lsn(&self) -> String {
        self.ask("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'postrider'").await
    }

    /// Has Postgres itself remember the order of commits from now on, for [`committed`](Self::committed).
    pub(crate) async fn watch_commits(&self) {
        self.execute("SELECT pg_create_logical_replication_slot('oracle', 'pgoutput')").await;
    }

    /// (id, payload) of the outbox's committed rows, in the order of commits.
    pub(crate) async fn committed(&self) -> Vec<(String, String)> {
        let sql = self.sql().await;
        let mut rows: HashMap<String, Vec<(String, String)>> = HashMap::new();
        let all = "SELECT xmin::text, id::text, payload::text FROM outbox ORDER BY outbox.id";
        for row in sql.query(all, &[]).await.unwrap() {
            rows.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
        }
        let commits = "SELECT xid::text FROM pg_logical_slot_peek_binary_changes('oracle', NULL, NULL, \
             'proto_version', '1', 'publication_names', 'postrider') WITH ORDINALITY AS c (lsn, xid, data, n) \
             WHERE get_byte(data, 0) = ascii('B') ORDER BY n";
        let commits = sql.query(commits, &[]).await.unwrap();
        let committed: Vec<_> =
            commits.iter().flat_map(|row| rows.remove(row.get::<_, &str>(0)).unwrap_or_default()).collect();
        assert!(rows.is_empty(), "the oracle does not know of {rows:?}");
        committed
    }

    // ---- NATS --------------------------------------------------------------------------------

    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(self.nats.url()).await.unwrap())
    }

    pub(crate) async fn stream(&self) -> jetstream::stream::Stream {
        self.stream_named("OUTBOX").await
    }

    pub(crate) async fn stream_named(&self, name: &str) -> jetstream::stream::Stream {
        self.jetstream().await.get_stream(name).await.unwrap()
    }

    pub(crate) async fn last_seq(&self) -> u64 {
        self.stream().await.cached_info().state.last_sequence
    }

    /// Waits until the stream's last sequence is at least `seq`.
    pub(crate) async fn stored(&self, seq: u64) {
        let mut stream = self.stream().await;
        let mut last = 0;
        let mut moved = Instant::now();
        loop {
            let now = stream.info().await.map_or(last, |info| info.state.last_sequence);
            if now >= seq {
                return;
            }
            if now > last {
                (last, moved) = (now, Instant::now());
            }
            assert!(moved.elapsed() < DEADLINE, "the stream stands still at {now}, {seq} are due");
            tokio::time::sleep(POLL).await;
        }
    }

    /// All that the stream holds.
    pub(crate) async fn messages(&self) -> Vec<Message> {
        self.messages_of("OUTBOX").await
    }

    /// All that this stream holds.
    pub(crate) async fn messages_of(&self, name: &str) -> Vec<Message> {
        let stream = self.stream_named(name).await;
        let mut messages = Vec::new();
        if stream.cached_info().state.messages == 0 {
            return messages;
        }
        let consumer = stream.create_consumer(OrderedConfig::default()).await.unwrap();
        let mut stored = consumer.messages().await.unwrap();
        loop {
            let next = tokio::time::timeout(DEADLINE, stored.next()).await;
            let message = next.unwrap().unwrap().unwrap();
            let (seq, pending, stored_at) = {
                let info = message.info().unwrap();
                (info.stream_sequence, info.pending, info.published.into())
            };
            let (message, _) = message.split();
            messages.push(Message {
                seq,
                stored_at,
                subject: message.subject.to_string(),
                headers: message.headers.unwrap_or_default(),
                payload: message.payload,
            });
            if pending == 0 {
                return messages;
            }
        }
    }

    /// The first `count` messages, once they are there; no more may be.
    pub(crate) async fn exactly(&self, count: usize) -> Vec<Message> {
        self.stored(count as u64).await;
        let messages = self.messages().await;
        assert_eq!(messages.len(), count);
        messages
    }

    /// Ends the relay; the subjects of all that the stream holds.
    pub(crate) async fn drained(&self, relay: &mut Relay) -> Vec<String> {
        assert_eq!(relay.terminate().await, Some(0));
        self.messages().await.into_iter().map(|message| message.subject).collect()
    }

    // ---- The oracle --------------------------------------------------------------------------

    /// Waits until every committed row is stored, ends the relay, and compares: the stream has
    /// exactly the committed rows, once, in the order of commits. What was purged is not looked at,
    /// but that it has one sequence an event.
    pub(crate) async fn proves(&self, relay: &mut Relay) {
        let committed = self.committed().await;
        self.stored(committed.len() as u64).await;
        assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
        assert_eq!(self.last_seq().await, committed.len() as u64, "rows committed, messages ever stored");
        let messages = self.messages().await;
        let purged = committed.len() - messages.len();
        let mut before = None;
        for (message, (id, payload)) in messages.iter().zip(&committed[purged..]) {
            let (event, body) = (message.id(), std::str::from_utf8(&message.payload).unwrap());
            assert_eq!((event, body), (id.as_str(), payload.as_str()), "at sequence {}", message.seq);
            let position = position(message);
            assert!(before < Some(position), "at sequence {}", message.seq);
            before = Some(position);
        }
    }
}

/// Commit LSN and index.
pub(crate) fn position(message: &Message) -> (u64, u64) {
    let mut parts = message.header("Postrider-Position").unwrap().rsplit('/');
    let index = parts.next().unwrap().parse().unwrap();
    (u64::from_str_radix(parts.next().unwrap(), 16).unwrap(), index)
}

fn append(file: &NamedTempFile) -> File {
    File::options().append(true).open(file.path()).unwrap()
}

/// A running command, most often `postrider run`. Dropping it kills it; its log is printed when the
/// test fails.
pub(crate) struct Relay {
    child: Child,
    stdout: NamedTempFile,
    stderr: NamedTempFile,
    secrets: Vec<String>,
}

/// Shorter ones are words that appear by chance.
const SECRET_MIN: usize = 6;

/// What must not be printed: passwords of URLs, and whatever is called password, token, seed or JWT.
fn secrets(environment: &BTreeMap<String, String>) -> Vec<String> {
    let mut secrets = Vec::new();
    for (name, value) in environment {
        if name.ends_with("_URL") {
            let userinfo = value.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
            let password =
                userinfo.map(|(userinfo, _)| userinfo.split_once(':').map_or(userinfo, |(_, p)| p));
            // A user alone is a token to NATS, and no secret to Postgres.
            if value.starts_with("nats") || userinfo.is_some_and(|(userinfo, _)| userinfo.contains(':')) {
                secrets.extend(password.map(str::to_owned));
            }
        } else if ["PASSWORD", "TOKEN", "SEED", "JWT"].iter().any(|word| name.contains(word)) {
            let text =
                if name.ends_with("_FILE") { std::fs::read_to_string(value) } else { Ok(value.clone()) };
            secrets.extend(text.ok().map(|text| text.trim().to_owned()));
        }
    }
    secrets.retain(|secret| secret.len() >= SECRET_MIN);
    secrets
}

impl Relay {
    /// Starts a command of the binary with this environment and no other.
    pub(crate) fn spawn(environment: &BTreeMap<String, String>, arguments: &[&str]) -> Relay {
        // A relay must not outlive a killed test; the kernel sees to it where setpriv is there.
        let binary = env!("CARGO_BIN_EXE_postrider");
        let mut command = if find_program("setpriv").is_some() {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--", binary]);
            command
        } else {
            Command::new(binary)
        };
        command.args(arguments).env_clear().envs(environment).current_dir("/").stdin(Stdio::null());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let (stdout, stderr) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
        command.stdout(stdout.reopen().unwrap()).stderr(append(&stderr));
        Relay { child: command.spawn().unwrap(), stdout, stderr, secrets: secrets(environment) }
    }

    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.stderr.path()).unwrap_or_default()
    }

    pub(crate) fn stdout(&self) -> String {
        std::fs::read_to_string(self.stdout.path()).unwrap_or_default()
    }

    pub(crate) fn exit_code(&mut self) -> Option<Option<i32>> {
        self.child.try_wait().unwrap().map(|status| status.code())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.exit_code().is_none()
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }
    }

    /// SIGTERM; the exit status.
    pub(crate) async fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        eventually("the relay ends after SIGTERM", async || self.exit_code()).await
    }

    /// `kill -9`, and its end.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it names `code`, or has ended; whether it names it.
    pub(crate) async fn ended_or(&mut self, code: &str) -> bool {
        eventually(&format!("it names {code}, or ends"), async || {
            (self.stderr().contains(code) || !self.is_running()).then_some(())
        })
        .await;
        self.stderr().contains(code)
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> Ended {
        let code = eventually("the command ends by itself", async || self.exit_code()).await;
        Ended { code, stdout: self.stdout(), stderr: self.stderr() }
    }

    /// Most memory that was ever resident, in bytes.
    pub(crate) fn resident_max(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Memory that is resident now and not a file's, in bytes: a debug build's program text alone
    /// is larger than a release build as a whole.
    pub(crate) fn resident_own(&self) -> u64 {
        self.memory("RssAnon:")
    }

    /// File descriptors that it holds.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The address of its HTTP, as it logs it.
    pub(crate) fn http(&self) -> Option<String> {
        let log = self.stderr();
        let line = log.lines().find(|line| line.contains("HTTP listens"))?;
        let from = line.find("127.0.0.1:")?;
        let port = line[from + 10..].split(|char: char| !char.is_ascii_digit()).next()?;
        Some(format!("127.0.0.1:{port}"))
    }

    /// Status code and body; none while it does not listen.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let (head, body) = self.answer(path, "").await?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body))
    }

    /// Head and body of the answer to a request with these headers, each with its line's end.
    pub(crate) async fn answer(&self, path: &str, headers: &str) -> Option<(String, String)> {
        let mut socket = TcpStream::connect(self.http()?).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
        socket.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.to_owned(), body.to_owned()))
    }

    pub(crate) async fn status(&self) -> Option<serde_json::Value> {
        serde_json::from_str(&self.get("/status").await?.1).ok()
    }

    /// Waits until it has published so many events.
    pub(crate) async fn published(&mut self, count: u64) {
        eventually("the relay publishes", async || {
            let status = self.status().await?;
            (status["published_total"].as_u64()? >= count).then_some(())
        })
        .await;
    }

    /// Waits until `/status` says so.
    pub(crate) async fn is(&mut self, field: &str, value: &str) {
        eventually(&format!("{field} is {value}"), async || {
            assert!(self.is_running(), "the relay has ended: {}", self.stderr());
            (self.status().await?[field] == value).then_some(())
        })
        .await;
    }

    pub(crate) async fn streams(&mut self) {
        self.is("state", "stream").await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.stderr();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the relay's log ends with:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            return;
        }
        let printed = std::fs::read_to_string(self.stdout.path()).unwrap_or_default() + &self.stderr();
        for secret in &self.secrets {
            assert!(!printed.contains(secret.as_str()), "a secret is printed:\n{printed}");
        }
    }
}

/// Connections that write outbox rows, a fifth of their transactions rolled back.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    writers: JoinSet<()>,
}

impl Load {
    /// Each of `writers` writes transactions of these sizes, round after round, until
    /// [`finish`](Self::finish); with a pause after each.
    pub(crate) fn endless(
        pipeline: &Pipeline,
        writers: usize,
        sizes: &'static [i32],
        pause: Duration,
    ) -> Load {
        Load::new(pipeline, writers, sizes, usize::MAX, pause)
    }

    /// Each of `writers` writes these transactions, in order, as fast as it can.
    pub(crate) fn rounds(pipeline: &Pipeline, writers: usize, sizes: &'static [i32], rounds: usize) -> Load {
        Load::new(pipeline, writers, sizes, rounds, Duration::ZERO)
    }

    fn new(
        pipeline: &Pipeline,
        writers: usize,
        sizes: &'static [i32],
        rounds: usize,
        pause: Duration,
    ) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut set = JoinSet::new();
        for writer in 0..writers {
            let (stop, url) = (Arc::clone(&stop), pipeline.postgres.url("postgres"));
            set.spawn(async move {
                let mut client = None;
                let transactions = (0..rounds).flat_map(|_| sizes).enumerate();
                for (transaction, size) in transactions {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let roll_back = transaction % 5 == writer % 5;
                    let written = write(&mut client, &url, writer, *size, roll_back).await;
                    if written.is_err() {
                        // Postgres is away. Whether the commit took place, the table tells.
                        client = None;
                    }
                    tokio::time::sleep(if written.is_err() { POLL } else { pause }).await;
                }
            });
        }
        Load { stop, writers: set }
    }

    /// Waits until all rounds are written.
    pub(crate) async fn done(&mut self) {
        while let Some(writer) = self.writers.join_next().await {
            writer.unwrap();
        }
    }

    /// Lets each writer end its transaction.
    pub(crate) async fn finish(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.done().await;
    }
}

async fn write(
    client: &mut Option<Client>,
    url: &str,
    writer: usize,
    size: i32,
    roll_back: bool,
) -> Result<(), tokio_postgres::Error> {
    let client = match client {
        Some(client) => client,
        None => client.insert(connect(url).await?),
    };
    let transaction = client.transaction().await?;
    transaction
        .execute(
            "INSERT INTO outbox (event_type, payload) \
             SELECT 'order_' || n % 3, jsonb_build_object('writer', $1::text, 'n', n) FROM generate_series(1, $2) n",
            &[&writer.to_string(), &size],
        )
        .await?;
    if roll_back { transaction.rollback().await } else { transaction.commit().await }
}
