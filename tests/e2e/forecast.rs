//! The loss of a slot is told before it comes.

use crate::support::{ARTICLE, Pipeline, Relay, Servers, eventually};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// At three to four MiB a second it lasts for some minutes: less than an hour, and longer than the test.
const LIMITED: &[(&str, &str)] = &[("max_slot_wal_keep_size", "1GB")];

/// Writes WAL that is not the outbox's, three to four MiB a second.
struct Busy {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<()>,
}

impl Busy {
    async fn server(pipeline: &Pipeline) -> Busy {
        let (stop, sql) = (Arc::new(AtomicBool::new(false)), pipeline.sql().await);
        let stopped = Arc::clone(&stop);
        let writer = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let write = "SELECT pg_logical_emit_message(false, 'busy', repeat('x', 400000))";
                sql.batch_execute(write).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Busy { stop, writer }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.writer.await.unwrap();
    }
}

/// `postrider_slot_seconds_to_loss`.
async fn seconds_to_loss(relay: &Relay) -> Option<f64> {
    let (_, metrics) = relay.get("/metrics").await?;
    metrics.lines().find_map(|line| line.strip_prefix("postrider_slot_seconds_to_loss "))?.parse().ok()
}

async fn busy_pipeline(settings: &[(&str, &str)]) -> (Pipeline, Busy) {
    let pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let busy = Busy::server(&pipeline).await;
    (pipeline, busy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_slot_is_foretold_while_nats_is_away_and_no_longer_once_it_is_back() {
    let (mut pipeline, busy) = busy_pipeline(LIMITED).await;
    let mut relay = pipeline.run().await;
    pipeline.set("POSTRIDER_HTTP_LISTEN", &relay.http().unwrap());
    eventually("the slot of a busy server follows", async || {
        (seconds_to_loss(&relay).await? == f64::INFINITY).then_some(())
    })
    .await;
    assert!(!relay.stderr().contains("PR0602"), "{}", relay.stderr());
    pipeline.nats.kill();
    let seconds = eventually("the metric foretells it", async || {
        seconds_to_loss(&relay).await.filter(|seconds| seconds.is_finite())
    })
    .await;
    assert!((60.0..3600.0).contains(&seconds), "{seconds}");
    let log = relay.stderr();
    let warned = log.lines().find(|line| line.contains("the slot is in danger")).unwrap();
    for part in
        ["PR0602", "MiB/s of WAL the slot is lost in", "1. mend", "2. gain time", "do not drop the slot"]
    {
        assert!(warned.contains(part), "{part}: {warned}");
    }
    let status = relay.status().await.unwrap();
    assert!(status["slot_lost_in_seconds"].as_f64().is_some_and(|left| left < 3600.0), "{status}");
    assert!(status["wal_bytes_per_second"].as_f64().is_some_and(|rate| rate > 500_000.0), "{status}");
    let text = pipeline.postrider(&["status"]).await.stdout;
    assert!(
        text.contains("of WAL the slot is lost in") && text.contains("what to do: 2. gain time"),
        "{text}"
    );
    assert_eq!(pipeline.ask("SELECT wal_status <> 'lost' FROM pg_replication_slots").await, "true");
    pipeline.nats.start_again().await.unwrap();
    relay.streams().await;
    eventually("it is foretold no longer", async || {
        (seconds_to_loss(&relay).await? == f64::INFINITY).then_some(())
    })
    .await;
    let status = relay.status().await.unwrap();
    assert!(
        status["slot_lost_in_seconds"].is_null() && !status["advice"].to_string().contains("PR0602"),
        "{status}"
    );
    busy.end().await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_waits_beside_one_that_streams_foretells_no_loss() {
    let (mut pipeline, busy) = busy_pipeline(LIMITED).await;
    let mut leader = pipeline.run().await;
    pipeline.set("NATS_URL", "nats://127.0.0.1:1");
    let mut cut_off = pipeline.spawn(&["run"]);
    let rate = eventually("it knows the rate of WAL", async || {
        let status = cut_off.status().await?;
        assert_eq!(status["role"], "waiting", "{status}");
        status["wal_bytes_per_second"].as_f64().filter(|rate| *rate > 500_000.0)
    })
    .await;
    assert_eq!(seconds_to_loss(&cut_off).await, Some(f64::INFINITY), "at {rate} B/s");
    assert!(!cut_off.stderr().contains("PR0602"), "{}", cut_off.stderr());
    assert_eq!((cut_off.terminate().await, leader.terminate().await), (Some(0), Some(0)));
    busy.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_foretells_the_loss_of_a_slot_that_no_relay_reads() {
    let (pipeline, busy) = busy_pipeline(LIMITED).await;
    let read = pipeline.postrider(&["status", "--json"]).await;
    let read: serde_json::Value = serde_json::from_str(&read.stdout).unwrap();
    assert!(read["slot_lost_in_seconds"].as_f64().is_some_and(|left| left > 60.0 && left < 3600.0), "{read}");
    assert!(read["advice"].to_string().contains("PR0602"), "{read}");
    busy.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_limit_it_is_told_that_the_disk_fills_and_how_fast() {
    let (pipeline, busy) = busy_pipeline(&[]).await;
    let text = pipeline.postrider(&["status"]).await.stdout;
    assert!(text.contains("Postgres's disk fills by") && text.contains("(PR0601)"), "{text}");
    assert!(!text.contains("slot_lost_in_seconds"), "{text}");
    busy.end().await;
}
