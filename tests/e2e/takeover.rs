//! Two relays and one slot.

use crate::paced::{Paced, longest_pause};
use crate::support::{DEADLINE, Load, Message, Pipeline, Relay, eventually, within};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// About a thousand rows a second.
const STEADY: &[i32] = &[1, 10, 1, 20, 1];
const PAUSE: Duration = Duration::from_millis(20);

/// Single-row transactions of eight writers, rows a second.
const WRITERS: u32 = 8;
const RATE: u32 = 2_000;

/// How long a hand-over may take. Each is tried three times and the best counts: a machine that is busy
/// with other tests is not what is measured.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);
const ROUNDS: usize = 3;

async fn standby(pipeline: &Pipeline) -> Relay {
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    standby
}

/// The longest pause of each round; rounds begin behind these sequences.
fn pauses(messages: &[Message], rounds: &[u64]) -> Vec<Duration> {
    let begins = rounds.iter().map(|seq| usize::try_from(*seq).unwrap());
    let ends = begins.clone().skip(1).chain([messages.len()]);
    begins.zip(ends).map(|(from, to)| longest_pause(&messages[from..to])).collect()
}

/// Kills the leader with -9; how long it takes until more is stored.
async fn killed(pipeline: &Pipeline, leader: &mut Relay) -> Duration {
    let stored = pipeline.last_seq().await;
    pipeline.stored(stored + 300).await;
    leader.kill();
    let (stored, killed) = (pipeline.last_seq().await, Instant::now());
    eventually("the standby publishes", async || (pipeline.last_seq().await > stored).then_some(())).await;
    killed.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_standby_publishes_within_a_second_after_the_leader_is_killed() {
    let pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut leader = pipeline.run().await;
    let load = Paced::start(&pipeline.postgres.url("postgres"), WRITERS, RATE);
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let mut next = standby(&pipeline).await;
        best = best.min(killed(&pipeline, &mut leader).await);
        next.is("role", "leader").await;
        leader = next;
    }
    let rate = load.finish().await;
    pipeline.proves(&mut leader).await;
    println!("{best:?} at {rate:.0} rows/s");
    assert!(best < HAND_OVER_MAX, "{best:?} at {rate:.0} rows/s");
}

