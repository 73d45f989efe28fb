//! A nats-server of our own, with JetStream on file storage.

use super::place;
use super::process::Process;
use super::{POLL_INTERVAL, PORT_ATTEMPTS, START_TIMEOUT, StartError, broken, log_length, log_since};
use crate::error::Failure;
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A stop in order closes the clients and syncs the streams.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Servers of a cluster.
const CLUSTER_NODES: usize = 3;

/// A running nats-server. Dropping it ends and removes it.
#[derive(Debug)]
pub struct NatsServer {
    program: PathBuf,
    extra: String,
    // Before `folder`: it must have ended when the folder goes.
    process: Option<Process>,
    port: u16,
    folder: TempDir,
}

impl NatsServer {
    /// Starts a server with these lines added to its configuration. A block that is given again
    /// replaces ours; `$STORE` names the store:
    /// `jetstream { store_dir: $STORE, sync_interval: always }`.
    ///
    /// # Errors
    /// It does not start; the message ends with its log.
    pub async fn start(program: &Path, extra: &str) -> Result<NatsServer, Failure> {
        let folder = place::new_folder()?;
        let mut server = NatsServer {
            program: program.to_owned(),
            extra: extra.to_owned(),
            process: None,
            port: 0,
            folder,
        };
        for _ in 0..PORT_ATTEMPTS {
            server.port = place::free_port()?;
            match server.launch().await {
                Ok(()) => return Ok(server),
                Err(StartError::AddressInUse) => {}
                Err(StartError::Other(failure)) => return Err(failure),
            }
        }
        Err(broken("no port stayed free long enough to start nats-server"))
    }

    /// Starts three servers that are one cluster, and waits until its JetStream has a leader.
    /// `jetstream` is added to that block of each, such as `, sync_interval: always`.
    ///
    /// # Errors
    /// One does not start, or they do not find each other.
    pub async fn start_cluster(program: &Path, jetstream: &str) -> Result<Vec<NatsServer>, Failure> {
        let mut ports = Vec::new();
        while ports.len() < CLUSTER_NODES {
            let port = place::free_port()?;
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        let routes: Vec<_> = ports.iter().map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).collect();
        let mut nodes = Vec::new();
        for (node, port) in ports.iter().enumerate() {
            // Clients must not learn of addresses that go around a proxy.
            let extra = format!(
                "server_name: node{node}\njetstream {{ store_dir: $STORE{jetstream} }}\n\
                 cluster {{ name: postrider, listen: \"127.0.0.1:{port}\", no_advertise: true, routes: [{}] }}\n",
                routes.join(", ")
            );
            nodes.push(NatsServer::start(program, &extra).await?);
        }
        let urls: Vec<_> = nodes.iter().map(NatsServer::url).collect();
        let client =
            async_nats::connect(urls).await.map_err(|error| broken(format!("the cluster: {error}")))?;
        let context = async_nats::jetstream::new(client);
        let deadline = Instant::now() + START_TIMEOUT;
        while context.query_account().await.is_err() {
            if Instant::now() > deadline {
                return Err(broken("the cluster's JetStream finds no leader"));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(nodes)
    }

    /// Starts it again, on the same port and store, after [`stop`](Self::stop) or
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

    /// Replaces the lines added to the configuration, for the next start.
    pub fn set_extra(&mut self, extra: &str) {
        extra.clone_into(&mut self.extra);
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(&mut self) -> Result<(), Failure> {
        if let Some(process) = &mut self.process {
            process.signal(Signal::TERM);
            if !process.wait(STOP_TIMEOUT).await {
                return Err(broken(format!("nats-server still runs {STOP_TIMEOUT:?} after SIGTERM")));
            }
        }
        self.process = None;
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill_blocking();
        }
    }

    /// Stops the process where it stands (SIGSTOP).
    pub fn freeze(&mut self) {
        if let Some(process) = &mut self.process {
            process.signal(Signal::STOP);
        }
    }

    /// Lets it go on.
    pub fn thaw(&mut self) {
        if let Some(process) = &mut self.process {
            process.signal(Signal::CONT);
        }
    }

    /// `nats://127.0.0.1:<port>`
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1; the same after [`start_again`](Self::start_again).
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where JetStream keeps its streams (in a folder `jetstream` therein).
    #[must_use]
    pub fn store_dir(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The process id while it runs.
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
        let config = self.write_config().map_err(StartError::Other)?;
        let offset = log_length(&self.log_file());
        let mut process = Process::spawn(&self.program, &["-c", &config], None, &self.log_file())
            .map_err(StartError::Other)?;
        let deadline = Instant::now() + START_TIMEOUT;
        // <name of the program>_<pid>.ports, written when it listens.
        let suffix = format!("_{}.ports", process.pid().as_raw_pid());
        while !self.has_file(&suffix) {
            let what = if !process.is_running() {
                "nats-server does not start"
            } else if Instant::now() >= deadline {
                process.kill_blocking();
                "nats-server is not ready in time"
            } else {
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            };
            return Err(StartError::of(what, &log_since(&self.log_file(), offset)));
        }
        self.process = Some(process);
        Ok(())
    }

    fn write_config(&self) -> Result<String, Failure> {
        let folder = self.folder.path().display();
        let text = format!(
            "STORE: \"{folder}/store\"\nports_file_dir: \"{folder}\"\nhost: 127.0.0.1\nport: {}\n\
             jetstream {{ store_dir: $STORE }}\n{}\n",
            self.port, self.extra
        );
        let path = self.folder.path().join("nats.conf");
        fs::write(&path, text).map_err(|error| broken(format!("write {}: {error}", path.display())))?;
        Ok(path.to_string_lossy().into_owned())
    }

    fn has_file(&self, suffix: &str) -> bool {
        let files = fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        files.into_iter().any(|file| file.file_name().to_string_lossy().ends_with(suffix))
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
