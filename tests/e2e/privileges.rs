//! The least privileges on both sides, as `init --print-sql` and `init --print-nats` print them: with
//! these and no more the relay does all that it does.

use crate::doctor::{BOUNDED, doctor};
use crate::support::{ARTICLE, Load, Pipeline, Servers, eventually};
use async_nats::ConnectOptions;
use async_nats::jetstream;
use postrider::demo::servers::Stop;
use rustix::process::Signal;
use std::time::Duration;

/// A pipeline whose administrators pasted what was printed for them; the table's owner is another role
/// than the relay's. The superusers' eyes for NATS beside it.
async fn least(postgres: u32, nats: &str, object_store: bool) -> (Pipeline, jetstream::Context) {
    let servers =
        Servers { postgres: Some(postgres), nats: Some(nats), settings: BOUNDED, ..Servers::default() };
    let mut pipeline = Pipeline::on(servers).await;
    pipeline.execute(ARTICLE).await;
    let relay = pipeline.postgres.url("postgres").replace("postgres@", "relay@");
    pipeline.set("DATABASE_URL", &relay);
    pipeline.set("NATS_USER", "relay");
    pipeline.set("NATS_PASSWORD", "r");
    pipeline.set("POSTRIDER_NATS_INBOX_PREFIX", "_INBOX_relay");
    if object_store {
        pipeline.set("POSTRIDER_DELIVERY_OVERSIZE", "object_store");
    }
    let printed = pipeline.postrider(&["init", "--print-sql"]).await;
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    // psql sends statements one by one; a slot cannot be made where something was written.
    let (before, slot) = printed.stdout.split_once("SELECT lsn::text FROM pg_create_logical").unwrap();
    pipeline.execute(before).await;
    pipeline.execute(&format!("SELECT lsn::text FROM pg_create_logical{slot}")).await;

    let printed = pipeline.postrider(&["init", "--print-nats"]).await;
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    let run = printed.stdout.replace("\"…\"", "r");
    // The lines for `init` are comments; who wants them takes the # away.
    let extra: Vec<_> = run.lines().filter_map(|line| line.trim().strip_prefix("#     ")).collect();
    let init = run.replace("publish: { allow: [\n", &format!("publish: {{ allow: [\n{}\n", extra.join("\n")));
    let users =
        |relay: &str| format!("authorization {{ users: [ {{ user: root, password: r }}\n{relay}\n ] }}");
    for (relay, then_init) in [(init, true), (run, false)] {
        pipeline.nats.stop().await.unwrap();
        pipeline.nats.set_extra(&users(&relay));
        pipeline.nats.start_again().await.unwrap();
        if then_init {
            pipeline.init().await;
        }
    }
    let root = ConnectOptions::with_user_and_password("root".into(), "r".into());
    let root = jetstream::new(root.connect(pipeline.nats.url()).await.unwrap());
    (pipeline, root)
}

async fn stored(root: &jetstream::Context, count: u64) {
    eventually(&format!("{count} messages are stored"), async || {
        let stream = root.get_stream("OUTBOX").await.ok()?;
        (stream.cached_info().state.messages >= count).then_some(())
    })
    .await;
}

async fn all_that_a_relay_does(postgres: u32, nats: &str) {
    let (mut pipeline, root) = least(postgres, nats, true).await;
    pipeline.watch_commits().await;
    let told = doctor(&pipeline).await;
    assert_eq!(told.code, Some(0), "{:#?}", told.findings);
    let mut relay = pipeline.run().await;
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    let mut load = Load::endless(&pipeline, 3, &[1, 7], Duration::from_millis(2));
    stored(&root, 100).await;

    // Both sides go away, and the leader; a letter and a claim check come between.
    pipeline.nats.kill();
    pipeline.nats.start_again().await.unwrap();
    pipeline.postgres.stop(Stop::Fast, Duration::from_secs(60)).await.unwrap();
    pipeline.postgres.start_again().await.unwrap();
    pipeline
        .execute("INSERT INTO outbox (event_type, payload) VALUES ('large', to_jsonb(repeat('x', 2000000)))")
        .await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('no.subject', '{}')").await;
    relay.signal(Signal::KILL);
    eventually("the letter is written", async || {
        (pipeline.ask("SELECT count(*) FROM postrider.dead_letter").await == "1").then_some(())
    })
    .await;
    load.finish().await;
    let committed = pipeline.committed().await.len() as u64;
    stored(&root, committed - 1).await;

    let status = pipeline.postrider(&["status", "--json"]).await;
    assert_eq!(status.code, Some(0), "{}", status.stderr);
    let letters = pipeline.postrider(&["dlq", "list", "--json"]).await;
    assert!(letters.stdout.contains("bad_subject"), "{}{}", letters.stdout, letters.stderr);
    let told = doctor(&pipeline).await;
    let alarming = told.findings.iter().filter(|finding| finding["level"] != "advice");
    assert_eq!(alarming.map(|finding| &finding["code"]).collect::<Vec<_>>(), ["PR0620"]);
    // The canary takes more, and says what.
    let ended = pipeline.postrider(&["doctor", "--canary", "--json"]).await;
    for grant in ["GRANT INSERT, SELECT, DELETE", "GRANT USAGE ON SEQUENCE"] {
        assert!(ended.stdout.contains(grant), "{}", ended.stdout);
    }
    assert_eq!(standby.terminate().await, Some(0), "{}", standby.stderr());
    let stream = root.get_stream("OUTBOX").await.unwrap();
    assert_eq!(stream.cached_info().state.messages, committed - 1);
    let refused = pipeline.postrider(&["remove", "--yes"]).await;
    assert_eq!(refused.code, Some(3), "what belongs to the owner is not the relay's to remove");
    assert_eq!(
        pipeline.ask("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'postrider'").await,
        "1"
    );
}

#[tokio::test]
async fn the_relay_does_all_that_it_does_under_the_printed_privileges() {
    all_that_a_relay_does(15, "2.15").await;
}

#[tokio::test]
async fn the_printed_privileges_suffice_for_the_oldest_servers_too() {
    all_that_a_relay_does(14, "2.10").await;
}

#[tokio::test]
async fn the_printed_privileges_suffice_for_the_newest_postgres() {
    all_that_a_relay_does(18, "2.12").await;
}
