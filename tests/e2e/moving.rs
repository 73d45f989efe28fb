//! `docs/moving.md`, "From a poller", step by step under load. What a person pastes is taken from there.

use crate::doctor::BOUNDED;
use crate::poller::{Poller, Then};
use crate::support::{ARTICLE, Load, Pipeline, Relay, Servers, eventually};
use async_nats::jetstream::stream::Config;
use std::collections::HashMap;
use std::time::Duration;

const MOVING: &str = include_str!("../../docs/moving.md");

/// The article's is 2 s.
const PAUSE: Duration = Duration::from_millis(100);

/// Statements as the page has them.
const UNDER_WAY: &str = "CREATE TABLE moving AS SELECT id FROM outbox WHERE processed = false;";
const THROUGH: &str = "SELECT count(*) = 0 FROM outbox JOIN moving USING (id) WHERE processed = false;";
const MOVED_BACK: &str = "CREATE TABLE moved_back AS SELECT id FROM outbox WHERE processed = false;";
const END: &str = "SELECT pg_current_wal_insert_lsn();";
const CONFIRMED: &str =
    "SELECT confirmed_flush_lsn >= '0/5000000' FROM pg_replication_slots WHERE slot_name = 'postrider';";
const MARK: &str = "UPDATE outbox SET processed = true WHERE id IN (SELECT id FROM moved_back);";

/// `statement`, which the page has.
fn pasted(statement: &str) -> &str {
    assert!(MOVING.contains(statement), "docs/moving.md has no\n{statement}");
    statement.trim_end_matches(';')
}