/// Seconds, as doctor forecasts a restart.
async fn forecast(pipeline: &Pipeline) -> Duration {
    let report = pipeline.postrider(&["doctor", "--json"]).await.stdout;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let mut forecasts = report["forecasts"].as_array().unwrap().iter().filter_map(serde_json::Value::as_str);
    let restart = forecasts.find(|text| text.starts_with("a restart now"));
    let seconds = restart.and_then(|text| text.rsplit_once("about ")?.1.strip_suffix(" s"));
    Duration::from_secs_f64(seconds.unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_default_hold_back_a_kill_costs_a_second_and_what_doctor_forecasts() {
    let mut pipeline = Pipeline::article().await;
    pipeline.unset("POSTRIDER_NATS_SYNC_INTERVAL");
    let mut leader = pipeline.run().await;
    // Stored, and for 250 s not confirmed: all of it is read again.
    let many = "DO $$ BEGIN FOR n IN 1..100000 LOOP \
         INSERT INTO outbox (event_type, payload) VALUES ('many', jsonb_build_object('n', n)); COMMIT; END LOOP; END $$";
    pipeline.execute(many).await;
    pipeline.stored(100_000).await;
    // A standby reads the messages that the row does not cover: at this rate those of a second.
    eventually("the row covers them", async || {
        (pipeline.ask("SELECT seq >= 100000 FROM postrider.pipeline").await == "true").then_some(())
    })
    .await;
    let load = Paced::start(&pipeline.postgres.url("postgres"), WRITERS, RATE);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut next = standby(&pipeline).await;
        let forecast = forecast(&pipeline).await;
        rounds.push((killed(&pipeline, &mut leader).await, forecast));
        next.is("role", "leader").await;
        leader = next;
    }
    let rate = load.finish().await;
    println!("{rounds:?} at {rate:.0} rows/s");
    assert!(
        rounds.iter().any(|(took, forecast)| *took < HAND_OVER_MAX + *forecast),
        "took, forecast: {rounds:?} at {rate:.0} rows/s"
    );
    let rows: u64 = pipeline.ask("SELECT count(*) FROM outbox").await.parse().unwrap();
    pipeline.stored(rows).await;
    assert_eq!(leader.terminate().await, Some(0));
    assert_eq!(pipeline.postrider(&["verify"]).await.code, Some(0));
}

/// Freezes the leader until the standby leads, and lets it go on; how long the standby took.
async fn frozen(pipeline: &Pipeline) -> Duration {
    pipeline.watch_commits().await;
    let mut leader = pipeline.run().await;
    let mut next = standby(pipeline).await;
    let mut load = Load::endless(pipeline, 3, STEADY, PAUSE);
    pipeline.stored(200).await;
    leader.signal(Signal::STOP);
    let begun = Instant::now();
    within(2 * DEADLINE, "the standby takes over", async || {
        (next.status().await?["role"] == "leader").then_some(())
    })
    .await;
    let took = begun.elapsed();
    let stored = pipeline.last_seq().await;
    pipeline.stored(stored + 300).await;
    leader.signal(Signal::CONT);
    leader.is("role", "standby").await;
    let stored = pipeline.last_seq().await;
    pipeline.stored(stored + 300).await;
    load.finish().await;
    pipeline.proves(&mut next).await;
    // It is a standby like any other.
    leader.streams().await;
    assert_eq!(leader.terminate().await, Some(0));
    println!("{took:?}");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_frozen_and_wakes_up_changes_nothing_and_stands_by() {
    let took = frozen(&Pipeline::article().await).await;
    // postgres.wal_sender_timeout is half a minute, counted from the relay's last report.
    assert!(Duration::from_secs(15) < took && took < Duration::from_secs(45), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_is_replaced_after_wal_sender_timeout_and_a_second() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_POSTGRES_WAL_SENDER_TIMEOUT", "3s");
    let took = frozen(&pipeline).await;
    assert!(took < Duration::from_secs(3) + HAND_OVER_MAX, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_told_to_stop_hands_over_without_a_gap() {
    let pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut leader = pipeline.run().await;
    let load = Paced::start(&pipeline.postgres.url("postgres"), WRITERS, RATE);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut next = standby(&pipeline).await;
        let stored = pipeline.last_seq().await;
        pipeline.stored(stored + 300).await;
        rounds.push(stored);
        assert_eq!(leader.terminate().await, Some(0), "{}", leader.stderr());
        next.streams().await;
        leader = next;
    }
    let rate = load.finish().await;
    pipeline.proves(&mut leader).await;
    let messages = pipeline.messages().await;
    let pauses = pauses(&messages, &rounds);
    println!("{pauses:?} at {rate:.0} rows/s");
    assert!(pauses.iter().any(|pause| *pause < HAND_OVER_MAX), "{pauses:?} at {rate:.0} rows/s");
}

/// Each relay is told to stop and started anew with another configuration, the standby first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_are_replaced_one_after_the_other_under_load_without_a_gap() {
    let mut pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut first = pipeline.run().await;
    let mut second = standby(&pipeline).await;
    let load = Paced::start(&pipeline.postgres.url("postgres"), WRITERS, RATE);
    pipeline.stored(300).await;
    // To be seen in the messages.
    pipeline.set("POSTRIDER_OUTBOX_CLOUDEVENTS", "true");
    // What a newer version would have added.
    pipeline.execute("ALTER TABLE postrider.pipeline ADD COLUMN newer text NOT NULL DEFAULT 'x'").await;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(pipeline.last_seq().await);
        assert_eq!(second.terminate().await, Some(0), "{}", second.stderr());
        second = standby(&pipeline).await;
        assert_eq!(first.terminate().await, Some(0), "{}", first.stderr());
        second.streams().await;
        first = standby(&pipeline).await;
        let stored = pipeline.last_seq().await;
        pipeline.stored(stored + 300).await;
        std::mem::swap(&mut first, &mut second);
    }
    let rate = load.finish().await;
    assert_eq!(second.terminate().await, Some(0), "{}", second.stderr());
    pipeline.proves(&mut first).await;
    let messages = pipeline.messages().await;
    let is_new = |message: &Message| message.header("ce-id").is_some();
    let changed = messages.iter().position(is_new).unwrap();
    assert!(changed > 0 && messages[changed..].iter().all(is_new), "changed at {changed}");
    let pauses = pauses(&messages, &rounds);
    println!("{pauses:?} at {rate:.0} rows/s");
    assert!(pauses.iter().any(|pause| *pause < HAND_OVER_MAX), "{pauses:?} at {rate:.0} rows/s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walsender_that_a_person_ends_costs_a_session_and_nothing_else() {
    let pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut relay = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 3, STEADY, PAUSE);
    for _ in 0..3 {
        let stored = pipeline.last_seq().await;
        pipeline.stored(stored + 100).await;
        pipeline
            .execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'postrider'")
            .await;
    }
    load.finish().await;
    pipeline.proves(&mut relay).await;
}
