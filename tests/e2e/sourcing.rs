//! A stream with other writers sources the relay's: all events, in order, soon.

use crate::refusals::refused;
use crate::support::{Load, Pipeline, eventually};
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::stream::{Config, Stream};
use futures_util::StreamExt;
use std::time::{Duration, Instant};

/// Generous: the median is about a millisecond.
const SOON: Duration = Duration::from_secs(1);

async fn shared(pipeline: &Pipeline) -> Stream {
    let config =
        Config { name: "EVENTS".into(), subjects: vec!["events.direct.>".into()], ..Config::default() };
    pipeline.jetstream().await.create_stream(config).await.unwrap()
}

#[tokio::test]
async fn a_shared_stream_gets_all_events_in_order_and_soon_beside_other_writers() {
    let pipeline = Pipeline::article().await;
    let mut events = shared(&pipeline).await;
    pipeline.watch_commits().await;
    let share = ["init", "--source-into", "EVENTS", "--as", "events.shop.>"];
    for said in ["sources from now on", "sources already"] {
        let ended = pipeline.postrider(&share).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stdout.contains(said), "{}", ended.stdout);
    }
    assert_eq!(events.info().await.unwrap().config.subjects, ["events.direct.>"], "the rest stays");
    let mut relay = pipeline.run().await;
    let consumer = events.create_consumer(OrderedConfig::default()).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();

    // One by one, for the time that it takes.
    let mut took = Vec::new();
    for _ in 0..50 {
        pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('timed', '{}')").await;
        let committed = Instant::now();
        let message = messages.next().await.unwrap().unwrap();
        assert_eq!(message.subject.as_str(), "events.shop.timed");
        took.push(committed.elapsed());
    }
    took.sort_unstable();
    assert!(took[took.len() / 2] < SOON, "commit to shared stream: {took:?}");

    let direct = pipeline.jetstream().await;
    let other = tokio::spawn(async move {
        for n in 0..500 {
            direct.publish(format!("events.direct.{n}"), "x".into()).await.unwrap().await.unwrap();
        }
    });
    let mut load = Load::rounds(&pipeline, 3, &[1, 7, 1, 30], 20);
    load.done().await;
    other.await.unwrap();
    let committed = pipeline.committed().await;
    let (mut ours, mut theirs) = (50, 0);
    while ours < committed.len() || theirs < 500 {
        let next = tokio::time::timeout(Duration::from_secs(60), messages.next()).await;
        let message = next.unwrap().unwrap().unwrap();
        if message.subject.starts_with("events.direct.") {
            theirs += 1;
            continue;
        }
        let id = message.headers.as_ref().unwrap().get("Postrider-Event-Id").unwrap();
        assert_eq!(id.as_str(), committed[ours].0, "event {ours}");
        ours += 1;
    }
    pipeline.proves(&mut relay).await;
    let all = committed.len() as u64 + 500;
    eventually("nothing comes twice", async || {
        (events.info().await.ok()?.state.messages == all).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_sourced_is_refused() {
    let pipeline = Pipeline::article().await;
    let share = ["init", "--source-into", "EVENTS", "--as", "events.>"];
    refused(&pipeline.postrider(&share).await, (4, "PR0304", "nats stream add EVENTS"));
    shared(&pipeline).await;
    assert_eq!(pipeline.postrider(&share).await.code, Some(0));
    let otherwise = ["init", "--source-into", "EVENTS", "--as", "other.>"];
    refused(&pipeline.postrider(&otherwise).await, (4, "PR0305", "nats stream edit"));
    let bad = ["init", "--source-into", "EVENTS", "--as", "events.*.>"];
    assert_eq!(pipeline.postrider(&bad).await.code, Some(4));
    assert_eq!(pipeline.postrider(&["init", "--as", "events.>"]).await.code, Some(2));
}
