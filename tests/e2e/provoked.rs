//! Codes that no other test meets, each by what causes it.

use crate::doctor::{BOUNDED, doctor, paste, told, used};
use crate::refusals::refused;
use crate::support::{ARTICLE, Pipeline, Servers, eventually};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Source, StorageType};
use postrider::demo::servers::{NatsServer, nats_program};
use postrider::postgres::client::Sql;
use postrider::postgres::lsn::Lsn;
use postrider::postgres::target::Target;
use serde_json::Value;

#[tokio::test]
async fn values_that_cannot_be_used_are_refused() {
    let mut pipeline = Pipeline::start().await;
    for (name, value, code) in [
        ("POSTRIDER_DELIVERY_WINDOW_MESSAGES", "many", "PR0102"),
        ("POSTRIDER_NATS_CERT", "/client.crt", "PR0103"),
        ("POSTRIDER_CONFIG", "/nowhere.toml", "PR0104"),
        ("POSTRIDER_HTTP_LISTEN", "0.0.0.0:9464", "PR0106"),
    ] {
        let listen = "127.0.0.1:0";
        pipeline.set(name, value);
        for command in ["run", "init", "doctor"] {
            refused(&pipeline.postrider(&[command]).await, (2, code, ""));
        }
        if name == "POSTRIDER_HTTP_LISTEN" { pipeline.set(name, listen) } else { pipeline.unset(name) }
    }
}

#[tokio::test]
async fn a_stream_for_a_template_that_begins_with_a_column_is_not_guessed() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "{event_type}.x");
    refused(&pipeline.postrider(&["init"]).await, (2, "PR0107", ""));
}

