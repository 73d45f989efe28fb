//! Clean-up: nothing is touched before its event is stored and the slot confirmed past it, and then it is.

use crate::doctor::{BOUNDED, doctor, paste};
use crate::support::{ARTICLE, Ended, Pipeline, Relay, Servers, connect, position, within};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// A proof takes the relay's next look at the publication, and its row.
pub(crate) const PROOF: Duration = Duration::from_secs(60);

pub(crate) async fn insert(pipeline: &Pipeline, rows: u32) {
    pipeline
        .execute(&format!(
            "INSERT INTO outbox (event_type, payload) SELECT 'order', jsonb_build_object('n', n) \
             FROM generate_series(1, {rows}) AS n"
        ))
        .await;
}

pub(crate) async fn count(pipeline: &Pipeline, from: &str) -> u64 {
    pipeline.ask(&format!("SELECT count(*) FROM {from}")).await.parse().unwrap()
}

pub(crate) async fn becomes(pipeline: &Pipeline, from: &str, rows: u64) {
    within(PROOF, &format!("{rows} rows: {from}"), async || {
        (count(pipeline, from).await == rows).then_some(())
    })
    .await;
}

pub(crate) async fn with(keys: &[(&str, &str)]) -> Pipeline {
    let mut pipeline = Pipeline::article().await;
    keys.iter().for_each(|(key, value)| pipeline.set(key, value));
    pipeline
}

pub(crate) async fn prune(pipeline: &Pipeline, arguments: &[&str]) -> (Ended, Value) {
    let ended = pipeline.postrider(&[&["prune", "--json"], arguments].concat()).await;
    let report = serde_json::from_str(&ended.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr));
    (ended, report)
}

/// It must end by itself, naming `code`.
async fn refused(pipeline: &Pipeline, code: &str, exit: i32) -> String {
    let ended = pipeline.postrider(&["run"]).await;
    assert_eq!(ended.code, Some(exit), "{}", ended.stderr);
    assert!(ended.stderr.contains(code), "{}", ended.stderr);
    ended.stderr
}

#[tokio::test]
async fn rows_are_marked_once_their_events_are_stored_and_confirmed() {
    let pipeline = with(&[("POSTRIDER_CARE_MARK", "true")]).await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 2500).await;
    becomes(&pipeline, "outbox WHERE processed", 2500).await;
    // On a server that is idle now, too.
    insert(&pipeline, 1).await;
    becomes(&pipeline, "outbox WHERE processed", 2501).await;
    assert_eq!(relay.terminate().await, Some(0));
    assert_eq!(pipeline.last_seq().await, 2501, "a mark is no event");
}

