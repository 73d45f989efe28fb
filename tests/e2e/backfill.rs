//! `init --backfill` publishes the rows that are there, once, before everything that comes.

use crate::refusals::refused;
use crate::support::{ARTICLE, Load, Message, Pipeline, Relay, eventually};
use std::collections::HashSet;
use std::time::Duration;

/// Ids of events in the stream's order.
fn ids(messages: &[Message]) -> Vec<i64> {
    messages.iter().map(|message| message.id().parse().unwrap()).collect()
}

async fn rows(pipeline: &Pipeline, condition: &str) -> HashSet<i64> {
    let query = format!("SELECT id::bigint FROM outbox WHERE {condition}");
    pipeline.sql().await.query(&query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn backfill(pipeline: &Pipeline) {
    let ended = pipeline.postrider(&["init", "--backfill"]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[tokio::test]
async fn a_backfill_that_is_killed_again_and_again_under_load_publishes_each_unprocessed_row_once() {
    let pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload, processed) SELECT 'old', jsonb_build_object('n', n), \
             CASE n % 4 WHEN 0 THEN true WHEN 1 THEN true WHEN 2 THEN NULL ELSE false END \
             FROM generate_series(1, 40000) AS n",
        )
        .await;
    let old = rows(&pipeline, "processed IS NOT TRUE").await;
    assert_eq!(old.len(), 20_000);
    let mut load = Load::endless(&pipeline, 4, &[1, 2, 3], Duration::from_millis(5));
    for kills in 1..=3 {
        let mut filling = pipeline.spawn(&["init", "--backfill"]);
        // Each attempt gets a little further; the first ones may not reach the stream.
        eventually("some rows are published", async || {
            let stream = pipeline.jetstream().await.get_stream("OUTBOX").await.ok()?;
            (stream.cached_info().state.messages >= kills * 3000).then_some(())
        })
        .await;
        filling.kill();
        let refused = pipeline.postrider(&["run"]).await;
        let done = refused.code == Some(5) && refused.stderr.contains("PR0406");
        assert!(done && refused.stderr.contains("postrider init --backfill"), "{}", refused.stderr);
    }
    backfill(&pipeline).await;
    let mut relay = pipeline.run().await;
    load.finish().await;
    let all = rows(&pipeline, "processed IS NOT TRUE").await;
    pipeline.stored(all.len() as u64).await;
    assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
    let stored = ids(&pipeline.messages().await);
    assert_eq!(stored.len(), all.len());
    assert_eq!(stored.iter().copied().collect::<HashSet<_>>(), all);
    let filled: Vec<_> = stored.iter().filter(|id| old.contains(id)).collect();
    assert!(filled.is_sorted(), "rows that were there are in the order of their ids");
    let verified = pipeline.postrider(&["verify"]).await;
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
}

#[tokio::test]
async fn a_backfilled_event_is_the_one_that_the_slot_would_have_sent() {
    let pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    let row = r#"INSERT INTO outbox (event_type, payload) VALUES ('a', '{"t": "tab\tline\nback\\slash", "ü": [1.50, null]}'), ('n', NULL)"#;
    pipeline.execute(row).await;
    backfill(&pipeline).await;
    let checkpoint = pipeline.ask("SELECT to_jsonb(p) FROM postrider.pipeline AS p").await;
    let mut relay = pipeline.run().await;
    pipeline.execute(row).await;
    let messages = pipeline.exactly(4).await;
    assert_eq!(relay.terminate().await, Some(0));
    let last = &messages[1];
    assert!(!relay.stderr().contains("went back"), "{checkpoint} and {:?}", last.headers);
    for (filled, sent) in [(0, 2), (1, 3)] {
        let (filled, sent) = (&messages[filled], &messages[sent]);
        assert_eq!((&filled.subject, &filled.payload), (&sent.subject, &sent.payload));
        let but_the_id = |message: &Message| {
            message.plain_headers().into_iter().filter(|line| !line.contains("Event-Id")).collect::<Vec<_>>()
        };
        assert_eq!(but_the_id(filled), but_the_id(sent));
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_published_becomes_a_letter_once() {
    let pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    pipeline
        .execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '1'), ('no good', '2'), ('c', '3')")
        .await;
    backfill(&pipeline).await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('d', '4')").await;
    pipeline.stored(3).await;
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.a", "outbox.c", "outbox.d"]);
    let letters = "SELECT string_agg(event_id || ' ' || reason, ',') FROM postrider.dead_letter";
    assert_eq!(pipeline.ask(letters).await, "2 bad_subject");
    let recovered = pipeline.postrider(&["recover", "--yes"]).await;
    assert_eq!(recovered.code, Some(0), "{}", recovered.stderr);
    assert_eq!(pipeline.ask(letters).await, "2 bad_subject");
}

/// A table of no preset's, with the column `mark`, in which a poller has marked 10 rows of 15.
async fn polled(mark: &str, set: &str) -> Pipeline {
    let mut pipeline = Pipeline::start().await;
    pipeline.set("POSTRIDER_OUTBOX_PRESET", "columns");
    pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "outbox.{topic}");
    pipeline
        .execute(&format!(
            "CREATE TABLE outbox (id serial PRIMARY KEY, topic text, payload jsonb, {mark}); \
             INSERT INTO outbox (topic, payload) SELECT 'a', '{{}}' FROM generate_series(1, 15); \
             UPDATE outbox SET {set} WHERE id <= 10"
        ))
        .await;
    pipeline
}

/// Backfill, recovery and verification leave the marked rows alone.
async fn left_alone(pipeline: &Pipeline) {
    backfill(pipeline).await;
    let stored = pipeline.exactly(5).await;
    assert_eq!(ids(&stored), (11..=15).collect::<Vec<_>>());
    let verified = pipeline.postrider(&["verify", "--json"]).await;
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!((&report["stored"], &report["processed"]), (&5.into(), &10.into()));
    let recovered = pipeline.postrider(&["recover", "--yes"]).await;
    assert!(recovered.stdout.contains("nothing is missing"), "{}{}", recovered.stdout, recovered.stderr);
    let also = pipeline.postrider(&["recover", "--yes", "--processed"]).await;
    assert_eq!(also.code, Some(0), "{}", also.stderr);
    pipeline.exactly(15).await;
}

#[tokio::test]
async fn rows_that_a_poller_has_marked_with_a_time_are_not_published_again() {
    left_alone(&polled("processed_at timestamp", "processed_at = now()").await).await;
}

#[tokio::test]
async fn rows_that_a_poller_has_marked_in_the_column_that_is_named_are_not_published_again() {
    let mut pipeline = polled("sent boolean", "sent = true").await;
    pipeline.set("POSTRIDER_CARE_MARK_COLUMN", "sent");
    left_alone(&pipeline).await;
}

#[tokio::test]
async fn a_mark_of_ones_own_does_not_hide_the_pollers() {
    let mut pipeline = polled("processed boolean, relayed_at timestamptz", "processed = true").await;
    pipeline.set("POSTRIDER_CARE_MARK", "true");
    pipeline.set("POSTRIDER_CARE_MARK_COLUMN", "relayed_at");
    left_alone(&pipeline).await;
}

#[tokio::test]
async fn a_mark_that_cannot_be_read_is_refused_rather_than_taken_for_none() {
    let mut pipeline = polled("processed smallint, sent boolean", "processed = 1, sent = true").await;
    refused(&pipeline.postrider(&["init", "--backfill"]).await, (2, "PR0117", "care.mark_column"));
    assert_eq!(pipeline.ask("SELECT count(*) FROM pg_replication_slots").await, "0");
    pipeline.set("POSTRIDER_CARE_MARK_COLUMN", "sent");
    left_alone(&pipeline).await;
}

#[tokio::test]
async fn where_a_mark_cannot_be_read_all_rows_are_published_with_processed() {
    let pipeline = polled("processed smallint", "processed = 0").await;
    let filled = pipeline.postrider(&["init", "--backfill", "--processed"]).await;
    assert_eq!(filled.code, Some(0), "{}", filled.stderr);
    pipeline.exactly(15).await;
    for command in ["recover", "verify"] {
        refused(&pipeline.postrider(&[command]).await, (2, "PR0117", "--processed"));
        let ended = pipeline.postrider(&[command, "--processed"]).await;
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    }
}

/// `processed_at` may mean something else: who does not know what was left out for it never misses it.
#[tokio::test]
async fn rows_that_stay_out_for_their_mark_are_counted_and_the_column_is_named() {
    let pipeline = polled("processed_at timestamptz", "processed_at = now()").await;
    let filled = pipeline.postrider(&["init", "--backfill"]).await;
    let said = "10 rows that the stream lacks stay out: `processed_at`";
    assert!(filled.stdout.contains(said), "{}{}", filled.stdout, filled.stderr);
    pipeline.exactly(5).await;

    let sound = pipeline.postrider(&["recover"]).await;
    assert!(sound.stdout.contains("nothing is missing") && sound.stdout.contains(said), "{}", sound.stdout);
    let survey = pipeline.postrider(&["recover", "--dry-run", "--json"]).await;
    let survey: serde_json::Value = serde_json::from_str(&survey.stdout).unwrap();
    assert_eq!((&survey["marked"], &survey["mark_columns"]), (&10.into(), &["processed_at"].into()));
    let verified = pipeline.postrider(&["verify"]).await;
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    assert!(verified.stdout.contains("processed  10   marked in `processed_at`"), "{}", verified.stdout);

    let differs = pipeline.postrider(&["verify", "--processed"]).await;
    assert_eq!(differs.code, Some(6), "{}", differs.stdout);
    assert!(
        differs.stderr.contains("10 missing") && differs.stderr.contains("recover --processed"),
        "{}",
        differs.stderr
    );
    let also = pipeline.postrider(&["recover", "--yes", "--processed"]).await;
    assert_eq!(also.code, Some(0), "{}", also.stderr);
    pipeline.exactly(15).await;
    let sound = pipeline.postrider(&["recover"]).await;
    assert!(!sound.stdout.contains("stay out"), "{}", sound.stdout);
}

/// A backfill of 30,000 rows that has published some.
async fn half_way() -> (Pipeline, Relay) {
    let pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    pipeline
        .execute("INSERT INTO outbox (event_type, payload) SELECT 'a', '{}' FROM generate_series(1, 30000)")
        .await;
    let filling = pipeline.spawn(&["init", "--backfill"]);
    eventually("some rows are published", async || {
        let stream = pipeline.jetstream().await.get_stream("OUTBOX").await.ok()?;
        (stream.cached_info().state.messages >= 1000).then_some(())
    })
    .await;
    (pipeline, filling)
}

#[tokio::test]
async fn a_lost_nats_in_between_costs_a_pause() {
    let (mut pipeline, filling) = half_way().await;
    pipeline.nats.kill();
    pipeline.nats.start_again().await.unwrap();
    let ended = filling.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ids(&pipeline.exactly(30_000).await), (1..=30_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_relay_that_starts_meanwhile_is_refused_and_disturbs_nothing() {
    let (pipeline, filling) = half_way().await;
    let refused = pipeline.postrider(&["run"]).await;
    assert!(refused.code == Some(5) && refused.stderr.contains("PR0406"), "{}", refused.stderr);
    let ended = filling.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(pipeline.exactly(30_000).await.len(), 30_000);
}
