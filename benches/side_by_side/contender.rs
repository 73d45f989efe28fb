//! Who takes part: the relay, pollers of our own, and programs of others in `benches/rivals`.

use crate::lab::{Lab, PATIENCE};
use crate::poller::{self, Kind};
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What moves rows into the stream.
#[derive(Debug, Clone)]
pub(crate) enum Contender {
    /// `postrider run`, with another window than by default.
    Postrider { window: Option<u32> },
    /// This program as a poller.
    Poller { kind: Kind, every: u64, listen: bool },
    /// `benches/rivals/<name>/run`.
    Rival { rival: &'static Rival, mode: &'static str },
}

/// The relay as it comes.
pub(crate) const POSTRIDER: Contender = Contender::Postrider { window: None };

/// A program of others.
#[derive(Debug)]
pub(crate) struct Rival {
    name: &'static str,
    /// Its variants.
    modes: &'static [&'static str],
    /// It gets one of so many rows of a backlog; 0: none, it would take an hour.
    share: u32,
    /// The highest rate, in rows a second, that it is worth being measured at.
    rate_max: u32,
}

const RIVALS: [Rival; 5] = [
    // It moves 100 rows in two seconds.
    Rival { name: "article", modes: &[""], share: 0, rate_max: 40 },
    Rival { name: "nats-outbox", modes: &["default", "tuned"], share: 10, rate_max: 1_000 },
    Rival { name: "pg-logical-replication", modes: &["default", "tuned"], share: 1, rate_max: 5_000 },
    Rival { name: "pg-transactional-outbox", modes: &["default", "tuned"], share: 20, rate_max: 500 },
    Rival { name: "debezium", modes: &["default", "tuned"], share: 1, rate_max: 5_000 },
];

/// A contender under way.
pub(crate) struct Running {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Contender {
    /// The pollers that a latency is measured of.
    pub(crate) fn pollers() -> Vec<Contender> {
        let poller = |kind, every, listen| Contender::Poller { kind, every, listen };
        vec![
            poller(Kind::Delete, 10, false),
            poller(Kind::Delete, 100, false),
            poller(Kind::Delete, 1000, false),
            poller(Kind::Delete, 1000, true),
            poller(Kind::Update, 10, false),
        ]
    }

    pub(crate) fn rivals() -> Vec<Contender> {
        let variants =
            |rival: &'static Rival| rival.modes.iter().map(move |mode| Contender::Rival { rival, mode });
        RIVALS.iter().flat_map(variants).collect()
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Contender::Postrider { window: None } => "postrider".to_owned(),
            Contender::Postrider { window: Some(window) } => format!("postrider, window {window}"),
            Contender::Poller { kind, listen: true, .. } => format!("{kind:?} poller, LISTEN"),
            Contender::Poller { kind, every, .. } => format!("{kind:?} poller, {every} ms"),
            Contender::Rival { rival, mode: "" } => rival.name.to_owned(),
            Contender::Rival { rival, mode } => format!("{}, {mode}", rival.name),
        }
    }

    /// Whether a backlog of it is of interest: for a backlog the pause between polls is nothing.
    pub(crate) fn drains_backlogs(&self) -> bool {
        match self {
            Contender::Postrider { .. } => true,
            Contender::Poller { every, .. } => *every == 10,
            Contender::Rival { rival, .. } => rival.share > 0,
        }
    }

    /// How many rows of a backlog of so many it gets: others than ours take minutes for some.
    pub(crate) fn backlog(&self, rows: u32, size: u32) -> u32 {
        match self {
            Contender::Postrider { .. } | Contender::Poller { .. } => rows,
            Contender::Rival { rival, .. } => (rows / rival.share.max(1) / size).max(1) * size,
        }
    }

    /// Whether so many rows a second are worth a try. Below 100 only those are measured that cannot do
    /// more.
    pub(crate) fn is_measured_at(&self, rate: u32) -> bool {
        let rate_max = match self {
            Contender::Postrider { .. } => return true,
            Contender::Poller { every: 10, .. } | Contender::Poller { listen: true, .. } => u32::MAX,
            // How long they take is their pause.
            Contender::Poller { .. } => 1_000,
            Contender::Rival { rival, .. } => rival.rate_max,
        };
        rate <= rate_max && (rate >= 100 || rate_max < 100)
    }

    /// Whether what writers pay for it is measured.
    pub(crate) fn is_worth_a_pair(&self) -> bool {
        match self {
            Contender::Postrider { .. } => true,
            Contender::Poller { every, listen, .. } => *every == 10 || *listen,
            Contender::Rival { .. } => false,
        }
    }

