//! `prune` proves what it touches as the relay's own clean-up does, beside a relay and without one.

use crate::care::{count, insert, prune, with};
use crate::rollback::lose_a_thousand;
use crate::support::{ARTICLE, Pipeline, Servers, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const AT_ONCE: [&str; 2] = ["--care-delete-after", "0s"];

#[tokio::test]
async fn prune_by_hand_does_the_same_beside_a_relay_and_without_one() {
    let pipeline = with(&[]).await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 1200).await;
    pipeline.execute("INSERT INTO outbox (event_type) VALUES ('no good')").await;
    let (ended, report) = prune(&pipeline, &[&["--dry-run"], &AT_ONCE[..]].concat()).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        (&report["deleted"], &report["dry_run"], &report["waiting"]),
        (&json!(1200), &json!(true), &json!(0))
    );
    assert_eq!(count(&pipeline, "outbox").await, 1201);
    let (_, report) = prune(&pipeline, &AT_ONCE).await;
    assert_eq!(report["deleted"], 1200);
    assert_eq!(count(&pipeline, "outbox").await, 1);
    insert(&pipeline, 10).await;
    pipeline.stored(1210).await;
    confirmed(&pipeline, 10).await;
    assert_eq!(relay.terminate().await, Some(0));
    // Written while no relay runs, on disk or not: not stored, and not touched.
    pipeline.execute("SET synchronous_commit = off; INSERT INTO outbox (event_type) VALUES ('later')").await;
    let (ended, report) = prune(&pipeline, &[&["--care-mark=true"], &AT_ONCE[..]].concat()).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!((&report["deleted"], &report["waiting"]), (&json!(10), &json!(1)));
    assert_eq!(count(&pipeline, "outbox WHERE event_type = 'later' AND NOT processed").await, 1);
    let told = pipeline.postrider(&["prune", "--dry-run", "--care-delete-after", "0s"]).await;
    assert!(told.stdout.contains("waiting     1 rows") && told.stdout.contains("dry run"), "{}", told.stdout);
}

#[tokio::test]
async fn without_a_relay_nothing_is_proved_by_a_slot_that_someone_moved() {
    let mut pipeline = with(&[("POSTRIDER_CARE_DELETE_AFTER", "0s")]).await;
    insert(&pipeline, 10).await;
    pipeline.execute("SELECT pg_replication_slot_advance('postrider', pg_current_wal_lsn())").await;
    let refused = pipeline.postrider(&["prune"]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("PR0227"), "{}", refused.stderr);
    assert_eq!(count(&pipeline, "outbox").await, 10);
    pipeline.unset("POSTRIDER_CARE_DELETE_AFTER");
    let nothing = pipeline.postrider(&["prune"]).await;
    assert_eq!(nothing.code, Some(2), "{}", nothing.stderr);
    assert!(nothing.stderr.contains("PR0116"), "{}", nothing.stderr);
}

/// Without a relay; the table stays as it is.
async fn proves_nothing(pipeline: &Pipeline, code: &str) {
    let before = count(pipeline, "outbox").await;
    let refused = pipeline.postrider(&[&["prune"], &AT_ONCE[..]].concat()).await;
    assert!(refused.stderr.contains(code), "{}{}", refused.stdout, refused.stderr);
    assert_eq!(count(pipeline, "outbox").await, before);
}

/// All is stored and confirmed, and the relay gone.
async fn stored(pipeline: &Pipeline, rows: u32) {
    let mut relay = pipeline.run().await;
    insert(pipeline, rows).await;
    pipeline.stored(u64::from(rows)).await;
    confirmed(pipeline, rows).await;
    assert_eq!(relay.terminate().await, Some(0));
}

