//! What the relay tells systemd, whose socket is the test's own.

use crate::support::{DEADLINE, Pipeline, Relay};
use rustix::process::Signal;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A relay that feeds four times as often is in time also on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(3);

/// Systemd's end of the socket.
pub(crate) struct Systemd {
    socket: tokio::net::UnixDatagram,
    name: String,
    heard: Vec<String>,
    _folder: Option<TempDir>,
}

impl Systemd {
    /// And the relays of the pipeline are told of it.
    fn of(pipeline: &mut Pipeline) -> Systemd {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let (socket, name) = (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned());
        let systemd = Systemd::new(socket, name, Some(folder));
        for (variable, value) in systemd.variables() {
            pipeline.set(variable, &value);
        }
        systemd
    }

    /// With a name that every user reaches.
    pub(crate) fn with_abstract_name() -> Systemd {
        let name = format!("postrider-test/{}/{:?}", std::process::id(), std::thread::current().id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Systemd::new(socket, format!("@{name}"), None)
    }

    fn new(socket: UnixDatagram, name: String, folder: Option<TempDir>) -> Systemd {
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::UnixDatagram::from_std(socket).unwrap();
        Systemd { socket, name, heard: Vec::new(), _folder: folder }
    }

    /// What a service is started with.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [("NOTIFY_SOCKET", self.name.clone()), ("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())]
    }

    /// The next line that begins so.
    pub(crate) async fn hears(&mut self, beginning: &str) -> String {
        self.hears_within(DEADLINE, beginning)
            .await
            .unwrap_or_else(|| panic!("no {beginning}: {:?}", self.heard))
    }

    async fn hears_within(&mut self, limit: Duration, beginning: &str) -> Option<String> {
        let until = Instant::now() + limit;
        loop {
            if let Some(place) = self.heard.iter().position(|line| line.starts_with(beginning)) {
                return self.heard.drain(..=place).next_back();
            }
            let mut buffer = [0; 4096];
            let left = until.saturating_duration_since(Instant::now());
            let received = tokio::time::timeout(left, self.socket.recv(&mut buffer)).await.ok()?;
            let text = std::str::from_utf8(&buffer[..received.unwrap()]).unwrap();
            self.heard.extend(text.lines().map(str::to_owned));
        }
    }

    /// All that has come and was not looked at.
    pub(crate) fn rest(&mut self) -> Vec<String> {
        let mut buffer = [0; 4096];
        while let Ok(received) = self.socket.try_recv(&mut buffer) {
            self.heard.extend(std::str::from_utf8(&buffer[..received]).unwrap().lines().map(str::to_owned));
        }
        std::mem::take(&mut self.heard)
    }

    /// For three times the watchdog's time a sign comes within each of them.
    async fn is_fed(&mut self) {
        self.rest();
        let begun = Instant::now();
        while begun.elapsed() < 3 * WATCHDOG {
            let fed = self.hears_within(WATCHDOG, "WATCHDOG=1").await;
            assert!(fed.is_some(), "not fed for {WATCHDOG:?}: {:?}", self.heard);
        }
    }
}

async fn ends_with_0(relay: &mut Relay) {
    assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_hears_when_the_relay_is_ready_what_it_does_in_words_and_that_it_stops() {
    let mut pipeline = Pipeline::article().await;
    let mut systemd = Systemd::of(&mut pipeline);
    let mut relay = pipeline.spawn(&["run"]);
    systemd.hears("READY=1").await;
    systemd.hears("STATUS=leader stream: streaming").await;
    pipeline.nats.kill();
    systemd.hears("STATUS=waiting waiting: nats://127.0.0.1").await;
    pipeline.nats.start_again().await.unwrap();
    systemd.hears("STATUS=leader stream: streaming").await;
    ends_with_0(&mut relay).await;
    let rest = systemd.rest();
    assert!(rest.contains(&"STOPPING=1".to_owned()), "{rest:?}");
    assert!(!rest.contains(&"READY=1".to_owned()), "told once: {rest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watchdog_is_fed_while_the_relay_streams_and_while_nats_or_postgres_is_away() {
    let mut pipeline = Pipeline::article().await;
    let mut systemd = Systemd::of(&mut pipeline);
    let mut relay = pipeline.run().await;
    systemd.is_fed().await;
    pipeline.nats.kill();
    systemd.hears("STATUS=waiting").await;
    systemd.is_fed().await;
    pipeline.nats.start_again().await.unwrap();
    systemd.hears("STATUS=leader stream").await;
    pipeline.postgres.kill().await;
    systemd.hears("STATUS=waiting").await;
    systemd.is_fed().await;
    ends_with_0(&mut relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_relay_does_not_feed_the_watchdog() {
    let mut pipeline = Pipeline::article().await;
    let mut systemd = Systemd::of(&mut pipeline);
    let mut relay = pipeline.run().await;
    systemd.hears("WATCHDOG=1").await;
    relay.signal(Signal::STOP);
    // What was on its way.
    systemd.hears_within(WATCHDOG / 4, "nothing").await;
    systemd.rest();
    assert_eq!(systemd.hears_within(WATCHDOG, "WATCHDOG=1").await, None);
    relay.signal(Signal::CONT);
    systemd.hears("WATCHDOG=1").await;
    ends_with_0(&mut relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_waits_for_servers_and_one_that_stands_by_are_ready() {
    let mut pipeline = Pipeline::article().await;
    let mut systemd = Systemd::of(&mut pipeline);
    pipeline.nats.kill();
    let mut waiting = pipeline.spawn(&["run"]);
    systemd.hears("READY=1").await;
    systemd.hears("STATUS=waiting").await;
    ends_with_0(&mut waiting).await;
    pipeline.nats.start_again().await.unwrap();

    let mut leader = pipeline.run().await;
    systemd.rest();
    let mut standby = pipeline.spawn(&["run"]);
    systemd.hears("READY=1").await;
    systemd.hears("STATUS=standby waiting: another relay holds slot `postrider`: standing by").await;
    ends_with_0(&mut standby).await;
    ends_with_0(&mut leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_refused_at_its_start_is_never_ready_and_systemd_is_told_why() {
    let mut pipeline = Pipeline::start().await;
    let mut systemd = Systemd::of(&mut pipeline);
    let ended = pipeline.postrider(&["run"]).await;
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    let told = systemd.rest();
    assert!(!told.contains(&"READY=1".to_owned()), "{told:?}");
    let last = told.last().unwrap();
    assert!(last.starts_with("STATUS=halted halt: stream `OUTBOX` does not exist"), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_with_an_abstract_name_serves_too() {
    let mut pipeline = Pipeline::article().await;
    let mut systemd = Systemd::with_abstract_name();
    for (variable, value) in systemd.variables() {
        pipeline.set(variable, &value);
    }
    let mut relay = pipeline.spawn(&["run"]);
    systemd.hears("READY=1").await;
    ends_with_0(&mut relay).await;
    assert!(systemd.rest().contains(&"STOPPING=1".to_owned()));
}
