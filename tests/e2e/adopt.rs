//! `init` beside what is there already: nothing is stored twice unless it was said so.

use crate::refusals::{insert, refused};
use crate::support::{ARTICLE, Pipeline, eventually};

async fn three_stored() -> Pipeline {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    for _ in 0..3 {
        insert(&pipeline, "'before'").await;
    }
    pipeline.stored(3).await;
    assert_eq!(relay.terminate().await, Some(0));
    pipeline
}

/// `init --adopt`, another row, and all subjects that were ever stored behind the first three.
async fn adopted(pipeline: &Pipeline) -> Vec<String> {
    let ended = pipeline.postrider(&["init", "--adopt"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("given up"), "{}", ended.stdout);
    let mut relay = pipeline.run().await;
    insert(pipeline, "'after'").await;
    relay.published(1).await;
    pipeline.drained(&mut relay).await
}

#[tokio::test]
async fn a_row_that_is_gone_beside_a_purged_stream_is_no_new_pipeline() {
    let pipeline = three_stored().await;
    pipeline.stream().await.purge().await.unwrap();
    pipeline.execute("DELETE FROM postrider.pipeline").await;
    refused(&pipeline.postrider(&["init"]).await, (5, "PR0405", "--adopt"));
}

#[tokio::test]
async fn adopting_a_stream_with_a_foreign_message_doubles_nothing() {
    let pipeline = three_stored().await;
    pipeline.jetstream().await.publish("outbox.theirs", "".into()).await.unwrap().await.unwrap();
    // The row is behind: as after a crash.
    pipeline.execute("UPDATE postrider.pipeline SET seq = 0, position = NULL, settled_lsn = (SELECT confirmed_flush_lsn FROM pg_replication_slots), confirmed_seq = 0").await;
    assert_eq!(
        adopted(&pipeline).await,
        ["outbox.before", "outbox.before", "outbox.before", "outbox.theirs", "outbox.after"]
    );
}

#[tokio::test]
async fn adopting_refuses_where_it_could_double_what_is_gone() {
    let pipeline = three_stored().await;
    pipeline.stream().await.purge().await.unwrap();
    pipeline.jetstream().await.publish("outbox.theirs", "".into()).await.unwrap().await.unwrap();
    pipeline.execute("UPDATE postrider.pipeline SET seq = 0, position = NULL, settled_lsn = (SELECT confirmed_flush_lsn FROM pg_replication_slots), confirmed_seq = 0").await;
    refused(&pipeline.postrider(&["init", "--adopt"]).await, (5, "PR0411", "pg_drop_replication_slot"));
}

#[tokio::test]
async fn adopting_without_the_slot_goes_on_from_now() {
    let pipeline = three_stored().await;
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    insert(&pipeline, "'between'").await;
    refused(&pipeline.postrider(&["init"]).await, (5, "PR0401", "postrider recover"));
    assert_eq!(adopted(&pipeline).await, ["outbox.before", "outbox.before", "outbox.before", "outbox.after"]);
}

#[tokio::test]
async fn events_that_expired_are_not_published_again() {
    let mut pipeline = Pipeline::start().await;
    pipeline.set("POSTRIDER_NATS_MAX_AGE", "1s");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    for _ in 0..3 {
        insert(&pipeline, "'expired'").await;
    }
    pipeline.stored(3).await;
    relay.kill();
    eventually("everything expires", async || {
        (pipeline.stream().await.cached_info().state.messages == 0).then_some(())
    })
    .await;
    relay = pipeline.run().await;
    insert(&pipeline, "'last'").await;
    pipeline.stored(4).await;
    assert_eq!(relay.terminate().await, Some(0));
    assert_eq!(pipeline.last_seq().await, 4);
}

#[tokio::test]
async fn init_by_the_relays_role_needs_no_more_than_the_printed_sql_grants() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(&format!("{ARTICLE}; CREATE ROLE relay LOGIN")).await;
    let url = format!("postgres://relay@127.0.0.1:{}/postgres", pipeline.postgres.port());
    pipeline.set("DATABASE_URL", &url);
    let printed = pipeline.postrider(&["init", "--print-sql"]).await;
    // A slot must be created in a transaction that has not written.
    let sql = pipeline.sql().await;
    for statement in printed.stdout.split(";\n") {
        sql.batch_execute(statement).await.unwrap();
    }
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'kept'").await;
    pipeline.stored(1).await;
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.kept"]);
}

#[tokio::test]
async fn a_slot_behind_an_open_transaction_names_it_and_leaves_nothing() {
    let pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    let sql = pipeline.sql().await;
    sql.batch_execute("BEGIN; INSERT INTO outbox (event_type, payload) VALUES ('open', '{}')").await.unwrap();
    let pid: i32 = sql.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let ended = pipeline.postrider(&["init"]).await;
    refused(&ended, (5, "PR0416", ""));
    assert!(ended.stderr.contains(&pid.to_string()), "{}", ended.stderr);
    assert_eq!(pipeline.ask("SELECT count(*) FROM pg_replication_slots").await, "0");
    sql.batch_execute("ROLLBACK").await.unwrap();
    pipeline.init().await;
}
