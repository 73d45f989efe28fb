//! What strangers can do to the relay's HTTP, and what they cannot.

use crate::support::{Pipeline, within};
use std::time::Duration;
use tokio::io::AsyncReadExt;
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
