//! A standby is promoted while writers write, and two relays and the writers follow it.

use crate::failover::{FAILOVER_SLOTS, STOP_MAX, promote, synchronized, with_standby};
use crate::paced::{Paced, longest_pause};
use crate::support::{Message, Pipeline, Relay, connect, eventually};
use postrider::demo::servers::{PostgresServer, Stop};
use std::collections::{BTreeMap, HashSet};

/// The logical slot sends nothing that this standby has not.
const AWAITED: (&str, &str) = ("synchronized_standby_slots", "standby");

const WRITERS: u32 = 4;
const RATE: u32 = 800;

struct Cluster {
    pipeline: Pipeline,
    standby: PostgresServer,
    relays: [Relay; 2],
    load: Paced,
}

impl Cluster {
    /// Two relays and four writers at a primary whose standby keeps the slot. `settings` are the
    /// primary's.
    async fn start(version: u32, settings: &[(&str, &str)]) -> Cluster {
        let (pipeline, standby) = with_standby(version, FAILOVER_SLOTS).await;
        let leader = pipeline.run().await;
        let mut second = pipeline.spawn(&["run"]);
        second.is("role", "standby").await;
        synchronized(&pipeline.postgres, &standby).await;
        for (name, value) in settings {
            pipeline.execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).await;
        }
        pipeline.execute("SELECT pg_reload_conf()").await;
        let urls = format!(
            "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres",
            pipeline.postgres.port(),
            standby.port()
        );
        let load = Paced::start(&urls, WRITERS, RATE);
        let stored = pipeline.last_seq().await;
        pipeline.stored(stored + 500).await;
        Cluster { pipeline, standby, relays: [leader, second], load }
    }

    /// The new primary has each of its rows in the stream, once, in the order of commits; whatever else
    /// the stream has was committed on the former one alone, and the log names the number. Returns it.
    async fn proves(mut self) -> usize {
        let before = self.load.committed();
        eventually("the writers go on", async || (self.load.committed() > before + 300).then_some(())).await;
        self.load.finish().await;
        let rows: HashSet<String> = rows(&self.standby).await;
        let stored = eventually("each row is stored", async || {
            let stored = self.pipeline.messages().await;
            let ids: HashSet<_> = stored.iter().map(Message::id).collect();
            rows.iter().all(|row| ids.contains(row.split_once(' ').unwrap().0)).then_some(stored)
        })
        .await;
        let (ours, phantoms): (Vec<_>, Vec<_>) =
            stored.iter().partition(|message| rows.contains(&text(message)));
        assert_eq!(ours.len(), rows.len(), "{} phantoms", phantoms.len());
        assert_eq!(ours.iter().map(|message| text(message)).collect::<HashSet<_>>(), rows);
        in_order(&stored);
        println!("{} phantoms, longest pause {:?}", phantoms.len(), longest_pause(&stored));
        let mut named = 0;
        for relay in &mut self.relays {
            let log = relay.stderr();
            let told = log.lines().filter(|line| line.contains("lost in the fail-over"));
            for line in told {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                named = named.max(usize::try_from(line["events"].as_u64().unwrap()).unwrap());
            }
        }
        assert_eq!(named, phantoms.len());
        let leads = async |relay: &Relay| relay.status().await.unwrap()["role"] == "leader";
        let [first, second] = &mut self.relays;
        eventually("one leads and one stands by", async || {
            (leads(first).await != leads(second).await).then_some(())
        })
        .await;
        for relay in &mut self.relays {
            assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
        }
        phantoms.len()
    }
}

/// A row as its message has it.
fn text(message: &Message) -> String {
    format!("{} {}", message.id(), std::str::from_utf8(&message.payload).unwrap())
}

