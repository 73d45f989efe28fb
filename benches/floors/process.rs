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
        let time = |ticks: u64| Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
        Ok(Stat {
            parent: u32::try_from(field(4)?)?,
            own: time(field(14)? + field(15)?),
            ended_children: time(field(16)? + field(17)?),
        })
    }
}
