//! The stream loses its end: a power failure of the NATS machine, played by putting an earlier copy of
//! its store back.

use crate::refusals::refused;
use crate::support::{Pipeline, within};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

async fn write(pipeline: &Pipeline, count: usize) {
    pipeline
        .execute(&format!(
            "INSERT INTO outbox (event_type, payload) SELECT 'e', '{{}}' FROM generate_series(1, {count})"
        ))
        .await;
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

/// Stores 1000 events and keeps a copy of the store, stores 1000 more, and puts the copy back, while
/// `meanwhile` may do something to the relay.
pub(crate) async fn lose_a_thousand(pipeline: &mut Pipeline, meanwhile: impl AsyncFnOnce(&mut Pipeline)) {
    let folder = tempfile::tempdir().unwrap();
    let store = pipeline.nats.store_dir();
    write(pipeline, 1000).await;
    pipeline.stored(1000).await;
    pipeline.nats.kill();
    copy(&store, &folder.path().join("store"));
    pipeline.nats.start_again().await.unwrap();
    write(pipeline, 1000).await;
    pipeline.stored(2000).await;
    meanwhile(pipeline).await;
    pipeline.nats.kill();
    copy(&folder.path().join("store"), &store);
    pipeline.nats.start_again().await.unwrap();
}

async fn complete(pipeline: &Pipeline, count: usize) {
    let ids: Vec<_> = pipeline.exactly(count).await.iter().map(|message| message.id().to_owned()).collect();
    assert_eq!(ids, (1..=count).map(|id| id.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn events_that_the_stream_lost_within_the_hold_back_are_stored_again_on_the_same_sequences() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "10m");
    let mut relay = pipeline.run().await;
    lose_a_thousand(&mut pipeline, async |_| {}).await;
    // Nothing new is written: the loss is found all the same.
    complete(&pipeline, 2000).await;
    write(&pipeline, 10).await;
    complete(&pipeline, 2010).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_loss_is_found_by_the_first_publish_behind_it() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "10m");
    let mut relay = pipeline.run().await;
    lose_a_thousand(&mut pipeline, async |_| {}).await;
    write(&pipeline, 500).await;
    complete(&pipeline, 2500).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_loss_while_the_relay_is_down_is_found_at_its_start() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "10m");
    let mut relay = pipeline.run().await;
    lose_a_thousand(&mut pipeline, async |_| relay.kill()).await;
    let mut relay = pipeline.run().await;
    complete(&pipeline, 2000).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_loss_of_what_was_confirmed_ends_the_relay_with_exit_5_and_names_recover() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "0s");
    let relay = pipeline.run().await;
    lose_a_thousand(&mut pipeline, async |pipeline| {
        let relied = "SELECT confirmed_seq = 2000 FROM postrider.pipeline";
        within(Duration::from_secs(30), "all is confirmed", async || {
            (pipeline.ask(relied).await == "true").then_some(())
        })
        .await;
    })
    .await;
    refused(&relay.ended().await, (5, "PR0409", "recover"));
    assert_eq!(pipeline.last_seq().await, 1000);
    refused(&pipeline.postrider(&["run"]).await, (5, "PR0409", "recover"));
}

#[tokio::test]
async fn a_stream_made_anew_under_its_name_ends_the_relay_with_exit_5() {
    let pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    write(&pipeline, 10).await;
    pipeline.stored(10).await;
    let jetstream = pipeline.jetstream().await;
    let config = pipeline.stream().await.cached_info().config.clone();
    jetstream.delete_stream("OUTBOX").await.unwrap();
    jetstream.create_stream(config).await.unwrap();
    write(&pipeline, 10).await;
    refused(&relay.ended().await, (5, "PR0408", "recover"));
    assert_eq!(pipeline.last_seq().await, 0);
}

#[tokio::test]
async fn a_deleted_stream_is_waited_for_and_named() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    write(&pipeline, 10).await;
    pipeline.stored(10).await;
    pipeline.jetstream().await.delete_stream("OUTBOX").await.unwrap();
    within(Duration::from_secs(60), "it says so", async || {
        let status = relay.status().await?;
        (status["last_error"]["code"] == "PR0304").then_some(())
    })
    .await;
    assert!(relay.is_running());
}
