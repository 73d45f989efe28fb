//! A Postgres of our own, set up for logical decoding.

use super::place::{self, Account};
use super::process::{Process, children_of, is_gone};
use super::programs::PostgresPrograms;
use super::{POLL_INTERVAL, PORT_ATTEMPTS, START_TIMEOUT, StartError, broken, log_length, log_since};
use crate::error::Failure;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The settings that every server begins with; `max_*` leave room for many tests' slots.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("wal_level", "logical"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("fsync", "off"),
    ("shared_buffers", "32MB"),
];
/// An orphaned backend ends when it next waits for something.
const ORPHANS_TIMEOUT: Duration = Duration::from_secs(10);
/// An immediate shutdown only reaps its children.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);
/// `sun_path` of a Unix socket, without the closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// How a server is asked to stop (`pg_ctl -m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Waits for the clients to leave.
    Smart,
    /// Ends their sessions; walsenders are waited for.
    Fast,
    /// No checkpoint: the next start recovers.
    Immediate,
}

/// What a server starts with, beyond the programs.
#[derive(Debug, Clone, Copy, Default)]
pub struct PostgresOptions<'a> {
    /// Lines of postgresql.conf, after our own.
    pub settings: &'a [(&'a str, &'a str)],
    /// The whole of pg_hba.conf. By default everyone on this machine is trusted.
    pub hba: Option<&'a str>,
    /// A cluster of its own making, which takes seconds. Otherwise it is a copy, and all copies for
    /// one version and user have the same system identifier.
    pub own_system: bool,
}

/// A running Postgres; the superuser is `postgres`. Dropping it ends and removes it.
#[derive(Debug)]
pub struct PostgresServer {
    bin: PathBuf,
    account: Option<Account>,
    // Before `folder`: it must have ended when the folder goes.
    process: Option<Process>,
    frozen: Vec<Pid>,
    port: u16,
    folder: TempDir,
}

impl PostgresServer {
    /// Starts a server with these lines of postgresql.conf added.
    ///
    /// # Errors
    /// It does not start; the message ends with its log.
    pub async fn start(
        programs: &PostgresPrograms,
        settings: &[(&str, &str)],
    ) -> Result<PostgresServer, Failure> {
        PostgresServer::start_with(programs, PostgresOptions { settings, ..PostgresOptions::default() }).await
    }

    /// Starts a server.
    ///
    /// # Errors
    /// It does not start; the message ends with its log.
    pub async fn start_with(
        programs: &PostgresPrograms,
        options: PostgresOptions<'_>,
    ) -> Result<PostgresServer, Failure> {
        let account = place::postgres_account()?;
        let (bin, own_system) = (programs.bin.clone(), options.own_system);
        let made = tokio::task::spawn_blocking(move || -> Result<_, Failure> {
            let folder = place::new_folder()?;
            let bin = place::reachable_bin(&bin, account, &folder)?;
            make_data_dir(&bin, account, &folder, own_system)?;
            Ok((bin, folder))
        });
        let (bin, folder) =
            made.await.map_err(|error| broken(format!("make a Postgres cluster: {error}")))??;
        let server = PostgresServer { bin, account, process: None, frozen: Vec::new(), port: 0, folder };
        for (name, value) in SETTINGS {
            server.set(name, value)?;
        }
        if let Some(hba) = options.hba {
            server.set_hba(hba)?;
        }
        server.begin(options.settings).await
    }

    /// Starts a server on a copy of this one's data, which must not run meanwhile: a clone, or a
    /// standby with the `signal` file `standby.signal` and `primary_conninfo` among the settings.
    ///
    /// # Errors
    /// It does not start; the message ends with its log.
    pub async fn copy(
        &self,
        signal: Option<&str>,
        settings: &[(&str, &str)],
    ) -> Result<PostgresServer, Failure> {
        let folder = place::new_folder()?;
        place::run(Command::new("cp").arg("-a").args([self.data_dir(), folder.path().join("data")]))?;
        let (bin, account) = (self.bin.clone(), self.account);
        let copy = PostgresServer { bin, account, process: None, frozen: Vec::new(), port: 0, folder };
        if let Some(signal) = signal {
            let path = copy.data_dir().join(signal);
            fs::write(&path, "").map_err(|error| unwritable(&path, &error))?;
            place::give(&path, account)?;
        }
        copy.begin(settings).await
    }