#[tokio::test]
async fn a_timestamp_is_marked_with_the_time() {
    let mut pipeline = with(&[("POSTRIDER_CARE_MARK", "true")]).await;
    pipeline.execute("ALTER TABLE outbox ADD COLUMN sent timestamptz").await;
    pipeline.set("POSTRIDER_CARE_MARK_COLUMN", "sent");
    let mut relay = pipeline.run().await;
    insert(&pipeline, 10).await;
    becomes(&pipeline, "outbox WHERE now() - sent < interval '1 minute' AND NOT processed", 10).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn rows_are_archived_whole_when_they_are_deleted() {
    let mut pipeline = with(&[("POSTRIDER_CARE_DELETE_AFTER", "1h")]).await;
    pipeline.execute("CREATE TABLE archive (LIKE outbox, archived_at timestamptz DEFAULT now())").await;
    pipeline.set("POSTRIDER_CARE_ARCHIVE_TABLE", "archive");
    let mut relay = pipeline.run().await;
    insert(&pipeline, 1500).await;
    pipeline.execute("UPDATE outbox SET created_at = created_at - interval '2 hours' WHERE id <= 1200").await;
    becomes(&pipeline, "outbox", 300).await;
    let whole =
        "archive WHERE event_type = 'order' AND (payload ->> 'n')::int = id AND archived_at IS NOT NULL";
    assert_eq!(count(&pipeline, whole).await, 1200);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn deleting_does_not_wait_for_a_proof_of_the_marks() {
    let mut pipeline = with(&[("POSTRIDER_CARE_MARK", "true"), ("POSTRIDER_CARE_DELETE_AFTER", "1s")]).await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "20s");
    pipeline.execute("ALTER TABLE outbox ADD COLUMN sent timestamptz").await;
    pipeline.set("POSTRIDER_CARE_MARK_COLUMN", "sent");
    // The age of a row is that of its mark.
    pipeline.set("POSTRIDER_OUTBOX_CREATED_AT", "sent");
    let mut relay = pipeline.run().await;
    insert(&pipeline, 100).await;
    becomes(&pipeline, "outbox WHERE sent IS NOT NULL", 100).await;
    let marked = Instant::now();
    becomes(&pipeline, "outbox", 0).await;
    assert!(marked.elapsed() < Duration::from_secs(15), "{:?}", marked.elapsed());
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_column_that_the_archive_lacks_is_not_lost_and_is_archived_once_it_has_it() {
    let mut pipeline = with(&[("POSTRIDER_CARE_DELETE_AFTER", "0s")]).await;
    pipeline.execute("CREATE TABLE archive (LIKE outbox)").await;
    pipeline.set("POSTRIDER_CARE_ARCHIVE_TABLE", "archive");
    let mut relay = pipeline.run().await;
    insert(&pipeline, 10).await;
    becomes(&pipeline, "archive", 10).await;
    pipeline.execute("ALTER TABLE outbox ADD COLUMN tenant text").await;
    pipeline.execute("INSERT INTO outbox (event_type, tenant) VALUES ('order', 'x')").await;
    assert!(relay.ended_or("has no column `tenant`").await && relay.is_running());
    assert_eq!(count(&pipeline, "outbox WHERE tenant = 'x'").await, 1);
    pipeline.execute("ALTER TABLE archive ADD COLUMN tenant text").await;
    becomes(&pipeline, "archive WHERE tenant = 'x'", 1).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn rows_that_a_trigger_writes_when_others_are_marked_are_not_proved_by_the_mark() {
    let mut pipeline = with(&[("POSTRIDER_CARE_MARK", "true")]).await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "10s");
    pipeline.execute(WITNESS).await;
    pipeline
        .execute(
            "CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             INSERT INTO outbox (event_type) VALUES ('follow'); RETURN NULL; END $$; \
             CREATE TRIGGER follow AFTER UPDATE ON outbox FOR EACH ROW WHEN (OLD.event_type = 'order') \
             EXECUTE FUNCTION follow()",
        )
        .await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 5).await;
    becomes(&pipeline, "outbox WHERE processed", 10).await;
    was_confirmed(&pipeline).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_transaction_that_keeps_rows_from_being_proved_is_named_whatever_its_database() {
    let mut pipeline = with(&[("POSTRIDER_CARE_DELETE_AFTER", "0s")]).await;
    pipeline.execute("CREATE DATABASE elsewhere").await;
    // A role that is shown no more of others than that they are there.
    pipeline
        .execute(
            "CREATE ROLE relay LOGIN REPLICATION; GRANT USAGE ON SCHEMA postrider TO relay; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA postrider TO relay; \
             GRANT SELECT, DELETE, UPDATE (id) ON outbox TO relay",
        )
        .await;
    let url = pipeline.postgres.url("postgres").replace("postgres@", "relay@");
    pipeline.set("DATABASE_URL", &url);
    let mut relay = pipeline.run().await;
    let other = connect(&pipeline.postgres.url("elsewhere")).await.unwrap();
    other.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    insert(&pipeline, 5).await;
    within(Duration::from_secs(120), "it is named", async || {
        let told = relay.stderr();
        (told.contains("PR0228") && told.contains("of postgres in database elsewhere")).then_some(())
    })
    .await;
    assert_eq!(count(&pipeline, "outbox").await, 5);
    other.batch_execute("COMMIT").await.unwrap();
    becomes(&pipeline, "outbox", 0).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_prepared_transaction_whose_role_is_gone_is_named_and_ends_no_clean_up() {
    let prepared = Servers { settings: &[("max_prepared_transactions", "2")], ..Servers::default() };
    let mut pipeline = Pipeline::on(prepared).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "0s");
    let mut relay = pipeline.run().await;
    pipeline.execute("CREATE ROLE gone").await;
    let sql = pipeline.sql().await;
    for statement in ["SET SESSION AUTHORIZATION gone", "BEGIN", "SELECT pg_current_xact_id()"] {
        sql.batch_execute(statement).await.unwrap();
    }
    sql.batch_execute("PREPARE TRANSACTION 'forgotten'").await.unwrap();
    drop(sql);
    pipeline.execute("DROP ROLE gone").await;
    insert(&pipeline, 5).await;
    within(Duration::from_secs(120), "it is named", async || {
        relay.stderr().contains("prepared transaction 'forgotten' of ? in database postgres").then_some(())
    })
    .await;
    assert!(!relay.stderr().contains("clean-up failed"), "{}", relay.stderr());
    pipeline.execute("ROLLBACK PREPARED 'forgotten'").await;
    becomes(&pipeline, "outbox", 0).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn nothing_is_touched_before_the_slot_is_confirmed() {
    let mut pipeline = with(&[("POSTRIDER_CARE_MARK", "true"), ("POSTRIDER_CARE_DELETE_AFTER", "0s")]).await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "1h");
    let mut relay = pipeline.run().await;
    let began = Instant::now();
    let mut rows = 0;
    while began.elapsed() < Duration::from_secs(25) {
        insert(&pipeline, 10).await;
        rows += 10;
        pipeline.stored(rows).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(count(&pipeline, "outbox WHERE NOT processed").await, rows);
    }
    let (_, report) = prune(&pipeline, &["--wait", "2s"]).await;
    assert_eq!((&report["deleted"], &report["waiting"]), (&json!(0), &json!(rows)));
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn nothing_is_touched_while_nats_is_away_and_all_of_it_afterwards() {
    let mut pipeline = with(&[("POSTRIDER_CARE_DELETE_AFTER", "0s")]).await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 10).await;
    becomes(&pipeline, "outbox", 0).await;
    pipeline.nats.kill();
    insert(&pipeline, 10).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(15) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(count(&pipeline, "outbox").await, 10);
    }
    pipeline.nats.start_again().await.unwrap();
    becomes(&pipeline, "outbox", 0).await;
    assert_eq!(pipeline.last_seq().await, 20);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_row_with_an_open_letter_stays_until_the_letter_is_dropped() {
    let pipeline = with(&[("POSTRIDER_CARE_MARK", "true"), ("POSTRIDER_CARE_DELETE_AFTER", "0s")]).await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute("INSERT INTO outbox (event_type, payload) VALUES ('good', '{}'), ('no good', '{}'), ('good', '{}')")
        .await;
    becomes(&pipeline, "outbox", 1).await;
    insert(&pipeline, 5).await;
    becomes(&pipeline, "outbox", 1).await;
    assert_eq!(pipeline.ask("SELECT (event_type, processed) FROM outbox").await, "(\"no good\",f)");
    let dropped = pipeline.postrider(&["dlq", "drop", "1"]).await;
    assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
    becomes(&pipeline, "outbox", 0).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn rows_that_are_older_than_the_slot_stay_though_they_are_updated_and_rewritten() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    insert(&pipeline, 100).await;
    pipeline.init().await;
    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "0s");
    let mut relay = pipeline.run().await;
    pipeline.execute("UPDATE outbox SET processed = true WHERE id <= 50").await;
    pipeline.execute("ALTER TABLE outbox ALTER COLUMN id TYPE bigint").await;
    insert(&pipeline, 200).await;
    becomes(&pipeline, "outbox WHERE id > 100", 0).await;
    insert(&pipeline, 1).await;
    becomes(&pipeline, "outbox WHERE id > 100", 0).await;
    assert_eq!(count(&pipeline, "outbox").await, 100);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn where_a_policy_hides_rows_from_init_it_is_not_known_which_are_older() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    insert(&pipeline, 3).await;
    pipeline
        .execute(
            "CREATE ROLE relay LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres TO relay; \
             ALTER TABLE outbox OWNER TO relay; ALTER TABLE outbox ENABLE ROW LEVEL SECURITY; \
             ALTER TABLE outbox FORCE ROW LEVEL SECURITY; CREATE POLICY none ON outbox USING (false)",
        )
        .await;
    let url = pipeline.postgres.url("postgres").replace("postgres@", "relay@");
    pipeline.set("DATABASE_URL", &url);
    pipeline.init().await;
    assert_eq!(pipeline.ask("SELECT older_rows FROM postrider.pipeline").await, "unknown");
    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "0s");
    assert!(refused(&pipeline, "PR0221", 3).await.contains("ALTER ROLE \"relay\" BYPASSRLS"));
    pipeline.execute("ALTER ROLE relay BYPASSRLS").await;
    refused(&pipeline, "PR0224", 3).await;
}

