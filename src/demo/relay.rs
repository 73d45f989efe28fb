//! The relay as a user runs it: `postrider init` and `postrider run` of this very program, told by
//! the environment where the servers are.
//!
//! A relay that is killed is started again, as a service manager would: try `kill -9` while the
//! demo runs.

use super::servers::{Process, broken, free_port, log_since};
use crate::error::{Code, Failure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpStream;

/// `init` waits for nobody in a new cluster.
const INIT_TIMEOUT: Duration = Duration::from_secs(60);
/// A drain waits for the acknowledgements of what is on its way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Relay {
    program: PathBuf,
    postgres_url: String,
    nats_url: String,
    http_port: u16,
    log: PathBuf,
    process: Option<Process>,
}

impl Relay {
    /// Nothing is started yet. What is written goes into `folder`.
    pub(super) fn new(postgres_url: String, nats_url: String, folder: &Path) -> Result<Relay, Failure> {
        let program =
            std::env::current_exe().map_err(|error| broken(format!("find this program: {error}")))?;
        // In the folder where it will run, an empty file hides /etc/postrider/postrider.toml.
        let config = folder.join("postrider.toml");
        std::fs::write(&config, "")
            .map_err(|error| broken(format!("write {}: {error}", config.display())))?;
        Ok(Relay {
            program,
            postgres_url,
            nats_url,
            http_port: free_port()?,
            log: folder.join("relay.log"),
            process: None,
        })
    }

    /// `postrider init`
    pub(super) async fn init(&self) -> Result<(), Failure> {
        let mut process = self.spawn("init")?;
        if !process.wait(INIT_TIMEOUT).await {
            process.kill_blocking();
        }
        match process.exit_status() {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.ended("postrider init", &status.to_string())),
            None => Err(self.ended("postrider init", "not done after a minute")),
        }
    }

    /// `postrider run`
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        self.process = Some(self.spawn("run")?);
        Ok(())
    }

    /// Starts it again if it was killed; true when that was so.
    ///
    /// # Errors
    /// It ended of its own accord.
    pub(super) fn look_after(&mut self) -> Result<bool, Failure> {
        match self.process.as_mut().and_then(Process::exit_status) {
            None => Ok(false),
            Some(status) if status.code().is_none() => self.start().map(|()| true),
            Some(status) => Err(self.ended("postrider run", &status.to_string())),
        }
    }

    /// SIGTERM: it drains and ends with 0.
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::TERM);
        if !process.wait(DRAIN_TIMEOUT).await {
            process.kill_blocking();
            return Err(self.ended("postrider run", "still there half a minute after SIGTERM"));
        }
        match process.exit_status() {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.ended("postrider run", &format!("{status} after SIGTERM"))),
            None => Err(self.ended("postrider run", "its exit status is not known")),
        }
    }

    /// Where it serves `/status`.
    pub(super) fn http_port(&self) -> u16 {
        self.http_port
    }

    fn spawn(&self, command: &str) -> Result<Process, Failure> {
        let listen = format!("127.0.0.1:{}", self.http_port);
        let environment = [
            ("DATABASE_URL", self.postgres_url.as_str()),
            ("NATS_URL", self.nats_url.as_str()),
            ("POSTRIDER_HTTP_LISTEN", listen.as_str()),
        ];
        Process::spawn_with(&self.program, &[command], &environment, None, &self.log)
    }

    fn ended(&self, command: &str, how: &str) -> Failure {
        let log = log_since(&self.log, 0);
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n    ");
        let message = format!("`{command}` failed ({how}); it wrote:\n    {tail}");
        Failure::new(Code::DemoFailed, message, "please report this with what it wrote")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill_blocking();
        }
    }
}

/// `published_total` of a running relay's `/status`.
pub(super) async fn published_total(port: u16) -> Option<u64> {
    tokio::time::timeout(STATUS_TIMEOUT, async {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        let request = hyper::Request::get("/status").header("host", "127.0.0.1");
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).ok()?).await.ok()?;
        let body = response.into_body().collect().await.ok()?.to_bytes();
        serde_json::from_slice::<serde_json::Value>(&body).ok()?.get("published_total")?.as_u64()
    })
    .await
    .ok()
    .flatten()
}