async fn rows(server: &PostgresServer) -> HashSet<String> {
    let sql = connect(&server.url("postgres")).await.unwrap();
    let rows = sql.query("SELECT id || ' ' || payload FROM outbox", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// By timeline, LSN and index, and each writer's rows by its own count.
fn in_order(messages: &[Message]) {
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    let mut before = None;
    for message in messages {
        let mut parts = message.header("Postrider-Position").unwrap().split('/').skip(1);
        let timeline: u32 = parts.next().unwrap().parse().unwrap();
        let position = Some((timeline, crate::support::position(message)));
        assert!(before < position, "at sequence {}", message.seq);
        before = position;
        let payload: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        let (Some(writer), Some(n)) = (payload["writer"].as_i64(), payload["n"].as_i64()) else { continue };
        assert!(last.insert(writer, n).is_none_or(|last| last < n), "at sequence {}", message.seq);
    }
}

/// Planned: the primary is stopped in order, and its standby, which then has everything, is promoted.
async fn stopped_then_promoted(version: u32) {
    let mut cluster = Cluster::start(version, &[AWAITED]).await;
    cluster.pipeline.postgres.stop(Stop::Fast, STOP_MAX).await.unwrap();
    promote(&cluster.standby).await;
    assert_eq!(cluster.proves().await, 0);
}

/// The primary is killed with -9, and its standby promoted.
async fn killed_then_promoted(version: u32) {
    let mut cluster = Cluster::start(version, &[AWAITED]).await;
    cluster.pipeline.postgres.kill().await;
    promote(&cluster.standby).await;
    assert_eq!(cluster.proves().await, 0);
}

/// The standby is promoted under a primary that still takes writes, and only then is that one ended.
async fn promoted_then_killed(version: u32) {
    let mut cluster = Cluster::start(version, &[]).await;
    promote(&cluster.standby).await;
    let stored = cluster.pipeline.last_seq().await;
    cluster.pipeline.stored(stored + 100).await;
    cluster.pipeline.postgres.kill().await;
    // The primary alone had what was written behind the promotion.
    assert!(cluster.proves().await >= 100);
}

macro_rules! on {
    ($version:literal: $($name:ident = $claim:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $claim($version).await;
        }
    )*};
}

on!(17: a_switchover_under_load_on_17_loses_and_doubles_nothing = stopped_then_promoted,
    a_primary_of_17_killed_under_load_leaves_no_phantom_with_synchronized_standby_slots = killed_then_promoted,
    a_standby_of_17_promoted_under_a_living_primary_is_followed_and_the_rest_is_reported = promoted_then_killed);
on!(18: a_switchover_under_load_on_18_loses_and_doubles_nothing = stopped_then_promoted,
    a_primary_of_18_killed_under_load_leaves_no_phantom_with_synchronized_standby_slots = killed_then_promoted,
    a_standby_of_18_promoted_under_a_living_primary_is_followed_and_the_rest_is_reported = promoted_then_killed);

/// A promoted standby has left the primary, which then sends nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_synchronized_standby_slots_a_primary_whose_standby_was_promoted_publishes_no_phantom() {
    let mut cluster = Cluster::start(17, &[AWAITED]).await;
    promote(&cluster.standby).await;
    let committed = cluster.load.committed();
    eventually("the writers are still at the primary", async || {
        (cluster.load.committed() > committed + 1000).then_some(())
    })
    .await;
    cluster.pipeline.postgres.kill().await;
    assert_eq!(cluster.proves().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_synchronized_standby_is_away_events_wait_for_it_and_status_says_so() {
    let mut cluster = Cluster::start(17, &[AWAITED]).await;
    cluster.standby.stop(Stop::Fast, STOP_MAX).await.unwrap();
    let [leader, second] = &mut cluster.relays;
    eventually("the relay says so", async || {
        let reason = leader.status().await?["reason"].as_str()?.to_owned();
        reason.contains("synchronized_standby_slots").then_some(())
    })
    .await;
    let (stored, committed) = (cluster.pipeline.last_seq().await, cluster.load.committed());
    eventually("the writers do not wait", async || {
        (cluster.load.committed() > committed + 1000).then_some(())
    })
    .await;
    assert_eq!(cluster.pipeline.last_seq().await, stored);
    assert!(leader.is_running() && second.is_running());
    let told = leader.stderr().matches("before a standby has it").count();
    assert!(told < 3, "{told} lines");
    cluster.standby.start_again().await.unwrap();
    cluster.pipeline.stored(stored + 1000).await;
    leader.is("reason", "streaming").await;
    cluster.pipeline.postgres.kill().await;
    promote(&cluster.standby).await;
    assert_eq!(cluster.proves().await, 0);
}