#[tokio::test]
async fn rows_that_the_slot_holds_already_at_init_are_cleaned_up() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    insert(&pipeline, 3).await;
    let printed = pipeline.postrider(&["init", "--print-sql"]).await;
    let (before, _) = printed.stdout.split_once("-- the relay's role").unwrap();
    pipeline.execute(before).await;
    pipeline.execute("SELECT pg_create_logical_replication_slot('postrider', 'pgoutput')").await;
    pipeline
        .execute(
            "SET synchronous_commit = off; INSERT INTO outbox (event_type, payload) VALUES ('late', '{}')",
        )
        .await;
    pipeline.init().await;
    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "0s");
    let mut relay = pipeline.run().await;
    becomes(&pipeline, "outbox WHERE event_type = 'late'", 0).await;
    assert_eq!(count(&pipeline, "outbox").await, 3);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn each_pipeline_of_a_sharded_table_cleans_up_its_own_rows() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    pipeline
        .execute("CREATE PUBLICATION postrider FOR TABLE outbox WHERE (id % 2 = 0) WITH (publish = 'insert')")
        .await;
    pipeline.init().await;
    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "0s");
    let mut relay = pipeline.run().await;
    insert(&pipeline, 100).await;
    becomes(&pipeline, "outbox WHERE id % 2 = 0", 0).await;
    insert(&pipeline, 2).await;
    becomes(&pipeline, "outbox WHERE id % 2 = 0", 0).await;
    assert_eq!(count(&pipeline, "outbox").await, 51);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_clean_up_that_cannot_work_ends_the_relay_before_it_streams_with_what_mends_it() {
    let mut pipeline = with(&[("POSTRIDER_CARE_MARK", "true")]).await;
    pipeline.set("POSTRIDER_CARE_MARK_COLUMN", "sent");
    let told = refused(&pipeline, "PR0220", 3).await;
    assert!(told.contains("ADD COLUMN \"sent\" timestamptz"), "{told}");
    pipeline.set("POSTRIDER_CARE_MARK_COLUMN", "payload");
    refused(&pipeline, "PR0220", 3).await;
    pipeline.unset("POSTRIDER_CARE_MARK_COLUMN");

    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "1d");
    pipeline.set("POSTRIDER_CARE_ARCHIVE_TABLE", "kept");
    let told = refused(&pipeline, "PR0223", 3).await;
    assert!(told.contains("CREATE TABLE public.kept (LIKE public.outbox)"), "{told}");
    pipeline
        .execute("CREATE TABLE kept (id int, event_type varchar(50), payload json, created_at timestamp)")
        .await;
    assert!(refused(&pipeline, "PR0223", 3).await.contains("`payload`"));
    pipeline.execute("ALTER TABLE kept ALTER payload TYPE jsonb").await;
    assert!(refused(&pipeline, "PR0223", 3).await.contains("ADD COLUMN \"processed\" boolean"));
    pipeline.unset("POSTRIDER_CARE_ARCHIVE_TABLE");

    pipeline.execute("CREATE TABLE refers (id int REFERENCES outbox ON DELETE CASCADE)").await;
    assert!(refused(&pipeline, "PR0226", 3).await.contains("refers"));
    pipeline.execute("DROP TABLE refers").await;

    pipeline.set("POSTRIDER_CARE_DROP_PARTITIONS_AFTER", "1d");
    refused(&pipeline, "PR0225", 3).await;
    pipeline.unset("POSTRIDER_CARE_DROP_PARTITIONS_AFTER");

    pipeline.execute("UPDATE postrider.pipeline SET older_rows = 'unknown'").await;
    assert!(refused(&pipeline, "PR0224", 3).await.contains("INSERT INTO \"postrider\".older_row"));

    pipeline.execute("ALTER TABLE postrider.pipeline DROP COLUMN older_rows").await;
    assert!(refused(&pipeline, "PR0224", 3).await.contains("postrider init"));

    for (key, value) in [("ARCHIVE_TABLE", "kept"), ("ARCHIVE_TABLE", "outbox")] {
        let key = format!("POSTRIDER_CARE_{key}");
        pipeline.set("POSTRIDER_CARE_MARK", "false");
        pipeline.set("POSTRIDER_CARE_DELETE_AFTER", if value == "outbox" { "1d" } else { "off" });
        pipeline.set(&key, value);
        refused(&pipeline, "PR0115", 2).await;
        pipeline.unset(&key);
    }
}

