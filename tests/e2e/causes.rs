//! Why nothing is published: each cause is brought about, and `/status`, `postrider status` and the log each
//! name it, with what to do, within seconds. docs/nothing-is-published.md is the table of them.

use crate::refusals::insert;
use crate::support::{ARTICLE, Ended, Pipeline, Relay, Servers, eventually, psql};
use async_nats::jetstream::stream::DiscardPolicy;
use postrider::demo::servers::{NatsServer, PostgresPrograms, nats_program};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The outbox is looked at each ten seconds; the rest is for a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(40);

const POLL: Duration = Duration::from_millis(50);

/// A code, words of the cause, and words of the remedy.
type Cause<'a> = (&'a str, &'a str, &'a str);

fn has(value: &Value, words: &str) -> bool {
    value.as_str().is_some_and(|text| text.contains(words))
}

/// The advice in `status` that is this cause.
fn advised(status: &Value, (code, cause, remedy): Cause<'_>) -> bool {
    let is = |advice: &Value| {
        advice["code"] == code && has(&advice["message"], cause) && has(&advice["remedy"], remedy)
    };
    status["advice"].as_array().is_some_and(|advice| advice.iter().any(is))
}

/// A line of the log has all of it.
fn logged(log: &str, (code, cause, remedy): Cause<'_>) -> bool {
    log.lines().any(|line| line.contains(code) && line.contains(cause) && line.contains(remedy))
}

/// `postrider status` for a person has it, with the code.
async fn shown(pipeline: &Pipeline, (code, cause, remedy): Cause<'_>) -> bool {
    let text = pipeline.postrider(&["status"]).await.stdout;
    let mut lines = text.lines().skip_while(|line| !(line.contains(code) && line.contains(cause)));
    lines.next().is_some()
        && lines.take_while(|line| line.contains("what to do: ")).any(|line| line.contains(remedy))
}

/// The relay is not publishing, for a fault: `reason` and `last_error` say so too.
async fn faulty(pipeline: &mut Pipeline, relay: &Relay, cause: Cause<'_>) {
    told(pipeline, relay, cause, |status| {
        let error = &status["last_error"];
        has(&status["reason"], cause.1) && error["code"] == cause.0 && has(&error["remedy"], cause.2)
    })
    .await;
}

/// The relay is sound, and says why nothing comes.
async fn obstructed(pipeline: &mut Pipeline, relay: &Relay, cause: Cause<'_>) {
    told(pipeline, relay, cause, |_| true).await;
}

async fn told(pipeline: &mut Pipeline, relay: &Relay, cause: Cause<'_>, holds: impl Fn(&Value) -> bool) {
    pipeline.set("POSTRIDER_HTTP_LISTEN", &relay.http().unwrap());
    let mut last = Value::Null;
    let begun = Instant::now();
    while !(advised(&last, cause) && holds(&last) && shown(pipeline, cause).await) {
        assert!(begun.elapsed() < SOON, "{cause:?} is not told: {last:#}");
        tokio::time::sleep(POLL).await;
        last = relay.status().await.unwrap_or_default();
    }
    assert!(logged(&relay.stderr(), cause), "{cause:?} is not in the log");
}

/// The relay ends by itself; its log says why, and so does `status`, which then looks for itself.
async fn ended(pipeline: &Pipeline, relay: Relay, exit: i32, cause: Cause<'_>) {
    halted(relay, exit, cause).await;
    looked_at(pipeline, cause).await;
}

async fn halted(relay: Relay, exit: i32, cause: Cause<'_>) {
    let Ended { code, stderr, .. } = relay.ended().await;
    assert_eq!(code, Some(exit), "{stderr}");
    assert!(logged(&stderr, cause), "{cause:?} is not in the log");
}

