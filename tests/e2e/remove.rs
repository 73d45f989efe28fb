//! `remove` takes away what `init` made, and nothing else.

use crate::support::{Pipeline, eventually};

async fn count(pipeline: &Pipeline, of: &str) -> String {
    pipeline.ask(&format!("SELECT count(*) FROM {of}")).await
}

#[tokio::test]
async fn what_init_made_is_removed_and_the_outbox_stays() {
    let pipeline = Pipeline::article().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('kept', '{}')").await;
    let ended = pipeline.postrider(&["remove", "--yes"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(count(&pipeline, "pg_replication_slots").await, "0");
    assert_eq!(count(&pipeline, "pg_publication").await, "0");
    assert_eq!(count(&pipeline, "pg_namespace WHERE nspname = 'postrider'").await, "0");
    assert_eq!(count(&pipeline, "outbox").await, "1");
    assert_eq!(pipeline.last_seq().await, 0, "the stream stays");
    let again = pipeline.postrider(&["remove", "--yes"]).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stdout.contains("nothing to remove"), "{}", again.stdout);
    // As if it were new here.
    pipeline.init().await;
}

#[tokio::test]
async fn the_stream_goes_when_it_is_asked_for_and_the_publication_stays_when_it_is_to() {
    let pipeline = Pipeline::article().await;
    let ended = pipeline.postrider(&["remove", "--yes", "--with-stream", "--keep-publication"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(count(&pipeline, "pg_publication").await, "1");
    assert!(pipeline.jetstream().await.get_stream("OUTBOX").await.is_err());
    pipeline.init().await;
}

#[tokio::test]
async fn nothing_is_removed_while_a_relay_runs_or_nobody_agrees() {
    let pipeline = Pipeline::article().await;
    let unasked = pipeline.postrider(&["remove"]).await;
    assert_eq!(unasked.code, Some(2), "{}", unasked.stderr);
    assert!(unasked.stderr.contains("remove --yes"), "{}", unasked.stderr);
    let mut relay = pipeline.run().await;
    let refused = pipeline.postrider(&["remove", "--yes", "--with-stream"]).await;
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    assert!(refused.stderr.contains("PR0417"), "{}", refused.stderr);
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('kept', '{}')").await;
    pipeline.stored(1).await;
    assert_eq!(relay.terminate().await, Some(0));
    assert_eq!(count(&pipeline, "pg_publication").await, "1");
}

#[tokio::test]
async fn a_slot_of_another_database_is_not_ours_to_remove() {
    let mut pipeline = Pipeline::article().await;
    pipeline.execute("CREATE DATABASE other").await;
    let url = pipeline.postgres.url("other");
    pipeline.set("DATABASE_URL", &url);
    let refused = pipeline.postrider(&["remove", "--yes"]).await;
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    assert!(refused.stderr.contains("PR0402"), "{}", refused.stderr);
    assert_eq!(count(&pipeline, "pg_replication_slots").await, "1");
}

#[tokio::test]
async fn a_removal_that_stopped_half_way_is_finished_by_the_next() {
    let pipeline = Pipeline::article().await;
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    assert_eq!(pipeline.postrider(&["remove", "--yes"]).await.code, Some(0));
    pipeline.init().await;
    pipeline.execute("DELETE FROM postrider.pipeline; DROP PUBLICATION postrider").await;
    assert_eq!(pipeline.postrider(&["remove", "--yes"]).await.code, Some(0));
    assert_eq!(count(&pipeline, "pg_replication_slots").await, "0");
    assert_eq!(count(&pipeline, "pg_namespace WHERE nspname = 'postrider'").await, "0");
}

#[tokio::test]
async fn a_publication_that_others_use_stays() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_POSTGRES_SLOT", "second");
    pipeline.set("POSTRIDER_NATS_STREAM", "SECOND");
    pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "second.{event_type}");
    pipeline.init().await;
    let ended = pipeline.postrider(&["remove", "--yes"]).await;
    assert!(ended.stdout.contains("which another pipeline uses"), "{}", ended.stdout);
    for name in ["POSTGRES_SLOT", "NATS_STREAM", "OUTBOX_SUBJECT"] {
        pipeline.unset(&format!("POSTRIDER_{name}"));
    }
    pipeline.execute("CREATE TABLE other (n int); ALTER PUBLICATION postrider ADD TABLE other").await;
    let ended = pipeline.postrider(&["remove", "--yes"]).await;
    assert!(ended.stdout.contains("which has other tables"), "{}", ended.stdout);
    assert_eq!(count(&pipeline, "pg_publication").await, "1");
}

#[tokio::test]
async fn the_sql_for_a_dba_removes_the_same() {
    let pipeline = Pipeline::article().await;
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/remove.sql");
    let script = std::fs::read_to_string(script).unwrap();
    // The slot in a transaction of its own, as psql sends it.
    let (slot, rest) = script.split_once("DELETE FROM").unwrap();
    pipeline.execute(slot).await;
    pipeline.execute(&format!("DELETE FROM{rest}")).await;
    for what in ["pg_replication_slots", "pg_publication", "pg_namespace WHERE nspname = 'postrider'"] {
        assert_eq!(count(&pipeline, what).await, "0", "{what}");
    }
}

#[tokio::test]
async fn another_pipeline_and_open_letters_keep_the_schema() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_POSTGRES_SLOT", "second");
    pipeline.set("POSTRIDER_POSTGRES_PUBLICATION", "second");
    pipeline.set("POSTRIDER_NATS_STREAM", "SECOND");
    pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "second.{event_type}");
    pipeline.init().await;
    assert_eq!(pipeline.postrider(&["remove", "--yes"]).await.code, Some(0));
    assert_eq!(count(&pipeline, "postrider.pipeline").await, "1");
    for name in ["SLOT", "PUBLICATION"] {
        pipeline.unset(&format!("POSTRIDER_POSTGRES_{name}"));
    }
    pipeline.unset("POSTRIDER_NATS_STREAM");
    pipeline.unset("POSTRIDER_OUTBOX_SUBJECT");

    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('no.subject', '{}')").await;
    eventually("a letter is written", async || {
        (count(&pipeline, "postrider.dead_letter").await == "1").then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0));
    let ended = pipeline.postrider(&["remove", "--yes"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("1 open dead letters"), "{}", ended.stdout);
    assert_eq!(count(&pipeline, "postrider.dead_letter").await, "1");
}