#[tokio::test]
async fn a_mark_that_would_move_rows_or_hide_them_is_refused() {
    let mut pipeline = Pipeline::start().await;
    pipeline
        .execute(
            "CREATE TABLE outbox (id int, event_type text, payload jsonb, created_at timestamptz, processed boolean) \
             PARTITION BY LIST (processed); CREATE TABLE outbox_t PARTITION OF outbox DEFAULT; \
             CREATE TABLE other (id int, event_type text, payload jsonb, created_at timestamptz, processed boolean); \
             CREATE TABLE third (id int, event_type text, payload jsonb, created_at timestamptz, processed boolean) \
             PARTITION BY LIST ((coalesce(processed, false)))",
        )
        .await;
    pipeline.set("POSTRIDER_CARE_MARK", "true");
    pipeline.init().await;
    refused(&pipeline, "PR0222", 3).await;
    for (slot, filter) in [("other", "WHERE (processed IS NOT TRUE)"), ("third", "")] {
        pipeline
            .execute(&format!(
                "CREATE PUBLICATION {slot} FOR TABLE {slot} {filter} WITH (publish = 'insert', \
            publish_via_partition_root = true)"
            ))
            .await;
        pipeline.set("POSTRIDER_OUTBOX_TABLE", slot);
        pipeline.set("POSTRIDER_POSTGRES_SLOT", slot);
        pipeline.set("POSTRIDER_POSTGRES_PUBLICATION", slot);
        pipeline.set("POSTRIDER_NATS_STREAM", slot);
        pipeline.set("POSTRIDER_OUTBOX_SUBJECT", &format!("{slot}.{{event_type}}"));
        pipeline.init().await;
        refused(&pipeline, "PR0222", 3).await;
    }
}