/// `status` finds it without a relay.
async fn looked_at(pipeline: &Pipeline, cause: Cause<'_>) {
    let read = pipeline.postrider(&["status", "--json"]).await;
    let read: Value = serde_json::from_str(&read.stdout).unwrap();
    let error = &read["last_error"];
    assert!(
        advised(&read, cause)
            && has(&read["reason"], cause.1)
            && error["code"] == cause.0
            && has(&error["remedy"], cause.2),
        "{cause:?} is not told: {read:#}"
    );
    assert!(shown(pipeline, cause).await, "{cause:?} is not shown");
}

#[tokio::test]
async fn postgres_that_is_down_is_named() {
    let mut pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    pipeline.postgres.kill().await;
    faulty(&mut pipeline, &relay, ("PR0201", "127.0.0.1", "start Postgres")).await;
}

#[tokio::test]
async fn nats_that_is_down_is_named() {
    let mut pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    pipeline.nats.kill();
    faulty(&mut pipeline, &relay, ("PR0301", "127.0.0.1", "start nats-server")).await;
}

#[tokio::test]
async fn a_stream_that_is_missing_is_named() {
    let mut pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    pipeline.jetstream().await.delete_stream("OUTBOX").await.unwrap();
    insert(&pipeline, "'kept'").await;
    faulty(&mut pipeline, &relay, ("PR0304", "stream `OUTBOX` does not exist", "postrider init")).await;
}

#[tokio::test]
async fn a_stream_that_is_full_is_named() {
    let mut pipeline = Pipeline::article().await;
    let mut config = pipeline.stream().await.cached_info().config.clone();
    (config.max_messages, config.discard) = (3, DiscardPolicy::New);
    pipeline.jetstream().await.update_stream(config).await.unwrap();
    let relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type) SELECT 'e' FROM generate_series(1, 9)").await;
    faulty(&mut pipeline, &relay, ("PR0309", "maximum messages exceeded", "stream's limits")).await;
}

#[tokio::test]
async fn publishing_that_is_not_permitted_is_named() {
    let users = "authorization { users: [ { user: relay, password: \"relay-password\", \
         permissions: { publish: { deny: [\"outbox.>\"] } } } ] }";
    let mut pipeline = Pipeline::on(Servers { nats_extra: users, ..Servers::default() }).await;
    pipeline.set("NATS_USER", "relay");
    pipeline.set("NATS_PASSWORD", "relay-password");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let relay = pipeline.run().await;
    insert(&pipeline, "'order'").await;
    faulty(&mut pipeline, &relay, ("PR0310", "outbox.order", "grant the NATS account publish permission"))
        .await;
}

#[tokio::test]
async fn a_table_taken_out_of_the_publication_is_named() {
    let pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    pipeline.execute("ALTER PUBLICATION postrider DROP TABLE outbox").await;
    insert(&pipeline, "'kept'").await;
    halted(relay, 5, ("PR0412", "does not publish the outbox any more", "postrider recover")).await;
    looked_at(&pipeline, ("PR0209", "does not contain public.outbox", "ADD TABLE public.outbox")).await;
    pipeline.execute("ALTER PUBLICATION postrider ADD TABLE public.outbox").await;
    looked_at(&pipeline, ("PR0412", "was taken out and put back", "postrider recover")).await;
}

