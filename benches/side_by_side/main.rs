//! The relay beside the floors that it stands on and beside everyone else who moves an outbox, in one
//! run on one Postgres and one nats-server.
//!
//! Numbers of one machine say little about another, and those of one minute little about the next: in
//! each round everyone is measured, one after the other, in an order that rotates. What counts is the
//! ratio within a round. Every message that a contender stores is read back: what it loses, doubles
//! or misorders is in the table.
//!
//! | file | what |
//! | --- | --- |
//! | [`drain`] | a backlog, by size of transaction |
//! | [`latency`] | an open loop, by rate |
//! | [`writers`] | what contenders cost those who write |
//! | [`takeover`] | how long a standby takes |
//! | [`floor`], [`contender`], [`poller`] | who takes part |
//! | [`lab`], [`load`], [`stored`], [`process`] | servers, rows, messages, CPU |
//! | [`report`], [`plot`], [`spread`] | `benches/RESULTS.md` |

mod contender;
mod drain;
mod floor;
mod lab;
mod latency;
mod load;
mod plot;
mod poller;
mod process;
mod report;
mod spread;
mod stored;
mod takeover;
mod writers;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use contender::{Contender, POSTRIDER};
use drain::Drain;
use lab::{Lab, Storage};
use latency::Latency;
use report::Report;
use std::future::Future;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};
use takeover::TakeOver;

/// The whole of it takes about an hour.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// Five minutes: fewer rows, rounds and participants
    #[arg(long)]
    quick: bool,
    /// How often everything is repeated
    #[arg(long)]
    rounds: Option<usize>,
    /// Rows of a backlog; 0 leaves drains out
    #[arg(long)]
    rows: Option<u32>,
    /// Rows of a transaction of the backlog
    #[arg(long, value_delimiter = ',')]
    transaction_size: Option<Vec<u32>>,
    /// Seconds of each latency measurement; 0 leaves latencies out
    #[arg(long)]
    seconds: Option<u32>,
    /// Rows a second of the latency measurements
    #[arg(long, value_delimiter = ',')]
    rate: Option<Vec<u32>>,
    /// Bytes of a payload, of drains besides those of 250; 0 leaves them out
    #[arg(long, value_delimiter = ',')]
    payload: Option<Vec<u32>>,
    /// Windows of the relay, of drains besides that of its default; 0 leaves them out
    #[arg(long, value_delimiter = ',')]
    window: Option<Vec<u32>>,
    /// How JetStream keeps messages, of drains besides those with its default; `one` leaves them out
    #[arg(long, value_delimiter = ',')]
    storage: Option<Vec<Storage>>,
    /// Pairs of the measurement of what writers pay, and as many take-overs; 0 leaves both out
    #[arg(long)]
    pairs: Option<usize>,
    /// Only contenders whose name holds one of these words; postrider always takes part
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<String>>,
    /// The folder that RESULTS.md and plots/ are written to
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Be a poller
    #[command(hide = true)]
    Poller(poller::Poller),
}

// One thread, as the relay has it: floors in this process are to be as fast as they can.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    match &args.role {
        Some(Role::Poller(poller)) => poller::run(poller).await,
        None => measure(&args).await,
    }
}

async fn measure(args: &Args) -> Result<()> {
    let rounds = args.rounds.unwrap_or(args.pick(5, 2));
    ensure!(rounds > 0, "--rounds 0 measures nothing");
    let pairs = args.pairs.unwrap_or(args.pick(9, 0));

    let lab = Lab::start(Storage::One).await?;
    let surroundings = lab.surroundings()?;
    surroundings.iter().for_each(|line| eprintln!("{line}"));
    let (contenders, left_out) = participants(args, &lab).await?;
    let drained = contenders.iter().filter(|contender| contender.drains_backlogs()).cloned();
    // Rivals take minutes for what shows no more than one size of transaction does.
    let few: Vec<_> = drained.clone().filter(|one| !matches!(one, Contender::Rival { .. })).collect();
    let mut report = Report {
        command: command(args),
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        surroundings,
        left_out,
        drains: args.drains(&drained.collect::<Vec<_>>(), &few),
        variants: args.variants(&few),
        latencies: args.latencies(),
        writers: Vec::new(),
        take_over: TakeOver::default(),
    };
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for drain in report.drains.iter_mut().chain(&mut report.variants) {
            drain.round(&lab).await?;
        }
        for latency in &mut report.latencies {
            latency.round(&lab, &contenders, round).await?;
        }
    }
    if pairs > 0 {
        let beside: Vec<_> =
            contenders.iter().filter(|contender| contender.is_worth_a_pair()).cloned().collect();
        report.writers = writers::measure(&lab, &beside, pairs).await?;
        for _ in 0..pairs {
            report.take_over.round(&lab).await?;
        }
    }
    drop(lab);
    for (storage, mut drain) in args.stored_otherwise(&few) {
        let lab = Lab::start(storage).await?;
        for _ in 0..rounds {
            drain.round(&lab).await?;
        }
        report.variants.push(drain);
    }
    let out = args.out.clone();
    let out = out.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("benches"));
    report.write(&out).with_context(|| out.display().to_string())?;
    eprintln!("written: {}", out.join("RESULTS.md").display());
    Ok(())
}

