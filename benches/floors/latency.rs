//! How long an event takes at a steady rate.
//!
//! Single-row transactions, in an open loop: each of some writers, a thread with a connection,
//! sends what is due when it is due, whether or not the relay keeps up. Commit is the moment at
//! which the writer hears of it, so a receipt may come before it. All moments are of the system's
//! clock, for nats-server stamps what it stores by that.
//!
//! A round has two phases under the same load:
//! * floors: a reader of a second slot notes the receipt of each row and publishes it at once, by a
//!   bare async-nats client with the chain's headers, hardly ever with another on its way.
//! * relay: an ordered push consumer notes when a message comes; the message tells when the server
//!   took it to store it. The ack that the relay gets lies between the two.

use super::{FLOORS, FLOORS_STREAM, Lab, PATIENCE, PAYLOAD, STREAM, headers, median, sql};
use anyhow::{Context, Result, bail, ensure};
use async_nats::Subject;
use async_nats::jetstream::consumer::{DeliverPolicy, push::OrderedConfig};
use futures_util::StreamExt;
use postrider::nats::publish::{Answer, parse};
use postrider::postgres::connection::Connection;
use postrider::postgres::lsn::Lsn;
use postrider::postgres::pgoutput::{Column, Message};
use postrider::postgres::replication::Received;
use postrider::postgres::target::Target;
use postrider::postgres::timestamp::Timestamp;
use std::future::Future;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// Connections that commit in turn: one alone would wait for its own fsync.
const WRITERS: u32 = 4;
/// From the start of the threads until the first row is due.
const LEAD: Duration = Duration::from_millis(500);
const GOAL: f64 = 1.3;

/// A row's moments at its writer.
#[derive(Debug, Clone, Copy)]
struct Commit {
    due: SystemTime,
    returned: SystemTime,
}

/// Median and 99th percentile, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

/// What is measured, in the order of the report.
const NAMES: [&str; 6] = [
    "floors: due → commit returned",
    "floors: commit → received from the walsender",
    "floors: publish → ack",
    "relay: due → commit returned",
    "relay: commit → stored, by the server's clock",
    "relay: commit → at an ordered push consumer",
];
const RECEIVED: usize = 1;
const ACKED: usize = 2;
const STORED: usize = 4;
const CONSUMED: usize = 5;

pub(crate) async fn measure(lab: &Lab, rate: u32, seconds: u32, rounds: usize) -> Result<()> {
    println!(
        "\nlatency at {rate} rows/s in transactions of 1, {WRITERS} writers, {rounds} rounds of {seconds} s"
    );
    let mut of_rounds = Vec::new();
    for round in 0..rounds {
        let (floors, relay) = if round % 2 == 0 {
            let floors = measure_floors(lab, rate, seconds).await?;
            (floors, measure_relay(lab, rate, seconds).await?)
        } else {
            let relay = measure_relay(lab, rate, seconds).await?;
            (measure_floors(lab, rate, seconds).await?, relay)
        };
        of_rounds.push([floors, relay].concat());
    }
    println!("{:<46} {:>9} {:>9}   (ms, medians of the rounds)", "", "p50", "p99");
    for (index, name) in NAMES.iter().enumerate() {
        let of = |pick: fn(&Quantiles) -> f64| median(of_rounds.iter().map(|round| pick(&round[index])));
        println!("{name:<46} {:>9.3} {:>9.3}", of(|q| q.p50), of(|q| q.p99));
    }
    for (what, index) in [("stored", STORED), ("consumer", CONSUMED)] {
        let ratios: Vec<f64> = of_rounds
            .iter()
            .map(|round| round[index].p50 / (round[RECEIVED].p50 + round[ACKED].p50))
            .collect();
        let shown: Vec<_> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        println!(
            "p50 commit → {what} / (received + ack): {:.2} (goal {GOAL}; rounds {})",
            median(ratios),
            shown.join(" "),
        );
    }
    Ok(())
}

