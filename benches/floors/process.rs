//! What Linux tells of a process.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::read_to_string;
use std::process::Child;
use std::time::Duration;

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

/// CPU time that all processes have taken, and what a hypervisor has taken from them.
pub(crate) fn cpu_of_machine() -> Result<Duration> {
    // cpu  user nice system idle iowait irq softirq steal …
    let stat = read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>().context("/proc/stat")?;
    let busy = ticks.iter().take(8).sum::<u64>() - ticks.iter().skip(3).take(2).sum::<u64>();
    Ok(time(busy))
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
