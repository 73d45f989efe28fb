//! Asks each relay once a second what it does.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const INTERVAL: Duration = Duration::from_secs(1);
/// A stopped relay accepts and does not answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Seen {
    /// Answers by state.
    pub(crate) states: BTreeMap<String, u32>,
    /// Each LSN that was confirmed.
    pub(crate) confirmed: BTreeSet<String>,
    /// Answers that name neither a stream nor a reason.
    pub(crate) silent: Vec<String>,
}

/// Asks them for as long as the runtime lives.
pub(crate) fn watch(ports: &[u16]) -> Arc<Mutex<Seen>> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    for port in ports.iter().copied() {
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let status = tokio::time::timeout(ANSWER_MAX, status(port)).await;
                if let Ok(Some(status)) = status {
                    note(&mut seen.lock().unwrap(), &status);
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
    }
    seen
}

fn note(seen: &mut Seen, status: &Value) {
    let state = status["state"].as_str().unwrap_or("none").to_owned();
    if state != "stream" && status["reason"].as_str().is_none_or(str::is_empty) {
        seen.silent.push(status.to_string());
    }
    if let Some(lsn) = status["confirmed_lsn"].as_str() {
        seen.confirmed.insert(lsn.to_owned());
    }
    *seen.states.entry(state).or_default() += 1;
}

pub(crate) async fn status(port: u16) -> Option<Value> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    socket.write_all(request).await.ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}
