//! What strangers can do to the relay's HTTP, and what they cannot.

use crate::support::{Pipeline, within};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Far less than a request's head may take.
const SOON: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_lock_nobody_out_and_are_closed() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    let address = relay.http().unwrap();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    let (code, _) = within(SOON, "it answers", async || relay.get("/healthz").await).await;
    assert_eq!(code, 200);
    // The first made room for others; the last was silent for too long.
    for place in [0, 199] {
        let closed = tokio::time::timeout(4 * SOON, silent[place].read(&mut [0; 16])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{place}: {closed:?}");
    }
    assert_eq!(relay.terminate().await, Some(0));
}

/// The answer to a request under this name.
async fn asked_as(address: &str, host: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_site_whose_name_leads_to_loopback_reads_nothing() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    let address = relay.http().unwrap();
    for path in ["/status", "/metrics", "/readyz"] {
        for (host, code) in [("rebound.example", "421"), ("localhost", "200"), (&*address, "200")] {
            let answer = asked_as(&address, host, path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{host}{path}: {answer}");
            assert_eq!(answer.contains("set http.token"), code == "421", "{answer}");
        }
    }
    assert_eq!(relay.terminate().await, Some(0));
}
