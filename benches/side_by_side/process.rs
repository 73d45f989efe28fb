//! What Linux tells of a process.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::read_to_string;
use std::process::Child;
use std::time::{Duration, Instant};

/// `USER_HZ` of every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time that the process has taken, in user and kernel mode.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    Ok(Stat::of(pid)?.own)
}

/// The same with its children, those that have ended included.
pub(crate) fn cpu_of_family(pid: u32) -> Result<Duration> {
    let parent = Stat::of(pid)?;
    let processes = std::fs::read_dir("/proc")?.flatten();
    let stats = processes.filter_map(|entry| Stat::of(entry.file_name().to_str()?.parse().ok()?).ok());
    let children: Duration = stats.filter(|stat| stat.parent == pid).map(|stat| stat.own).sum();
    Ok(parent.own + parent.ended_children + children)
}

/// CPU time so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    client: Duration,
    postgres: Duration,
    nats: Duration,
    machine: Machine,
    at: Instant,
}

/// CPU time between two moments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) client: Duration,
    pub(crate) postgres: Duration,
    pub(crate) nats: Duration,
    /// Cores that whoever else is on this machine kept busy.
    pub(crate) others: f64,
    /// Cores that a hypervisor took away.
    pub(crate) steal: f64,
}

impl Cpu {
    /// With what `client` has taken, and the processes of both servers.
    pub(crate) fn now(client: Duration, postgres: u32, nats: &[u32]) -> Result<Cpu> {
        Ok(Cpu {
            client,
            postgres: cpu_of_family(postgres)?,
            nats: nats.iter().map(|server| cpu(*server)).sum::<Result<_>>()?,
            machine: Machine::now()?,
            at: Instant::now(),
        })
    }

    pub(crate) fn since(self, before: Cpu) -> Used {
        let client = self.client.saturating_sub(before.client);
        let postgres = self.postgres.saturating_sub(before.postgres);
        let nats = self.nats.saturating_sub(before.nats);
        let busy = self.machine.busy.saturating_sub(before.machine.busy);
        let elapsed = (self.at - before.at).as_secs_f64();
        Used {
            client,
            postgres,
            nats,
            others: busy.saturating_sub(client + postgres + nats).as_secs_f64() / elapsed,
            steal: self.machine.steal.saturating_sub(before.machine.steal).as_secs_f64() / elapsed,
        }
    }
}

/// CPU time of all cores together.
#[derive(Debug, Clone, Copy)]
struct Machine {
    busy: Duration,
    /// Taken by a hypervisor; part of neither busy nor idle.
    steal: Duration,
}

impl Machine {
    fn now() -> Result<Machine> {
        // cpu  user nice system idle iowait irq softirq steal …, of which user has the guests' in it
        let stat = read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("an empty /proc/stat")?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .map(str::parse)
            .collect::<Result<_, _>>()
            .context("/proc/stat")?;
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        let busy = at(0) + at(1) + at(2) + at(5) + at(6);
        Ok(Machine { busy: time(busy), steal: time(at(7)) })
    }
}

/// The most memory that it ever held, in MiB.
pub(crate) fn memory_peak(pid: u32) -> Result<f64> {
    let status = read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// SIGTERM.
pub(crate) fn terminate(child: &Child) -> Result<()> {
    kill_process(Pid::from_child(child), Signal::TERM).context("SIGTERM")
}

fn time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

struct Stat {
    parent: u32,
    own: Duration,
    ended_children: Duration,
}

impl Stat {
    fn of(pid: u32) -> Result<Stat> {
        // 1234 (name, which may hold anything) S 1 …: the state is the third field of proc(5).
        let stat = read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, rest) = stat.rsplit_once(')').context("a strange /proc/pid/stat")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| -> Result<u64> {
            Ok(fields.get(number - 3).context("a short /proc/pid/stat")?.parse()?)
        };
        Ok(Stat {
            parent: u32::try_from(field(4)?)?,
            own: time(field(14)? + field(15)?),
            ended_children: time(field(16)? + field(17)?),
        })
    }
}
