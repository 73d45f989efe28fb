//! `postrider status` for a person, once and each second.

use crate::support::{Pipeline, eventually};
use rustix::process::Signal;
use std::process::{Command, Stdio};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_first_why_nothing_is_published_and_what_to_do() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.set("POSTRIDER_HTTP_LISTEN", &relay.http().unwrap());
    let shown = pipeline.postrider(&["status"]).await.stdout;
    assert!(shown.starts_with("confirmed_lsn"), "nothing is to be done: {shown}");
    pipeline.nats.kill();
    relay.is("role", "waiting").await;
    let shown = eventually("status tells", async || {
        let shown = pipeline.postrider(&["status"]).await.stdout;
        shown.contains("PR0301").then_some(shown)
    })
    .await;
    let mut lines = shown.lines();
    let (what, remedy) = (lines.next().unwrap(), lines.next().unwrap());
    assert!(what.starts_with("error: nothing is being published: nats://127.0.0.1"), "{shown}");
    assert!(remedy.starts_with("  what to do: start nats-server"), "{shown}");
    assert!(shown.contains("leader stream: streaming"), "{shown}");
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_prints_a_line_a_second_into_a_pipe() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.set("POSTRIDER_HTTP_LISTEN", &relay.http().unwrap());
    let watching = pipeline.spawn(&["status", "--watch"]);
    eventually("three lines", async || (watching.stdout().lines().count() >= 3).then_some(())).await;
    for line in watching.stdout().lines() {
        assert!(line.contains("Z leader stream  published 0"), "{line}");
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_redraws_a_terminal() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.set("POSTRIDER_HTTP_LISTEN", &relay.http().unwrap());
    // A terminal of util-linux, for four seconds.
    let watch = format!("timeout 4 {} status --watch", env!("CARGO_BIN_EXE_postrider"));
    let mut script = Command::new("script");
    script.args(["-qec", &watch, "/dev/null"]).env_clear().envs(pipeline.environment()).stdin(Stdio::null());
    script.env("PATH", std::env::var_os("PATH").unwrap()).env("TERM", "xterm");
    let shown = tokio::task::spawn_blocking(move || script.output().unwrap()).await.unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.matches("\u{1b}[H").count() >= 3, "{shown:?}");
    assert!(shown.matches("leader").count() >= 3, "{shown:?}");
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_sums_up_each_minute_and_has_no_line_for_an_event_nor_its_payload() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload) \
             SELECT 'order', jsonb_build_object('word', 'chrysanthemum') FROM generate_series(1, 500)",
        )
        .await;
    let summary = eventually("a summary", async || {
        let log = relay.stderr();
        log.lines().find(|line| line.contains("\"progress\"")).map(str::to_owned)
    })
    .await;
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((&summary["published"], &summary["in_flight"]), (&500.into(), &0.into()), "{summary}");
    assert_eq!(relay.terminate().await, Some(0));
    let log = relay.stderr();
    assert!(log.lines().count() < 10 && !log.contains("chrysanthemum"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_of_a_relay_passes_while_its_loop_turns_and_fails_when_it_hangs_or_is_gone() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.set("POSTRIDER_HTTP_LISTEN", &relay.http().unwrap());
    pipeline.set("POSTRIDER_HTTP_TOKEN", "not-needed-for-it");
    let ended = pipeline.postrider(&["status", "--check"]).await;
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
    // Postgres and NATS are not asked, and their outage is not the relay's fault.
    pipeline.nats.kill();
    pipeline.postgres.kill().await;
    relay.is("role", "waiting").await;
    assert_eq!(pipeline.postrider(&["status", "--check"]).await.code, Some(0));
    relay.signal(Signal::STOP);
    let ended = pipeline.postrider(&["status", "--check"]).await;
    assert_eq!(ended.code, Some(6));
    assert!(ended.stderr.contains("PR0650"), "{}", ended.stderr);
    relay.kill();
    let ended = pipeline.postrider(&["status", "--check"]).await;
    assert_eq!(ended.code, Some(6));
    assert!(ended.stderr.contains("no relay answers at 127.0.0.1"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_no_other_database_s_relay() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("CREATE DATABASE other").await;
    pipeline.set("POSTRIDER_HTTP_LISTEN", &relay.http().unwrap());
    let own = pipeline.postrider(&["status", "--json"]).await.stdout;
    pipeline.set("DATABASE_URL", &pipeline.postgres.url("other"));
    let others = pipeline.postrider(&["status", "--json"]).await.stdout;
    let [own, others] = [own, others].map(|text| serde_json::from_str::<serde_json::Value>(&text).unwrap());
    assert_eq!((&own["database"], &own["role"]), (&"postgres".into(), &"leader".into()), "{own}");
    assert_eq!((&others["database"], &others["role"]), (&"other".into(), &"waiting".into()), "{others}");
    assert!(others["published_total"].is_null(), "{others}");
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_that_the_relay_wants_its_token() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_HTTP_TOKEN", "open-sesame");
    let mut relay = pipeline.spawn(&["run"]);
    let address = eventually("it listens", async || relay.http()).await;
    pipeline.set("POSTRIDER_HTTP_LISTEN", &address);
    eventually("it streams, with the token", async || {
        let shown = pipeline.postrider(&["status", "--json"]).await.stdout;
        let status: serde_json::Value = serde_json::from_str(&shown).ok()?;
        (status["state"] == "stream").then_some(())
    })
    .await;
    pipeline.set("POSTRIDER_HTTP_TOKEN", "sesame-open");
    let shown = pipeline.postrider(&["status"]).await.stdout;
    assert!(shown.contains("it wants http.token"), "{shown}");
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_told_to_stop_says_what_it_waits_for() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.nats.freeze();
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order', '{}')").await;
    eventually("it is sent", async || (relay.status().await?["in_flight_messages"] == 1).then_some(())).await;
    relay.signal(Signal::TERM);
    relay.is("reason", "stopping: awaiting 1 answers").await;
    pipeline.nats.thaw();
    assert_eq!(relay.ended().await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_event_s_id_an_excerpt_is_shown_in_which_nothing_turns_the_text_round() {
    let table = "CREATE TABLE outbox (id text PRIMARY KEY, event_type text, payload jsonb)";
    let mut pipeline = Pipeline::start().await;
    pipeline.execute(table).await;
    for (name, value) in [("OUTBOX_PRESET", "columns"), ("OUTBOX_SUBJECT", "outbox.{event_type}")] {
        pipeline.set(&format!("POSTRIDER_{name}"), value);
    }
    for (name, value) in [("OUTBOX_ID", "id"), ("OUTBOX_PAYLOAD", "payload"), ("NATS_MSG_ID", "true")] {
        pipeline.set(&format!("POSTRIDER_{name}"), value);
    }
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    // A header's value may not hold control characters; this one, which has what follows read from right to
    // left, is none.
    let row = "INSERT INTO outbox VALUES (U&'\\202E' || 'red' || repeat('x', 200), 'order', '{}')";
    pipeline.execute(&format!("{row}; DELETE FROM outbox; {row}")).await;
    relay.published(1).await;
    pipeline.set("POSTRIDER_HTTP_LISTEN", &relay.http().unwrap());
    let shown = eventually("the id returns", async || {
        let shown = pipeline.postrider(&["status"]).await.stdout;
        shown.contains("for a duplicate of message 1").then_some(shown)
    })
    .await;
    assert!(shown.contains("red") && !shown.contains('\u{202e}'), "{shown:?}");
    assert!(!shown.contains(&"x".repeat(61)), "{shown}");
}