#[tokio::test]
async fn rows_that_nobody_has_committed_are_named() {
    let mut pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    let sql = pipeline.sql().await;
    sql.batch_execute(
        "SET application_name = 'shop'; BEGIN; INSERT INTO outbox (event_type) VALUES ('order')",
    )
    .await
    .unwrap();
    let pid = pipeline.ask("SELECT pid FROM pg_stat_activity WHERE application_name = 'shop'").await;
    let terminate = format!("SELECT pg_terminate_backend({pid})");
    obstructed(
        &mut pipeline,
        &relay,
        ("PR0660", "(shop, user postgres) has written to the outbox", &terminate),
    )
    .await;
    sql.batch_execute("COMMIT").await.unwrap();
    pipeline.stored(1).await;
    eventually("it is told no longer", async || {
        (!relay.status().await?["advice"].to_string().contains("PR0660")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_prepared_transaction_that_nobody_commits_is_named() {
    let settings = &[("max_prepared_transactions", "5")][..];
    let mut pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let relay = pipeline.run().await;
    let sql = pipeline.sql().await;
    for statement in
        ["BEGIN", "INSERT INTO outbox (event_type) VALUES ('order')", "PREPARE TRANSACTION 'forgotten'"]
    {
        sql.batch_execute(statement).await.unwrap();
    }
    let remedy = "COMMIT PREPARED 'forgotten'";
    obstructed(&mut pipeline, &relay, ("PR0660", "the prepared transaction `forgotten`", remedy)).await;
    sql.batch_execute(remedy).await.unwrap();
    pipeline.stored(1).await;
}

#[tokio::test]
async fn another_relay_that_publishes_is_named() {
    let mut pipeline = Pipeline::article().await;
    let _leader = pipeline.run().await;
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    pipeline.set("POSTRIDER_HTTP_LISTEN", &standby.http().unwrap());
    let status = standby.status().await.unwrap();
    assert!(has(&status["reason"], "another relay holds slot `postrider`"), "{status}");
    let text = pipeline.postrider(&["status"]).await.stdout;
    assert!(text.contains("note: another relay publishes; this one takes over"), "{text}");
    assert!(standby.stderr().contains("another relay holds the slot"), "{}", standby.stderr());
}

/// Ended with the test.
struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_stranger_that_reads_the_slot_is_named() {
    let mut pipeline = Pipeline::article().await;
    let mut command = Command::new(PostgresPrograms::find(Some(18)).unwrap().bin.join("pg_recvlogical"));
    // As psql is started here.
    command.env_clear().envs(psql().get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["--slot", "postrider", "--start", "-f", "-", "-o", "proto_version=1"]);
    command.args(["-o", "publication_names=postrider", "-d", &pipeline.postgres.url("postgres")]);
    let _stranger = Stranger(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    eventually("it reads", async || {
        (pipeline.ask("SELECT active FROM pg_replication_slots").await == "true").then_some(())
    })
    .await;
    let mut relay = pipeline.spawn(&["run"]);
    relay.is("role", "standby").await;
    let cause = ("PR0661", "(pg_recvlogical, user postgres)", "SELECT pg_terminate_backend(");
    obstructed(&mut pipeline, &relay, cause).await;
}

#[tokio::test]
async fn a_halt_at_an_event_that_cannot_be_published_is_named_by_the_log() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_ON_POISON", "halt");
    let relay = pipeline.run().await;
    insert(&pipeline, "'two words'").await;
    halted(relay, 7, ("PR0501", "event_type", "delivery.on_poison")).await;
    let text = pipeline.postrider(&["status"]).await.stdout;
    assert!(text.contains("why the last one ended stands at the end of its log"), "{text}");
}

#[tokio::test]
async fn a_halt_after_too_many_dead_letters_is_named() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_DEAD_LETTERS_MAX", "2");
    let relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type) SELECT 'two words' FROM generate_series(1, 9)").await;
    halted(relay, 7, ("PR0511", "2 dead letters in a row", "postrider dlq replay --all")).await;
    assert!(shown(&pipeline, ("PR0501", "2 dead letters are open", "postrider dlq list")).await);
}

#[tokio::test]
async fn a_slot_that_is_gone_is_named() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.nats.kill();
    relay.is("role", "waiting").await;
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    insert(&pipeline, "'kept'").await;
    pipeline.nats.start_again().await.unwrap();
    ended(&pipeline, relay, 5, ("PR0401", "slot `postrider` does not exist", "postrider recover")).await;
}

#[tokio::test]
async fn a_slot_that_is_lost_is_named() {
    let settings =
        &[("max_slot_wal_keep_size", "16MB"), ("max_wal_size", "32MB"), ("min_wal_size", "32MB")][..];
    let mut pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    pipeline.nats.kill();
    relay.is("role", "waiting").await;
    eventually("the slot is lost", async || {
        pipeline.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 20000000))").await;
        pipeline.execute("SELECT pg_switch_wal()").await;
        pipeline.execute("CHECKPOINT").await;
        (pipeline.ask("SELECT wal_status FROM pg_replication_slots").await == "lost").then_some(())
    })
    .await;
    pipeline.nats.start_again().await.unwrap();
    ended(&pipeline, relay, 5, ("PR0403", "slot `postrider` is lost", "postrider recover")).await;
}