async fn measure_floors(lab: &Lab, rate: u32, seconds: u32) -> Result<Vec<Quantiles>> {
    lab.reset().await?;
    let (postgres, nats, rows) = (lab.postgres.url("postgres"), lab.nats_server.url(), rate * seconds);
    let reader = on_a_thread(move || read_and_publish(postgres, nats, rows));
    let commits = write(lab, rate, seconds).await?;
    let seen = join(reader).await?;
    lab.wait_for(FLOORS_STREAM, rows.into()).await?;
    let received = seen.iter().zip(&commits).map(|(seen, commit)| millis(commit.returned, seen.received));
    let acked = seen.iter().map(|seen| millis(seen.sent, seen.acked));
    Ok(vec![of_writers(&commits), quantiles(received), quantiles(acked)])
}

async fn measure_relay(lab: &Lab, rate: u32, seconds: u32) -> Result<Vec<Quantiles>> {
    lab.reset().await?;
    // The floors' slot would only make the server keep its log.
    lab.drop_slot(FLOORS).await?;
    let relay = lab.relay("run")?;
    let (nats, rows) = (lab.nats_server.url(), rate * seconds);
    let consumer = on_a_thread(move || consume(nats, rows));
    wait_until_streaming(lab).await?;
    let commits = write(lab, rate, seconds).await?;
    let seen = join(consumer).await?;
    lab.wait_for(STREAM, rows.into()).await?;
    lab.stop_relay(relay).await?;
    let stored = seen.iter().zip(&commits).map(|((stored, _), commit)| millis(commit.returned, *stored));
    let consumed = seen.iter().zip(&commits).map(|((_, at), commit)| millis(commit.returned, *at));
    Ok(vec![of_writers(&commits), quantiles(stored), quantiles(consumed)])
}

/// The commits by row, the first of which has id 1.
async fn write(lab: &Lab, rate: u32, seconds: u32) -> Result<Vec<Commit>> {
    let begin = SystemTime::now() + LEAD;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let url = lab.postgres.url("postgres");
            on_a_thread(move || async move {
                let client = sql(&url).await?;
                let insert = format!(
                    "INSERT INTO outbox (id, event_type, payload) SELECT i, 'order_created', {PAYLOAD} \
                    FROM (SELECT $1::int AS i) AS row"
                );
                let insert = client.prepare(&insert).await?;
                let mut commits = Vec::new();
                for row in (writer..rate * seconds).step_by(usize::try_from(WRITERS)?) {
                    let due = begin + Duration::from_secs(1) * row / rate;
                    // The thread sleeps, not the runtime, whose timers tick in milliseconds.
                    thread::sleep(due.duration_since(SystemTime::now()).unwrap_or_default());
                    client.execute(&insert, &[&i32::try_from(row + 1)?]).await?;
                    commits.push((row, Commit { due, returned: SystemTime::now() }));
                }
                Ok(commits)
            })
        })
        .collect();
    let mut commits = Vec::new();
    for writer in writers {
        commits.extend(join(writer).await?);
    }
    commits.sort_by_key(|(row, _)| *row);
    Ok(commits.into_iter().map(|(_, commit)| commit).collect())
}

/// A row's moments at the floors.
#[derive(Debug, Clone, Copy)]
struct Seen {
    received: SystemTime,
    sent: SystemTime,
    acked: SystemTime,
}

