//! Clean-up of a partitioned outbox.

use crate::care::{PROOF, becomes, count, prune};
use crate::support::{Pipeline, Servers, eventually, within};
use serde_json::json;

const PARTITIONED: &str = "CREATE TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY, event_type text NOT NULL, \
    payload jsonb, created_at timestamptz NOT NULL DEFAULT now(), processed boolean NOT NULL DEFAULT false, \
    PRIMARY KEY (id, created_at)) PARTITION BY RANGE (created_at); \
    CREATE TABLE outbox_old PARTITION OF outbox FOR VALUES FROM ('2020-01-01') TO ('2020-02-01'); \
    CREATE TABLE outbox_letter PARTITION OF outbox FOR VALUES FROM ('2020-02-01') TO ('2020-03-01'); \
    CREATE TABLE outbox_now PARTITION OF outbox FOR VALUES FROM ('2021-01-01') TO ('2200-01-01'); \
    CREATE TABLE outbox_default PARTITION OF outbox DEFAULT";

#[tokio::test]
async fn a_partition_is_dropped_when_its_time_is_past_and_every_row_of_it_proved() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(PARTITIONED).await;
    pipeline.init().await;
    pipeline.set("POSTRIDER_CARE_DROP_PARTITIONS_AFTER", "30d");
    pipeline.execute("CREATE TABLE outbox_filled (LIKE outbox INCLUDING ALL); INSERT INTO outbox_filled (id, event_type, created_at) \
        OVERRIDING SYSTEM VALUE VALUES (9000, 'never sent', '2020-03-05')").await;
    pipeline.execute("ALTER TABLE outbox ATTACH PARTITION outbox_filled FOR VALUES FROM ('2020-03-01') TO ('2020-04-01')").await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, created_at) VALUES ('a', '2020-01-02'), ('a', '2020-01-03'), \
        ('no good', '2020-02-02'), ('b', now()), ('c', '2019-01-01')",
        )
        .await;
    within(PROOF, "the old partition is dropped", async || {
        (pipeline.ask("SELECT to_regclass('outbox_old')").await.is_empty()).then_some(())
    })
    .await;
    for kept in ["outbox_letter", "outbox_now", "outbox_default", "outbox_filled"] {
        assert_eq!(count(&pipeline, kept).await, 1, "{kept}");
    }
    let (_, report) = prune(&pipeline, &["--dry-run"]).await;
    assert_eq!(report["kept"], json!(["public.outbox_letter", "public.outbox_filled"]), "{report}");
    assert_eq!(pipeline.exactly(4).await.len(), 4);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn rows_of_partitions_are_marked_and_deleted_but_for_those_that_were_there_before_the_attach() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(PARTITIONED).await;
    pipeline.init().await;
    pipeline.set("POSTRIDER_CARE_MARK", "true");
    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "1d");
    pipeline.execute("BEGIN; CREATE TABLE outbox_filled (LIKE outbox INCLUDING ALL); INSERT INTO outbox_filled (id, event_type, created_at) \
        OVERRIDING SYSTEM VALUE VALUES (9000, 'never sent', '2020-03-05'); \
        ALTER TABLE outbox ATTACH PARTITION outbox_filled FOR VALUES FROM ('2020-03-01') TO ('2020-04-01'); COMMIT").await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, created_at) VALUES ('a', '2020-01-02'), ('b', now()), \
        ('b', now()), ('a', '2020-03-06')",
        )
        .await;
    becomes(&pipeline, "outbox WHERE event_type = 'a'", 0).await;
    becomes(&pipeline, "outbox WHERE event_type = 'b' AND processed", 2).await;
    assert_eq!(count(&pipeline, "outbox WHERE NOT processed").await, 1);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn rows_of_a_subtree_that_was_attached_as_a_whole_stay() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(PARTITIONED).await;
    pipeline.init().await;
    pipeline.set("POSTRIDER_CARE_DELETE_AFTER", "0s");
    pipeline
        .execute(
            "CREATE TABLE sub (LIKE outbox INCLUDING ALL) PARTITION BY RANGE (id); \
             CREATE TABLE sub_leaf PARTITION OF sub FOR VALUES FROM (0) TO (100000); \
             INSERT INTO sub (id, event_type, created_at) OVERRIDING SYSTEM VALUE VALUES (9000, 'never sent', '2020-03-05')",
        )
        .await;
    pipeline
        .execute("ALTER TABLE outbox ATTACH PARTITION sub FOR VALUES FROM ('2020-03-01') TO ('2020-04-01')")
        .await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute("INSERT INTO outbox (event_type, created_at) VALUES ('a', '2020-03-06'), ('b', now())")
        .await;
    becomes(&pipeline, "outbox WHERE event_type <> 'never sent'", 0).await;
    pipeline.execute("INSERT INTO outbox (event_type, created_at) VALUES ('b', now())").await;
    becomes(&pipeline, "outbox WHERE event_type <> 'never sent'", 0).await;
    assert_eq!(count(&pipeline, "sub_leaf").await, 1);
    let (_, report) = prune(&pipeline, &["--dry-run"]).await;
    assert_eq!((&report["staying"], &report["deleted"]), (&json!(1), &json!(0)), "{report}");
    assert_eq!(relay.terminate().await, Some(0));
}

/// Waits for locks are in the server's log.
const TOLD: &[(&str, &str)] = &[("log_lock_waits", "on"), ("deadlock_timeout", "50ms")];