#[tokio::test]
async fn a_foreign_message_in_the_stream_is_named() {
    let pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    insert(&pipeline, "'ours'").await;
    pipeline.stored(1).await;
    let jetstream = pipeline.jetstream().await;
    jetstream.publish("outbox.theirs", "{}".into()).await.unwrap().await.unwrap();
    insert(&pipeline, "'kept'").await;
    ended(&pipeline, relay, 4, ("PR0307", "outbox.theirs", "source")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_a_leader_is_named() {
    let mut cluster = NatsServer::start_cluster(&nats_program(None).unwrap(), "").await.unwrap();
    let mut pipeline = Pipeline::start().await;
    let urls: Vec<_> = cluster.iter().map(NatsServer::url).collect();
    pipeline.set("NATS_URL", &urls.join(","));
    pipeline.set("POSTRIDER_NATS_REPLICAS", "3");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let relay = pipeline.run().await;
    cluster.truncate(1);
    insert(&pipeline, "'order'").await;
    faulty(&mut pipeline, &relay, ("PR0311", "JetStream", "nats stream info")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_for_a_standby_are_named() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_WAIT_VISIBLE", "true");
    let relay = pipeline.run().await;
    pipeline.execute("ALTER SYSTEM SET synchronous_standby_names = 'elsewhere'").await;
    pipeline.execute("SELECT pg_reload_conf()").await;
    eventually("the setting is in force", async || {
        let set = "SELECT current_setting('synchronous_standby_names')";
        (pipeline.ask(set).await == "elsewhere").then_some(())
    })
    .await;
    let sql = pipeline.sql().await;
    let writer = tokio::spawn(async move {
        sql.batch_execute("INSERT INTO outbox (event_type) VALUES ('order')").await.unwrap();
    });
    let cause = ("PR0663", "synchronous_standby_names = 'elsewhere'", "bring that standby back");
    obstructed(&mut pipeline, &relay, cause).await;
    pipeline.execute("ALTER SYSTEM RESET synchronous_standby_names").await;
    pipeline.execute("SELECT pg_reload_conf()").await;
    writer.await.unwrap();
    pipeline.stored(1).await;
}

#[tokio::test]
async fn writers_of_another_table_are_named() {
    let mut pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    pipeline.execute("CREATE SCHEMA shop; CREATE TABLE shop.outbox (LIKE public.outbox INCLUDING ALL)").await;
    pipeline.execute("INSERT INTO shop.outbox (event_type) VALUES ('order')").await;
    let cause = (
        "PR0662",
        "nothing was inserted into public.outbox of database `postgres`",
        "There is also shop.outbox",
    );
    obstructed(&mut pipeline, &relay, cause).await;
}

#[tokio::test]
async fn events_that_all_become_dead_letters_are_named() {
    let mut pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type) SELECT 'two words' FROM generate_series(1, 5)").await;
    obstructed(&mut pipeline, &relay, ("PR0501", "`event_type` holds white space", "postrider dlq list"))
        .await;
    eventually("all of them are counted", async || {
        relay.status().await?["advice"].to_string().contains("5 dead letters are open").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_row_filter_is_named() {
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    pipeline
        .execute("CREATE PUBLICATION postrider FOR TABLE outbox WHERE (event_type <> 'order') WITH (publish = 'insert')")
        .await;
    pipeline.init().await;
    let relay = pipeline.run().await;
    insert(&pipeline, "'order'").await;
    obstructed(&mut pipeline, &relay, ("PR0611", "only rows with", "SET TABLE")).await;
}
