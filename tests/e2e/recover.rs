//! `recover` publishes what the stream lacks, whatever was lost, and nothing twice.

use crate::support::{ARTICLE, Load, Message, Pipeline, Servers, connect, eventually};
use postrider::demo::servers::{PostgresOptions, PostgresPrograms, PostgresServer};
use serde_json::Value;
use std::collections::HashSet;
use std::time::Duration;

async fn insert(pipeline: &Pipeline, rows: u32) {
    let insert = format!(
        "INSERT INTO outbox (event_type, payload) SELECT 'order', jsonb_build_object('n', n) \
         FROM generate_series(1, {rows}) AS n"
    );
    pipeline.execute(&insert).await;
}

async fn recover(pipeline: &Pipeline, arguments: &[&str]) -> Value {
    let ended = pipeline.postrider(&[&["recover", "--yes", "--json"], arguments].concat()).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

async fn verify(pipeline: &Pipeline) -> Value {
    let ended = pipeline.postrider(&["verify", "--json"]).await;
    serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr))
}

/// Every row of the table is in the stream once, and verify says so too.
async fn is_whole(pipeline: &Pipeline) {
    let rows = pipeline.sql().await.query("SELECT id::bigint FROM outbox", &[]).await.unwrap();
    let rows: HashSet<String> = rows.iter().map(|row| row.get::<_, i64>(0).to_string()).collect();
    eventually("all rows are stored", async || {
        let stored = pipeline.messages().await;
        let ids: HashSet<_> =
            stored.iter().filter_map(|message| message.header("Postrider-Event-Id")).collect();
        rows.iter().all(|row| ids.contains(row.as_str())).then_some(())
    })
    .await;
    let messages = pipeline.messages().await;
    let stored = messages.iter().filter(|message| message.header("Postrider-Event-Id").is_some()).count();
    assert_eq!(stored, rows.len(), "messages and rows");
    let report = verify(pipeline).await;
    let sound = ["missing", "doubled", "misordered"].map(|name| report[name].as_u64());
    assert_eq!(sound, [Some(0); 3], "{report}");
}

