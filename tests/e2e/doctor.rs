//! `doctor` on set-ups with one fault each: it names the fault, and what it prints, pasted, mends it.

use crate::support::{ARTICLE, Pipeline, Servers, eventually};
use postrider::demo::servers::Stop;
use serde_json::Value;
use std::time::Duration;

/// The one setting that a server's defaults leave dangerous.
pub(crate) const BOUNDED: &[(&str, &str)] = &[("max_slot_wal_keep_size", "4GB")];

pub(crate) struct Told {
    pub(crate) code: Option<i32>,
    pub(crate) findings: Vec<Value>,
}

impl Told {
    pub(crate) fn finding(&self, code: &str) -> &Value {
        let found = self.findings.iter().find(|finding| finding["code"] == code);
        found.unwrap_or_else(|| panic!("no {code} among {:#?}", self.findings))
    }

    pub(crate) fn has(&self, code: &str) -> bool {
        self.findings.iter().any(|finding| finding["code"] == code)
    }
}

pub(crate) async fn doctor(pipeline: &Pipeline) -> Told {
    told(pipeline, &["doctor", "--json"]).await
}

pub(crate) async fn told(pipeline: &Pipeline, arguments: &[&str]) -> Told {
    let ended = pipeline.postrider(arguments).await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
    Told { code: ended.code, findings: report["findings"].as_array().unwrap().clone() }
}

