//! `run --shadow` beside a poller: what both have, and nothing disturbed.

mod verdicts;

use crate::poller::{Poller, Then};
use crate::refusals::refused;
use crate::support::{ARTICLE, Ended, Load, Pipeline, Relay, Servers, eventually};
use async_nats::jetstream::stream::Config;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The article's is 2 s.
const PAUSE: Duration = Duration::from_millis(300);

/// The table, the stream that the poller writes, no `init`; the shadow is not told of any NATS.
async fn beside_a_poller(postgres: Option<u32>) -> Pipeline {
    let mut pipeline = Pipeline::on(Servers { postgres, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    let config = Config { name: "EVENTS".into(), subjects: vec!["events.>".into()], ..Config::default() };
    pipeline.jetstream().await.create_stream(config).await.unwrap();
    pipeline.unset("NATS_URL");
    pipeline
}

fn begun(pipeline: &Pipeline, arguments: &[&str]) -> Relay {
    pipeline.spawn(&[&["run", "--shadow", "--json"], arguments].concat())
}

async fn watches(shadow: &mut Relay) {
    eventually("the shadow watches", async || {
        assert!(shadow.is_running(), "{}", shadow.stderr());
        shadow.stderr().contains("nothing is published").then_some(())
    })
    .await;
}

/// Runs it and waits until it watches.
async fn watching(pipeline: &Pipeline, arguments: &[&str]) -> Relay {
    let mut shadow = begun(pipeline, arguments);
    watches(&mut shadow).await;
    shadow
}

/// Ends it, and what it says.
async fn told(shadow: Relay) -> (Ended, Value) {
    let ended = shadow.ended().await;
    let report = serde_json::from_str(&ended.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr));
    (ended, report)
}

async fn stopped(mut shadow: Relay) -> (Ended, Value) {
    shadow.signal(Signal::TERM);
    told(shadow).await
}

fn counts(report: &Value) -> Value {
    let of = |name: &str| report[name].clone();
    json!(["seen", "compared", "pending", "missing", "extra"].map(of))
}

/// It does not even begin.
async fn refused_at_once(pipeline: &Pipeline, refusal: (i32, &'static str, &'static str)) {
    let ended = pipeline.postrider(&["run", "--shadow"]).await;
    refused(&ended, refusal);
    assert!(!ended.stderr.contains("nothing is published") && ended.stdout.is_empty(), "{ended:?}");
    assert_eq!(left(pipeline).await, "0/0");
}

/// Slots and publications that a shadow has made and not taken away.
async fn left(pipeline: &Pipeline) -> String {
    pipeline
        .ask(
            "SELECT (SELECT count(*) FROM pg_publication WHERE pubname LIKE 'postrider_shadow%') || '/' || \
             (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'postrider_shadow%')",
        )
        .await
}

/// Waits until the shadow has read what is committed by now.
async fn read_to_the_end(pipeline: &Pipeline) {
    let end = pipeline.ask("pg_current_wal_insert_lsn()").await;
    let read = format!(
        "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name LIKE 'postrider_shadow%'"
    );
    eventually("the log is read", async || (pipeline.ask(&read).await == "true").then_some(())).await;
}

async fn nothing_left(pipeline: &Pipeline) {
    eventually("the shadow's slot and publication are gone", async || {
        (left(pipeline).await == "0/0").then_some(())
    })
    .await;
}

async fn no_difference(postgres: Option<u32>, then: Then) {
    let pipeline = beside_a_poller(postgres).await;
    // Rows of before: done, waiting, and such as no poller looks at.
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload, processed) \
             SELECT 'old', '{}', CASE n % 10 WHEN 0 THEN NULL WHEN 1 THEN false ELSE true END \
             FROM generate_series(1, 1000) n",
        )
        .await;
    let shadow = watching(&pipeline, &[]).await;
    let poller = Poller::start(&pipeline, "events", then, PAUSE).await;
    let mut load = Load::endless(&pipeline, 3, &[1, 3, 1], Duration::from_millis(40));
    tokio::time::sleep(Duration::from_secs(4)).await;
    load.finish().await;
    eventually("the poller is through", async || {
        (pipeline.ask("SELECT count(*) FROM outbox WHERE processed = false").await == "0").then_some(())
    })
    .await;
    // A row that was processed already is touched again, and old ones are cleared away.
    pipeline
        .execute("UPDATE outbox SET created_at = now(); DELETE FROM outbox WHERE event_type = 'old'")
        .await;
    read_to_the_end(&pipeline).await;
    let (ended, report) = stopped(shadow).await;
    poller.stop().await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let seen = report["seen"].as_u64().unwrap();
    assert!(seen > 100, "{report}");
    assert_eq!(counts(&report), json!([seen, seen, 0, 0, 0]), "{report}");
    let latency = |of: &str, quantile: &str| report["latency_ms"][of][quantile].as_f64().unwrap();
    for of in ["postrider", "poller"] {
        assert!(latency(of, "p50") > 0.0 && latency(of, "p50") <= latency(of, "p99"), "{report}");
        assert!(latency(of, "p99") <= latency(of, "max"), "{report}");
    }
    assert!(latency("postrider", "p50") < latency("poller", "p50"), "{report}");
    assert_eq!(left(&pipeline).await, "0/0");
}