/// Messages as a stream that was put back has them.
async fn restore(pipeline: &Pipeline, messages: &[Message]) {
    let jetstream = pipeline.jetstream().await;
    for message in messages {
        let mut headers = async_nats::HeaderMap::new();
        for (name, values) in
            message.headers.iter().filter(|(name, _)| name.to_string().starts_with("Postrider-"))
        {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
        let (subject, payload) = (message.subject.clone(), message.payload.clone());
        jetstream.publish_with_headers(subject, headers, payload).await.unwrap().await.unwrap();
    }
}

async fn stopped_after(pipeline: &Pipeline, rows: u32) {
    let mut relay = pipeline.run().await;
    insert(pipeline, rows).await;
    pipeline.stored(u64::from(rows)).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_slot_that_is_dropped_under_load_is_made_anew_and_each_row_is_stored_once() {
    let pipeline = Pipeline::article().await;
    let mut load = Load::endless(&pipeline, 4, &[1, 2, 30], Duration::from_millis(2));
    for _ in 0..2 {
        let mut relay = pipeline.run().await;
        let before = pipeline.last_seq().await;
        pipeline.stored(before + 500).await;
        relay.kill();
        eventually("the slot is free to be dropped", async || {
            let drop = "SELECT pg_drop_replication_slot('postrider')";
            pipeline.sql().await.batch_execute(drop).await.ok()
        })
        .await;
        let refused = pipeline.postrider(&["run"]).await;
        assert!(refused.stderr.contains("PR0401") && refused.stderr.contains("postrider recover"));
        let mended = recover(&pipeline, &[]).await;
        assert!(mended["published"].as_u64() > Some(0), "{mended}");
    }
    let mut relay = pipeline.run().await;
    load.finish().await;
    is_whole(&pipeline).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_recover_that_is_killed_goes_on_where_it_was() {
    let pipeline = Pipeline::article().await;
    stopped_after(&pipeline, 100).await;
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    insert(&pipeline, 20_000).await;
    for kills in 1..=2 {
        let mut recovering = pipeline.spawn(&["recover", "--yes"]);
        pipeline.stored(kills * 3000).await;
        recovering.kill();
        let refused = pipeline.postrider(&["run"]).await;
        assert!(refused.stderr.contains("PR0406") && refused.stderr.contains("postrider recover"));
    }
    recover(&pipeline, &[]).await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 10).await;
    is_whole(&pipeline).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_deleted_message_is_published_again_beside_a_foreign_one_and_accept_passes_over_that() {
    let pipeline = Pipeline::article().await;
    stopped_after(&pipeline, 30).await;
    insert(&pipeline, 5).await;
    assert!(pipeline.stream().await.delete_message(17).await.unwrap());
    let jetstream = pipeline.jetstream().await;
    jetstream.publish("outbox.alien", "x".into()).await.unwrap().await.unwrap();
    let slot = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'postrider'";
    let before = pipeline.ask(slot).await;
    let dry = pipeline.postrider(&["recover", "--dry-run", "--json"]).await;
    let dry: Value = serde_json::from_str(&dry.stdout).unwrap();
    assert_eq!((&dry["missing"], &dry["foreign"]), (&1.into(), &1.into()), "{dry}");
    assert_eq!(pipeline.last_seq().await, 31, "a dry run publishes nothing");
    let mended = recover(&pipeline, &[]).await;
    assert_eq!(mended["published"], 1, "{mended}");
    assert_eq!(pipeline.ask(slot).await, before, "a sound slot stays");
    let report = verify(&pipeline).await;
    let told = ["missing", "foreign", "pending", "doubled"].map(|name| report[name].as_u64());
    assert_eq!(told, [Some(0), Some(1), Some(5), Some(0)], "{report}");
    recover(&pipeline, &["--accept"]).await;
    let mut relay = pipeline.run().await;
    is_whole(&pipeline).await;
    assert_eq!(verify(&pipeline).await["foreign"], 0);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_deleted_message_is_published_again_also_while_the_slot_would_send_its_neighbours() {
    let mut pipeline = Pipeline::start().await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "10m");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    stopped_after(&pipeline, 30).await;
    for round in [1, 2] {
        assert!(pipeline.stream().await.delete_message(10 * round).await.unwrap());
        let mended = recover(&pipeline, &[]).await;
        assert_eq!((&mended["published"], &mended["new_slot"]), (&1.into(), &Value::Null), "{mended}");
        let mut relay = pipeline.run().await;
        insert(&pipeline, 5).await;
        pipeline.stored(30 + 6 * round).await;
        assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
    }
    is_whole(&pipeline).await;
}

#[tokio::test]
async fn a_stream_that_was_deleted_is_made_and_filled_anew_and_the_slot_stays() {
    let pipeline = Pipeline::article().await;
    stopped_after(&pipeline, 30).await;
    insert(&pipeline, 7).await;
    pipeline.jetstream().await.delete_stream("OUTBOX").await.unwrap();
    let mended = recover(&pipeline, &[]).await;
    assert_eq!((&mended["new_stream"], &mended["new_slot"]), (&true.into(), &Value::Null), "{mended}");
    let mut relay = pipeline.run().await;
    insert(&pipeline, 3).await;
    is_whole(&pipeline).await;
    let ids: Vec<_> = pipeline.messages().await.iter().map(|message| message.id().to_owned()).collect();
    assert_eq!(ids, (1..=40).map(|id| id.to_string()).collect::<Vec<_>>());
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_stream_that_went_back_beyond_what_was_confirmed_is_filled_again() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 30).await;
    pipeline.stored(30).await;
    let held = "SELECT confirmed_seq FROM postrider.pipeline";
    eventually("all is confirmed", async || (pipeline.ask(held).await == "30").then_some(())).await;
    assert_eq!(relay.terminate().await, Some(0));
    let mut config = pipeline.stream().await.cached_info().config.clone();
    let kept = pipeline.messages().await;
    pipeline.jetstream().await.delete_stream("OUTBOX").await.unwrap();
    config.description = None;
    pipeline.jetstream().await.create_stream(config).await.unwrap();
    restore(&pipeline, &kept[..20]).await;
    let refused = pipeline.postrider(&["run"]).await;
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    assert_eq!(recover(&pipeline, &[]).await["published"], 10);
    let mut relay = pipeline.run().await;
    insert(&pipeline, 3).await;
    is_whole(&pipeline).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_database_that_was_moved_is_adopted_and_nothing_is_doubled() {
    let mut pipeline = Pipeline::article().await;
    stopped_after(&pipeline, 10).await;
    insert(&pipeline, 4).await;
    let dump = pipeline.ask("SELECT json_agg(o ORDER BY id) FROM outbox AS o").await;
    let row = pipeline.ask("SELECT to_jsonb(p) FROM postrider.pipeline AS p").await;
    let options = PostgresOptions { own_system: true, ..PostgresOptions::default() };
    let other = PostgresServer::start_with(&PostgresPrograms::find(None).unwrap(), options).await.unwrap();
    // What pg_dump takes along: tables and publication, not the slot.
    let sql = connect(&other.url("postgres")).await.unwrap();
    let tables = [
        postrider::state::checkpoint::create_table("postrider"),
        postrider::state::dead_letter::create_table("postrider"),
        postrider::state::older::create_table("postrider"),
    ];
    let publication = "CREATE PUBLICATION postrider FOR TABLE outbox WITH (publish = 'insert')";
    let schema = format!("{ARTICLE}; CREATE SCHEMA postrider; {}; {publication}", tables.join("; "));
    sql.batch_execute(&schema).await.unwrap();
    let load = "INSERT INTO outbox SELECT * FROM json_populate_recordset(NULL::outbox, $1::text::json)";
    sql.execute(load, &[&dump]).await.unwrap();
    sql.batch_execute("SELECT setval('outbox_id_seq', 1000)").await.unwrap();
    let load = "INSERT INTO postrider.pipeline SELECT * FROM jsonb_populate_record(NULL::postrider.pipeline, $1::text::jsonb)";
    sql.execute(load, &[&row]).await.unwrap();
    let url = other.url("postgres");
    pipeline.set("DATABASE_URL", &url);
    let refused = pipeline.postrider(&["recover", "--yes"]).await;
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    assert!(refused.stderr.contains("PR0407") && refused.stderr.contains("--adopt"), "{}", refused.stderr);
    pipeline.postgres = other;
    // One that is killed as soon as it has begun, and the command that the relay then names.
    let mut killed = pipeline.spawn(&["recover", "--adopt", "--yes"]);
    let moved = "SELECT system_id FROM postrider.pipeline";
    let here = "SELECT system_identifier FROM pg_control_system()";
    eventually("it has begun", async || {
        (pipeline.ask(moved).await == pipeline.ask(here).await).then_some(())
    })
    .await;
    killed.kill();
    let left = 14 - pipeline.last_seq().await;
    // It may have been done before it was killed.
    assert_eq!(recover(&pipeline, &[]).await["published"].as_u64().unwrap_or(0), left);
    let mut relay = pipeline.run().await;
    insert(&pipeline, 6).await;
    is_whole(&pipeline).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn letters_of_an_attempt_that_halted_are_not_written_over() {
    let mut pipeline = Pipeline::start().await;
    pipeline.set("POSTRIDER_DELIVERY_DEAD_LETTERS_MAX", "3");
    pipeline.execute(ARTICLE).await;
    insert(&pipeline, 5).await;
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload) SELECT 'no good', '{}' FROM generate_series(1, 10)",
        )
        .await;
    for letters in [3, 6] {
        let halted = pipeline.postrider(&["init", "--backfill"]).await;
        assert_eq!(halted.code, Some(7), "{}", halted.stderr);
        assert_eq!(pipeline.ask("SELECT count(*) FROM postrider.dead_letter").await, letters.to_string());
    }
    pipeline.set("POSTRIDER_DELIVERY_DEAD_LETTERS_MAX", "100");
    assert_eq!(pipeline.postrider(&["init", "--backfill"]).await.code, Some(0));
    assert_eq!(pipeline.ask("SELECT count(DISTINCT event_id) FROM postrider.dead_letter").await, "10");
    assert_eq!(pipeline.last_seq().await, 5);
}

#[tokio::test]
async fn a_stream_that_ends_within_a_transaction_gets_the_rest_of_it_too() {
    let mut pipeline = Pipeline::start().await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "10m");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    stopped_after(&pipeline, 20).await;
    // As after a power failure of NATS: the row knows less than the stream, and one message is gone.
    let kept = pipeline.messages().await;
    let config = pipeline.stream().await.cached_info().config.clone();
    pipeline.jetstream().await.delete_stream("OUTBOX").await.unwrap();
    pipeline.jetstream().await.create_stream(config).await.unwrap();
    restore(&pipeline, &kept[..7]).await;
    assert!(pipeline.stream().await.delete_message(3).await.unwrap());
    assert_eq!(recover(&pipeline, &[]).await["published"], 14);
    let mut relay = pipeline.run().await;
    insert(&pipeline, 3).await;
    is_whole(&pipeline).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn events_that_expired_before_they_were_confirmed_are_not_published_again() {
    let mut pipeline = Pipeline::start().await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "10m");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    stopped_after(&pipeline, 10).await;
    pipeline.execute("UPDATE outbox SET created_at = created_at - interval '1 day'").await;
    pipeline.stream().await.purge().await.unwrap();
    let jetstream = pipeline.jetstream().await;
    jetstream.publish("outbox.alien", "x".into()).await.unwrap().await.unwrap();
    assert_eq!(recover(&pipeline, &["--accept", "--since", "1h"]).await["published"], 0);
    let mut relay = pipeline.run().await;
    insert(&pipeline, 2).await;
    pipeline.stored(13).await;
    assert_eq!(relay.terminate().await, Some(0));
    assert_eq!(pipeline.last_seq().await, 13);
}

#[tokio::test]
async fn a_slot_that_lost_its_wal_is_made_anew() {
    let settings = &[("max_slot_wal_keep_size", "16MB"), ("min_wal_size", "32MB"), ("max_wal_size", "48MB")];
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(&format!("{ARTICLE}; CREATE TABLE other (noise text)")).await;
    pipeline.init().await;
    stopped_after(&pipeline, 10).await;
    insert(&pipeline, 5).await;
    pipeline.execute("ALTER TABLE other ALTER noise SET STORAGE EXTERNAL").await;
    let noise = "INSERT INTO other SELECT repeat(md5(n::text), 300) FROM generate_series(1, 8000) n";
    eventually("the slot is lost", async || {
        pipeline.execute(&format!("{noise}; SELECT pg_switch_wal(); CHECKPOINT")).await;
        let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = 'postrider'";
        (pipeline.ask(lost).await == "true").then_some(())
    })
    .await;
    assert_eq!(recover(&pipeline, &[]).await["published"], 5);
    let mut relay = pipeline.run().await;
    insert(&pipeline, 3).await;
    is_whole(&pipeline).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn rows_of_a_hole_in_the_publication_are_published() {
    let pipeline = Pipeline::article().await;
    stopped_after(&pipeline, 10).await;
    pipeline.execute("ALTER PUBLICATION postrider DROP TABLE outbox").await;
    insert(&pipeline, 4).await;
    pipeline.execute("ALTER PUBLICATION postrider ADD TABLE outbox").await;
    insert(&pipeline, 2).await;
    assert_eq!(pipeline.postrider(&["run"]).await.code, Some(5));
    assert_eq!(recover(&pipeline, &[]).await["published"], 4);
    let mut relay = pipeline.run().await;
    is_whole(&pipeline).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn rows_that_postgres_18_skips_for_want_of_a_publication_are_published_and_the_slot_made_anew() {
    let pipeline = Pipeline::on(Servers { postgres: Some(18), ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    stopped_after(&pipeline, 10).await;
    pipeline.execute("DROP PUBLICATION postrider").await;
    insert(&pipeline, 4).await;
    pipeline.execute("CREATE PUBLICATION postrider FOR TABLE outbox WITH (publish = 'insert')").await;
    insert(&pipeline, 2).await;
    let mended = recover(&pipeline, &[]).await;
    assert_eq!(mended["published"], 6, "{mended}");
    assert!(mended["new_slot"].as_str().unwrap().contains("skipped loading publication"), "{mended}");
    let mut relay = pipeline.run().await;
    is_whole(&pipeline).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn nothing_is_done_where_nothing_is_missing_nor_while_a_relay_streams() {
    let pipeline = Pipeline::article().await;
    stopped_after(&pipeline, 10).await;
    insert(&pipeline, 4).await;
    let row = "SELECT to_jsonb(p) FROM postrider.pipeline AS p";
    let before = pipeline.ask(row).await;
    let ended = pipeline.postrider(&["recover"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("nothing is missing"), "{}", ended.stdout);
    assert_eq!(pipeline.ask(row).await, before);
    let mut relay = pipeline.run().await;
    let refused = pipeline.postrider(&["recover", "--yes"]).await;
    assert!(refused.code == Some(5) && refused.stderr.contains("PR0417"), "{}", refused.stderr);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_stream_that_forgets_needs_a_time_to_begin_at() {
    let pipeline = Pipeline::article().await;
    stopped_after(&pipeline, 5).await;
    pipeline.execute("UPDATE outbox SET created_at = created_at - interval '1 day' WHERE id < 3").await;
    pipeline.stream().await.purge().sequence(3).await.unwrap();
    assert!(pipeline.stream().await.delete_message(4).await.unwrap());
    let refused = pipeline.postrider(&["recover", "--yes"]).await;
    assert!(refused.code == Some(2) && refused.stderr.contains("--since"), "{}", refused.stderr);
    assert_eq!(recover(&pipeline, &["--since", "1h"]).await["published"], 1);
    let ids: Vec<_> = pipeline.messages().await.iter().map(|message| message.id().to_owned()).collect();
    assert_eq!(ids, ["3", "5", "4"]);
}

#[tokio::test]
async fn rows_before_the_time_to_begin_at_are_left_alone_by_clean_up_until_a_person_lets_them_go() {
    let mut pipeline = Pipeline::article().await;
    stopped_after(&pipeline, 5).await;
    pipeline.stream().await.purge().sequence(3).await.unwrap();
    insert(&pipeline, 10).await;
    // One of each kind: aged, of no known age, and two that are stored.
    pipeline
        .execute("UPDATE outbox SET created_at = created_at - interval '6 hours' WHERE id BETWEEN 3 AND 9")
        .await;
    pipeline.execute("UPDATE outbox SET created_at = NULL WHERE id = 10").await;
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    let ended = pipeline.postrider(&["recover", "--yes", "--since", "2h"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("left out    5 rows"), "{}", ended.stdout);
    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "0s");
    let mut relay = pipeline.run().await;
    let rest = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM outbox";
    let becomes = async |rows: &str| {
        eventually(rows, async || (pipeline.ask(rest).await == rows).then_some(())).await;
    };
    becomes("6 7 8 9 10").await;
    insert(&pipeline, 1).await;
    becomes("6 7 8 9 10 16").await;
    becomes("6 7 8 9 10").await;
    let release = ended.stdout.lines().find(|line| line.contains("DELETE FROM")).unwrap();
    pipeline.execute(release.split(';').next().unwrap()).await;
    becomes("").await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn rows_that_an_adoption_lists_though_they_are_stored_are_let_go_by_recover() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, 5).await;
    let settled = "SELECT seq = 5 FROM postrider.pipeline";
    eventually("all is settled", async || (pipeline.ask(settled).await == "true").then_some(())).await;
    eventually("and confirmed", async || {
        let behind =
            "SELECT confirmed_flush_lsn >= settled_lsn FROM pg_replication_slots, postrider.pipeline";
        (pipeline.ask(behind).await == "true").then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0));
    let adopted = pipeline.postrider(&["init", "--adopt"]).await;
    assert!(
        adopted.stdout.contains("older       5 rows") && adopted.stdout.contains("postrider recover"),
        "{}",
        adopted.stdout
    );
    let mended = recover(&pipeline, &[]).await;
    assert_eq!((&mended["published"], &mended["left_out"]), (&0.into(), &0.into()), "{mended}");
    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "0s");
    let mut relay = pipeline.run().await;
    eventually("they are cleaned up", async || {
        (pipeline.ask("SELECT count(*) FROM outbox").await == "0").then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0));
}
