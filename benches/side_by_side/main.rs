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
mod writers;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use contender::Contender;
use drain::Drain;
use lab::Lab;
use latency::Latency;
use report::Report;
use std::future::Future;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// The whole of it takes about an hour and a half.
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
    /// Bytes of a payload in the latency measurements
    #[arg(long, default_value_t = drain::PAYLOAD)]
    payload: u32,
    /// Pairs of the measurement of what writers pay; 0 leaves it out
    #[arg(long)]
    pairs: Option<usize>,
    /// Only contenders whose name holds one of these words; postrider always takes part
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<String>>,
    /// Lines for nats-server's configuration, such as "jetstream {sync_interval: always}"
    #[arg(long, default_value = "")]
    nats: String,
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
    let pick = |full, quick| if args.quick { quick } else { full };
    let rounds = args.rounds.unwrap_or(pick(5, 2));
    ensure!(rounds > 0, "--rounds 0 measures nothing");
    let rows = args.rows.unwrap_or(if args.quick { 60_000 } else { 200_000 });
    let sizes = args.transaction_size.clone();
    let sizes = sizes.unwrap_or(if args.quick { vec![1, 100] } else { vec![1, 10, 100, 100_000] });
    let seconds = args.seconds.unwrap_or(if args.quick { 3 } else { 10 });
    let rates = args.rate.clone();
    let rates =
        rates.unwrap_or(if args.quick { vec![1_000, 5_000] } else { vec![20, 100, 1_000, 5_000, 10_000] });
    let pairs = args.pairs.unwrap_or(pick(9, 0));

    let lab = Lab::start(&args.nats).await?;
    let surroundings = lab.surroundings()?;
    surroundings.iter().for_each(|line| eprintln!("{line}"));
    let mut left_out = Vec::new();
    let mut drained = vec![Contender::Postrider];
    let mut timed = drained.clone();
    for contender in Contender::pollers().into_iter().chain(Contender::rivals()) {
        let name = contender.name();
        let wanted = match &args.only {
            Some(words) => words.iter().any(|word| name.contains(word.as_str())),
            // The article's poller alone takes minutes for a backlog, others seconds to start.
            None => !(args.quick && matches!(contender, Contender::Rival { .. })),
        };
        if !wanted {
            continue;
        }
        if let Some(why) = contender.missing(&lab).await? {
            eprintln!("left out: {name}: {why}");
            left_out.push((name, why));
            continue;
        }
        if contender.drains_backlogs() {
            drained.push(contender.clone());
        }
        timed.push(contender);
    }

    let mut report = Report {
        command: command(args),
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        surroundings,
        left_out,
        drains: Vec::new(),
        latencies: Vec::new(),
        writers: Vec::new(),
    };
    if rows > 0 {
        report.drains = sizes.iter().map(|size| Drain::new(*size, rows)).collect();
    }
    if seconds > 0 {
        report.latencies = rates.iter().map(|rate| Latency::new(*rate, seconds, args.payload)).collect();
    }
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for drain in &mut report.drains {
            drain.round(&lab, &drained).await?;
        }
        for latency in &mut report.latencies {
            latency.round(&lab, &timed, round).await?;
        }
    }
    if pairs > 0 {
        let beside: Vec<_> =
            timed.iter().filter(|contender| !matches!(contender, Contender::Rival { .. })).cloned().collect();
        report.writers = writers::measure(&lab, &beside, 2.0, pairs).await?;
    }
    let out = args.out.clone();
    let out = out.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("benches"));
    report.write(&out).with_context(|| out.display().to_string())?;
    eprintln!("written: {}", out.join("RESULTS.md").display());
    Ok(())
}

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