#[tokio::test]
async fn beside_the_articles_poller_there_is_no_difference_and_both_latencies() {
    no_difference(None, Then::Mark).await;
}

#[tokio::test]
async fn the_same_on_14() {
    no_difference(Some(14), Then::Mark).await;
}

#[tokio::test]
async fn the_same_on_18_beside_a_poller_that_deletes() {
    no_difference(Some(18), Then::Delete).await;
}

#[tokio::test]
async fn what_only_one_of_both_would_publish_is_named() {
    let pipeline = beside_a_poller(None).await;
    let shadow = watching(&pipeline, &["--grace", "1s", "--count", "1"]).await;
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload, processed) VALUES ('a', '{}', NULL), ('b', '{}', true); \
             INSERT INTO outbox (event_type, payload) VALUES ('c', '{}'), ('d', '{}')",
        )
        .await;
    // The row that was inserted as 3 is done by the poller as 30.
    pipeline.execute("UPDATE outbox SET id = 30 WHERE id = 3").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('e', '{}')").await;
    pipeline.execute("UPDATE outbox SET processed = true WHERE id = 30").await;
    pipeline.execute("UPDATE outbox SET processed = true WHERE id = 5").await;
    let (ended, report) = told(shadow).await;
    refused(&ended, (6, "PR0645", "the poller does not"));
    // Written as processed, NULL, changed to another id, and gone past with it.
    assert_eq!(counts(&report), json!([5, 1, 0, 4, 1]), "{report}");
    assert_eq!(
        (&report["missing_ids"], &report["extra_ids"]),
        (&json!(["2", "1", "3", "4"]), &json!(["30"]))
    );
}

#[tokio::test]
async fn events_that_would_be_dead_letters_are_told_with_their_reasons() {
    let pipeline = beside_a_poller(None).await;
    let shadow = watching(&pipeline, &["--seconds", "2"]).await;
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload) VALUES ('order.placed', '{}'), ('order', '{}'), (NULL, '{}'), \
             ('large', to_jsonb(repeat('x', 1100000)))",
        )
        .await;
    let (ended, report) = told(shadow).await;
    refused(&ended, (6, "PR0645", "{event_type:tokens}"));
    assert_eq!(report["would_be_dead_letters"], 3);
    assert_eq!(report["dead_letters"], json!({"bad_subject": 1, "null_type": 1, "oversize": 1}));
    assert_eq!(counts(&report), json!([4, 0, 4, 0, 0]));
    let human = pipeline.postrider(&["run", "--shadow", "--seconds", "1"]).await;
    assert_eq!(human.code, Some(0), "{}", human.stderr);
    assert!(human.stdout.contains("nothing was compared"), "{}", human.stdout);
}

#[tokio::test]
async fn what_a_killed_shadow_leaves_stops_nobody_and_the_next_one_drops_it() {
    let pipeline = beside_a_poller(None).await;
    let mut killed = watching(&pipeline, &[]).await;
    refused(&pipeline.postrider(&["run", "--shadow"]).await, (3, "PR0232", "pg_locks"));
    killed.kill();
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    pipeline.execute("UPDATE outbox SET processed = true; DELETE FROM outbox").await;
    eventually("its slot is gone", async || (left(&pipeline).await == "1/0").then_some(())).await;
    // On another table too.
    pipeline.execute("ALTER TABLE outbox RENAME TO former").await;
    pipeline.execute(ARTICLE).await;
    let (ended, report) = stopped(watching(&pipeline, &[]).await).await;
    assert_eq!(ended.code, Some(0), "{report}{}", ended.stderr);
    nothing_left(&pipeline).await;
}

