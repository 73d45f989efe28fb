//! What Postgres does inside and between transactions, and what becomes of it.

use crate::refusals::insert;
use crate::support::{ARTICLE, DEADLINE, Pipeline, Servers, connect, eventually, within};
use futures_util::StreamExt;
use std::time::Duration;

async fn subjects(pipeline: &Pipeline, count: usize) -> Vec<String> {
    pipeline.exactly(count).await.into_iter().map(|message| message.subject).collect()
}

#[tokio::test]
async fn a_prepared_transaction_counts_from_its_commit() {
    let settings = &[("max_prepared_transactions", "5")];
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    let row = |event_type: &str| {
        format!("INSERT INTO outbox (event_type, payload) VALUES ('{event_type}', '{{}}')")
    };
    pipeline.execute(&format!("BEGIN; {}; PREPARE TRANSACTION 'later'", row("prepared"))).await;
    pipeline.execute(&format!("BEGIN; {}; PREPARE TRANSACTION 'never'", row("undone"))).await;
    insert(&pipeline, "'between'").await;
    pipeline.stored(1).await;
    assert_eq!(relay.terminate().await, Some(0));
    let mut relay = pipeline.run().await;
    pipeline.execute("ROLLBACK PREPARED 'never'").await;
    pipeline.execute("COMMIT PREPARED 'later'").await;
    assert_eq!(subjects(&pipeline, 2).await, ["outbox.between", "outbox.prepared"]);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_row_that_is_deleted_in_its_own_transaction_is_published() {
    let pipeline = Pipeline::article().await;
    let _relay = pipeline.run().await;
    pipeline
        .execute(
            "BEGIN; INSERT INTO outbox (event_type, payload) VALUES ('a', '{}'); DELETE FROM outbox; COMMIT; \
             INSERT INTO outbox (id, event_type, payload) VALUES (7, 'b', '{}'); \
             INSERT INTO outbox (id, event_type, payload) VALUES (7, 'c', '{}') ON CONFLICT (id) DO UPDATE SET event_type = 'd'; \
             UPDATE outbox SET processed = true; DELETE FROM outbox; \
             INSERT INTO outbox (event_type, payload) VALUES ('e', '{}')",
        )
        .await;
    assert_eq!(subjects(&pipeline, 3).await, ["outbox.a", "outbox.b", "outbox.e"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_ten_thousand_rows_goes_on_at_its_row_after_a_crash() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_WINDOW_MESSAGES", "64");
    pipeline.watch_commits().await;
    let mut relay = pipeline.run().await;
    let (sql, copy) = (pipeline.sql().await, "COPY outbox (event_type, payload) FROM STDIN");
    let sink = sql.copy_in(copy).await.unwrap();
    let mut sink = std::pin::pin!(sink);
    let rows: String = (0..10_000).map(|n| format!("e\t{{\"n\": {n}}}\n")).collect();
    futures_util::SinkExt::send(&mut sink, bytes::Bytes::from(rows)).await.unwrap();
    sink.finish().await.unwrap();
    for stored in [500, 3000, 7000] {
        pipeline.stored(stored).await;
        relay.kill();
        relay = pipeline.run().await;
    }
    pipeline.proves(&mut relay).await;
}

#[tokio::test]
async fn a_message_that_was_emitted_into_the_log_is_no_event() {
    let pipeline = Pipeline::article().await;
    let _relay = pipeline.run().await;
    pipeline
        .execute(
            "BEGIN; SELECT pg_logical_emit_message(false, 'outbox', 'x'); ROLLBACK; \
             SELECT pg_logical_emit_message(true, 'outbox', 'y'); \
             INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')",
        )
        .await;
    assert_eq!(subjects(&pipeline, 1).await, ["outbox.a"]);
}

#[tokio::test]
async fn a_commit_that_is_not_flushed_yet_is_published_all_the_same() {
    let settings = &[("synchronous_commit", "off"), ("wal_writer_delay", "1s")];
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let _relay = pipeline.run().await;
    insert(&pipeline, "'a'").await;
    assert_eq!(subjects(&pipeline, 1).await, ["outbox.a"]);
}

#[tokio::test]
async fn partitions_come_and_go_while_it_runs() {
    let mut pipeline = Pipeline::start().await;
    pipeline.set("POSTRIDER_OUTBOX_PRESET", "article");
    pipeline
        .execute(
            "CREATE TABLE outbox (id int, event_type text, payload jsonb, created_at timestamp DEFAULT now(), \
             processed bool) PARTITION BY RANGE (id); \
             CREATE TABLE p1 PARTITION OF outbox FOR VALUES FROM (0) TO (10)",
        )
        .await;
    pipeline.init().await;
    let _relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox VALUES (1, 'a', '{}')").await;
    pipeline
        .execute(
            "CREATE TABLE p2 (LIKE outbox); INSERT INTO p2 VALUES (10, 'before', '{}'); \
             ALTER TABLE outbox ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20); \
             INSERT INTO outbox VALUES (11, 'b', '{}'); INSERT INTO p2 VALUES (12, 'leaf', '{}'); \
             ALTER TABLE outbox DETACH PARTITION p1; INSERT INTO p1 VALUES (2, 'detached', '{}'); DROP TABLE p1; \
             INSERT INTO outbox VALUES (13, 'c', '{}')",
        )
        .await;
    // What a partition held before it was attached, and after it was detached, is no row of the outbox.
    assert_eq!(subjects(&pipeline, 4).await, ["outbox.a", "outbox.b", "outbox.leaf", "outbox.c"]);
}

#[tokio::test]
async fn a_crash_with_an_open_transaction_sends_everything_again_and_stores_it_once() {
    for version in [14, 16, 18] {
        let mut pipeline = Pipeline::on(Servers { postgres: Some(version), ..Servers::default() }).await;
        pipeline.execute(ARTICLE).await;
        pipeline.init().await;
        let mut relay = pipeline.run().await;
        let sql = pipeline.sql().await;
        sql.batch_execute("BEGIN; INSERT INTO outbox (event_type, payload) VALUES ('open', '{}')")
            .await
            .unwrap();
        for _ in 0..50 {
            insert(&pipeline, "'a'").await;
        }
        pipeline.stored(50).await;
        pipeline.postgres.kill().await;
        pipeline.postgres.start_again().await.unwrap();
        insert(&pipeline, "'b'").await;
        pipeline.stored(51).await;
        relay.streams().await;
        let messages = pipeline.exactly(51).await;
        assert_eq!(messages.last().unwrap().subject, "outbox.b", "version {version}");
        assert_eq!(relay.terminate().await, Some(0));
    }
}

#[tokio::test]
async fn thousands_of_transactions_elsewhere_cost_nothing_on_14() {
    let pipeline = Pipeline::on(Servers { postgres: Some(14), ..Servers::default() }).await;
    pipeline.execute(&format!("{ARTICLE}; CREATE TABLE other (n int)")).await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute("DO $$ BEGIN FOR n IN 1..5000 LOOP INSERT INTO other VALUES (n); COMMIT; END LOOP; END $$")
        .await;
    insert(&pipeline, "'a'").await;
    pipeline.stored(1).await;
    let end = pipeline.ask("pg_current_wal_insert_lsn()").await;
    within(Duration::from_secs(30), "the slot follows", async || {
        (pipeline.ask(&format!("'{}'::pg_lsn >= '{end}'", pipeline.confirmed_lsn().await)).await == "true")
            .then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_row_filter_that_raises_is_named_and_nothing_is_skipped() {
    let pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    pipeline
        .execute("CREATE PUBLICATION postrider FOR TABLE outbox WHERE (10 / length(event_type) > 0) WITH (publish = 'insert')")
        .await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'a'").await;
    pipeline.stored(1).await;
    insert(&pipeline, "''").await;
    insert(&pipeline, "'b'").await;
    eventually("it says so", async || {
        let said = relay.stderr().contains("division by zero");
        (said || !relay.is_running()).then_some(())
    })
    .await;
    assert!(relay.stderr().contains("division by zero"), "{}", relay.stderr());
    assert_eq!(pipeline.last_seq().await, 1);
}

#[tokio::test]
async fn a_role_with_time_limits_streams_and_stands_by() {
    let mut pipeline = Pipeline::article().await;
    pipeline
        .execute(
            "CREATE ROLE relay LOGIN REPLICATION SUPERUSER; ALTER ROLE relay SET statement_timeout = '1s'; \
             ALTER ROLE relay SET idle_session_timeout = '1s'; ALTER ROLE relay SET lock_timeout = '1s'; \
             ALTER ROLE relay SET idle_in_transaction_session_timeout = '1s'",
        )
        .await;
    let url = pipeline.postgres.url("postgres").replace("postgres@", "relay@");
    pipeline.set("DATABASE_URL", &url);
    let mut leader = pipeline.run().await;
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    // Idle for longer than every limit.
    tokio::time::sleep(Duration::from_secs(4)).await;
    insert(&pipeline, "'a'").await;
    pipeline.stored(1).await;
    for relay in [&mut leader, &mut standby] {
        assert!(!relay.stderr().contains("the session ended"), "{}", relay.stderr());
        assert_eq!(relay.terminate().await, Some(0));
    }
}

#[tokio::test]
async fn a_commit_that_waits_for_a_standby_is_published_when_it_is_flushed() {
    // The walsender sends what is on disk, before the writer's commit returns.
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    pipeline.execute("SELECT pg_reload_conf()").await;
    let url = pipeline.postgres.url("postgres");
    let writer = tokio::spawn(async move {
        let sql = connect(&url).await.unwrap();
        let _ = sql.batch_execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    });
    pipeline.stored(1).await;
    assert!(!writer.is_finished());
    for statement in ["ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"] {
        pipeline.execute(statement).await;
    }
    tokio::time::timeout(DEADLINE, writer).await.unwrap().unwrap();
    assert_eq!(relay.terminate().await, Some(0));
}

/// Waits until the relay has so many events that are not stored.
async fn taken(relay: &crate::support::Relay, events: u64) {
    eventually("the events are taken", async || {
        let status = relay.status().await?;
        (status["in_flight_messages"].as_u64() == Some(events)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn with_wait_visible_an_event_waits_until_others_can_see_its_row() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_WAIT_VISIBLE", "true");
    let mut relay = pipeline.run().await;
    for statement in ["ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()"] {
        pipeline.execute(statement).await;
    }
    let url = pipeline.postgres.url("postgres");
    let writer = tokio::spawn(async move {
        let sql = connect(&url).await.unwrap();
        let _ = sql.batch_execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    });
    taken(&relay, 1).await;
    // Behind it in the log, and so in the stream.
    let local = "SET synchronous_commit = local; INSERT INTO outbox (event_type, payload) VALUES ('b', '{}')";
    pipeline.execute(local).await;
    taken(&relay, 2).await;
    assert_eq!(
        (pipeline.ask("SELECT count(*) FROM outbox").await, pipeline.last_seq().await),
        ("1".into(), 0)
    );
    for statement in ["ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"] {
        pipeline.execute(statement).await;
    }
    tokio::time::timeout(DEADLINE, writer).await.unwrap().unwrap();
    assert_eq!(subjects(&pipeline, 2).await, ["outbox.a", "outbox.b"]);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn with_wait_visible_whoever_gets_an_event_finds_its_row() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_WAIT_VISIBLE", "true");
    let mut relay = pipeline.run().await;
    let mut load = crate::support::Load::rounds(&pipeline, 4, &[1, 2], 150);
    let sql = pipeline.sql().await;
    let consumer = pipeline.stream().await;
    let consumer = consumer.create_consumer(async_nats::jetstream::consumer::pull::OrderedConfig::default());
    let mut messages = consumer.await.unwrap().messages().await.unwrap();
    for _ in 0..500 {
        let message = tokio::time::timeout(DEADLINE, messages.next()).await.unwrap().unwrap().unwrap();
        let id = message.headers.as_ref().unwrap().get("Postrider-Event-Id").unwrap().as_str().to_owned();
        let seen = sql.query_one("SELECT count(*) FROM outbox WHERE id::text = $1", &[&id]).await.unwrap();
        assert_eq!(seen.get::<_, i64>(0), 1, "row {id}");
    }
    load.finish().await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_value_of_a_hundred_megabytes_is_a_letter_and_the_next_event_follows() {
    let pipeline = Pipeline::with_table(&ARTICLE.replace("payload JSONB", "payload TEXT")).await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload) VALUES ('large', repeat('x', 100000000)), ('b', '{}')",
        )
        .await;
    assert_eq!(subjects(&pipeline, 1).await, ["outbox.b"]);
    assert_eq!(
        pipeline.ask("SELECT reason || ' ' || octet_length(payload) FROM postrider.dead_letter").await,
        "oversize 100000000"
    );
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_stream_that_is_slower_than_wal_sender_timeout_keeps_its_connection() {
    let nats_extra = "jetstream { store_dir: $STORE, sync_interval: always }";
    let mut pipeline = Pipeline::on(Servers { nats_extra, ..Servers::default() }).await;
    pipeline.set("POSTRIDER_DELIVERY_WINDOW_MESSAGES", "1");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    // 40 MB, one by one: for the most part the walsender is not read from.
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload) \
             SELECT 'e', jsonb_build_object('text', repeat('x', 1300)) FROM generate_series(1, 30000)",
        )
        .await;
    pipeline.stored(30_000).await;
    assert!(!relay.stderr().contains("the session ended"), "{}", relay.stderr());
    assert!(relay.resident_max() < 64 << 20, "{} bytes", relay.resident_max());
    assert_eq!(relay.terminate().await, Some(0));
}