/// What is measured, as it was asked for or by default.
impl Args {
    fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    fn list(&self, given: Option<&Vec<u32>>, full: &[u32], quick: &[u32]) -> Vec<u32> {
        let all = given.map_or(self.pick(full, quick), Vec::as_slice);
        all.iter().copied().filter(|value| *value > 0).collect()
    }

    fn rows(&self) -> u32 {
        self.rows.unwrap_or(self.pick(100_000, 60_000))
    }

    /// By size of transaction.
    fn drains(&self, all: &[Contender], few: &[Contender]) -> Vec<Drain> {
        if self.rows() == 0 {
            return Vec::new();
        }
        let sizes = self.list(self.transaction_size.as_ref(), &[1, 10, 100, 100_000], &[1, 100]);
        let who = |size| if size == 1 { all } else { few };
        sizes.into_iter().map(|size| Drain::new(size, self.rows(), who(size).to_vec())).collect()
    }

    /// By payload and by window.
    fn variants(&self, few: &[Contender]) -> Vec<Drain> {
        let mut variants = Vec::new();
        if self.rows() == 0 {
            return variants;
        }
        for bytes in self.list(self.payload.as_ref(), &[2_000, 50_000], &[]) {
            let special = Some(format!("Payloads of {} bytes", spread::number(bytes.into(), 0)));
            let rows = self.rows().min(BACKLOG_BYTES / bytes);
            variants.push(Drain { special, bytes, ..Drain::new(1, rows, few.to_vec()) });
        }
        let windows = self.list(self.window.as_ref(), &[64, 256, 1_024, 8_192], &[]);
        if !windows.is_empty() {
            let windows = windows.into_iter().map(|window| Contender::Postrider { window: Some(window) });
            let who = windows.chain([POSTRIDER]).collect();
            let special = Some("By window".to_owned());
            variants.push(Drain { special, floors: false, ..Drain::new(100, self.rows(), who) });
        }
        variants
    }

    fn stored_otherwise(&self, few: &[Contender]) -> Vec<(Storage, Drain)> {
        let storages = self.storage.clone();
        let storages =
            storages.unwrap_or(self.pick(vec![Storage::Always, Storage::Cluster], Vec::new())).into_iter();
        let drain = |storage: Storage| {
            // A message that is synced alone takes a third of a millisecond.
            let rows = if storage == Storage::Always { self.rows() / 10 } else { self.rows() / 2 };
            let special = Some(format!("JetStream: {}", storage.text()));
            (storage, Drain { special, ..Drain::new(1, rows, few.to_vec()) })
        };
        storages.filter(|storage| *storage != Storage::One && self.rows() > 0).map(drain).collect()
    }

    fn latencies(&self) -> Vec<Latency> {
        let seconds = self.seconds.unwrap_or(self.pick(4, 3));
        let rates = self.list(self.rate.as_ref(), &[40, 100, 1_000, 5_000, 10_000, 15_000], &[1_000, 5_000]);
        let rates = rates.into_iter().filter(|_| seconds > 0);
        rates.map(|rate| Latency::new(rate, seconds, drain::PAYLOAD)).collect()
    }
}

/// Who takes part, the relay first; and who cannot, with the reason.
async fn participants(args: &Args, lab: &Lab) -> Result<(Vec<Contender>, Vec<(String, String)>)> {
    let (mut contenders, mut left_out) = (vec![POSTRIDER], Vec::new());
    for contender in Contender::pollers().into_iter().chain(Contender::rivals()) {
        let name = contender.name();
        let wanted = match &args.only {
            Some(words) => words.iter().any(|word| name.contains(word.as_str())),
            // Some take minutes for a backlog, others seconds to start.
            None => !(args.quick && matches!(contender, Contender::Rival { .. })),
        };
        if !wanted {
            continue;
        }
        match contender.missing(lab).await? {
            None => contenders.push(contender),
            Some(why) => {
                eprintln!("left out: {name}: {why}");
                left_out.push((name, why));
            }
        }
    }
    Ok((contenders, left_out))
}

/// Payloads of a backlog, all together: what the benchmark reads back, it holds in memory.
const BACKLOG_BYTES: u32 = 100_000_000;

/// How to have the same again.
fn command(args: &Args) -> String {
    let own = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let own: Vec<_> = own.map(|arg| if arg.contains(' ') { format!("'{arg}'") } else { arg }).collect();
    match own.as_slice() {
        [] => "make bench".to_owned(),
        [only] if args.quick && only == "--quick" => "make bench QUICK=1".to_owned(),
        own => format!("make bench ARGS=\"{}\"", own.join(" ")),
    }
}

/// Work on a thread and a runtime of its own, so that what measures waits for nobody.
struct OnAThread<T>(JoinHandle<Result<T>>);

/// `rest`: how long the thread sleeps before it waits.
fn on_a_thread<F, T>(rest: Duration, make: impl FnOnce() -> F + Send + 'static) -> OnAThread<T>
where
    F: Future<Output = Result<T>>,
    T: Send + 'static,
{
    OnAThread(thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        if rest > Duration::ZERO {
            runtime.on_thread_park(move || thread::sleep(rest));
        }
        runtime.enable_all().build()?.block_on(make())
    }))
}

impl<T: Send + 'static> OnAThread<T> {
    async fn join(self) -> Result<T> {
        let joined = tokio::task::spawn_blocking(|| self.0.join()).await?;
        joined.map_err(|_| anyhow::anyhow!("a thread panicked"))?
    }
}