#[tokio::test]
async fn a_table_whose_updates_the_shadow_would_stop_is_refused_and_stays_as_it_is() {
    let pipeline = beside_a_poller(None).await;
    pipeline.execute("ALTER TABLE outbox DROP CONSTRAINT outbox_pkey").await;
    refused_at_once(&pipeline, (3, "PR0230", "ADD PRIMARY KEY")).await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    pipeline.execute("UPDATE outbox SET processed = true").await;
    // It is lost while a shadow watches.
    pipeline.execute("ALTER TABLE outbox ADD PRIMARY KEY (id)").await;
    let shadow = watching(&pipeline, &[]).await;
    pipeline.execute("ALTER TABLE outbox REPLICA IDENTITY NOTHING").await;
    let (ended, _) = told(shadow).await;
    refused(&ended, (3, "PR0230", ""));
    pipeline.execute("UPDATE outbox SET processed = false").await;
}

#[tokio::test]
async fn a_generated_key_which_18_would_refuse_is_refused_there() {
    let pipeline = Pipeline::on(Servers { postgres: Some(18), ..Servers::default() }).await;
    pipeline
        .execute(
            "CREATE TABLE outbox (n serial, id int GENERATED ALWAYS AS (n * 2) STORED PRIMARY KEY, event_type text, \
             payload jsonb, created_at timestamptz, processed boolean DEFAULT false)",
        )
        .await;
    refused_at_once(&pipeline, (3, "PR0230", "not generated")).await;
    pipeline
        .execute("INSERT INTO outbox (event_type) VALUES ('a'); UPDATE outbox SET processed = true")
        .await;
}