    /// Adds these settings, and starts for the first time, on a free port.
    async fn begin(self, settings: &[(&str, &str)]) -> Result<PostgresServer, Failure> {
        let mut server = self;
        for (name, value) in settings {
            server.set(name, value)?;
        }
        server.set("unix_socket_directories", &server.make_socket_dir()?)?;
        for _ in 0..PORT_ATTEMPTS {
            server.port = place::free_port()?;
            server.set("port", &server.port.to_string())?;
            match server.launch().await {
                Ok(()) => return Ok(server),
                Err(StartError::AddressInUse) => {}
                Err(StartError::Other(failure)) => return Err(failure),
            }
        }
        Err(broken("no port stayed free long enough to start Postgres"))
    }

    /// Starts it again, on the same port and data, after [`stop`](Self::stop) or
    /// [`kill`](Self::kill).
    ///
    /// # Errors
    /// It does not start; the message ends with its log.
    pub async fn start_again(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match self.launch().await {
                Ok(()) => return Ok(()),
                // A connection of the former server may still hold the port for a moment.
                Err(StartError::AddressInUse) if Instant::now() < deadline => {
                    tokio::time::sleep(10 * POLL_INTERVAL).await;
                }
                Err(StartError::AddressInUse) => {
                    return Err(broken(format!("port {} is no longer free", self.port)));
                }
                Err(StartError::Other(failure)) => return Err(failure),
            }
        }
    }

    /// Stops it and says how long that took.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub async fn stop(&mut self, mode: Stop, limit: Duration) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let signal = match mode {
            Stop::Smart => Signal::TERM,
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        if let Some(process) = &mut self.process {
            process.signal(signal);
            if !process.wait(limit).await {
                return Err(broken(format!("Postgres still runs {limit:?} after a {mode:?} stop")));
            }
        }
        self.process = None;
        Ok(begun.elapsed())
    }

    /// `kill -9` of the postmaster; returns when its children are gone too.
    pub async fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // Stopped, it starts no more children while we count them.
        process.signal(Signal::STOP);
        let children = children_of(process.pid());
        process.kill_blocking();
        for pid in self.frozen.drain(..) {
            let _ = kill_process(pid, Signal::CONT);
        }
        let deadline = Instant::now() + ORPHANS_TIMEOUT;
        while !children.iter().all(|pid| is_gone(*pid)) {
            if Instant::now() >= deadline {
                for pid in children.iter().filter(|pid| !is_gone(**pid)) {
                    let _ = kill_process(*pid, Signal::KILL);
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Stops all of its processes where they stand (SIGSTOP).
    pub fn freeze(&mut self) {
        let Some(process) = &mut self.process else { return };
        process.signal(Signal::STOP);
        self.frozen = children_of(process.pid());
        for pid in &self.frozen {
            let _ = kill_process(*pid, Signal::STOP);
        }
    }

    /// Lets them go on.
    pub fn thaw(&mut self) {
        for pid in self.frozen.drain(..) {
            let _ = kill_process(pid, Signal::CONT);
        }
        if let Some(process) = &mut self.process {
            process.signal(Signal::CONT);
        }
    }

    /// Adds a line to postgresql.conf, for the next start or reload.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, name: &str, value: &str) -> Result<(), Failure> {
        let path = self.data_dir().join("postgresql.conf");
        let line = format!("{name} = '{}'\n", value.replace('\'', "''"));
        let file = File::options().append(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).map_err(|error| unwritable(&path, &error))
    }

    /// Replaces pg_hba.conf, for the next start or reload.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_hba(&self, lines: &str) -> Result<(), Failure> {
        let path = self.data_dir().join("pg_hba.conf");
        fs::write(&path, format!("{lines}\n")).map_err(|error| unwritable(&path, &error))
    }

    /// Writes a file into the data directory that only the server may read, such as `server.key`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn install(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.data_dir().join(name);
        fs::write(&path, text).map_err(|error| unwritable(&path, &error))?;
        place::set_mode(&path, 0o600)?;
        place::give(&path, self.account)
    }

    /// Where the superuser reaches a database: `postgres://postgres@127.0.0.1:<port>/<database>`.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The port on 127.0.0.1; the same after [`start_again`](Self::start_again).
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of its Unix socket, unless the temporary folder's path is too long for one.
    #[must_use]
    pub fn socket_dir(&self) -> Option<PathBuf> {
        let folder = self.folder.path().join("socket");
        folder.is_dir().then_some(folder)
    }

    /// The postmaster's process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.pid().as_raw_pid().unsigned_abs())
    }

    /// All that the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        log_since(&self.log_file(), 0)
    }

    async fn launch(&mut self) -> Result<(), StartError> {
        let offset = log_length(&self.log_file());
        let data_dir = self.data_dir();
        let arguments = ["-D", &data_dir.to_string_lossy()];
        let mut process =
            Process::spawn(&self.bin.join("postgres"), &arguments, self.account, &self.log_file())
                .map_err(StartError::Other)?;
        let deadline = Instant::now() + START_TIMEOUT;
        while !is_ready(&data_dir, process.pid()) {
            let what = if !process.is_running() {
                "Postgres does not start"
            } else if Instant::now() >= deadline {
                process.signal(Signal::QUIT);
                "Postgres is not ready in time"
            } else {
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            };
            process.wait(DROP_TIMEOUT).await;
            return Err(StartError::of(what, &log_since(&self.log_file(), offset)));
        }
        self.process = Some(process);
        Ok(())
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn make_socket_dir(&self) -> Result<String, Failure> {
        let folder = self.folder.path().join("socket");
        if folder.join(".s.PGSQL.65535.lock").as_os_str().len() > SOCKET_PATH_MAX {
            return Ok(String::new());
        }
        fs::create_dir(&folder).map_err(|error| unwritable(&folder, &error))?;
        place::give(&folder, self.account)?;
        Ok(folder.to_string_lossy().into_owned())
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.thaw();
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::QUIT);
            if !process.wait_blocking(DROP_TIMEOUT) {
                process.kill_blocking();
            }
        }
        // A killed postmaster leaves its System V segment, of which a machine has 4096.
        let pid_file = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        if let Some(id) = pid_file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let _ = place::run(Command::new("ipcrm").args(["-m", id]));
        }
    }
}

