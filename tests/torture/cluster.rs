//! Three nats-servers that are one cluster.

use async_nats::jetstream;
use serde_json::Value;
use std::net::TcpListener;

/// Whether the stream has a leader and all its replicas have caught up.
pub(crate) async fn is_whole(context: &jetstream::Context) -> Option<()> {
    let info: Value = context.request("STREAM.INFO.OUTBOX", &()).await.ok()?;
    info["cluster"]["leader"].as_str()?;
    let replicas = info["cluster"]["replicas"].as_array()?;
    let whole = replicas.iter().all(|replica| replica["current"] == true && replica["offline"] != true);
    (replicas.len() == 2 && whole).then_some(())
}

/// Has the stream choose another leader; whether it agreed.
pub(crate) async fn step_down(context: &jetstream::Context) -> bool {
    let answer: Result<Value, _> = context.request("STREAM.LEADER.STEPDOWN.OUTBOX", &()).await;
    answer.is_ok_and(|answer| answer["success"] == true)
}

/// A port that was free a moment ago, below those of outgoing connections.
pub(crate) fn free_port() -> u16 {
    let mut ports = std::iter::repeat_with(|| fastrand::u16(20_000..32_000));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}