/// Ten partitions of 2020 with a row each, whose events are stored and confirmed; the relay is gone.
async fn ten_past_partitions() -> Pipeline {
    let mut pipeline = Pipeline::on(Servers { settings: TOLD, ..Servers::default() }).await;
    pipeline.execute(PARTITIONED).await;
    pipeline.execute("DROP TABLE outbox_old, outbox_letter").await;
    let days = "SELECT format('CREATE TABLE outbox_d%s PARTITION OF outbox FOR VALUES FROM (''2020-01-%s'') TO (''2020-01-%s'')', \
        d, d, d + 1) FROM generate_series(10, 19) AS d";
    for day in pipeline.sql().await.query(days, &[]).await.unwrap() {
        pipeline.execute(day.get(0)).await;
    }
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    pipeline.set("POSTRIDER_CARE_DROP_PARTITIONS_AFTER", "30d");
    pipeline
        .execute("INSERT INTO outbox (event_type, created_at) SELECT 'a', '2020-01-10'::date + d FROM generate_series(0, 9) AS d")
        .await;
    within(PROOF, "the slot is confirmed past it", async || {
        let (_, report) = prune(&pipeline, &["--dry-run"]).await;
        (report["dropped"].as_array().unwrap().len() == 10).then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0));
    pipeline
}

/// While someone is in a transaction that does `what`, prune keeps all ten.
async fn stay_during(pipeline: &Pipeline, what: &str) {
    let sql = pipeline.sql().await;
    sql.batch_execute(&format!("BEGIN; {what}")).await.unwrap();
    let (ended, report) = prune(pipeline, &[]).await;
    assert_eq!((ended.code, report["kept"].as_array().unwrap().len()), (Some(0), 10), "{report}");
    sql.batch_execute("ROLLBACK").await.unwrap();
}

async fn all_go(pipeline: &Pipeline) {
    let (_, report) = prune(pipeline, &[]).await;
    assert_eq!(report["dropped"].as_array().unwrap().len(), 10, "{report}");
}

fn waits(pipeline: &Pipeline, lock: &str) -> usize {
    pipeline.postgres.log().matches(&format!("still waiting for {lock} on relation")).count()
}

#[tokio::test]
async fn while_someone_dumps_the_table_writers_are_stalled_for_one_attempt_and_not_for_each_partition() {
    let pipeline = ten_past_partitions().await;
    stay_during(&pipeline, "SELECT count(*) FROM outbox").await;
    assert_eq!(waits(&pipeline, "AccessExclusiveLock"), 1, "{}", pipeline.postgres.log());
    all_go(&pipeline).await;
}

#[tokio::test]
async fn a_partition_that_must_stay_is_not_locked() {
    let pipeline = ten_past_partitions().await;
    let sql = pipeline.sql().await;
    sql.batch_execute("INSERT INTO outbox (event_type, created_at) VALUES ('later', '2020-01-12')")
        .await
        .unwrap();
    sql.batch_execute("BEGIN; LOCK TABLE ONLY outbox_d12 IN ROW EXCLUSIVE MODE").await.unwrap();
    let (_, report) = prune(&pipeline, &[]).await;
    assert_eq!(report["kept"], json!(["public.outbox_d12"]), "{report}");
    assert_eq!(waits(&pipeline, "ShareLock"), 0, "{}", pipeline.postgres.log());
}

#[tokio::test]
async fn a_partition_that_someone_has_locked_is_left_for_another_time() {
    let pipeline = ten_past_partitions().await;
    stay_during(&pipeline, "LOCK TABLE ONLY outbox_d10 IN ACCESS EXCLUSIVE MODE").await;
    all_go(&pipeline).await;
}

#[tokio::test]
async fn a_partition_that_is_taken_away_during_a_look_ends_no_clean_up() {
    let pipeline = ten_past_partitions().await;
    let sql = pipeline.sql().await;
    sql.batch_execute("BEGIN; ALTER TABLE outbox_d10 RENAME TO elsewhere").await.unwrap();
    let prune = pipeline.spawn(&["prune", "--json"]);
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'elsewhere'::regclass AND NOT granted";
    eventually("the look waits for it", async || {
        (sql.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    sql.batch_execute("COMMIT").await.unwrap();
    let ended = prune.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("public.outbox_d10"), "{}", ended.stdout);
}

async fn cleans_up_on(postgres: u32) {
    let mut pipeline = Pipeline::on(Servers { postgres: Some(postgres), ..Servers::default() }).await;
    pipeline.execute(PARTITIONED).await;
    pipeline.init().await;
    pipeline.set("POSTRIDER_CARE_MARK", "true");
    pipeline.set("POSTRIDER_CARE_DROP_PARTITIONS_AFTER", "30d");
    let mut relay = pipeline.run().await;
    let rows = "INSERT INTO outbox (event_type, created_at) SELECT 'a', t FROM unnest(ARRAY['2020-01-02', now(), now()]) AS t";
    pipeline.execute(rows).await;
    becomes(&pipeline, "outbox WHERE processed", 2).await;
    within(PROOF, "the old partition is dropped", async || {
        pipeline.ask("SELECT to_regclass('outbox_old')").await.is_empty().then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0));
    let (ended, report) = prune(&pipeline, &["--care-delete-after", "0s"]).await;
    assert_eq!((&report["deleted"], ended.code), (&json!(2), Some(0)), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(count(&pipeline, "outbox").await, 0);
}

#[tokio::test]
async fn clean_up_works_on_the_oldest_postgres() {
    cleans_up_on(14).await;
}

#[tokio::test]
async fn clean_up_works_on_the_newest_postgres() {
    cleans_up_on(18).await;
}
