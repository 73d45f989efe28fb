//! Several pipelines on one Postgres and one nats-server.

use crate::doctor::paste;
use crate::refusals::{Refusal, refused};
use crate::support::{ARTICLE, Pipeline, Relay, Servers, connect, eventually};
use postrider::demo::servers::Stop;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;

const STOP_MAX: Duration = Duration::from_secs(30);
const ROWS: usize = 200;

/// The names of pipeline number `number`, as docs/high-availability.md gives them.
fn names(pipeline: &Pipeline, number: usize) -> BTreeMap<String, String> {
    let mut environment = pipeline.environment().clone();
    let mut set = |key: &str, value: String| environment.insert(format!("POSTRIDER_{key}"), value);
    set("OUTBOX_TABLE", format!("public.outbox_{number}"));
    set("OUTBOX_SUBJECT", format!("outbox_{number}.{{event_type}}"));
    set("POSTGRES_SLOT", format!("postrider_{number}"));
    set("POSTGRES_PUBLICATION", format!("postrider_{number}"));
    set("NATS_STREAM", format!("OUTBOX_{number}"));
    environment
}

fn table(number: usize) -> String {
    ARTICLE.replace("TABLE outbox", &format!("TABLE outbox_{number}"))
}

async fn write(url: String, number: usize) {
    let sql = connect(&url).await.unwrap();
    for n in 0..ROWS {
        let insert = format!(
            "INSERT INTO outbox_{number} (event_type, payload) VALUES ('order', '{{\"of\": {number}, \"n\": {n}}}')"
        );
        sql.batch_execute(&insert).await.unwrap();
    }
}

/// `count` pipelines in one database and one schema, each killed once while all are written to.
async fn side_by_side(count: usize) {
    let pipeline = Pipeline::start().await;
    let mut relays = Vec::new();
    for number in 0..count {
        pipeline.execute(&table(number)).await;
        let environment = names(&pipeline, number);
        let init = Relay::spawn(&environment, &["init"]).ended().await;
        assert_eq!(init.code, Some(0), "{}{}", init.stdout, init.stderr);
        relays.push(Relay::spawn(&environment, &["run"]));
    }
    let mut writers = JoinSet::new();
    for number in 0..count {
        writers.spawn(write(pipeline.postgres.url("postgres"), number));
    }
    for (number, relay) in relays.iter_mut().enumerate() {
        relay.streams().await;
        relay.kill();
        *relay = Relay::spawn(&names(&pipeline, number), &["run"]);
    }
    writers.join_all().await;
    for (number, relay) in relays.iter_mut().enumerate() {
        let stored = async || {
            let mut stream = pipeline.stream_named(&format!("OUTBOX_{number}")).await;
            (stream.info().await.ok()?.state.last_sequence >= ROWS as u64).then_some(())
        };
        eventually("its rows are stored", stored).await;
        assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
        let messages = pipeline.messages_of(&format!("OUTBOX_{number}")).await;
        let stored: Vec<_> =
            messages.iter().map(|message| std::str::from_utf8(&message.payload).unwrap()).collect();
        let expected: Vec<_> = (0..ROWS).map(|n| format!("{{\"n\": {n}, \"of\": {number}}}")).collect();
        assert_eq!(stored, expected, "pipeline {number}");
    }
    assert_eq!(pipeline.ask("SELECT count(*) FROM postrider.pipeline").await, count.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pipelines_in_one_database_have_their_own_events_only() {
    side_by_side(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_pipelines_in_one_database_have_their_own_events_only() {
    side_by_side(8).await;
}

/// One pipeline that streams, on a server whose `setting` is 1; and the names of another one.
async fn without_room(setting: &str) -> (Pipeline, Relay, BTreeMap<String, String>) {
    let settings = &[(setting, "1"), ("max_slot_wal_keep_size", "4GB")];
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(&format!("{ARTICLE}; {}", table(1))).await;
    pipeline.init().await;
    let relay = pipeline.run().await;
    let other = names(&pipeline, 1);
    (pipeline, relay, other)
}

/// `init` of the other pipeline is refused in these words; with what doctor says both stream.
async fn is_refused_until_there_is_room(setting: &str, refusal: Refusal) {
    let (mut pipeline, mut relay, other) = without_room(setting).await;
    refused(&Relay::spawn(&other, &["init"]).ended().await, refusal);
    let doctor = Relay::spawn(&other, &["doctor", "--json"]).ended().await.stdout;
    let report: serde_json::Value = serde_json::from_str(&doctor).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["code"] == "PR0605").unwrap();
    assert!(finding["message"].as_str().unwrap().starts_with("all 1 "), "{finding}");
    paste(&pipeline, finding).await;
    pipeline.postgres.stop(Stop::Fast, STOP_MAX).await.unwrap();
    pipeline.postgres.start_again().await.unwrap();
    let init = Relay::spawn(&other, &["init"]).ended().await;
    assert_eq!(init.code, Some(0), "{}{}", init.stdout, init.stderr);
    let mut other = Relay::spawn(&other, &["run"]);
    for relay in [&mut relay, &mut other] {
        relay.streams().await;
        assert_eq!(relay.terminate().await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_without_room_for_its_slot_is_told_which_setting_gives_it() {
    is_refused_until_there_is_room("max_replication_slots", (3, "PR0216", "max_replication_slots")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_without_room_for_its_walsender_is_told_which_setting_gives_it() {
    is_refused_until_there_is_room("max_wal_senders", (3, "PR0202", "max_wal_senders")).await;
}

/// docs/sizing.md, "Connections".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_has_two_connections_and_a_walsender_and_a_standby_one_connection() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    pipeline.set("POSTRIDER_CARE_MARK", "true");
    pipeline.init().await;
    let count = async || {
        let by_type = "SELECT string_agg(n || ' ' || backend_type, ', ' ORDER BY backend_type) FROM (SELECT \
             count(*) AS n, backend_type FROM pg_stat_activity WHERE application_name = 'postrider' GROUP BY 2) AS t";
        pipeline.ask(by_type).await
    };
    let mut leader = pipeline.run().await;
    eventually("the leader's connections", async || {
        (count().await == "2 client backend, 1 walsender").then_some(())
    })
    .await;
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    eventually("and the standby's", async || {
        (count().await == "3 client backend, 1 walsender").then_some(())
    })
    .await;
    for relay in [&mut leader, &mut standby] {
        let descriptors = relay.descriptors();
        assert!(descriptors < 40, "{descriptors}");
        println!("{descriptors} descriptors");
        assert_eq!(relay.terminate().await, Some(0));
    }
}