/// What pg_ctl goes by: the eighth line of postmaster.pid, once its first names our process.
fn is_ready(data_dir: &Path, pid: Pid) -> bool {
    let file = fs::read_to_string(data_dir.join("postmaster.pid")).unwrap_or_default();
    let mut lines = file.lines();
    lines.next() == Some(pid.as_raw_pid().to_string().as_str())
        && lines.nth(6).is_some_and(|status| status.starts_with("ready") || status.starts_with("standby"))
}

/// A fresh cluster in `<folder>/data`. One is kept as an archive (a single file, so that it is
/// whole or gone): unpacking takes a tenth of the time that initdb does.
fn make_data_dir(
    bin: &Path,
    account: Option<Account>,
    folder: &TempDir,
    own_system: bool,
) -> Result<(), Failure> {
    let Some(cache) = place::cache().filter(|_| !own_system) else {
        return initdb(bin, account, folder.path());
    };
    let archive = cache.join(format!("cluster-{}.tar", place::key_of(&bin.join("postgres"), account)));
    // Many tests that begin together make it once.
    let lock = File::create(archive.with_extension("lock"))
        .and_then(|lock| lock.lock().map(|()| lock))
        .map_err(|error| unwritable(&archive, &error))?;
    if !archive.is_file() {
        let new = tempfile::Builder::new().prefix("new-").tempdir_in(&cache);
        let new = new.map_err(|error| unwritable(&cache, &error))?;
        place::set_mode(new.path(), 0o711)?;
        initdb(bin, account, new.path())?;
        let packed = new.path().join("cluster.tar");
        place::run(Command::new("tar").arg("-cf").arg(&packed).arg("-C").arg(new.path()).arg("data"))?;
        fs::rename(&packed, &archive).map_err(|error| unwritable(&archive, &error))?;
    }
    drop(lock);
    let unpack = ["--numeric-owner", "-xpf"];
    place::run(Command::new("tar").args(unpack).arg(&archive).arg("-C").arg(folder.path()))
}

fn initdb(bin: &Path, account: Option<Account>, folder: &Path) -> Result<(), Failure> {
    let data_dir = folder.join("data");
    fs::create_dir(&data_dir).map_err(|error| unwritable(&data_dir, &error))?;
    place::give(&data_dir, account)?;
    let log = folder.join("initdb.log");
    let data_dir = data_dir.to_string_lossy();
    let arguments =
        ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D", data_dir.as_ref()];
    let mut process = Process::spawn(&bin.join("initdb"), &arguments, account, &log)?;
    let in_time = process.wait_blocking(START_TIMEOUT);
    if !in_time {
        process.kill_blocking();
    }
    if !in_time || !process.exit_status().is_some_and(|status| status.success()) {
        return Err(broken(format!("initdb fails:\n{}", log_since(&log, 0))));
    }
    Ok(())
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    broken(format!("write {}: {error}", path.display()))
}
