//! `/metrics`, `/readyz` and the token.

use crate::proxy::{Mode, Proxy};
use crate::support::{Pipeline, Relay, eventually};
use crate::{promtool, samples};
use postrider::ops::metrics::METRICS;
use rustix::process::{Pid, Signal, kill_process};

const POISON: &str = "INSERT INTO outbox (event_type, payload) VALUES ('not a token', '{}'), (NULL, '{}')";

async fn scrape(relay: &Relay) -> String {
    let (code, text) = relay.get("/metrics").await.unwrap();
    assert_eq!(code, 200, "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_served_and_promtool_finds_no_fault_in_them() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    let text = scrape(&relay).await;
    let checked = promtool(&["check", "metrics"], &text);
    let said = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.trim().is_empty(), "{said}\n{text}");
    for metric in METRICS {
        let family = format!("# TYPE {} ", metric.whole_name());
        assert!(text.contains(&family), "{family} is not in {text}");
    }
    let accept = "Accept: application/openmetrics-text; version=1.0.0\r\n";
    let (head, text) = relay.answer("/metrics", accept).await.unwrap();
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_counted_is_what_happened() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    let rows = "INSERT INTO outbox (event_type, payload) SELECT 'order', '{}' FROM generate_series(1, 50)";
    pipeline.execute(&format!("{rows}; {POISON}; {rows}")).await;
    pipeline.stored(100).await;
    let text = eventually("all is counted and looked at", async || {
        let text = scrape(&relay).await;
        let samples = samples(&text);
        let settled = samples["postrider_events_published_total"] >= 100.0
            && samples["postrider_dead_letter_messages"] >= 2.0
            && samples["postrider_outbox_table_bytes"] > 0.0;
        settled.then_some(text)
    })
    .await;
    let samples = samples(&text);
    for (name, value) in [
        ("postrider_events_published_total", 100.0),
        ("postrider_events_dead_lettered_total{reason=\"bad_subject\"}", 1.0),
        ("postrider_events_dead_lettered_total{reason=\"null_type\"}", 1.0),
        ("postrider_events_dead_lettered_total{reason=\"oversize\"}", 0.0),
        ("postrider_dead_letter_messages", 2.0),
        ("postrider_commit_to_ack_seconds_count", 100.0),
        ("postrider_publish_to_ack_seconds_bucket{le=\"+Inf\"}", 100.0),
        ("postrider_in_flight_messages", 0.0),
        ("postrider_oldest_unpublished_age_seconds", 0.0),
        ("postrider_slot_wal_status{status=\"reserved\"}", 1.0),
        ("postrider_slot_safe_wal_bytes", f64::INFINITY),
        ("postrider_state{state=\"stream\"}", 1.0),
        ("postrider_state{state=\"drain\"}", 0.0),
        ("postrider_role{role=\"leader\"}", 1.0),
        ("postrider_reconnects_total{peer=\"nats\"}", 0.0),
    ] {
        assert_eq!(samples[name], value, "{name}\n{text}");
    }
    let took = samples["postrider_publish_to_ack_seconds_sum"];
    assert!(took > 0.0 && took <= samples["postrider_commit_to_ack_seconds_sum"], "{text}");
    let confirmed =
        pipeline.ask("SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots").await;
    let shown = samples["postrider_confirmed_lsn_bytes"];
    assert!(shown >= confirmed.parse::<f64>().unwrap(), "{shown} {confirmed}");
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nats_is_away_the_slot_is_looked_at_and_the_age_of_what_waits_grows() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order', '{}')").await;
    relay.published(1).await;
    assert!(relay.status().await.unwrap()["latency_seconds"]["p50"].is_f64());
    pipeline.nats.kill();
    relay.is("role", "waiting").await;
    let status = relay.status().await.unwrap();
    assert!(status["latency_seconds"]["p50"].is_null(), "it is none of the last minute for long: {status}");
    let filler = "CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)";
    pipeline
        .execute(&format!("INSERT INTO outbox (event_type, payload) VALUES ('order', '{{}}'); {filler}"))
        .await;
    let text = eventually("the slot's WAL is seen to grow", async || {
        let text = scrape(&relay).await;
        let samples = samples(&text);
        let grown = samples["postrider_slot_retained_wal_bytes"] > 20e6
            && samples["postrider_replication_lag_bytes"] > 20e6
            && samples["postrider_oldest_unpublished_age_seconds"] > 3.0
            && samples["postrider_role{role=\"waiting\"}"] == 1.0;
        grown.then_some(text)
    })
    .await;
    let samples = samples(&text);
    assert!(samples["postrider_retries_total{reason=\"nats\"}"] >= 1.0, "{text}");
    assert!(samples["postrider_retries_total{reason=\"nats_down\"}"] >= 1.0, "{text}");
    // Whatever happens to the sessions that cannot begin.
    let retries = samples["postrider_retries_total{reason=\"nats\"}"];
    eventually("three more attempts", async || {
        let text = scrape(&relay).await;
        let samples = crate::samples(&text);
        assert!(samples["postrider_replication_lag_bytes"] > 20e6, "{text}");
        (samples["postrider_retries_total{reason=\"nats\"}"] >= retries + 3.0).then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_walsender_hangs_the_age_of_what_waits_grows_though_the_session_lives() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    let walsender: i32 = pipeline.ask("SELECT active_pid FROM pg_replication_slots").await.parse().unwrap();
    let walsender = Pid::from_raw(walsender).unwrap();
    kill_process(walsender, Signal::STOP).unwrap();
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order', '{}')").await;
    let status = eventually("the age grows, or the session ends", async || {
        let status = relay.status().await?;
        let grown = status["oldest_unpublished_age_seconds"].as_f64()? > 20.0;
        (grown || status["role"] != "leader").then_some(status)
    })
    .await;
    kill_process(walsender, Signal::CONT).unwrap();
    assert_eq!(status["role"], "leader", "{status}");
    pipeline.stored(1).await;
    eventually("nothing waits any more", async || {
        (relay.status().await?["oldest_unpublished_age_seconds"] == 0.0).then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgres_is_away_what_it_has_is_not_known() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.execute(POISON).await;
    eventually("they are counted", async || (relay.status().await?["dead_letters"] == 2).then_some(())).await;
    pipeline.postgres.kill().await;
    eventually("nothing is claimed", async || {
        let text = scrape(&relay).await;
        let samples = samples(&text);
        let unknown = ["dead_letter_messages", "slot_retained_wal_bytes", "replication_lag_bytes"];
        unknown.iter().all(|name| samples[format!("postrider_{name}").as_str()].is_nan()).then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_dropped_during_an_outage_is_shown_as_gone() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.nats.kill();
    relay.is("role", "waiting").await;
    relay.is("wal_status", "reserved").await;
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    let status = eventually("it is seen", async || {
        let status = relay.status().await?;
        status["wal_status"].is_null().then_some(status)
    })
    .await;
    for field in ["confirmed_lsn", "retained_wal_bytes", "safe_wal_bytes", "lag_bytes"] {
        assert!(status[field].is_null(), "{field}: {status}");
    }
    let advice = status["advice"].to_string();
    assert!(advice.contains("does not exist") && advice.contains("postrider recover"), "{advice}");
    let text = scrape(&relay).await;
    assert!(samples(&text)["postrider_slot_retained_wal_bytes"].is_nan(), "{text}");
    assert_eq!(relay.terminate().await, Some(0));
    let shown = pipeline.postrider(&["status"]).await.stdout;
    assert_eq!(shown.matches("error:").count(), 1, "said twice: {shown}");
    assert!(shown.contains("postrider recover --yes") && !shown.contains("postrider init"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_knows_the_slot_and_is_ready_only_where_it_is_set_so() {
    let mut pipeline = Pipeline::article().await;
    let mut leader = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order', '{}')").await;
    pipeline.stored(1).await;
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    assert_eq!(standby.get("/readyz").await.unwrap().0, 200);
    let text = eventually("the standby has looked", async || {
        let text = scrape(&standby).await;
        (samples(&text)["postrider_slot_wal_status{status=\"reserved\"}"] == 1.0).then_some(text)
    })
    .await;
    let samples = samples(&text);
    assert_eq!(samples["postrider_role{role=\"standby\"}"], 1.0, "{text}");
    assert!(samples["postrider_confirmed_lsn_bytes"] > 0.0, "{text}");
    assert!(samples["postrider_outbox_table_bytes"] > 0.0, "{text}");
    assert!(samples["postrider_oldest_unpublished_age_seconds"].is_nan(), "{text}");
    pipeline.set("POSTRIDER_HTTP_STANDBY_READY", "false");
    let mut other = pipeline.spawn(&["run"]);
    other.is("role", "standby").await;
    assert_eq!(other.get("/readyz").await.unwrap().0, 503);
    for relay in [&mut standby, &mut other, &mut leader] {
        assert_eq!(relay.terminate().await, Some(0));
    }
}

#[tokio::test]
async fn the_size_of_an_outbox_that_is_locked_is_not_waited_for() {
    let pipeline = Pipeline::article().await;
    let size = async || {
        let ended = pipeline.postrider(&["status", "--json"]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        serde_json::from_str::<serde_json::Value>(&ended.stdout).unwrap()["outbox_table_bytes"].clone()
    };
    let sql = pipeline.sql().await;
    sql.batch_execute("BEGIN; LOCK TABLE outbox").await.unwrap();
    let began = std::time::Instant::now();
    assert!(size().await.is_null());
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    sql.batch_execute("COMMIT").await.unwrap();
    assert!(size().await.as_u64().is_some_and(|bytes| bytes > 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_cut_off_from_nats_is_not_ready_until_it_is_back() {
    let mut pipeline = Pipeline::article().await;
    let mut leader = pipeline.run().await;
    let nats = pipeline.nats.url();
    let proxy = Proxy::to(nats.rsplit_once(':').unwrap().1.parse().unwrap()).await;
    pipeline.set("NATS_URL", &format!("nats://127.0.0.1:{}", proxy.port()));
    // Its start is over.
    pipeline.set("POSTRIDER_START_TIMEOUT", "1s");
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    assert_eq!(standby.get("/readyz").await.unwrap().0, 200);
    proxy.set(Mode::Refuse);
    proxy.cut();
    let ready = async |code| {
        eventually("it is told", async || (standby.get("/readyz").await?.0 == code).then_some(())).await;
    };
    ready(503).await;
    assert_eq!(standby.status().await.unwrap()["role"], "waiting");
    assert_eq!(leader.status().await.unwrap()["state"], "stream", "it is not its matter");
    proxy.set(Mode::Pass);
    ready(200).await;
    standby.is("role", "standby").await;
    assert_eq!(standby.terminate().await, Some(0));
    assert_eq!(leader.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_but_the_life_sign_and_the_empty_page_ask_for_the_token() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_HTTP_TOKEN", "open-sesame");
    let mut relay = pipeline.spawn(&["run"]);
    eventually("it listens", async || relay.get("/healthz").await).await;
    for (path, code) in [("/metrics", 401), ("/status", 401), ("/readyz", 401), ("/", 200), ("/healthz", 200)]
    {
        assert_eq!(relay.get(path).await.unwrap().0, code, "{path}");
    }
    let token = "Authorization: Bearer open-sesame\r\n";
    for path in ["/metrics", "/status"] {
        let (head, _) = relay.answer(path, token).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    assert_eq!(relay.terminate().await, Some(0));
}
