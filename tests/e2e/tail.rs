//! `tail` shows what is stored, and leaves no trace.

use crate::support::{Pipeline, eventually};
use serde_json::{Value, json};

fn lines(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn events_of_a_type_are_shown_as_they_are_stored_and_no_consumer_is_made() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order', '{\"n\": 1}')").await;
    pipeline.stored(1).await;
    let tail = pipeline.spawn(&["tail", "--last", "10", "--type", "order", "--count", "2", "--json"]);
    eventually("the stored event is shown", async || (!tail.stdout().is_empty()).then_some(())).await;
    pipeline
        .execute("INSERT INTO outbox (event_type, payload) VALUES ('other', '{}'), ('order', NULL)")
        .await;
    let ended = tail.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let shown: Vec<_> = lines(&ended.stdout)
        .iter()
        .map(|line| json!([line["seq"], line["event_id"], line["payload"]]))
        .collect();
    assert_eq!(shown, [json!([1, "1", {"n": 1}]), json!([3, "3", null])]);
    assert_eq!(pipeline.stream().await.cached_info().state.consumer_count, 0);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_gap_in_the_stream_is_passed_over_and_only_the_key_is_shown() {
    let table = "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, \
         aggregateid text NOT NULL, type text NOT NULL, payload jsonb)";
    let pipeline = Pipeline::with_table(table).await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute(
            "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) \
             SELECT 'order', (n % 2)::text, 'made', to_jsonb(n) FROM generate_series(1, 6) AS n",
        )
        .await;
    pipeline.stored(6).await;
    assert!(pipeline.stream().await.delete_message(3).await.unwrap());
    let ended = pipeline.postrider(&["tail", "--last", "6", "--key", "1", "--count", "2", "--json"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let shown: Vec<_> = lines(&ended.stdout).iter().map(|line| line["payload"].clone()).collect();
    assert_eq!(shown, [json!(1), json!(5)]);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_stream_that_does_not_exist_is_named_with_what_makes_it() {
    let pipeline = Pipeline::start().await;
    let ended = pipeline.postrider(&["tail"]).await;
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("PR0304") && ended.stderr.contains("postrider init"), "{}", ended.stderr);
}
