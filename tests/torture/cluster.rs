//! Three nats-servers that are one cluster.

use crate::support::eventually;
use async_nats::jetstream;
use postrider::demo::servers::NatsServer;
use serde_json::Value;
use std::net::TcpListener;
use std::path::Path;

pub(crate) const NODES: usize = 3;

/// Starts them, and waits until JetStream has a leader. `jetstream` is added to that
/// block of each.
pub(crate) async fn start(program: &Path, jetstream: &str) -> Vec<NatsServer> {
    let ports: Vec<_> = (0..NODES).map(|_| free_port()).collect();
    let routes: Vec<_> = ports.iter().map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).collect();
    let mut nodes = Vec::new();
    for (node, port) in ports.iter().enumerate() {
        // Clients must not learn of addresses that go around the proxies.
        let extra = format!(
            "server_name: node{node}\njetstream {{ store_dir: $STORE{jetstream} }}\n\
             cluster {{ name: torture, listen: \"127.0.0.1:{port}\", no_advertise: true, routes: [{}] }}\n",
            routes.join(", ")
        );
        nodes.push(NatsServer::start(program, &extra).await.unwrap());
    }
    let client = async_nats::connect(nodes[0].url()).await.unwrap();
    let context = jetstream::new(client);
    eventually("JetStream has a leader", async || context.query_account().await.ok()).await;
    nodes
}

/// Whether the stream has a leader and all its replicas have caught up.
pub(crate) async fn is_whole(context: &jetstream::Context) -> Option<()> {
    let info: Value = context.request("STREAM.INFO.OUTBOX", &()).await.ok()?;
    info["cluster"]["leader"].as_str()?;
    let replicas = info["cluster"]["replicas"].as_array()?;
    let whole = replicas.iter().all(|replica| replica["current"] == true && replica["offline"] != true);
    (replicas.len() == NODES - 1 && whole).then_some(())
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
