//! The publication, or the table in it, is not what it was: rows written meanwhile are not in the
//! slot, on any version, and some versions do not say so.

use crate::refusals::{insert, refused};
use crate::support::{ARTICLE, Pipeline, Relay, Servers};

/// A relay that has published one event.
async fn running(version: u32) -> (Pipeline, Relay) {
    let mut pipeline = Pipeline::on(Servers { postgres: Some(version), ..Servers::default() }).await;
    // Every table that is made later has room in it: the slot could be confirmed past a hole.
    pipeline.set("POSTRIDER_NATS_SYNC_INTERVAL", "always");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let relay = pipeline.run().await;
    insert(&pipeline, "'a'").await;
    pipeline.stored(1).await;
    (pipeline, relay)
}

/// `change` makes a hole that ends the relay, running or starting, with exit 5 and one of `codes`; the
/// slot is not confirmed past it.
async fn ends(version: u32, change: &str, codes: &[&'static str]) {
    for stopped in [false, true] {
        let (pipeline, mut relay) = running(version).await;
        if stopped {
            assert_eq!(relay.terminate().await, Some(0));
        }
        let before = pipeline.ask("pg_current_wal_insert_lsn()").await;
        pipeline.execute(change).await;
        let ended = if stopped { pipeline.postrider(&["run"]).await } else { relay.ended().await };
        let code = codes.iter().find(|code| ended.stderr.contains(&format!("{code}: ")));
        let code = code.unwrap_or_else(|| panic!("none of {codes:?} in\n{}", ended.stderr));
        refused(&ended, (if code.starts_with("PR02") { 3 } else { 5 }, code, ""));
        let past = format!(
            "SELECT confirmed_flush_lsn > '{before}'::pg_lsn + 20000 FROM pg_replication_slots \
             WHERE slot_name = 'postrider'"
        );
        assert_eq!(pipeline.ask(&past).await, "false", "version {version}, {change}");
        assert_eq!(pipeline.last_seq().await, 1);
    }
}

const ROW: &str = "INSERT INTO outbox (event_type, payload) VALUES ('hole', '{}')";

async fn all_holes(version: u32) {
    let noise = "CREATE TABLE noise AS SELECT repeat('x', 1000) FROM generate_series(1, 200)";
    // Dropped and made again, with a row in between that no slot has.
    let anew = format!(
        "DROP PUBLICATION postrider; {ROW}; {noise}; \
         CREATE PUBLICATION postrider FOR TABLE outbox WITH (publish = 'insert')"
    );
    ends(version, &anew, &["PR0412", "PR0208"]).await;
    // Taken out and put back.
    let put_back = format!(
        "ALTER PUBLICATION postrider DROP TABLE outbox; {ROW}; {noise}; ALTER PUBLICATION postrider ADD TABLE outbox"
    );
    ends(version, &put_back, &["PR0412"]).await;
    // The table itself.
    let table =
        format!("DROP TABLE outbox; {ARTICLE}; {ROW}; {noise}; ALTER PUBLICATION postrider ADD TABLE outbox");
    ends(version, &table, &["PR0412"]).await;
}

/// Dropped for good: a person must act, and the relay says so while it runs, or ends at the start.
async fn dropped(version: u32) {
    let (pipeline, mut relay) = running(version).await;
    let before = pipeline.ask("pg_current_wal_insert_lsn()").await;
    pipeline.execute(&format!("DROP PUBLICATION postrider; {ROW}")).await;
    let ended = relay.ended_or("PR0208").await;
    assert!(ended, "{}", relay.stderr());
    relay.kill();
    let past = format!(
        "SELECT confirmed_flush_lsn > '{before}'::pg_lsn + 20000 FROM pg_replication_slots WHERE slot_name = 'postrider'"
    );
    assert_eq!(pipeline.ask(&past).await, "false");
    refused(&pipeline.postrider(&["run"]).await, (3, "PR0208", "postrider init"));
    assert_eq!(pipeline.last_seq().await, 1);
}

macro_rules! versions {
    ($($version:literal $holes:ident $dropped:ident)*) => {$(
        #[tokio::test]
        async fn $holes() {
            all_holes($version).await;
        }

        #[tokio::test]
        async fn $dropped() {
            dropped($version).await;
        }
    )*};
}

versions! {
    14 a_publication_or_table_made_anew_is_a_hole_on_14 a_publication_that_is_dropped_is_named_on_14
    15 a_publication_or_table_made_anew_is_a_hole_on_15 a_publication_that_is_dropped_is_named_on_15
    16 a_publication_or_table_made_anew_is_a_hole_on_16 a_publication_that_is_dropped_is_named_on_16
    17 a_publication_or_table_made_anew_is_a_hole_on_17 a_publication_that_is_dropped_is_named_on_17
    18 a_publication_or_table_made_anew_is_a_hole_on_18 a_publication_that_is_dropped_is_named_on_18
}

#[tokio::test]
async fn a_slot_that_is_older_than_its_publication_is_never_taken_for_whole() {
    let pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    pipeline.execute("SELECT pg_create_logical_replication_slot('postrider', 'pgoutput')").await;
    pipeline.execute(ROW).await;
    // init makes the publication, and finds the slot.
    let init = pipeline.postrider(&["init"]).await;
    if init.code == Some(0) {
        let ended = pipeline.postrider(&["run"]).await;
        assert!(matches!(ended.code, Some(3 | 5)), "{ended:?}");
    }
    assert!(init.code == Some(0) || init.stderr.contains("PR0"), "{init:?}");
}
