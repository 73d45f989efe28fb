//! `verify` names whatever table and stream do not agree on.

use crate::support::{Ended, Pipeline};
use serde_json::{Value, json};

async fn verify(pipeline: &Pipeline, arguments: &[&str]) -> (Ended, Value) {
    let ended = pipeline.postrider(&[&["verify", "--json"], arguments].concat()).await;
    let report = serde_json::from_str(&ended.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr));
    (ended, report)
}

async fn insert(pipeline: &Pipeline, rows: u32) {
    let insert = format!(
        "INSERT INTO outbox (event_type, payload) SELECT 'order', jsonb_build_object('n', n) \
         FROM generate_series(1, {rows}) AS n"
    );
    pipeline.execute(&insert).await;
}

fn counts(report: &Value) -> Value {
    let of = |name: &str| report[name].clone();
    json!(["rows", "stored", "missing", "doubled", "misordered", "foreign"].map(of))
}

#[tokio::test]
async fn a_sound_pipeline_agrees_while_its_relay_runs_and_when_it_has_ended() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 500).await;
    for _ in 0..2 {
        let (ended, report) = verify(&pipeline, &[]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(counts(&report), json!([500, 500, 0, 0, 0, 0]));
        assert_eq!(relay.terminate().await, Some(0));
    }
}

#[tokio::test]
async fn a_deleted_message_and_a_foreign_one_are_named() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 30).await;
    pipeline.stored(30).await;
    assert_eq!(relay.terminate().await, Some(0));
    assert!(pipeline.stream().await.delete_message(17).await.unwrap());
    let jetstream = pipeline.jetstream().await;
    jetstream.publish("outbox.alien", "x".into()).await.unwrap().await.unwrap();
    let (ended, report) = verify(&pipeline, &[]).await;
    assert_eq!(ended.code, Some(6), "{}", ended.stderr);
    assert!(ended.stderr.contains("PR0630"), "{}", ended.stderr);
    assert_eq!(counts(&report), json!([30, 29, 1, 0, 0, 1]));
    assert_eq!(report["missing_ids"], json!(["17"]));
    assert_eq!(report["foreign_messages"][0]["seq"], 31);
    let told = pipeline.postrider(&["verify"]).await;
    assert!(told.stdout.contains("MISSING    event 17"), "{}", told.stdout);
    assert!(told.stdout.contains("FOREIGN    message 31, on outbox.alien"), "{}", told.stdout);
}

#[tokio::test]
async fn a_deleted_message_is_missing_also_beside_a_relay_that_has_nothing_to_do() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 5).await;
    pipeline.stored(5).await;
    assert!(pipeline.stream().await.delete_message(2).await.unwrap());
    let (ended, report) = verify(&pipeline, &[]).await;
    assert_eq!(ended.code, Some(6), "{}", ended.stderr);
    assert_eq!((counts(&report), &report["undecided"]), (json!([5, 4, 1, 0, 0, 0]), &json!(false)));
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn rows_that_no_relay_has_published_yet_are_in_the_slot_and_not_missing() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 3).await;
    pipeline.stored(3).await;
    assert_eq!(relay.terminate().await, Some(0));
    insert(&pipeline, 4).await;
    let (ended, report) = verify(&pipeline, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(report["pending"], 4);
    assert_eq!(counts(&report), json!([7, 3, 0, 0, 0, 0]));
}

#[tokio::test]
async fn rows_from_before_the_slot_are_missing_unless_a_poller_has_marked_them() {
    let pipeline = Pipeline::start().await;
    pipeline.execute(crate::support::ARTICLE).await;
    insert(&pipeline, 6).await;
    pipeline.execute("UPDATE outbox SET processed = true WHERE id <= 4; UPDATE outbox SET processed = NULL WHERE id = 5").await;
    pipeline.init().await;
    let (ended, report) = verify(&pipeline, &[]).await;
    assert_eq!(ended.code, Some(6), "{}", ended.stderr);
    assert_eq!((&report["missing_ids"], &report["processed"]), (&json!(["5", "6"]), &json!(4)));
}

#[tokio::test]
async fn an_event_that_is_stored_again_is_doubled() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 2).await;
    pipeline.execute("WITH d AS (DELETE FROM outbox WHERE id = 1 RETURNING *) SELECT FROM d").await;
    pipeline.execute("INSERT INTO outbox (id, event_type, payload) VALUES (1, 'order', '{}')").await;
    pipeline.stored(3).await;
    let (ended, report) = verify(&pipeline, &[]).await;
    assert_eq!(ended.code, Some(6), "{}", ended.stderr);
    assert_eq!((counts(&report), &report["doubled_ids"]), (json!([2, 2, 0, 1, 0, 0]), &json!(["1"])));
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn an_open_letter_is_no_missing_row() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute("INSERT INTO outbox (event_type, payload) VALUES ('no good', '{}'), ('good', '{}')")
        .await;
    pipeline.stored(1).await;
    let (ended, report) = verify(&pipeline, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!((&report["lettered"], &report["stored"]), (&json!(1), &json!(1)));
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_stream_that_has_lost_its_beginning_needs_a_time_to_begin_at() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 3).await;
    pipeline.stored(3).await;
    pipeline.execute("UPDATE outbox SET created_at = created_at - interval '1 day' WHERE id < 3").await;
    pipeline.stream().await.purge().sequence(3).await.unwrap();
    let refused = pipeline.postrider(&["verify"]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("PR0113") && refused.stderr.contains("--since"), "{}", refused.stderr);
    let (ended, report) = verify(&pipeline, &["--since", "1h"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(counts(&report), json!([1, 1, 0, 0, 0, 0]));
    assert_eq!(relay.terminate().await, Some(0));
}
