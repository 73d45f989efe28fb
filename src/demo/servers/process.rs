//! A server process that never outlives this one.
//!
//! The kernel kills it when the *thread* that spawned it ends (`setpriv --pdeathsig`, since setting
//! it ourselves would take `unsafe`), so one thread that lives as long as this process spawns all.
//! Where util-linux's setpriv is missing, only `Drop` ends the servers.

use super::place::Account;
use super::{POLL_INTERVAL, broken};
use crate::error::Failure;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(in crate::demo) struct Process {
    child: Child,
}

impl Process {
    /// Starts `program` in the folder of `log`, to which its output is appended, as the account, if
    /// one is given.
    pub(super) fn spawn(
        program: &Path,
        arguments: &[&str],
        account: Option<Account>,
        log: &Path,
    ) -> Result<Process, Failure> {
        Process::spawn_with(program, arguments, &[], account, log)
    }

    /// The same with variables of the environment. Whatever of ours would configure a server or the
    /// relay is taken out of it.
    pub(in crate::demo) fn spawn_with(
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        account: Option<Account>,
        log: &Path,
    ) -> Result<Process, Failure> {
        let name = program.display().to_string();
        let output = File::options().create(true).append(true).open(log);
        let output = output.and_then(|file| Ok((file.try_clone()?, file)));
        let (stdout, stderr) = output.map_err(|error| broken(format!("open {}: {error}", log.display())))?;
        let mut command = if dies_with_parent() {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["PG", "NATS_", "POSTRIDER_", "DATABASE_URL"].iter().any(|ours| text.starts_with(ours)) {
                command.env_remove(&name);
            }
        }
        command.envs(environment.iter().copied());
        if let Some(Account { uid, gid }) = account {
            command.uid(uid).gid(gid);
        }
        // Ours may be a folder that the account cannot enter. A group of its own, so that Ctrl-C in a
        // terminal reaches only us and we can end in order.
        command.current_dir(log.parent().unwrap_or(Path::new("/"))).process_group(0);
        let child = spawn_for_life(command).map_err(|error| broken(format!("start {name}: {error}")))?;
        Ok(Process { child })
    }

    pub(in crate::demo) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(in crate::demo) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// How it ended, once it has.
    pub(in crate::demo) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Does nothing once the process has ended: its number may be another's by then.
    pub(in crate::demo) fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            let _ = kill_process(self.pid(), signal);
        }
    }

    /// Waits for its end; false when it still runs after `limit`.
    pub(in crate::demo) async fn wait(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        true
    }

    /// For `Drop`: waits for its end on this thread.
    pub(super) fn wait_blocking(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        true
    }

    /// Ends it at once and takes its exit status.
    pub(in crate::demo) fn kill_blocking(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that `parent` started and that still run.
pub(super) fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(folders) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = folders.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw)
        .filter(|pid| {
            state_and_parent(*pid).is_some_and(|(state, of)| of == parent.as_raw_pid() && state != 'Z')
        })
        .collect()
}

/// A process that no one has reaped yet is as good as gone.
pub(super) fn is_gone(pid: Pid) -> bool {
    state_and_parent(pid).is_none_or(|(state, _)| state == 'Z')
}

fn state_and_parent(pid: Pid) -> Option<(char, i32)> {
    // 1234 (name, which may hold anything) S 1 …
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn dies_with_parent() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let mut trial = Command::new("setpriv");
        trial.args(["--pdeathsig", "KILL", "--", "true"]);
        trial.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        trial.status().is_ok_and(|status| status.success())
    })
}

type Request = (Command, mpsc::SyncSender<std::io::Result<Child>>);

fn spawn_for_life(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, reply) in requests {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let gone = || std::io::Error::other("the thread that starts servers has ended");
    let (reply, answer) = mpsc::sync_channel(1);
    spawner.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
