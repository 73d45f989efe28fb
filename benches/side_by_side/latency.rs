//! How long an event takes at a steady rate of single-row transactions.
//!
//! An open loop: rows fall due at fixed times whether or not anyone keeps up, and the latency counts
//! from then. A commit is the moment at which its writer hears of it, so a receipt may come before
//! it. All moments are of one machine's clock.
//!
//! The floors run under the same load: a reader of a slot notes the receipt of each row and publishes
//! it at once, by a bare async-nats client with the chain's headers; a consumer notes its arrival.

use crate::contender::{Contender, POSTRIDER};
use crate::floor::{headers, replication};
use crate::lab::{FLOORS, FLOORS_STREAM, Lab, PATIENCE, STREAM};
use crate::load::{Commit, write};
use crate::on_a_thread;
use crate::stored::{self, Arrival, Faults};
use anyhow::{Context, Result, bail, ensure};
use async_nats::Subject;
use futures_util::StreamExt;
use hdrhistogram::Histogram;
use postrider::nats::answer::{Answer, parse};
use postrider::postgres::lsn::Lsn;
use postrider::postgres::pgoutput::{Column, Message};
use postrider::postgres::replication::Received;
use postrider::postgres::timestamp::Timestamp;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// Microseconds up to a minute, to a thousandth.
pub(crate) type Micros = Histogram<u64>;

/// All rounds of one rate.
pub(crate) struct Latency {
    pub(crate) rate: u32,
    pub(crate) seconds: u32,
    pub(crate) bytes: u32,
    /// By name: a round each.
    pub(crate) rounds: BTreeMap<String, Vec<Micros>>,
    pub(crate) faults: BTreeMap<String, Faults>,
    /// Who did not keep up: how many rows had come when twice the time and half a minute had passed.
    pub(crate) behind: BTreeMap<String, usize>,
}

/// The names of the parts in reports.
pub(crate) const DUE_TO_COMMIT: &str = "due → commit returned";
pub(crate) const COMMIT_TO_RECEIVED: &str = "floor: commit → received from the walsender";
pub(crate) const PUBLISH_TO_ACK: &str = "floor: publish → ack";
pub(crate) const PUBLISH_TO_CONSUMER: &str = "floor: publish → consumer";
pub(crate) const COMMIT_TO_CONSUMER: &str = "postrider: commit → consumer";
pub(crate) const COMMIT_TO_STORED: &str = "postrider: commit → stored";

impl Latency {
    pub(crate) fn new(rate: u32, seconds: u32, bytes: u32) -> Latency {
        Latency {
            rate,
            seconds,
            bytes,
            rounds: BTreeMap::new(),
            faults: BTreeMap::new(),
            behind: BTreeMap::new(),
        }
    }

    pub(crate) async fn round(&mut self, lab: &Lab, contenders: &[Contender], round: usize) -> Result<()> {
        for turn in 0..=contenders.len() {
            match contenders.get((round + turn) % (contenders.len() + 1)) {
                Some(contender) if !contender.is_measured_at(self.rate) => {}
                Some(contender) => self.contender(lab, contender).await.with_context(|| contender.name())?,
                None => self.floors(lab).await?,
            }
        }
        Ok(())
    }

    /// For rows to come.
    fn time(&self) -> Duration {
        Duration::from_secs(u64::from(2 * self.seconds) + 30)
    }