    /// Whether it is the relay.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Contender::Postrider { .. })
    }

    /// Why it cannot take part.
    pub(crate) async fn missing(&self, lab: &Lab) -> Result<Option<String>> {
        if !matches!(self, Contender::Rival { .. }) {
            return Ok(None);
        }
        lab.empty().await?;
        self.prepare(lab).await?;
        Ok(match self.start(lab).await {
            Ok(running) => {
                running.stop().await?;
                None
            }
            // The last thing that it says is its reason.
            Err(error) => Some(format!("{error:#}").lines().next_back().unwrap_or_default().to_owned()),
        })
    }

    /// Makes in an empty lab what it needs before the first row.
    pub(crate) async fn prepare(&self, lab: &Lab) -> Result<()> {
        match self {
            Contender::Postrider { .. } => {
                let output = lab.postrider().arg("init").stdin(Stdio::null()).output()?;
                ensure!(output.status.success(), "init: {}", String::from_utf8_lossy(&output.stderr));
            }
            Contender::Poller { kind, listen, .. } => {
                lab.sql.batch_execute(&poller::setup(*kind, *listen)).await?;
            }
            Contender::Rival { rival, .. } => {
                if let Some(setup) = text(&folder(rival).join("setup.sql"))? {
                    lab.sql.batch_execute(&setup).await?;
                }
            }
        }
        Ok(())
    }

    /// The statement that inserts row `$1` (int) with payload `$2` (text).
    pub(crate) fn insert(&self) -> Result<String> {
        let own = match self {
            Contender::Rival { rival, .. } => text(&folder(rival).join("insert.sql"))?,
            _ => None,
        };
        let article =
            "INSERT INTO outbox (event_type, payload) SELECT 'order_created', $2::jsonb WHERE $1 >= 0";
        Ok(own.map_or_else(|| article.to_owned(), |own| own.trim().trim_end_matches(';').to_owned()))
    }

    /// Starts it, and waits until it says that it works.
    pub(crate) async fn start(&self, lab: &Lab) -> Result<Running> {
        let log = lab.folder.path().join("contender.log");
        let stderr = std::fs::File::create(&log)?;
        let mut command = match self {
            Contender::Postrider { window } => {
                let mut command = lab.postrider();
                command.arg("run");
                if let Some(window) = window {
                    command.env("POSTRIDER_DELIVERY_WINDOW_MESSAGES", window.to_string());
                }
                command
            }
            Contender::Poller { kind, every, listen } => {
                let mut command = Command::new(std::env::current_exe()?);
                let kind = format!("{kind:?}").to_lowercase();
                command.args(["poller", "--kind", &kind, "--every", &every.to_string()]);
                if *listen {
                    command.arg("--listen");
                }
                command
            }
            Contender::Rival { rival, mode } => {
                let mut command = Command::new(folder(rival).join("run"));
                command.env("RIVAL_MODE", mode).env("STREAM", crate::lab::STREAM);
                command
            }
        };
        command
            .env("DATABASE_URL", lab.postgres.url("postgres"))
            .env("NATS_URL", lab.nats_url()?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let child = command.spawn().with_context(|| format!("start {}", self.name()))?;
        let mut running = Running { child, name: self.name(), log };
        match self {
            Contender::Postrider { .. } => running.wait_until_streaming(lab, 1).await?,
            Contender::Poller { .. } | Contender::Rival { .. } => running.wait_until_ready().await?,
        }
        Ok(running)
    }
}

impl Running {
    /// A relay with slot, publication, schema, subjects and stream of its own.
    pub(crate) async fn relay_of_its_own(lab: &Lab, number: usize) -> Result<Running> {
        let own = |mut command: Command| {
            let name = format!("postrider_{number}");
            command
                .env("POSTRIDER_POSTGRES_SLOT", &name)
                .env("POSTRIDER_POSTGRES_PUBLICATION", &name)
                .env("POSTRIDER_POSTGRES_SCHEMA", &name)
                .env("POSTRIDER_NATS_STREAM", &name)
                .env("POSTRIDER_OUTBOX_SUBJECT", format!("{name}.{{event_type}}"))
                .stdin(Stdio::null());
            command
        };
        let output = own(lab.postrider()).arg("init").output()?;
        ensure!(output.status.success(), "init: {}", String::from_utf8_lossy(&output.stderr));
        let log = lab.folder.path().join(format!("relay-{number}.log"));
        let mut command = own(lab.postrider());
        command.arg("run").stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        let mut running = Running { child: command.spawn()?, name: format!("relay {number}"), log };
        running.wait_until_streaming(lab, number).await?;
        Ok(running)
    }

    /// Its CPU time with that of its children.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        process::cpu_of_family(self.child.id())
    }

    /// The most memory that it ever held, in MiB; of a script, that of the process that it became.
    pub(crate) fn memory_peak(&self) -> Result<f64> {
        process::memory_peak(self.child.id())
    }

    /// Waits until so many slots are read.
    async fn wait_until_streaming(&mut self, lab: &Lab, slots: usize) -> Result<()> {
        let slots = i64::try_from(slots)?;
        let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
        let deadline = Instant::now() + PATIENCE;
        while lab.sql.query_one(active, &[]).await?.get::<_, i64>(0) < slots {
            ensure!(Instant::now() < deadline, "{} does not stream\n{}", self.name, self.words());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let output = self.child.stdout.take().context("its output")?;
        let (said, ready) = tokio::sync::oneshot::channel();
        // What it prints later is read and dropped, so that it never waits for us.
        std::thread::spawn(move || {
            let mut said = Some(said);
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.trim() == "ready" {
                    let _ = said.take().map(|said| said.send(()));
                }
            }
        });
        match tokio::time::timeout(PATIENCE, ready).await {
            Ok(Ok(())) => Ok(()),
            _ => bail!("{} does not get ready\n{}", self.name, self.words()),
        }
    }

    /// SIGTERM, and its end.
    pub(crate) async fn stop(mut self) -> Result<()> {
        process::terminate(&self.child)?;
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
            ensure!(Instant::now() < deadline, "{} does not end at SIGTERM\n{}", self.name, self.words());
        };
        ensure!(status.success(), "{} ended with {status}\n{}", self.name, self.words());
        Ok(())
    }

    /// The last lines of what it said.
    pub(crate) fn words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After an error; one that has ended is not signalled again.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn folder(rival: &Rival) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/rivals").join(rival.name)
}

fn text(path: &Path) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    Ok(Some(std::fs::read_to_string(path).with_context(|| path.display().to_string())?))
}