async fn confirmed(pipeline: &Pipeline, rows: u32) {
    eventually("the slot is confirmed past it", async || {
        let (_, report) = prune(pipeline, &[&["--dry-run"], &AT_ONCE[..]].concat()).await;
        (report["deleted"] == rows).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_a_relay_nothing_is_proved_once_the_table_was_out_of_the_publication() {
    let pipeline = Pipeline::article().await;
    stored(&pipeline, 5).await;
    pipeline.execute("ALTER PUBLICATION postrider DROP TABLE outbox").await;
    insert(&pipeline, 4).await;
    proves_nothing(&pipeline, "PR0209").await;
    pipeline.execute("ALTER PUBLICATION postrider ADD TABLE outbox").await;
    insert(&pipeline, 2).await;
    proves_nothing(&pipeline, "PR0412").await;
}

#[tokio::test]
async fn without_a_relay_nothing_is_proved_by_a_publication_that_lacks_inserts_or_is_gone() {
    let pipeline = Pipeline::on(Servers { postgres: Some(18), ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    stored(&pipeline, 5).await;
    pipeline.execute("ALTER PUBLICATION postrider SET (publish = 'update')").await;
    insert(&pipeline, 2).await;
    proves_nothing(&pipeline, "PR0209").await;
    pipeline.execute("DROP PUBLICATION postrider").await;
    insert(&pipeline, 2).await;
    proves_nothing(&pipeline, "PR0208").await;
    pipeline.execute("CREATE PUBLICATION postrider FOR TABLE outbox WITH (publish = 'insert')").await;
    insert(&pipeline, 2).await;
    proves_nothing(&pipeline, "PR0412").await;
}

#[tokio::test]
async fn without_a_relay_nothing_is_proved_once_the_stream_is_gone_or_made_anew() {
    let pipeline = Pipeline::article().await;
    stored(&pipeline, 5).await;
    let config = pipeline.stream().await.cached_info().config.clone();
    pipeline.jetstream().await.delete_stream("OUTBOX").await.unwrap();
    proves_nothing(&pipeline, "PR0304").await;
    pipeline.jetstream().await.create_stream(config).await.unwrap();
    proves_nothing(&pipeline, "PR0408").await;
}

#[tokio::test]
async fn without_a_relay_nothing_is_proved_once_the_stream_went_back_behind_what_was_confirmed() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    lose_a_thousand(&mut pipeline, async |pipeline| {
        confirmed(pipeline, 2000).await;
        relay.kill();
    })
    .await;
    proves_nothing(&pipeline, "PR0409").await;
}

/// Those of the server's processes that would flush WAL by themselves.
async fn flushers(pipeline: &Pipeline, signal: Signal) {
    let query = "SELECT pid FROM pg_stat_activity WHERE backend_type IN ('walwriter', 'background writer', 'checkpointer')";
    let pids = pipeline.sql().await.query(query, &[]).await.unwrap();
    assert_eq!(pids.len(), 3);
    for row in pids {
        kill_process(Pid::from_raw(row.get(0)).unwrap(), signal).unwrap();
    }
}

#[tokio::test]
async fn a_row_that_is_visible_before_its_commit_is_on_disk_is_not_proved_by_a_slot_that_cannot_show_it() {
    let settings = &[("autovacuum", "off")];
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    stored(&pipeline, 10).await;
    flushers(&pipeline, Signal::STOP).await;
    pipeline.execute("SET synchronous_commit = off; INSERT INTO outbox (event_type) VALUES ('later')").await;
    assert_eq!(pipeline.ask("pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()").await, "true");
    let mut pruning = pipeline.spawn(&[&["prune", "--json"], &AT_ONCE[..]].concat());
    let awaits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
        AND query LIKE 'SELECT pg_current_wal_flush_lsn() >=%')";
    eventually("it waits for the flush, or ends", async || {
        (pipeline.ask(awaits).await == "true" || !pruning.is_running()).then_some(())
    })
    .await;
    assert_eq!(count(&pipeline, "outbox").await, 11);
    assert!(pruning.is_running(), "{}{}", pruning.stdout(), pruning.stderr());
    flushers(&pipeline, Signal::CONT).await;
    let ended = pruning.ended().await;
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["deleted"], &report["waiting"]), (&json!(10), &json!(1)), "{report}");
    assert_eq!(pipeline.ask("SELECT event_type FROM outbox").await, "later");
}
