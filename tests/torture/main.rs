//! The whole relay under faults of every kind, drawn by a seed, for as long as it is told.
//!
//! Six writers make about a thousand rows a second; servers, relays and the lines between them are
//! killed, stopped, stalled and put back. Once the faults cease, all must be stored within a minute.
//! Then the stream is compared with what Postgres committed: nothing lost, nothing twice, nothing
//! out of order. Events that make no subject are dead letters, once each.
//!
//! | variable | |
//! | --- | --- |
//! | `TORTURE_SEED` | the seed of an earlier run, for the same faults; default: the clock |
//! | `TORTURE_MINUTES` | default 2 |
//! | `TORTURE_POSTGRES` | a major version |
//! | `TORTURE_NATS` | a version, `cluster`, or both: `cluster-2.12` |
//!
//! What happens to the servers' own timing is not drawn: a seed gives the same faults, not the same
//! run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that fails fails its test"
)]

mod cluster;
mod faults;
mod oracle;
mod play;
mod proof;
mod proxy;
mod rig;
mod store;
#[path = "../e2e/support.rs"]
#[allow(dead_code, reason = "this test needs a part of it")]
mod support;
mod watch;
mod writers;

use crate::faults::Fault;
use crate::oracle::{Committed, Oracle};
use crate::proof::{Letter, Proof};
use crate::rig::{Pair, Rig};
use crate::support::connect;
use crate::writers::Writers;
use fastrand::Rng;
use rustix::process::Signal;
use std::time::{Duration, Instant, SystemTime};

/// Once the faults cease.
const DRAIN_MAX: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_faults_of_every_kind_nothing_is_lost_doubled_or_out_of_order() {
    let seed = variable("SEED").map_or_else(clock, |seed| seed.parse().expect("a seed is a number"));
    let minutes = variable("MINUTES").map_or(2.0, |minutes| minutes.parse().expect("minutes are a number"));
    println!("TORTURE_SEED={seed}");
    let mut rig = Rig::start(&pair(), seed).await;
    let url = rig.postgres.url("postgres");
    let oracle = Oracle::start(&url).await;
    let writers = Writers::start(&url, seed);
    rig.start_relay(0);
    rig.flows().await;

    let faults = torture(&mut rig, Duration::from_secs_f64(60.0 * minutes)).await;

    rig.note("the faults cease");
    writers.finish().await;
    let rows = oracle.finish().await;
    let poison = rows.iter().filter(|row| row.poison).count();
    rig.drains((rows.len() - poison) as u64, i64::try_from(poison).unwrap(), DRAIN_MAX).await;
    rig.note("all is stored");
    for relay in 0..2 {
        rig.signal(relay, Signal::TERM);
        rig.terminated(relay).await;
    }
    let proof = proof(&rig, &rows).await;
    rig.note(&format!("{faults} faults: {proof}"));
    assert!(proof.holds(), "{proof}");
    let seen = rig.seen.lock().unwrap();
    println!("states seen, once a second: {:?}; confirmed {} times", seen.states, seen.confirmed.len());
    assert!(!seen.states.is_empty(), "no relay ever told its status");
    assert!(seen.silent.is_empty(), "no reason was given: {:?}", seen.silent);
}

/// Draws faults until the time is over; how many.
async fn torture(rig: &mut Rig, time: Duration) -> u32 {
    let mut rng = Rng::with_seed(rig.seed);
    let (begun, mut faults) = (Instant::now(), 0);
    while begun.elapsed() < time {
        let fault = Fault::draw(&mut rng, rig.nodes.len());
        let hold = fault.draw_hold(&mut rng, rig.sync);
        let second = Fault::draw(&mut rng, rig.nodes.len());
        let (second_after, second_hold) = (hold.mul_f64(rng.f64()), second.draw_hold(&mut rng, rig.sync));
        let both = rng.u32(..4) == 0 && fault.may_meet(second) && !second.is_of_store();
        // Now and then long enough for a session to confirm what it stored.
        let pause = match rng.u32(..12) {
            0 => rig.sync.hold_back() + Duration::from_secs(5),
            _ => Duration::from_secs_f64(6.0 * rng.f64() * rng.f64()),
        };
        let flow = rng.bool();

        if fault.is_of_store() {
            rig.flows().await;
        }
        let first = fault.begin(rig).await;
        let end = Instant::now() + hold;
        faults += 1;
        if both {
            rig.pause_until(end.min(Instant::now() + second_after)).await;
            let second = second.begin(rig).await;
            let second_end = Instant::now() + second_hold;
            faults += 1;
            // Of a store, the copy must not grow old.
            if second_end < end && !fault.is_of_store() {
                rig.pause_until(second_end).await;
                second.end(rig).await;
                rig.pause_until(end).await;
                first.end(rig).await;
            } else {
                rig.pause_until(end).await;
                first.end(rig).await;
                rig.pause_until(second_end).await;
                second.end(rig).await;
            }
        } else {
            rig.pause_until(end).await;
            first.end(rig).await;
        }
        if flow {
            rig.flows().await;
        } else {
            rig.pause_until(Instant::now() + pause).await;
        }
    }
    faults
}

async fn proof(rig: &Rig, rows: &[Committed]) -> Proof {
    let client = connect(&rig.postgres.url("postgres")).await.unwrap();
    let all = "SELECT event_id, (commit_lsn - '0/0')::text, index, reason FROM postrider.dead_letter \
         WHERE slot = 'postrider'";
    let letter = |row: &tokio_postgres::Row| {
        let lsn = row.get::<_, &str>(1).parse().unwrap();
        let position = (lsn, u64::try_from(row.get::<_, i64>(2)).unwrap());
        Letter { id: row.get(0), position, reason: row.get(3) }
    };
    let letters: Vec<_> = client.query(all, &[]).await.unwrap().iter().map(letter).collect();
    let stream = rig.jetstream.get_stream("OUTBOX").await.unwrap();
    Proof::of(rows, &letters, &stream).await
}

fn pair() -> Pair {
    let nats = variable("NATS");
    let (cluster, nats) = match nats.as_deref().and_then(|nats| nats.strip_prefix("cluster")) {
        Some(version) => (true, version.strip_prefix('-').map(str::to_owned)),
        None => (false, nats),
    };
    let postgres = variable("POSTGRES").map(|major| major.parse().expect("a major version is a number"));
    Pair { postgres, nats, cluster }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("TORTURE_{name}")).ok().filter(|value| !value.is_empty())
}

fn clock() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}
