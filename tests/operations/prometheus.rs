//! A real Prometheus scrapes two real relays; what is caused fires, and clears when it is mended.

use crate::rules::dashboard;
use crate::support::{ARTICLE, Pipeline, Relay, Servers, eventually};
use crate::{file, program};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use tokio::net::TcpStream;

/// Ended with the test.
struct Prometheus {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// With the shipped rules, that need not hold for minutes here, and both relays.
    fn start(relays: &[&Relay]) -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        let rules = std::fs::read_to_string(file("deploy/prometheus/alerts.yml")).unwrap();
        let at_once = |line: &&str| !line.trim_start().starts_with("for: ");
        let rules: Vec<_> = rules.lines().filter(at_once).collect();
        std::fs::write(folder.path().join("alerts.yml"), rules.join("\n")).unwrap();
        let targets: Vec<_> = relays.iter().map(|relay| relay.http().unwrap()).collect();
        let config = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}\n\
             rule_files: [alerts.yml]\n\
             scrape_configs: [{{job_name: postrider, static_configs: [{{targets: {targets:?}, labels: {{slot: postrider}}}}]}}]\n"
        );
        let config_file = folder.path().join("prometheus.yml");
        std::fs::write(&config_file, config).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut prometheus = Command::new(program("prometheus"));
        prometheus.arg(format!("--config.file={}", config_file.display()));
        prometheus.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        prometheus.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        prometheus.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Prometheus { child: prometheus.spawn().unwrap(), port, _folder: folder }
    }

    /// What its API answers; none while it is not up.
    async fn api(&self, path: &str) -> Option<Value> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        let request = hyper::Request::get(format!("/api/v1/{path}")).header("host", "prometheus");
        let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.ok()?;
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        let answer: Value = serde_json::from_slice(&body).ok()?;
        (answer["status"] == "success").then(|| answer["data"].clone())
    }

    /// The names of the alerts that fire, sorted.
    async fn firing(&self) -> Option<Vec<String>> {
        let alerts = self.api("alerts").await?;
        let firing = alerts["alerts"].as_array()?.iter().filter(|alert| alert["state"] == "firing");
        let mut names: Vec<_> =
            firing.filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned())).collect();
        names.sort();
        names.dedup();
        Some(names)
    }

    async fn fires(&self, alerts: &[&str]) {
        let mut last = Vec::new();
        let what = format!("{alerts:?} fire and no others");
        eventually(&what, async || {
            last = self.firing().await?;
            (last == alerts).then_some(())
        })
        .await;
    }

    /// Whatever else fires.
    async fn comes(&self, alert: &str, fires: bool) {
        eventually(&format!("{alert} fires: {fires}"), async || {
            (self.firing().await?.iter().any(|firing| firing == alert) == fires).then_some(())
        })
        .await;
    }

    async fn value(&self, query: &str) -> Option<f64> {
        let query = percent_encoding::utf8_percent_encode(query, percent_encoding::NON_ALPHANUMERIC);
        let answer = self.api(&format!("query?query={query}")).await?;
        answer["result"].as_array()?.first()?["value"][1].as_str()?.parse().ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_scrapes_the_relays_and_what_is_caused_fires_and_clears() {
    let mut pipeline = Pipeline::article().await;
    let mut leader = pipeline.run().await;
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    let prometheus = Prometheus::start(&[&leader, &standby]);
    eventually("both are scraped", async || (prometheus.value("sum(up)").await? == 2.0).then_some(())).await;
    prometheus.fires(&[]).await;
    // An event that cannot be published.
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a b', '{}'), ('order', '{}')").await;
    prometheus.fires(&["PostriderDeadLetters"]).await;
    assert_eq!(prometheus.value("max(postrider_events_published_total)").await, Some(1.0));
    let dropped = pipeline.postrider(&["dlq", "drop", "1"]).await;
    assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
    prometheus.fires(&[]).await;
    // What the dashboard asks for is answered, once there has been time for two samples of each.
    for query in dashboard() {
        let query = query.replace("$__rate_interval", "5m").replace("$slot", ".*");
        // What nothing has happened to is left out of a panel.
        let query = query.trim_end_matches("> 0");
        eventually(query, async || prometheus.value(query).await).await;
    }
    // No standby, then nobody; then both are back.
    assert_eq!(standby.terminate().await, Some(0));
    prometheus.fires(&["PostriderStandbyMissing"]).await;
    pipeline.nats.kill();
    prometheus.fires(&["PostriderNoLeader"]).await;
    pipeline.nats.start_again().await.unwrap();
    leader.streams().await;
    prometheus.fires(&["PostriderStandbyMissing"]).await;
    assert_eq!(leader.terminate().await, Some(0));
    prometheus.fires(&["PostriderNoLeader"]).await;
}

/// A relay that streams and is scraped; its slot may keep so much WAL.
async fn scraped_with_slot_limit(limit: &str) -> (Pipeline, Relay, Prometheus) {
    let settings = &[("max_slot_wal_keep_size", limit)][..];
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let relay = pipeline.run().await;
    let prometheus = Prometheus::start(&[&relay]);
    eventually("it is scraped", async || prometheus.value("up").await.filter(|up| *up == 1.0)).await;
    (pipeline, relay, prometheus)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_near_its_loss_is_told_before_it_is_lost_and_no_longer_when_it_moves_on() {
    let (mut pipeline, mut relay, prometheus) = scraped_with_slot_limit("64MB").await;
    prometheus.comes("PostriderSlotNearLoss", false).await;
    pipeline.nats.kill();
    relay.is("role", "waiting").await;
    pipeline.execute("CREATE TABLE filler (text text)").await;
    while safe(&pipeline).await > 5 << 20 {
        pipeline.execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 1000)").await;
    }
    prometheus.comes("PostriderSlotNearLoss", true).await;
    let shown = relay.status().await.unwrap()["advice"].to_string();
    assert!(shown.contains("PR0602"), "{shown}");
    pipeline.nats.start_again().await.unwrap();
    relay.streams().await;
    // The slot moves at a record of running transactions, which a checkpoint writes.
    eventually("the slot moves on", async || {
        pipeline.execute("CHECKPOINT").await;
        (safe(&pipeline).await > 40 << 20).then_some(())
    })
    .await;
    prometheus.comes("PostriderSlotNearLoss", false).await;
    let lost = prometheus.value("count_over_time(ALERTS{alertname=\"PostriderSlotLost\"}[1h])").await;
    assert_eq!(lost, None, "it was not lost");
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_lost_while_nats_is_away_is_told_and_ends_the_relay_when_nats_is_back() {
    let (mut pipeline, mut relay, prometheus) = scraped_with_slot_limit("16MB").await;
    pipeline.nats.kill();
    relay.is("role", "waiting").await;
    pipeline.execute("CREATE TABLE filler (text text)").await;
    eventually("the slot is lost", async || {
        let filler = "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 20000)";
        pipeline.execute(&format!("{filler}; CHECKPOINT")).await;
        (pipeline.ask("SELECT wal_status FROM pg_replication_slots").await == "lost").then_some(())
    })
    .await;
    prometheus.comes("PostriderSlotLost", true).await;
    assert_eq!(prometheus.value("postrider_slot_safe_wal_bytes").await, Some(0.0), "none is left");
    pipeline.nats.start_again().await.unwrap();
    let ended = relay.ended().await;
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    assert!(ended.stderr.contains("PR0403"), "{}", ended.stderr);
    prometheus.comes("PostriderNoLeader", true).await;
    prometheus.comes("PostriderSlotLost", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_ends_and_is_started_again_and_again_is_told() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    // The same one to Prometheus each time.
    pipeline.set("POSTRIDER_HTTP_LISTEN", &relay.http().unwrap());
    let prometheus = Prometheus::start(&[&relay]);
    let mut started = 0.0;
    for round in 0..5 {
        started = eventually("it is scraped anew", async || {
            let at = prometheus.value("process_start_time_seconds").await?;
            (at > started).then_some(at)
        })
        .await;
        prometheus.comes("PostriderRestarts", round == 4).await;
        relay.kill();
        relay = pipeline.run().await;
    }
    let began = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - started;
    assert!((0.0..120.0).contains(&began), "it was started {began} s ago");
    assert_eq!(relay.terminate().await, Some(0));
}

async fn safe(pipeline: &Pipeline) -> i64 {
    let safe = pipeline.ask("SELECT safe_wal_size FROM pg_replication_slots").await;
    safe.parse().unwrap()
}