/// The article table, its poller, and the stream that consumers read.
async fn polled() -> (Pipeline, Poller, Load) {
    let pipeline = Pipeline::on(Servers { settings: BOUNDED, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    let config = Config { name: "EVENTS".into(), subjects: vec!["events.>".into()], ..Config::default() };
    pipeline.jetstream().await.create_stream(config).await.unwrap();
    let poller = Poller::start(&pipeline, "events", Then::Mark, PAUSE).await;
    let load = Load::endless(&pipeline, 3, &[1, 4, 1], Duration::from_millis(50));
    (pipeline, poller, load)
}

/// Steps 3 to 5, while writers write.
async fn moved(pipeline: &Pipeline, poller: Poller) -> Relay {
    assert!(MOVING.contains("postrider init --source-into EVENTS --as 'events.>'"));
    let init = pipeline.postrider(&["init", "--source-into", "EVENTS", "--as", "events.>"]).await;
    assert_eq!(init.code, Some(0), "{}", init.stderr);
    pipeline.execute(pasted(UNDER_WAY)).await;
    eventually("the poller has been through", async || {
        (pipeline.ask(pasted(THROUGH)).await == "true").then_some(())
    })
    .await;
    poller.stop().await;
    pipeline.run().await
}

async fn ids(pipeline: &Pipeline, condition: &str) -> Vec<String> {
    let query = format!("SELECT id::text FROM outbox WHERE {condition} ORDER BY outbox.id");
    pipeline.sql().await.query(&query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// How often the consumers' stream has each event, once it has all of these.
async fn seen_by_consumers(pipeline: &Pipeline, all: &[String]) -> HashMap<String, usize> {
    eventually("all events are in EVENTS", async || {
        let mut times = HashMap::new();
        for message in pipeline.messages_of("EVENTS").await {
            assert!(message.subject.starts_with("events.order_"), "{}", message.subject);
            *times.entry(message.id().to_owned()).or_insert(0) += 1;
        }
        all.iter().all(|id| times.contains_key(id)).then_some(times)
    })
    .await
}

#[tokio::test]
async fn a_move_under_load_loses_nothing_and_doubles_only_what_the_poller_took_behind_the_slot() {
    let (pipeline, poller, mut load) = polled().await;
    eventually("the poller works", async || {
        (pipeline.ask("SELECT count(*) > 50 FROM outbox WHERE processed").await == "true").then_some(())
    })
    .await;
    let mut relay = moved(&pipeline, poller).await;
    let polled = ids(&pipeline, "processed").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.finish().await;
    let all = ids(&pipeline, "true").await;
    let times = seen_by_consumers(&pipeline, &all).await;
    assert_eq!(times.len(), all.len(), "nothing but what was committed");
    let relayed: HashMap<_, _> =
        pipeline.messages().await.into_iter().map(|m| (m.id().to_owned(), ())).collect();
    for id in &all {
        let (by_poller, by_relay) = (polled.contains(id), relayed.contains_key(id));
        assert_eq!(times[id], usize::from(by_poller) + usize::from(by_relay), "event {id}");
    }
    // Nobody published what is older than the slot but the poller, and the relay all that it did not.
    assert!(all.iter().any(|id| polled.contains(id) && !relayed.contains_key(id)));
    assert!(all.iter().any(|id| !polled.contains(id) && relayed.contains_key(id)));

    let canary = pipeline.postrider(&["doctor", "--canary"]).await;
    assert_eq!(canary.code, Some(0), "{}{}", canary.stdout, canary.stderr);
    let verify = pipeline.postrider(&["verify", "--json"]).await;
    assert_eq!(verify.code, Some(0), "{}{}", verify.stdout, verify.stderr);
    let report: serde_json::Value = serde_json::from_str(&verify.stdout).unwrap();
    let by_poller_alone = polled.iter().filter(|id| !relayed.contains_key(*id)).count();
    assert_eq!((&report["missing"], &report["processed"]), (&0.into(), &by_poller_alone.into()), "{report}");
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_move_with_a_pause_of_the_poller_under_load_loses_and_doubles_nothing() {
    let (pipeline, poller, mut load) = polled().await;
    eventually("the poller works", async || {
        (pipeline.ask("SELECT count(*) > 50 FROM outbox WHERE processed").await == "true").then_some(())
    })
    .await;
    poller.stop().await;
    let polled = ids(&pipeline, "processed").await;
    assert!(MOVING.contains("postrider init --backfill --source-into EVENTS --as 'events.>'"));
    let init =
        pipeline.postrider(&["init", "--backfill", "--source-into", "EVENTS", "--as", "events.>"]).await;
    assert_eq!(init.code, Some(0), "{}{}", init.stdout, init.stderr);
    let mut relay = pipeline.run().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.finish().await;
    let all = ids(&pipeline, "true").await;
    let times = seen_by_consumers(&pipeline, &all).await;
    assert!(times.len() == all.len() && times.values().all(|times| *times == 1), "{times:?}");
    let relayed = pipeline.messages().await;
    assert!(!polled.is_empty() && relayed.iter().all(|message| !polled.iter().any(|id| *id == message.id())));
    let verify = pipeline.postrider(&["verify"]).await;
    assert_eq!(verify.code, Some(0), "{}{}", verify.stdout, verify.stderr);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_move_back_loses_nothing_and_doubles_only_what_was_committed_behind_its_first_line() {
    let (pipeline, poller, mut load) = polled().await;
    let mut relay = moved(&pipeline, poller).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    pipeline.execute(pasted(MOVED_BACK)).await;
    let before = ids(&pipeline, "true").await;
    let end = pipeline.ask(pasted(END).trim_start_matches("SELECT ")).await;
    let confirmed = pasted(CONFIRMED).replace("0/5000000", &end);
    eventually("the slot is confirmed past them", async || {
        (pipeline.ask(&confirmed).await == "true").then_some(())
    })
    .await;
    pipeline.execute(pasted(MARK)).await;
    assert_eq!(relay.terminate().await, Some(0));
    let poller = Poller::start(&pipeline, "events", Then::Mark, PAUSE).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.finish().await;
    eventually("the poller is through", async || {
        (pipeline.ask("SELECT count(*) FROM outbox WHERE processed = false").await == "0").then_some(())
    })
    .await;
    poller.stop().await;
    let all = ids(&pipeline, "true").await;
    let times = seen_by_consumers(&pipeline, &all).await;
    // What the move itself has doubled was there before.
    let doubled: Vec<_> = all.iter().filter(|id| times[*id] > 1 && !before.contains(id)).collect();
    let relayed: Vec<_> = pipeline.messages().await.iter().map(|message| message.id().to_owned()).collect();
    assert!(!doubled.is_empty(), "no row was committed between the first line and the relay's end");
    assert!(doubled.iter().all(|id| relayed.contains(id) && times[*id] == 2), "by both, once each");
    let marked = ids(&pipeline, "id IN (SELECT id FROM moved_back)").await;
    assert!(!marked.is_empty(), "there was nothing to mark");
    assert!(marked.iter().all(|id| times[id] == 1), "what was marked is published again");
    assert!(all.len() > before.len());
}