#[tokio::test]
async fn what_the_role_lacks_to_clean_up_is_granted_as_doctor_says() {
    let mut pipeline = Pipeline::on(Servers { settings: BOUNDED, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.execute("CREATE TABLE archive (LIKE outbox)").await;
    pipeline.init().await;
    pipeline
        .execute(
            "CREATE ROLE relay LOGIN REPLICATION; GRANT USAGE ON SCHEMA postrider TO relay; \
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA postrider TO relay; \
        REVOKE SELECT ON postrider.older_row FROM relay; ALTER TABLE outbox ENABLE ROW LEVEL SECURITY",
        )
        .await;
    let url = pipeline.postgres.url("postgres").replace("postgres@", "relay@");
    pipeline.set("DATABASE_URL", &url);
    pipeline.set("POSTRIDER_CARE_MARK", "true");
    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "0s");
    pipeline.set("POSTRIDER_CARE_ARCHIVE_TABLE", "archive");
    refused(&pipeline, "PR0221", 3).await;
    let told = doctor(&pipeline).await;
    assert_eq!(told.code, Some(6), "{:#?}", told.findings);
    for finding in told.findings.iter().filter(|finding| finding["code"] == "PR0221") {
        paste(&pipeline, finding).await;
    }
    let told = doctor(&pipeline).await;
    assert_eq!(told.code, Some(0), "{:#?}", told.findings);
    assert!(told.has("PR0641"), "the settings for autovacuum are advice");
    let tuned = told.finding("PR0641").clone();
    paste(&pipeline, &tuned).await;
    assert!(!doctor(&pipeline).await.has("PR0641"));
    let mut relay = pipeline.run().await;
    insert(&pipeline, 20).await;
    becomes(&pipeline, "archive", 20).await;
    // A privilege that is taken later is a warning, and the relay goes on.
    pipeline.execute("REVOKE DELETE ON outbox FROM relay").await;
    insert(&pipeline, 20).await;
    assert!(relay.ended_or("clean-up failed").await && relay.is_running());
    pipeline.execute("GRANT DELETE ON outbox TO relay").await;
    becomes(&pipeline, "archive", 40).await;
    assert_eq!(relay.terminate().await, Some(0));
}

/// Six writers, every other of them with synchronous_commit = off, a fifth of the transactions rolled back.
struct Writers {
    stop: Arc<AtomicBool>,
    set: JoinSet<u64>,
}

impl Writers {
    fn start(pipeline: &Pipeline) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let mut set = JoinSet::new();
        for writer in 0..6 {
            let (stop, url) = (Arc::clone(&stop), pipeline.postgres.url("postgres"));
            set.spawn(async move {
                let mut client = connect(&url).await.unwrap();
                let off = if writer % 2 == 0 { "off" } else { "on" };
                client.batch_execute(&format!("SET synchronous_commit = {off}")).await.unwrap();
                let mut written = 0;
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let transaction = client.transaction().await.unwrap();
                    transaction
                        .batch_execute(
                            "INSERT INTO outbox (event_type, payload) SELECT 'order', '{}' FROM generate_series(1, 20); \
                             SAVEPOINT s; INSERT INTO outbox (event_type, payload) VALUES ('order', '{}')",
                        )
                        .await
                        .unwrap();
                    if round % 5 == writer % 5 {
                        transaction.rollback().await.unwrap();
                    } else {
                        transaction.commit().await.unwrap();
                        written += 21;
                    }
                    tokio::time::sleep(Duration::from_millis(40)).await;
                }
                written
            });
        }
        Writers { stop, set }
    }

    async fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = 0;
        while let Some(rows) = self.set.join_next().await {
            written += rows.unwrap();
        }
        written
    }
}

