//! What counts as processed, as missing and as late, and what is refused because it could not be told.

use super::*;
use rustix::process::{Pid, kill_process};

#[tokio::test]
async fn rows_whose_deletion_does_not_say_their_id_are_refused_where_nothing_else_says_that_they_are_processed()
 {
    let pipeline = Pipeline::on(Servers::default()).await;
    pipeline
        .execute(
            "CREATE TABLE outbox (seq bigserial PRIMARY KEY, id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE, \
             aggregatetype text, aggregateid text, type text, payload jsonb)",
        )
        .await;
    const INSERT: &str =
        "INSERT INTO outbox (aggregatetype, aggregateid, type) VALUES ('order', '7', 'placed')";
    let shadow = watching(&pipeline, &[]).await;
    pipeline.execute(INSERT).await;
    let (ended, report) = told(shadow).await;
    refused(&ended, (2, "PR0117", "REPLICA IDENTITY USING INDEX"));
    assert_eq!(report["missing"], 0);
    pipeline.execute("ALTER TABLE outbox REPLICA IDENTITY USING INDEX outbox_id_key").await;
    let shadow = watching(&pipeline, &["--count", "1"]).await;
    pipeline.execute(INSERT).await;
    pipeline.execute("DELETE FROM outbox").await;
    let (ended, report) = told(shadow).await;
    assert_eq!((ended.code, counts(&report)), (Some(0), json!([1, 1, 0, 0, 0])), "{}", ended.stderr);
}

#[tokio::test]
async fn a_mark_that_cannot_be_read_is_refused_rather_than_taken_for_a_poller_that_deletes() {
    let pipeline = beside_a_poller(None).await;
    pipeline.execute("ALTER TABLE outbox DROP COLUMN processed, ADD COLUMN processed smallint").await;
    let article = ["run", "--shadow", "--outbox-preset", "article"];
    refused(&pipeline.postrider(&article).await, (2, "PR0117", "--mark-column"));
    assert_eq!(left(&pipeline).await, "0/0");
}

#[tokio::test]
async fn where_no_column_is_a_mark_missing_rows_lead_to_mark_column() {
    let pipeline = beside_a_poller(None).await;
    pipeline.execute("ALTER TABLE outbox RENAME COLUMN processed TO done").await;
    let shadow = watching(&pipeline, &["--outbox-preset", "article", "--grace", "1s", "--count", "1"]).await;
    assert!(shadow.stderr().contains("no column is a mark"), "{}", shadow.stderr());
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    pipeline.execute("UPDATE outbox SET done = true; INSERT INTO outbox (event_type) VALUES ('b')").await;
    pipeline.execute("DELETE FROM outbox WHERE id = 2").await;
    let (ended, report) = told(shadow).await;
    refused(&ended, (6, "PR0645", "--mark-column"));
    assert_eq!((&report["missing_ids"], &report["marks"]), (&json!(["1"]), &json!([])));
}

#[tokio::test]
async fn a_clean_up_of_old_rows_is_no_sign_of_a_poller_that_lives() {
    let pipeline = beside_a_poller(None).await;
    let old = "INSERT INTO outbox (event_type, processed) SELECT 'old', true FROM generate_series(1, 9)";
    pipeline.execute(old).await;
    let shadow = watching(&pipeline, &["--grace", "2s"]).await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    for id in 1..=9 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        pipeline.execute(&format!("DELETE FROM outbox WHERE id = {id}")).await;
    }
    let (ended, report) = stopped(shadow).await;
    refused(&ended, (6, "PR0645", "the poller does not"));
    assert_eq!((counts(&report), &report["earlier"]), (json!([1, 0, 0, 1, 0]), &json!(0)), "{report}");
}

#[tokio::test]
async fn rows_that_are_written_while_the_ids_are_read_say_nothing_of_the_relays_latency() {
    let pipeline = beside_a_poller(None).await;
    let mut shadow = reading_ids(&pipeline, &["--count", "2"]).await;
    pipeline.execute("INSERT INTO outbox (id, event_type, payload) VALUES ('early', 'a', '{}')").await;
    watches(&mut shadow).await;
    pipeline.execute("INSERT INTO outbox (id, event_type, payload) VALUES ('late', 'a', '{}')").await;
    pipeline.execute("UPDATE outbox SET processed = true WHERE id IN ('early', 'late')").await;
    let (ended, report) = told(shadow).await;
    assert_eq!((ended.code, counts(&report)), (Some(0), json!([2, 2, 0, 0, 0])), "{}", ended.stderr);
    let max = |of: &str| report["latency_ms"][of]["max"].as_f64().unwrap();
    assert!(max("postrider") < max("poller") / 4.0, "{report}");
}

#[tokio::test]
async fn a_row_that_nobody_processes_is_missing_also_where_nothing_else_is_committed() {
    let pipeline = beside_a_poller(None).await;
    let shadow = watching(&pipeline, &["--grace", "2s", "--seconds", "6"]).await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    let (ended, report) = told(shadow).await;
    refused(&ended, (6, "PR0645", "the poller does not"));
    assert_eq!(counts(&report), json!([1, 0, 0, 1, 0]));
}

#[tokio::test]
async fn a_shadow_that_reads_late_calls_nothing_missing_that_was_done_in_time() {
    // Longer than it takes to see that the row is read: the shadow confirms every 5 s.
    const GRACE: Duration = Duration::from_secs(9);
    let pipeline = beside_a_poller(None).await;
    let mut shadow = watching(&pipeline, &["--grace", "9s"]).await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    read_to_the_end(&pipeline).await;
    // What reads the log for it stands still, and nobody knows how long.
    let walsender = pipeline.ask("SELECT active_pid FROM pg_replication_slots").await;
    let walsender = Pid::from_raw(walsender.parse().unwrap()).unwrap();
    kill_process(walsender, Signal::STOP).unwrap();
    pipeline.execute("UPDATE outbox SET processed = true").await;
    tokio::time::sleep(GRACE + Duration::from_secs(1)).await;
    shadow.signal(Signal::TERM);
    let (ended, report) = told(shadow).await;
    kill_process(walsender, Signal::CONT).unwrap();
    assert_eq!((ended.code, counts(&report)), (Some(0), json!([1, 0, 1, 0, 0])), "{report}");
}