fn texts(finding: &Value, field: &str) -> Vec<String> {
    finding[field].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Pastes the statements as the superuser, and the commands as they stand.
pub(crate) async fn paste(pipeline: &Pipeline, finding: &Value) {
    for statement in texts(finding, "sql") {
        pipeline.execute(&statement).await;
    }
    for command in texts(finding, "command") {
        let words: Vec<_> = command.split_whitespace().collect();
        assert_eq!(words[0], "postrider", "{command}");
        let ended = pipeline.postrider(&words[1..]).await;
        assert_eq!(ended.code, Some(0), "{command}: {}", ended.stderr);
    }
}

async fn bounded() -> Pipeline {
    let pipeline = Pipeline::on(Servers { settings: BOUNDED, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline
}

/// A pipeline that has published something.
pub(crate) async fn used() -> Pipeline {
    let pipeline = bounded().await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('first', '{}')").await;
    pipeline.stored(1).await;
    assert_eq!(relay.terminate().await, Some(0));
    pipeline
}

/// Finds `code`, pastes, and finds nothing that alarms.
async fn mends(pipeline: &Pipeline, code: &str) {
    let told = doctor(pipeline).await;
    assert_eq!(told.code, Some(6), "{:#?}", told.findings);
    paste(pipeline, told.finding(code)).await;
    let told = doctor(pipeline).await;
    assert_eq!(told.code, Some(0), "after {code}: {:#?}", told.findings);
}

#[tokio::test]
async fn a_sound_pipeline_has_no_finding_above_advice() {
    let pipeline = used().await;
    let told = doctor(&pipeline).await;
    assert_eq!(told.code, Some(0), "{:#?}", told.findings);
    assert!(told.findings.iter().all(|finding| finding["level"] == "advice"), "{:#?}", told.findings);
    let mut relay = pipeline.run().await;
    let told = doctor(&pipeline).await;
    assert_eq!(told.code, Some(0), "{:#?}", told.findings);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_pipeline_before_init_is_told_what_is_missing() {
    let pipeline = bounded().await;
    mends(&pipeline, "PR0401").await;
}

#[tokio::test]
async fn events_that_come_before_their_rows_are_advised_against_unless_they_wait() {
    let mut pipeline = used().await;
    for statement in ["ALTER SYSTEM SET synchronous_standby_names = 'elsewhere'", "SELECT pg_reload_conf()"] {
        pipeline.execute(statement).await;
    }
    eventually("the setting is in force", async || {
        let set = "SELECT current_setting('synchronous_standby_names')";
        (pipeline.ask(set).await == "elsewhere").then_some(())
    })
    .await;
    let told = doctor(&pipeline).await;
    assert_eq!(told.finding("PR0621")["level"], "advice");
    pipeline.set("POSTRIDER_DELIVERY_WAIT_VISIBLE", "true");
    assert!(!doctor(&pipeline).await.has("PR0621"));
}

#[tokio::test]
async fn an_unbounded_slot_is_a_warning() {
    let pipeline = Pipeline::article().await;
    mends(&pipeline, "PR0601").await;
}

#[tokio::test]
async fn wal_level_is_named_with_what_sets_it() {
    let mut pipeline =
        Pipeline::on(Servers { settings: &[("wal_level", "replica")], ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    let told = doctor(&pipeline).await;
    for statement in texts(told.finding("PR0206"), "sql") {
        pipeline.execute(&statement).await;
    }
    pipeline.postgres.stop(Stop::Fast, Duration::from_secs(60)).await.unwrap();
    pipeline.postgres.start_again().await.unwrap();
    assert!(!doctor(&pipeline).await.has("PR0206"));
}

#[tokio::test]
async fn what_the_role_lacks_is_granted() {
    let mut pipeline = used().await;
    pipeline.execute("CREATE ROLE relay LOGIN").await;
    let url = pipeline.postgres.url("postgres").replace("postgres@", "relay@");
    pipeline.set("DATABASE_URL", &url);
    // Each grant uncovers the next.
    for _ in 0..4 {
        let told = doctor(&pipeline).await;
        for finding in told.findings.iter().filter(|finding| finding["level"] == "error") {
            for statement in texts(finding, "sql") {
                pipeline.execute(&statement).await;
            }
        }
    }
    let told = doctor(&pipeline).await;
    assert_eq!(told.code, Some(0), "{:#?}", told.findings);
}

#[tokio::test]
async fn the_line_that_pg_hba_conf_lacks_is_printed_and_lets_the_relay_in() {
    let hba = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 reject";
    let servers = Servers { settings: BOUNDED, hba: Some(hba), ..Servers::default() };
    let mut pipeline = Pipeline::on(servers).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    pipeline.execute("CREATE ROLE relay SUPERUSER LOGIN REPLICATION PASSWORD 'hunter2'").await;
    let url = pipeline.postgres.url("postgres").replace("postgres@", "relay:hunter2@");
    pipeline.set("DATABASE_URL", &url);
    let told = doctor(&pipeline).await;
    let command = &texts(told.finding("PR0203"), "command")[0];
    let line = command.split('\'').nth(1).unwrap().strip_prefix("1i ").unwrap();
    assert_eq!(line, "host postgres relay 127.0.0.1/32 scram-sha-256");
    pipeline.postgres.set_hba(&format!("{line}\n{hba}")).unwrap();
    pipeline.execute("SELECT pg_reload_conf()").await;
    eventually("the line lets it in", async || (doctor(&pipeline).await.code == Some(0)).then_some(())).await;
}

#[tokio::test]
async fn a_publication_that_is_unfit_is_mended() {
    let pipeline = used().await;
    pipeline.execute("ALTER PUBLICATION postrider SET (publish = 'update')").await;
    mends(&pipeline, "PR0209").await;
    pipeline.execute("ALTER PUBLICATION postrider DROP TABLE outbox").await;
    let told = doctor(&pipeline).await;
    paste(&pipeline, told.finding("PR0209")).await;
    // Taken out and put back: rows of the time between are missing.
    mends(&pipeline, "PR0412").await;
    pipeline.execute("DROP PUBLICATION postrider").await;
    mends(&pipeline, "PR0208").await;
}

#[tokio::test]
async fn a_table_that_is_not_logged_is_mended() {
    let pipeline = bounded().await;
    pipeline.execute("ALTER TABLE outbox SET UNLOGGED").await;
    let told = doctor(&pipeline).await;
    paste(&pipeline, told.finding("PR0211")).await;
    assert!(!doctor(&pipeline).await.has("PR0211"));
}

#[tokio::test]
async fn a_column_that_is_gone_is_named() {
    let pipeline = used().await;
    pipeline.execute("ALTER TABLE outbox RENAME payload TO body").await;
    let told = doctor(&pipeline).await;
    let message = format!("{} {}", told.findings[0]["message"], told.findings[0]["remedy"]);
    assert!(message.contains("payload"), "{message}");
}

#[tokio::test]
async fn a_slot_that_is_gone_foreign_or_lost_is_mended() {
    let pipeline = used().await;
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    mends(&pipeline, "PR0401").await;
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    pipeline.execute("SELECT pg_create_physical_replication_slot('postrider')").await;
    assert!(doctor(&pipeline).await.finding("PR0402")["message"].as_str().unwrap().contains("physical"));
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    mends(&pipeline, "PR0401").await;

    pipeline.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await;
    pipeline.execute("SELECT pg_reload_conf()").await;
    for _ in 0..4 {
        pipeline.execute("SELECT pg_switch_wal()").await;
        pipeline.execute("CREATE TABLE IF NOT EXISTS noise (n int); INSERT INTO noise VALUES (1)").await;
        pipeline.execute("CHECKPOINT").await;
    }
    pipeline.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '4GB'").await;
    pipeline.execute("SELECT pg_reload_conf()").await;
    mends(&pipeline, "PR0403").await;
}

#[tokio::test]
async fn a_checkpoint_row_that_is_gone_is_made_anew() {
    let pipeline = used().await;
    pipeline.execute("DELETE FROM postrider.pipeline").await;
    let told = doctor(&pipeline).await;
    assert_eq!(texts(told.finding("PR0405"), "command"), ["postrider recover --adopt --yes"]);
    mends(&pipeline, "PR0405").await;
}

#[tokio::test]
async fn a_slot_that_someone_else_moved_is_told() {
    let pipeline = used().await;
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload) VALUES ('missed', '{}'); \
             SELECT pg_replication_slot_advance('postrider', pg_current_wal_lsn())",
        )
        .await;
    mends(&pipeline, "PR0410").await;
}

#[tokio::test]
async fn room_for_slots_walsenders_and_connections_is_told() {
    let settings = &[("max_replication_slots", "1"), ("max_slot_wal_keep_size", "4GB")];
    let mut pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.execute("SELECT pg_create_physical_replication_slot('other')").await;
    let told = doctor(&pipeline).await;
    for statement in texts(told.finding("PR0605"), "sql") {
        pipeline.execute(&statement).await;
    }
    pipeline.postgres.stop(Stop::Fast, Duration::from_secs(60)).await.unwrap();
    pipeline.postgres.start_again().await.unwrap();
    pipeline.init().await;
    pipeline.execute("CREATE ROLE relay SUPERUSER REPLICATION LOGIN CONNECTION LIMIT 1").await;
    let url = pipeline.postgres.url("postgres").replace("postgres@", "relay@");
    pipeline.set("DATABASE_URL", &url);
    // A superuser is not bound by it, and is told all the same.
    let told = doctor(&pipeline).await;
    paste(&pipeline, told.finding("PR0606")).await;
    assert_eq!(doctor(&pipeline).await.code, Some(0));
}

#[tokio::test]
async fn settings_that_end_in_an_outage_are_told() {
    let settings =
        &[("max_slot_wal_keep_size", "4GB"), ("synchronous_standby_names", "ANY 1 (a, \"postrider\")")];
    let servers = Servers { postgres: Some(18), settings, ..Servers::default() };
    let pipeline = Pipeline::on(servers).await;
    pipeline
        .execute("SET synchronous_commit = local; ALTER DATABASE postgres SET synchronous_commit = local")
        .await;
    pipeline.execute(ARTICLE).await;
    let told = doctor(&pipeline).await;
    assert_eq!(told.finding("PR0604")["level"], "error");
    pipeline.execute("ALTER SYSTEM SET synchronous_standby_names = ''").await;
    pipeline.execute("ALTER SYSTEM SET idle_replication_slot_timeout = '1min'").await;
    pipeline.execute("SELECT pg_reload_conf()").await;
    pipeline.init().await;
    mends(&pipeline, "PR0603").await;
}

#[tokio::test]
async fn a_prepared_transaction_and_an_old_one_are_told_with_what_ends_them() {
    let settings = &[("max_slot_wal_keep_size", "4GB"), ("max_prepared_transactions", "5")];
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    pipeline.execute("BEGIN; CREATE TABLE noise (n int); PREPARE TRANSACTION 'forgotten'").await;
    assert_eq!(doctor(&pipeline).await.code, Some(0));
    let writer = pipeline.sql().await;
    writer.batch_execute("BEGIN; INSERT INTO outbox (event_type) VALUES ('slow')").await.unwrap();
    let old = ["doctor", "--json", "--old-transaction", "0s"];
    let before = told(&pipeline, &old).await;
    assert_eq!(before.code, Some(6));
    for finding in before.findings.iter().filter(|finding| finding["code"] == "PR0607") {
        paste(&pipeline, finding).await;
    }
    assert_eq!(told(&pipeline, &old).await.code, Some(0));
}

#[tokio::test]
async fn a_stream_that_is_gone_or_made_anew_is_mended() {
    let pipeline = used().await;
    pipeline.jetstream().await.delete_stream("OUTBOX").await.unwrap();
    mends(&pipeline, "PR0304").await;
    pipeline.jetstream().await.delete_stream("OUTBOX").await.unwrap();
    let config = async_nats::jetstream::stream::Config {
        name: "OUTBOX".to_owned(),
        subjects: vec!["outbox.>".to_owned()],
        ..Default::default()
    };
    pipeline.jetstream().await.create_stream(config).await.unwrap();
    mends(&pipeline, "PR0408").await;
}

#[tokio::test]
async fn a_stream_that_is_unfit_is_told() {
    let pipeline = bounded().await;
    let jetstream = pipeline.jetstream().await;
    let config = async_nats::jetstream::stream::Config {
        name: "OUTBOX".to_owned(),
        subjects: vec!["other.>".to_owned()],
        ..Default::default()
    };
    jetstream.create_stream(config.clone()).await.unwrap();
    assert!(doctor(&pipeline).await.finding("PR0306")["remedy"].as_str().unwrap().contains("--subjects"));
    jetstream.delete_stream("OUTBOX").await.unwrap();
    let discarding = async_nats::jetstream::stream::Config {
        subjects: vec!["outbox.>".to_owned()],
        max_messages: 100,
        discard: async_nats::jetstream::stream::DiscardPolicy::Old,
        ..config
    };
    jetstream.create_stream(discarding).await.unwrap();
    let told = doctor(&pipeline).await;
    assert!(texts(told.finding("PR0613"), "command")[0].starts_with("nats stream edit OUTBOX"));
}

#[tokio::test]
async fn a_foreign_message_is_told() {
    let pipeline = used().await;
    pipeline.jetstream().await.publish("outbox.other", "x".into()).await.unwrap().await.unwrap();
    let told = doctor(&pipeline).await;
    assert!(told.finding("PR0307")["remedy"].as_str().unwrap().contains("source"));
}

#[tokio::test]
async fn permissions_that_lack_in_nats_are_told() {
    const USERS: &str =
        "authorization { users: [ { user: root, password: r }, { user: relay, password: r, permissions: {";
    for (permissions, code) in [
        ("publish: { allow: \"$JS.API.>\" }", "PR0310"),
        ("publish: { allow: \"outbox.>\" }", "PR0310"),
        ("subscribe: { deny: \"_INBOX.>\" }", "PR0310"),
    ] {
        let extra = format!("{USERS} {permissions} }} }} ] }}");
        let mut pipeline =
            Pipeline::on(Servers { settings: BOUNDED, nats_extra: &extra, ..Servers::default() }).await;
        pipeline.execute(ARTICLE).await;
        pipeline.set("NATS_USER", "root");
        pipeline.set("NATS_PASSWORD", "r");
        pipeline.init().await;
        pipeline.set("NATS_USER", "relay");
        let told = doctor(&pipeline).await;
        assert_eq!(told.finding(code)["level"], "error", "{permissions}");
    }
}

#[tokio::test]
async fn a_hold_back_that_is_shorter_than_the_sync_is_a_warning() {
    let mut pipeline = used().await;
    pipeline.set("POSTRIDER_NATS_SYNC_INTERVAL", "2m");
    let told = doctor(&pipeline).await;
    assert_eq!((told.code, &told.finding("PR0616")["level"]), (Some(0), &Value::from("advice")));
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "5s");
    let told = doctor(&pipeline).await;
    assert_eq!((told.code, &told.finding("PR0615")["level"]), (Some(6), &Value::from("warning")));
}

#[tokio::test]
async fn servers_that_are_away_are_told_both() {
    let mut pipeline = bounded().await;
    pipeline.set("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres");
    pipeline.set("NATS_URL", "nats://127.0.0.1:1");
    let told = doctor(&pipeline).await;
    assert!(told.has("PR0201") && told.has("PR0301"), "{:#?}", told.findings);
    assert_eq!(told.code, Some(6));
}

#[tokio::test]
async fn the_canary_arrives_where_a_relay_runs_and_is_missed_where_none_does() {
    let pipeline = used().await;
    let missed = pipeline.postrider(&["doctor", "--canary", "--canary-timeout", "300ms"]).await;
    assert_eq!(missed.code, Some(6), "{}", missed.stdout);
    assert!(missed.stderr.contains("PR0600"), "{}", missed.stderr);
    assert!(missed.stdout.contains("PR0618"), "{}", missed.stdout);
    let mut relay = pipeline.run().await;
    let flown = pipeline.postrider(&["doctor", "--canary"]).await;
    assert_eq!(flown.code, Some(0), "{}", flown.stdout);
    assert!(flown.stdout.contains("canary: commit to stream in"), "{}", flown.stdout);
    assert_eq!(pipeline.ask("SELECT count(*) FROM outbox WHERE event_type LIKE 'postrider%'").await, "0");
    assert_eq!(relay.terminate().await, Some(0));
}
