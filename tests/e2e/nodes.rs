//! A stream with three replicas on three nats-servers.

use crate::paced::{Paced, longest_pause};
use crate::support::{ARTICLE, Pipeline, eventually};
use async_nats::jetstream;
use postrider::demo::servers::{NatsServer, nats_program};
use std::time::Duration;

/// A pipeline on three nodes; the pipeline's own nats-server is the first.
async fn on_three_nodes() -> (Pipeline, Vec<NatsServer>) {
    let mut pipeline = Pipeline::start().await;
    let mut others = NatsServer::start_cluster(&nats_program(None).unwrap(), "").await.unwrap();
    pipeline.nats = others.remove(0);
    let nodes = [&pipeline.nats].into_iter().chain(&others);
    let urls: Vec<_> = nodes.map(NatsServer::url).collect();
    pipeline.set("NATS_URL", &urls.join(","));
    pipeline.set("POSTRIDER_NATS_REPLICAS", "3");
    pipeline.unset("POSTRIDER_NATS_SYNC_INTERVAL");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    pipeline.watch_commits().await;
    (pipeline, others)
}

/// (leader's name, other nodes that have all messages), as `node` knows it.
async fn look(node: &NatsServer) -> Option<(String, usize)> {
    let client = async_nats::connect(node.url()).await.ok()?;
    let stream = jetstream::new(client).get_stream("OUTBOX").await.ok()?;
    let cluster = stream.cached_info().cluster.clone()?;
    let current = cluster.replicas.iter().filter(|replica| replica.current && !replica.offline).count();
    Some((cluster.leader?, current))
}

async fn whole(node: &NatsServer) -> (String, usize) {
    let is_whole = async || look(node).await.filter(|(_, current)| *current == 2);
    eventually("two others have all messages", is_whole).await
}

/// How a node goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ending {
    Killed,
    Stopped,
}

/// Ends each node under load and starts it again, the stream's leader first; the longest pause between
/// two messages.
async fn each_node_ends(ending: Ending) -> Duration {
    let (mut pipeline, mut others) = on_three_nodes().await;
    let mut relay = pipeline.run().await;
    let load = Paced::start(&pipeline.postgres.url("postgres"), 4, 500);
    let mut left = vec![0, 1, 2];
    while !left.is_empty() {
        let (leader, _) = whole(&pipeline.nats).await;
        // Where it leads again, one of the others.
        let place = left.iter().position(|node| format!("node{node}") == leader).unwrap_or(0);
        let node = left.remove(place);
        let stored = pipeline.last_seq().await;
        pipeline.stored(stored + 300).await;
        let ended = if node == 0 { &mut pipeline.nats } else { &mut others[node - 1] };
        match ending {
            Ending::Killed => ended.kill(),
            Ending::Stopped => ended.stop().await.unwrap(),
        }
        let published = relay.status().await.unwrap()["published_total"].as_u64().unwrap();
        relay.published(published + 1000).await;
        let ended = if node == 0 { &mut pipeline.nats } else { &mut others[node - 1] };
        ended.start_again().await.unwrap();
        whole(&pipeline.nats).await;
    }
    let rate = load.finish().await;
    // To read the stream takes a consumer, and that the leader of all.
    let jetstream = pipeline.jetstream().await;
    eventually("JetStream has a leader", async || jetstream.query_account().await.ok().map(drop)).await;
    pipeline.proves(&mut relay).await;
    let pause = longest_pause(&pipeline.messages().await);
    println!("{ending:?}: longest pause {pause:?} at {rate:.0} rows/s");
    pause
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_three_nodes_is_killed_under_load_and_nothing_is_lost_or_doubled() {
    // The others choose a new leader after 4 to 9 s, by nats-server's own clock.
    let pause = each_node_ends(Ending::Killed).await;
    assert!(pause < Duration::from_secs(30), "{pause:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_three_nodes_is_stopped_in_order_under_load_and_nothing_is_lost_or_doubled() {
    let pause = each_node_ends(Ending::Stopped).await;
    assert!(pause < Duration::from_secs(15), "{pause:?}");
}