#[tokio::test]
async fn a_server_whose_commits_would_wait_for_the_shadow_is_refused() {
    let settings = [("synchronous_standby_names", "*"), ("synchronous_commit", "local")];
    let pipeline = Pipeline::on(Servers { settings: &settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    refused_at_once(&pipeline, (3, "PR0230", "one by one")).await;
}

#[tokio::test]
async fn a_shadow_ends_when_commits_are_made_to_wait_for_it() {
    let pipeline = beside_a_poller(None).await;
    let shadow = watching(&pipeline, &[]).await;
    pipeline.execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    pipeline.ask("pg_reload_conf()").await;
    let (ended, _) = told(shadow).await;
    refused(&ended, (3, "PR0230", "one by one"));
    nothing_left(&pipeline).await;
}

#[tokio::test]
async fn a_vacuum_of_the_table_is_waited_for_in_moments_that_do_not_end_it() {
    let pipeline = beside_a_poller(None).await;
    let vacuum = pipeline.sql().await;
    // The lock of a vacuum; an autovacuum is ended by whoever waits for it for a second.
    vacuum.batch_execute("BEGIN; LOCK TABLE outbox IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    let mut shadow = begun(&pipeline, &["--seconds", "1"]);
    let sql = pipeline.sql().await;
    let waiting = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - waitstart)), 0)::float8 FROM pg_locks \
         WHERE NOT granted";
    let (began, mut waited) = (Instant::now(), Vec::new());
    while began.elapsed() < Duration::from_secs(6) {
        waited.push(sql.query_one(waiting, &[]).await.unwrap().get::<_, f64>(0));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(waited.iter().any(|waited| *waited > 0.0), "it does not wait: {}", shadow.stderr());
    assert!(waited.iter().all(|waited| *waited < 0.9), "{waited:?}");
    assert!(shadow.is_running(), "{}", shadow.stderr());
    vacuum.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(shadow.ended().await.code, Some(0));
}

#[tokio::test]
async fn a_slot_that_waits_for_a_writer_names_it_and_leaves_nothing() {
    let pipeline = beside_a_poller(None).await;
    let sql = pipeline.sql().await;
    sql.batch_execute("BEGIN; INSERT INTO outbox (event_type, payload) VALUES ('open', '{}')").await.unwrap();
    let pid: i32 = sql.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let ended = pipeline.postrider(&["run", "--shadow"]).await;
    refused(&ended, (5, "PR0416", ""));
    assert!(ended.stderr.contains(&pid.to_string()), "{}", ended.stderr);
    assert_eq!(left(&pipeline).await, "0/0");
    // And one that is told to stop while it waits.
    let mut shadow = pipeline.spawn(&["run", "--shadow"]);
    eventually("it waits", async || (left(&pipeline).await == "1/1").then_some(())).await;
    assert_eq!(shadow.terminate().await, Some(0));
    sql.batch_execute("ROLLBACK").await.unwrap();
    nothing_left(&pipeline).await;
}

#[tokio::test]
async fn an_owner_who_may_replicate_suffices_and_what_he_cannot_drop_is_said() {
    let mut pipeline = beside_a_poller(None).await;
    pipeline
        .execute(
            "CREATE ROLE shop LOGIN; CREATE ROLE relay LOGIN REPLICATION; ALTER TABLE outbox OWNER TO shop",
        )
        .await;
    let url = |role: &str| format!("postgres://{role}@127.0.0.1:{}/postgres", pipeline.postgres.port());
    let (relay, shop) = (url("relay"), url("shop"));
    pipeline.set("DATABASE_URL", &shop);
    refused_at_once(&pipeline, (3, "PR0207", "REPLICATION")).await;
    pipeline.set("DATABASE_URL", &relay);
    refused_at_once(&pipeline, (3, "PR0231", "owner")).await;
    pipeline.set("DATABASE_URL", &shop);
    pipeline.execute("ALTER ROLE shop REPLICATION; GRANT CREATE ON DATABASE postgres TO shop").await;
    let shadow = watching(&pipeline, &[]).await;
    let publication = pipeline.ask("SELECT pubname FROM pg_publication").await;
    pipeline.execute(&format!("ALTER PUBLICATION {publication} OWNER TO postgres")).await;
    // Beside what ended it.
    pipeline.execute("ALTER TABLE outbox REPLICA IDENTITY NOTHING").await;
    let (ended, _) = told(shadow).await;
    refused(&ended, (3, "PR0230", "primary key"));
    refused(
        &ended,
        (3, "PR0233", &*Box::leak(format!("DROP PUBLICATION IF EXISTS \"{publication}\"").into_boxed_str())),
    );
}

/// So many ids of 8 kB that the shadow is a while at reading them, and the shadow that is at it.
async fn reading_ids(pipeline: &Pipeline, arguments: &[&str]) -> Relay {
    pipeline
        .execute(
            "ALTER TABLE outbox ALTER COLUMN id DROP DEFAULT, ALTER COLUMN id TYPE text; \
             INSERT INTO outbox SELECT repeat('x', 8000) || n, 'a', '{}' FROM generate_series(1, 60000) AS n",
        )
        .await;
    let shadow = begun(pipeline, arguments);
    eventually("it reads the ids", async || {
        (pipeline.ask(&format!("SELECT count(*) FROM {READS}")).await == "1").then_some(())
    })
    .await;
    shadow
}

const READS: &str = "pg_stat_activity WHERE query LIKE 'SELECT format(''%s''%' AND state = 'active' \
    AND pid <> pg_backend_pid()";

#[tokio::test]
async fn a_shadow_that_is_stopped_while_it_reads_the_ids_leaves_nothing() {
    let pipeline = beside_a_poller(None).await;
    let (ended, _) = stopped(reading_ids(&pipeline, &[]).await).await;
    assert!(!ended.stderr.contains("nothing is published"), "it was through: {}", ended.stderr);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    nothing_left(&pipeline).await;
}

#[tokio::test]
async fn a_shadow_that_cannot_read_the_ids_leaves_nothing() {
    let pipeline = beside_a_poller(None).await;
    let shadow = reading_ids(&pipeline, &[]).await;
    pipeline.execute(&format!("SELECT pg_cancel_backend(pid) FROM {READS}")).await;
    let (ended, _) = told(shadow).await;
    refused(&ended, (3, "PR0202", "begin again"));
    assert!(ended.stderr.contains("read the ids of the outbox"), "{}", ended.stderr);
    nothing_left(&pipeline).await;
}

#[tokio::test]
async fn a_column_that_is_no_mark_is_refused_and_another_name_is_taken() {
    let pipeline = beside_a_poller(None).await;
    let shadow = |column| ["run", "--shadow", "--mark-column", column];
    for column in ["payload", "nothing"] {
        refused(&pipeline.postrider(&shadow(column)).await, (2, "PR0117", "a boolean"));
    }
    pipeline.execute("ALTER TABLE outbox ADD COLUMN sent timestamptz").await;
    let shadow = watching(&pipeline, &["--mark-column", "sent", "--count", "1"]).await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    pipeline.execute("UPDATE outbox SET processed = true").await;
    pipeline.execute("UPDATE outbox SET sent = now()").await;
    let (ended, report) = told(shadow).await;
    assert_eq!((ended.code, counts(&report)), (Some(0), json!([1, 1, 0, 0, 0])), "{}", ended.stderr);
}

async fn a_partitioned_outbox(postgres: u32) {
    let pipeline = Pipeline::on(Servers { postgres: Some(postgres), ..Servers::default() }).await;
    pipeline
        .execute(
            "CREATE TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY, event_type text NOT NULL, payload jsonb, \
             created_at timestamptz NOT NULL DEFAULT now(), processed boolean NOT NULL DEFAULT false, \
             PRIMARY KEY (id, created_at)) PARTITION BY RANGE (created_at); \
             CREATE TABLE outbox_old PARTITION OF outbox FOR VALUES FROM (MINVALUE) TO ('2026-01-01'); \
             CREATE TABLE outbox_new PARTITION OF outbox FOR VALUES FROM ('2026-01-01') TO (MAXVALUE)",
        )
        .await;
    let shadow = watching(&pipeline, &["--count", "3"]).await;
    let insert =
        "INSERT INTO outbox (event_type, created_at) VALUES ('a', now()), ('b', '2025-01-01'), ('c', now())";
    pipeline.execute(insert).await;
    pipeline.execute("UPDATE outbox SET processed = true WHERE id < 3").await;
    pipeline.execute("DELETE FROM outbox WHERE id = 3").await;
    let (ended, report) = told(shadow).await;
    assert_eq!((ended.code, counts(&report)), (Some(0), json!([3, 3, 0, 0, 0])), "{}", ended.stderr);
    // One partition's updates would be stopped.
    pipeline.execute("ALTER TABLE outbox_old REPLICA IDENTITY NOTHING").await;
    refused_at_once(&pipeline, (3, "PR0230", "each of its partitions")).await;
}

#[tokio::test]
async fn a_partitioned_outbox_with_a_key_of_two_columns_is_watched_as_one_on_14() {
    a_partitioned_outbox(14).await;
}

#[tokio::test]
async fn a_partitioned_outbox_with_a_key_of_two_columns_is_watched_as_one_on_18() {
    a_partitioned_outbox(18).await;
}

#[tokio::test]
async fn a_server_that_stops_ends_the_shadow_with_what_it_has_seen() {
    let mut pipeline = beside_a_poller(None).await;
    let shadow = watching(&pipeline, &[]).await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    pipeline.execute("UPDATE outbox SET processed = true").await;
    pipeline.postgres.stop(postrider::demo::servers::Stop::Fast, Duration::from_secs(30)).await.unwrap();
    let (ended, report) = told(shadow).await;
    refused(&ended, (3, "PR0202", "begin again"));
    assert_eq!(counts(&report), json!([1, 1, 0, 0, 0]));
    pipeline.postgres.start_again().await.unwrap();
    assert_eq!(stopped(watching(&pipeline, &[]).await).await.0.code, Some(0));
    nothing_left(&pipeline).await;
}

#[tokio::test]
async fn a_shadow_whose_sql_connection_is_ended_takes_its_publication_away_all_the_same() {
    let pipeline = beside_a_poller(None).await;
    let shadow = watching(&pipeline, &[]).await;
    pipeline.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'").await;
    let (ended, _) = told(shadow).await;
    refused(&ended, (3, "PR0202", "begin again"));
    nothing_left(&pipeline).await;
}