/// Whatever is deleted or marked at this moment is in the stream, and below the confirmed LSN.
async fn is_proved(pipeline: &Pipeline, sql: &tokio_postgres::Client, known: &mut HashSet<String>) {
    let query = "SELECT id::text FROM touched WHERE NOT seen";
    let touched: Vec<String> = sql.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    if touched.is_empty() {
        return;
    }
    let seen = "UPDATE touched SET seen = true WHERE id = ANY($1::text[]::bigint[])";
    sql.execute(seen, &[&touched]).await.unwrap();
    if touched.iter().any(|id| !known.contains(id)) {
        known.extend(pipeline.messages().await.iter().map(|message| message.id().to_owned()));
    }
    let missing: Vec<_> = touched.iter().filter(|id| !known.contains(*id)).collect();
    assert!(missing.is_empty(), "touched and not stored: {missing:?}");
}

/// Notes each touch, and how far the slot was confirmed when it happened.
const WITNESS: &str = "CREATE TABLE touched (id bigint, seen boolean NOT NULL DEFAULT false, confirmed pg_lsn); \
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
      INSERT INTO touched VALUES (OLD.id, false, (SELECT confirmed_flush_lsn FROM pg_replication_slots \
      WHERE slot_name = 'postrider')); RETURN OLD; END $$; \
    CREATE TRIGGER touch AFTER UPDATE OR DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION touch()";