    fn note(&mut self, name: &str, values: impl Iterator<Item = Duration>) -> Result<()> {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3)?;
        for value in values {
            histogram.saturating_record(u64::try_from(value.as_micros())?.max(1));
        }
        eprintln!(
            "{:>6}/s  {name:<46} p50 {:>9.3}  p99 {:>9.3} ms",
            self.rate,
            millis(histogram.value_at_quantile(0.5)),
            millis(histogram.value_at_quantile(0.99))
        );
        self.rounds.entry(name.to_owned()).or_default().push(histogram);
        Ok(())
    }

    async fn floors(&mut self, lab: &Lab) -> Result<()> {
        lab.empty().await?;
        lab.create_publication().await?;
        lab.create_floors_slot().await?;
        let (rows, time) = (self.rate * self.seconds, self.time());
        let (postgres, nats) = (lab.postgres.url("postgres"), lab.nats_url()?);
        let url = nats.clone();
        let consumer = on_a_thread(Duration::ZERO, move || stored::consume(url, FLOORS_STREAM, rows, time));
        let reader = on_a_thread(Duration::ZERO, move || read_and_publish(postgres, nats, rows));
        let insert = POSTRIDER.insert()?;
        let commits = write(lab, &insert, self.rate, rows, self.bytes).await?;
        let seen = reader.join().await?;
        let arrivals = by_row(&consumer.join().await?, rows)?;
        let pairs = || seen.iter().zip(&commits);
        self.note(COMMIT_TO_RECEIVED, pairs().map(|(seen, commit)| since(commit.returned, seen.received)))?;
        self.note(PUBLISH_TO_ACK, seen.iter().map(|seen| since(seen.sent, seen.acked)))?;
        let consumed = seen.iter().zip(&arrivals).map(|(seen, arrival)| since(seen.sent, arrival.at));
        self.note(PUBLISH_TO_CONSUMER, consumed)
    }

    async fn contender(&mut self, lab: &Lab, contender: &Contender) -> Result<()> {
        lab.empty().await?;
        contender.prepare(lab).await?;
        let (rows, time) = (self.rate * self.seconds, self.time());
        let running = contender.start(lab).await?;
        let nats = lab.nats_url()?;
        let consumer = on_a_thread(Duration::ZERO, move || stored::consume(nats, STREAM, rows, time));
        let commits = write(lab, &contender.insert()?, self.rate, rows, self.bytes).await?;
        let arrivals = consumer.join().await?;
        let faults = Faults::of(&arrivals, rows, false);
        let name = contender.name();
        let ours = contender.is_ours();
        ensure!(!ours || faults.is_none(), "{faults} (lost/doubled/misordered)\n{}", running.words());
        running.stop().await?;
        if faults.lost > 0 {
            eprintln!("{:>6}/s  {name}: {} of {rows} rows did not come in time", self.rate, faults.lost);
            self.behind.insert(name, rows as usize - faults.lost);
            return Ok(());
        }
        let all = self.faults.entry(name.clone()).or_default();
        *all = all.and(faults);
        let arrivals = by_row(&arrivals, rows)?;
        let pairs = || arrivals.iter().zip(&commits);
        self.note(&name, pairs().map(|(arrival, commit)| since(commit.due, arrival.at)))?;
        if ours {
            let returned = |commit: &Commit| since(commit.due, commit.returned);
            self.note(DUE_TO_COMMIT, commits.iter().map(returned))?;
            self.note(
                COMMIT_TO_STORED,
                pairs().map(|(arrival, commit)| since(commit.returned, arrival.stored)),
            )?;
            self.note(
                COMMIT_TO_CONSUMER,
                pairs().map(|(arrival, commit)| since(commit.returned, arrival.at)),
            )?;
        }
        Ok(())
    }
}

/// A row's moments at the floors.
#[derive(Debug, Clone, Copy)]
struct Seen {
    received: SystemTime,
    sent: SystemTime,
    acked: SystemTime,
}

async fn read_and_publish(postgres: String, nats: String, rows: u32) -> Result<Vec<Seen>> {
    let client = postrider::nats::connect::connect(&postrider::config::Access::at(&nats)).await?.client;
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(format!("{inbox}.*")).await?;
    let mut stream = replication(&postgres).await?;
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
                let (_, last): &mut (u32, Seen) = seen.get_mut(acked).context("an ack of nothing")?;
                *last = Seen { acked: at, ..*last };
                acked += 1;
                continue;
            }
        };
        let at = SystemTime::now();
        match received {
            Received::Data(Message::Insert(insert), _) => {
                let Some(Column::Text(payload)) = insert.tuple.get(2) else {
                    bail!("a row without a payload")
                };
                let row = stored::row(payload).context("a payload without its row")?;
                let expected = u64::try_from(seen.len())?;
                let headers = headers(&position, &commit_time, &row.to_string(), expected);
                let reply = Subject::from(format!("{inbox}.{}", expected + 1));
                let subject = Subject::from(format!("{FLOORS}.order_created"));
                let sent = SystemTime::now();
                client.publish_with_reply_and_headers(subject, reply, headers, payload.clone()).await?;
                seen.push((row, Seen { received: at, sent, acked: at }));
            }
            Received::Keepalive { wal_end, reply_requested: true } => {
                stream.send_status(wal_end, Lsn(0), false).await?;
            }
            _ => {}
        }
    }
    stream.close().await;
    seen.sort_by_key(|(row, _)| *row);
    Ok(seen.into_iter().map(|(_, seen)| seen).collect())
}

/// The first arrival of each row, by row: commits come in another order than rows fall due.
fn by_row(arrivals: &[Arrival], rows: u32) -> Result<Vec<Arrival>> {
    let mut first = BTreeMap::new();
    for arrival in arrivals {
        first.entry(arrival.row).or_insert(*arrival);
    }
    ensure!(first.len() == rows as usize, "{} rows of {rows} came", first.len());
    Ok(first.into_values().collect())
}

/// Clocks are read by several threads: a receipt may seem to lie before its commit.
fn since(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "a minute at most")]
pub(crate) fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}
