//! Servers that go away and come back, other relays, idleness, and memory.

use crate::support::{DEADLINE, Load, Pipeline, eventually, within};
use postrider::demo::servers::Stop;
use std::process::Stdio;
use std::time::{Duration, Instant};

const STEADY: &[i32] = &[1, 10, 1, 100, 1];
const PAUSE: Duration = Duration::from_millis(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_nats_under_load_loses_and_doubles_nothing() {
    let mut pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut relay = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 3, STEADY, PAUSE);
    pipeline.stored(100).await;
    pipeline.nats.kill();
    // Longer than postgres.release_after: the session ends and the slot is free meanwhile.
    let begun = Instant::now();
    relay.is("role", "waiting").await;
    assert_eq!(relay.get("/readyz").await.unwrap().0, 503);
    assert_eq!(relay.get("/healthz").await.unwrap().0, 200);
    let free = "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'postrider'";
    eventually("the slot is free", async || (pipeline.ask(free).await == "true").then_some(())).await;
    tokio::time::sleep(Duration::from_secs(8).saturating_sub(begun.elapsed())).await;
    pipeline.nats.start_again().await.unwrap();
    relay.streams().await;
    load.finish().await;
    pipeline.proves(&mut relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_nats_under_load_lose_and_double_nothing() {
    let mut pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut relay = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 3, STEADY, PAUSE);
    for round in 0..4 {
        let stored = pipeline.last_seq().await;
        if round % 2 == 0 {
            pipeline.nats.stop().await.unwrap();
        } else {
            pipeline.nats.kill();
        }
        pipeline.nats.start_again().await.unwrap();
        pipeline.stored(stored + 300).await;
    }
    load.finish().await;
    pipeline.proves(&mut relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_stops_fast_though_nats_is_away_and_nothing_is_lost() {
    let mut pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut relay = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 3, STEADY, PAUSE);
    pipeline.stored(100).await;
    pipeline.nats.kill();
    pipeline.postgres.stop(Stop::Fast, Duration::from_secs(10)).await.unwrap();
    pipeline.postgres.start_again().await.unwrap();
    pipeline.nats.start_again().await.unwrap();
    relay.streams().await;
    load.finish().await;
    pipeline.proves(&mut relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_stops_fast_though_nats_hangs_and_memory_stays_flat() {
    let mut pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut relay = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 3, &[100, 500, 10], PAUSE);
    pipeline.stored(2000).await;
    let before = relay.resident_max();
    // Its connections stay open, and nothing comes back.
    pipeline.nats.freeze();
    let written = |count: i64| format!("SELECT count(*) >= {count} FROM outbox");
    let rows: i64 = pipeline.ask("SELECT count(*) FROM outbox").await.parse().unwrap();
    eventually("the writers go on", async || {
        (pipeline.ask(&written(rows + 30_000)).await == "true").then_some(())
    })
    .await;
    relay.is("role", "waiting").await;
    pipeline.postgres.stop(Stop::Fast, Duration::from_secs(10)).await.unwrap();
    pipeline.postgres.start_again().await.unwrap();
    pipeline.nats.thaw();
    relay.streams().await;
    load.finish().await;
    let grown = relay.resident_max() - before;
    assert!(grown < 24 << 20, "{grown} bytes more");
    pipeline.proves(&mut relay).await;
}

#[tokio::test]
async fn a_giant_transaction_of_another_table_costs_no_session() {
    let pipeline = Pipeline::article().await;
    pipeline.execute("CREATE TABLE other (n int)").await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute(
            "BEGIN; INSERT INTO other SELECT generate_series(1, 1500000); \
             INSERT INTO outbox (event_type, payload) VALUES ('a', '{}'); COMMIT",
        )
        .await;
    pipeline.stored(1).await;
    assert!(!relay.stderr().contains("the session ended"), "{}", relay.stderr());
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_of_postgres_under_load_lose_and_double_nothing() {
    let mut pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut relay = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 3, STEADY, PAUSE);
    for _ in 0..2 {
        let stored = pipeline.last_seq().await;
        pipeline.stored(stored + 300).await;
        pipeline.postgres.kill().await;
        pipeline.postgres.start_again().await.unwrap();
    }
    load.finish().await;
    pipeline.proves(&mut relay).await;
}

#[tokio::test]
async fn a_relay_whose_log_nobody_reads_any_more_goes_on() {
    const INSERT: &str = "INSERT INTO outbox (event_type, payload) VALUES ('order_placed', '{}')";
    let mut pipeline = Pipeline::article().await;
    let mut relay = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
    relay.arg("run").env_clear().envs(pipeline.environment()).kill_on_drop(true);
    let mut relay = relay.stderr(Stdio::piped()).spawn().unwrap();
    drop(relay.stderr.take());
    pipeline.execute(INSERT).await;
    pipeline.stored(1).await;
    // An outage is worth some lines.
    pipeline.nats.kill();
    pipeline.nats.start_again().await.unwrap();
    pipeline.execute(INSERT).await;
    pipeline.stored(2).await;
    assert_eq!(relay.try_wait().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_told_to_stop_drains_and_the_next_goes_on() {
    let pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut load = Load::endless(&pipeline, 3, STEADY, PAUSE);
    for _ in 0..3 {
        let mut relay = pipeline.run().await;
        let stored = pipeline.last_seq().await;
        pipeline.stored(stored + 100).await;
        let begun = Instant::now();
        assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        // What it sent is in the row: the next one has nothing to prove.
        let last = pipeline.last_seq().await.to_string();
        assert_eq!(pipeline.ask("SELECT seq FROM postrider.pipeline").await, last);
    }
    load.finish().await;
    let mut relay = pipeline.run().await;
    pipeline.proves(&mut relay).await;
}

#[tokio::test]
async fn a_relay_told_to_stop_ends_though_postgres_hangs() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('e', '{}')").await;
    pipeline.stored(1).await;
    pipeline.postgres.freeze();
    relay.signal(rustix::process::Signal::TERM);
    let ended = within(Duration::from_secs(45), "the relay ends", async || relay.exit_code()).await;
    pipeline.postgres.thaw();
    assert_eq!(ended, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_when_the_leader_is_killed() {
    let pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut leader = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 3, STEADY, PAUSE);
    for _ in 0..3 {
        let mut standby = pipeline.spawn(&["run"]);
        standby.is("role", "standby").await;
        assert_eq!(standby.get("/readyz").await.unwrap().0, 200);
        leader.kill();
        standby.is("role", "leader").await;
        standby.streams().await;
        leader = standby;
    }
    load.finish().await;
    pipeline.proves(&mut leader).await;
}

#[tokio::test]
async fn a_transaction_of_a_hundred_megabytes_does_not_fill_memory() {
    let pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    let at_rest = relay.resident_own();
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload) \
             SELECT 'large', jsonb_build_object('n', n, 'text', repeat('x', 2000)) FROM generate_series(1, 50000) n",
        )
        .await;
    pipeline.stored(50_000).await;
    assert!(relay.resident_max() < 64 << 20, "{} bytes at most", relay.resident_max());
    assert!(at_rest < 8 << 20, "{at_rest} bytes of its own at rest");
}

#[tokio::test]
async fn the_slot_follows_while_only_other_tables_are_written() {
    let pipeline = Pipeline::article().await;
    pipeline.execute("CREATE TABLE other (noise text)").await;
    let _relay = pipeline.run().await;
    let begin = pipeline.ask("pg_current_wal_insert_lsn()").await;
    let sql = pipeline.sql().await;
    for _ in 0..8 {
        let write = "INSERT INTO other SELECT string_agg(md5(n::text || m), '') \
             FROM generate_series(1, 4000) n, generate_series(1, 40) m GROUP BY n";
        sql.batch_execute(write).await.unwrap();
    }
    let end = pipeline.ask("pg_current_wal_insert_lsn()").await;
    let written = pipeline.ask(&format!("pg_wal_lsn_diff('{end}', '{begin}') >= 40000000")).await;
    assert_eq!(written, "true", "{begin} to {end}");
    let near = format!(
        "SELECT pg_wal_lsn_diff('{end}', confirmed_flush_lsn) <= 2097152 \
         FROM pg_replication_slots WHERE slot_name = 'postrider'"
    );
    within(Duration::from_secs(20), "confirmed_flush_lsn follows", async || {
        (pipeline.ask(&near).await == "true").then_some(())
    })
    .await;
    assert_eq!(pipeline.last_seq().await, 0);
}

#[tokio::test]
async fn status_asks_the_relay_or_reads_for_itself() {
    let mut pipeline = Pipeline::article().await;
    let read = pipeline.postrider(&["status", "--json"]).await;
    assert_eq!(read.code, Some(0), "{}", read.stderr);
    let read: serde_json::Value = serde_json::from_str(&read.stdout).unwrap();
    assert_eq!((&read["role"], &read["published_total"]), (&"waiting".into(), &serde_json::Value::Null));
    assert_eq!(read["confirmed_lsn"], pipeline.confirmed_lsn().await);

    let relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    pipeline.stored(1).await;
    let address = relay.http().unwrap();
    pipeline.set("POSTRIDER_HTTP_LISTEN", &address);
    within(DEADLINE, "the event is counted", async || {
        let asked = pipeline.postrider(&["status", "--json"]).await;
        let asked: serde_json::Value = serde_json::from_str(&asked.stdout).unwrap();
        (asked["published_total"] == 1 && asked["role"] == "leader").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_full_stream_pauses_the_relay_and_loses_nothing() {
    let pipeline = Pipeline::article().await;
    let jetstream = pipeline.jetstream().await;
    let limited = async |messages: i64| {
        let mut config = pipeline.stream().await.cached_info().config.clone();
        config.max_messages = messages;
        jetstream.update_stream(config).await.unwrap();
    };
    limited(50).await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute("INSERT INTO outbox (event_type, payload) SELECT 'e', '{}' FROM generate_series(1, 80)")
        .await;
    pipeline.stored(50).await;
    within(DEADLINE, "it says so", async || {
        let status = relay.status().await?;
        (status["last_error"]["code"] == "PR0309").then_some(())
    })
    .await;
    assert!(relay.is_running());
    limited(-1).await;
    let ids: Vec<_> = pipeline.exactly(80).await.iter().map(|message| message.id().to_owned()).collect();
    assert_eq!(ids, (1..=80).map(|id| id.to_string()).collect::<Vec<_>>());
    assert_eq!(relay.terminate().await, Some(0));
}