/// Each row was committed before the LSN up to which the slot was confirmed when it was touched.
async fn was_confirmed(pipeline: &Pipeline) {
    let commits: HashMap<_, _> = pipeline
        .messages()
        .await
        .iter()
        .map(|message| (message.id().to_owned(), position(message).0))
        .collect();
    let touched = "SELECT id::text, (confirmed - '0/0')::bigint FROM touched";
    for row in pipeline.sql().await.query(touched, &[]).await.unwrap() {
        let (id, confirmed): (&str, i64) = (row.get(0), row.get(1));
        assert!(u64::try_from(confirmed).unwrap() > commits[id], "{id}");
    }
}

async fn restarts(pipeline: &Pipeline, relay: &mut Relay) {
    relay.kill();
    *relay = pipeline.spawn(&["run"]);
}

#[tokio::test]
async fn nothing_unproved_is_touched_though_the_relay_is_killed_under_six_writers() {
    let mut pipeline = with(&[("POSTRIDER_CARE_MARK", "true"), ("POSTRIDER_CARE_DELETE_AFTER", "3s")]).await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "1s");
    pipeline.execute(WITNESS).await;
    let mut relay = pipeline.run().await;
    let writers = Writers::start(&pipeline);
    let (sql, mut known) = (pipeline.sql().await, HashSet::new());
    let began = Instant::now();
    let mut next_kill = Duration::from_secs(10);
    while began.elapsed() < Duration::from_secs(50) {
        tokio::time::sleep(Duration::from_millis(250)).await;
        is_proved(&pipeline, &sql, &mut known).await;
        if began.elapsed() > next_kill {
            restarts(&pipeline, &mut relay).await;
            next_kill += Duration::from_millis(fastrand::u64(6000..16_000));
        }
    }
    let written = writers.finish().await;
    becomes(&pipeline, "outbox", 0).await;
    is_proved(&pipeline, &sql, &mut known).await;
    was_confirmed(&pipeline).await;
    assert!(count(&pipeline, "(SELECT DISTINCT id FROM touched) AS t").await >= written);
    assert_eq!(pipeline.last_seq().await, written);
    assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
}

#[tokio::test]
async fn the_table_stays_small_under_a_constant_load() {
    let mut pipeline = with(&[("POSTRIDER_CARE_DELETE_AFTER", "0s")]).await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "1s");
    let mut relay = pipeline.run().await;
    let writers = Writers::start(&pipeline);
    let (began, mut largest) = (Instant::now(), [0; 2]);
    while began.elapsed() < Duration::from_secs(50) {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let half = usize::from(began.elapsed() > Duration::from_secs(25));
        largest[half] = largest[half].max(count(&pipeline, "outbox").await);
    }
    let written = writers.finish().await;
    // It grows until the first proofs come, and no more.
    assert!(
        largest[1] < largest[0] * 2 && largest[1] < written / 3,
        "{largest:?} rows at a time, {written} in all"
    );
    becomes(&pipeline, "outbox", 0).await;
    assert_eq!(pipeline.last_seq().await, written);
    assert_eq!(relay.terminate().await, Some(0));
}