async fn read_and_publish(postgres: String, nats: String, rows: u32) -> Result<Vec<Seen>> {
    let client = postrider::nats::connect::connect(&[nats]).await?.client;
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(format!("{inbox}.*")).await?;
    let target = Target::parse(Some(&postgres), &|_| None)?;
    let host = target.hosts.first().context("a URL without a host")?;
    let mut connection = Connection::connect(&target, host).await?;
    connection.start_replication(FLOORS, Lsn(0), "postrider").await?;
    let mut stream = connection.into_stream();
    // As long as the relay's.
    let position = format!("{}/1/postrider/{:016X}/0", u64::MAX, 0);
    let commit_time = Timestamp::now().to_string();
    // By arrival: rows are published and acknowledged in that order.
    let (mut seen, mut acked) = (Vec::new(), 0);
    let rows = usize::try_from(rows)?;
    while acked < rows {
        let received = tokio::select! {
            received = timeout(PATIENCE, stream.next()) => received.context("no row comes")??,
            Some(ack) = acks.next() => {
                let at = SystemTime::now();
                match parse(&ack.payload) {
                    Answer::Stored(seq) if usize::try_from(seq)? == acked + 1 => {}
                    other => bail!("after {acked} acks: {other:?}"),
                }
                let (_, last) = seen.get_mut(acked).context("an ack of nothing")?;
                *last = Seen { acked: at, ..*last };
                acked += 1;
                continue;
            }
        };
        let at = SystemTime::now();
        match received {
            Received::Data(Message::Insert(insert), _) => {
                let Some(Column::Text(id)) = insert.tuple.get(0) else { bail!("a row without an id") };
                let id = std::str::from_utf8(id)?;
                let Some(Column::Text(payload)) = insert.tuple.get(2) else {
                    bail!("a row without a payload")
                };
                let expected = u64::try_from(seen.len())?;
                let headers = headers(&position, &commit_time, id, expected);
                let reply = Subject::from(format!("{inbox}.{}", expected + 1));
                let subject = Subject::from(format!("{FLOORS}.order_created"));
                let sent = SystemTime::now();
                client.publish_with_reply_and_headers(subject, reply, headers, payload.clone()).await?;
                seen.push((id.parse::<u32>()?, Seen { received: at, sent, acked: at }));
            }
            Received::Keepalive { wal_end, reply_requested: true } => {
                stream.send_status(wal_end, Lsn(0), false).await?;
            }
            _ => {}
        }
    }
    stream.close().await;
    by_row(seen, rows)
}

/// When each row was stored, and when it came.
async fn consume(nats: String, rows: u32) -> Result<Vec<(SystemTime, SystemTime)>> {
    let client = async_nats::connect(nats).await?;
    let inbox = client.new_inbox();
    let stream = async_nats::jetstream::new(client).get_stream(STREAM).await?;
    let config = OrderedConfig {
        deliver_subject: inbox,
        deliver_policy: DeliverPolicy::All,
        ..OrderedConfig::default()
    };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let (mut seen, rows) = (Vec::new(), usize::try_from(rows)?);
    while seen.len() < rows {
        let message = timeout(PATIENCE, messages.next()).await.context("no message comes")?;
        let message = message.context("the consumer has ended")??;
        let at = SystemTime::now();
        let id = message.headers.as_ref().and_then(|headers| headers.get("Postrider-Event-Id"));
        let id = id.context("a message without its id")?.as_str().parse::<u32>()?;
        let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
        seen.push((id, (SystemTime::from(info.published), at)));
    }
    by_row(seen, rows)
}

/// Commits come in another order than rows fall due; each row must have come once.
fn by_row<T>(mut seen: Vec<(u32, T)>, rows: usize) -> Result<Vec<T>> {
    seen.sort_by_key(|(id, _)| *id);
    seen.dedup_by_key(|(id, _)| *id);
    ensure!(seen.len() == rows, "{} rows of {rows} came", seen.len());
    Ok(seen.into_iter().map(|(_, value)| value).collect())
}

async fn wait_until_streaming(lab: &Lab) -> Result<()> {
    let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
    let begun = SystemTime::now();
    while lab.sql.query_one(active, &[]).await?.get::<_, i64>(0) == 0 {
        ensure!(begun.elapsed()? < PATIENCE, "the relay does not stream\n{}", lab.relay_log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Runs a future on a thread and a runtime of its own, so that what measures waits for nobody.
fn on_a_thread<F, T>(make: impl FnOnce() -> F + Send + 'static) -> JoinHandle<Result<T>>
where
    F: Future<Output = Result<T>>,
    T: Send + 'static,
{
    thread::spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(make()))
}

async fn join<T: Send + 'static>(thread: JoinHandle<Result<T>>) -> Result<T> {
    let joined = tokio::task::spawn_blocking(|| thread.join()).await?;
    joined.map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

fn of_writers(commits: &[Commit]) -> Quantiles {
    quantiles(commits.iter().map(|commit| millis(commit.due, commit.returned)))
}

fn millis(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(after) => after.as_secs_f64() * 1e3,
        Err(before) => -before.duration().as_secs_f64() * 1e3,
    }
}

fn quantiles(values: impl Iterator<Item = f64>) -> Quantiles {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| values.get(values.len() * percent / 100).copied().unwrap_or(f64::NAN);
    Quantiles { p50: at(50), p99: at(99) }
}