#[tokio::test]
async fn a_database_without_an_encoding_is_refused() {
    let mut pipeline = Pipeline::start().await;
    pipeline
        .execute("CREATE DATABASE raw TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
        .await;
    let url = pipeline.postgres.url("raw");
    pipeline.set("DATABASE_URL", &url);
    refused(&pipeline.postrider(&["init", "--create-table"]).await, (3, "PR0217", "UTF8"));
}

#[tokio::test]
async fn streams_that_cannot_hold_an_outbox_are_refused() {
    let pipeline = Pipeline::article().await;
    let jetstream = pipeline.jetstream().await;
    let named = |name: &str| Config { name: name.to_owned(), ..Config::default() };
    jetstream.create_stream(Config { subjects: vec!["other.>".into()], ..named("OTHER") }).await.unwrap();
    let source = Source { name: "OTHER".to_owned(), ..Source::default() };
    for unfit in [
        Config { mirror: Some(source.clone()), ..named("OUTBOX") },
        Config { sources: Some(vec![source]), subjects: vec!["outbox.>".into()], ..named("OUTBOX") },
        Config { no_ack: true, subjects: vec!["outbox.>".into()], ..named("OUTBOX") },
        Config { storage: StorageType::Memory, subjects: vec!["outbox.>".into()], ..named("OUTBOX") },
    ] {
        jetstream.delete_stream("OUTBOX").await.unwrap();
        jetstream.create_stream(unfit).await.unwrap();
        refused(&pipeline.postrider(&["run"]).await, (4, "PR0305", "nats.stream"));
        assert!(doctor(&pipeline).await.has("PR0305"));
    }
}

#[tokio::test]
async fn a_slot_confirmed_beyond_the_end_of_the_log_is_refused() {
    let pipeline = used().await;
    let target = Target::parse(Some(&pipeline.postgres.url("postgres")), &|_| None).unwrap();
    let mut walsender = Sql::connect_any(&target).await.unwrap().walsender(&target).await.unwrap();
    walsender.start_replication("postrider", Lsn::ZERO, "postrider").await.unwrap();
    let mut stream = walsender.into_stream();
    let beyond = Lsn(u64::MAX >> 8);
    eventually("the slot is confirmed beyond the log", async || {
        stream.send_status(beyond, beyond, true).await.ok()?;
        (pipeline.confirmed_lsn().await == beyond.to_string()).then_some(())
    })
    .await;
    drop(stream);
    eventually("the walsender is gone", async || {
        (pipeline.ask("SELECT count(active_pid) FROM pg_replication_slots").await == "0").then_some(())
    })
    .await;
    let told = doctor(&pipeline).await;
    refused(&pipeline.postrider(&["run"]).await, (5, "PR0404", "postrider recover"));
    paste(&pipeline, told.finding("PR0404")).await;
    assert_eq!(doctor(&pipeline).await.code, Some(0));
}

#[tokio::test]
async fn a_cluster_of_old_servers_takes_no_message_ids_and_one_copy_is_advised_against() {
    let cluster = NatsServer::start_cluster(&nats_program(Some("2.10")).unwrap(), "").await.unwrap();
    let mut pipeline = Pipeline::on(Servers { settings: BOUNDED, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    let urls: Vec<_> = cluster.iter().map(NatsServer::url).collect();
    pipeline.set("NATS_URL", &urls.join(","));
    pipeline.init().await;
    assert_eq!(doctor(&pipeline).await.finding("PR0617")["level"], "advice");
    assert_eq!(pipeline.postrider(&["remove", "--yes", "--with-stream"]).await.code, Some(0));
    pipeline.set("POSTRIDER_NATS_REPLICAS", "3");
    pipeline.set("POSTRIDER_NATS_MSG_ID", "true");
    pipeline.init().await;
    refused(&pipeline.postrider(&["run"]).await, (4, "PR0312", "nats.msg_id = false"));
    assert_eq!(doctor(&pipeline).await.finding("PR0312")["level"], "error");
}

#[tokio::test]
async fn a_session_that_is_ended_is_named_and_goes_on() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").await;
    assert!(relay.ended_or("PR0202").await);
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('after', '{}')").await;
    pipeline.stored(1).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_stream_that_is_nearly_full_is_a_warning() {
    let pipeline = Pipeline::on(Servers { settings: BOUNDED, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    let full = Config {
        name: "OUTBOX".into(),
        subjects: vec!["outbox.>".into()],
        max_messages: 5,
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    pipeline.jetstream().await.create_stream(full).await.unwrap();
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type) SELECT 'x' FROM generate_series(1, 4)").await;
    pipeline.stored(4).await;
    assert_eq!(relay.terminate().await, Some(0));
    assert_eq!(doctor(&pipeline).await.finding("PR0614")["level"], "warning");
}

#[tokio::test]
async fn a_letter_that_is_open_is_a_warning() {
    let pipeline = used().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type) VALUES ('a.b')").await;
    eventually("the letter is written", async || {
        (pipeline.ask("SELECT count(*) FROM postrider.dead_letter").await == "1").then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0));
    let letters = pipeline.postrider(&["dlq", "list", "--json"]).await.stdout;
    assert!(letters.contains("PR0501"), "{letters}");
    assert_eq!(doctor(&pipeline).await.finding("PR0620")["level"], "warning");
}

#[tokio::test]
async fn an_event_that_the_stream_does_not_bind_is_a_letter() {
    let pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    let bound = Config { name: "OUTBOX".into(), subjects: vec!["outbox.known".into()], ..Config::default() };
    pipeline.jetstream().await.create_stream(bound).await.unwrap();
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type) VALUES ('other'), ('known')").await;
    pipeline.stored(1).await;
    assert_eq!(relay.terminate().await, Some(0));
    assert_eq!(
        pipeline.ask("SELECT string_agg(reason, ',') FROM postrider.dead_letter").await,
        "subject_unbound"
    );
}

#[tokio::test]
async fn a_publication_that_sends_more_and_decoding_that_spills_are_advice() {
    let pipeline = used().await;
    pipeline.execute("ALTER PUBLICATION postrider SET (publish = 'insert, update')").await;
    pipeline.execute("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'").await;
    pipeline.execute("SELECT pg_reload_conf()").await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type) SELECT 'x' FROM generate_series(1, 5000)").await;
    pipeline.stored(5001).await;
    assert_eq!(relay.terminate().await, Some(0));
    eventually("the spill is counted", async || doctor(&pipeline).await.has("PR0610").then_some(())).await;
    let told = doctor(&pipeline).await;
    assert_eq!((told.code, &told.finding("PR0611")["level"]), (Some(0), &"advice".into()));
    paste(&pipeline, told.finding("PR0611")).await;
    assert!(!doctor(&pipeline).await.has("PR0611"));
}

/// Moves the log on by so many segments of 16 MiB.
async fn segments(pipeline: &Pipeline, count: usize) {
    for _ in 0..count {
        pipeline.execute("SELECT pg_logical_emit_message(false, 'x', 'x')").await;
        pipeline.execute("SELECT pg_switch_wal()").await;
    }
}

#[tokio::test]
async fn a_slot_that_the_next_checkpoint_loses_is_saved_by_what_is_printed() {
    let settings = &[("max_slot_wal_keep_size", "64MB"), ("checkpoint_timeout", "1h")];
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    segments(&pipeline, 8).await;
    let told = doctor(&pipeline).await;
    assert_eq!(told.finding("PR0602")["level"], "error");
    paste(&pipeline, told.finding("PR0602")).await;
    pipeline.execute("CHECKPOINT").await;
    assert_eq!(pipeline.ask("SELECT wal_status FROM pg_replication_slots").await, "reserved");
    assert_eq!(doctor(&pipeline).await.code, Some(0));
}

#[tokio::test]
async fn a_slot_that_nobody_reads_is_told_and_more_than_max_wal_size_is_no_fault() {
    let settings = &[
        ("max_slot_wal_keep_size", "40GB"),
        ("max_wal_size", "32MB"),
        ("min_wal_size", "32MB"),
        ("wal_init_zero", "off"),
        ("wal_recycle", "off"),
    ];
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    pipeline.execute("SELECT pg_create_physical_replication_slot('forgotten', true)").await;
    segments(&pipeline, 66).await;
    pipeline.execute("CHECKPOINT").await;
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'postrider'";
    assert_eq!(pipeline.ask(status).await, "extended");
    let told = doctor(&pipeline).await;
    let told_of = |name: &str| {
        let of = |finding: &&Value| finding["message"].as_str().unwrap().contains(name);
        told.findings.iter().filter(|finding| finding["code"] == "PR0608").find(of).unwrap().clone()
    };
    assert!(told_of("`postrider`")["remedy"].as_str().unwrap().contains("postrider remove"));
    paste(&pipeline, &told_of("`forgotten`")).await;
    let mut relay = pipeline.run().await;
    let told = doctor(&pipeline).await;
    assert_eq!(told.code, Some(0), "{:#?}", told.findings);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn an_unbounded_slot_is_bounded_above_what_it_retains() {
    let settings = &[("wal_init_zero", "off"), ("wal_recycle", "off")];
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    segments(&pipeline, 30).await;
    paste(&pipeline, doctor(&pipeline).await.finding("PR0601")).await;
    pipeline.execute("CHECKPOINT").await;
    assert_eq!(doctor(&pipeline).await.code, Some(0));
}

#[tokio::test]
async fn columns_that_the_publication_leaves_out_are_told_and_put_back() {
    let pipeline =
        Pipeline::on(Servers { postgres: Some(16), settings: BOUNDED, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline
        .execute("CREATE PUBLICATION postrider FOR TABLE outbox (id, event_type) WITH (publish = 'insert')")
        .await;
    pipeline.init().await;
    let told = doctor(&pipeline).await;
    let finding = told.finding("PR0209");
    assert!(finding["message"].as_str().unwrap().contains("payload"), "{finding}");
    paste(&pipeline, finding).await;
    assert_eq!(doctor(&pipeline).await.code, Some(0));
}

#[tokio::test]
async fn a_slot_that_standbys_do_not_keep_is_advice() {
    let pipeline =
        Pipeline::on(Servers { postgres: Some(17), settings: BOUNDED, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    let printed = pipeline.postrider(&["init", "--print-sql"]).await.stdout;
    let (before, slot) = printed.split_once("SELECT lsn::text").unwrap();
    pipeline.execute(before).await;
    pipeline.execute(&format!("SELECT lsn::text{slot}")).await;
    pipeline.init().await;
    pipeline.execute("SELECT pg_create_physical_replication_slot('standby')").await;
    assert_eq!(doctor(&pipeline).await.finding("PR0609")["level"], "advice");
}

#[tokio::test]
async fn a_second_relay_names_why_it_waits() {
    let pipeline = used().await;
    let mut leader = pipeline.run().await;
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    let told = told(&pipeline, &["doctor", "--json"]).await;
    assert_eq!(told.code, Some(0), "{:#?}", told.findings);
    assert_eq!(leader.terminate().await, Some(0));
    assert_eq!(standby.terminate().await, Some(0));
}
