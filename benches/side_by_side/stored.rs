//! What a stream holds in the end: every row, once, in order?

use crate::lab::PATIENCE;
use crate::on_a_thread;
use anyhow::{Context, Result};
use async_nats::jetstream::consumer::{DeliverPolicy, push::OrderedConfig};
use futures_util::StreamExt;
use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// A message as a consumer sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    /// The number of its row.
    pub(crate) row: u32,
    /// When the server took it, by its clock.
    pub(crate) stored: SystemTime,
    pub(crate) at: SystemTime,
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) lost: usize,
    pub(crate) doubled: usize,
    /// Rows that come behind a later one.
    pub(crate) misordered: usize,
}

impl Faults {
    /// Of rows 1 to `rows`; the order counts where one writer made them.
    pub(crate) fn of(arrivals: &[Arrival], rows: u32, ordered: bool) -> Faults {
        let mut seen = HashSet::new();
        let mut faults = Faults::default();
        let mut last = 0;
        for arrival in arrivals {
            if !seen.insert(arrival.row) {
                faults.doubled += 1;
            } else if ordered && arrival.row < last {
                faults.misordered += 1;
            }
            last = last.max(arrival.row);
        }
        faults.lost = (1..=rows).filter(|row| !seen.contains(row)).count();
        faults
    }

    pub(crate) fn and(self, other: Faults) -> Faults {
        Faults {
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            misordered: self.misordered + other.misordered,
        }
    }

    pub(crate) fn is_none(self) -> bool {
        self == Faults::default()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.lost, self.doubled, self.misordered)
    }
}

/// Consumes `stream` from its beginning by an ordered push consumer, until `rows` different rows have
/// come, or the time is up; what comes within a moment after that is taken too, for a double would.
pub(crate) async fn consume(
    nats: String,
    stream: &'static str,
    rows: u32,
    time: Duration,
) -> Result<Vec<Arrival>> {
    let up = tokio::time::Instant::now() + time;
    let client = async_nats::ConnectOptions::new().subscription_capacity(1 << 20).connect(nats).await?;
    let inbox = client.new_inbox();
    let stream = async_nats::jetstream::new(client).get_stream(stream).await?;
    let config = OrderedConfig {
        deliver_subject: inbox,
        deliver_policy: DeliverPolicy::All,
        ..OrderedConfig::default()
    };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let (mut arrivals, mut seen) = (Vec::new(), HashSet::new());
    loop {
        let complete = seen.len() >= rows as usize;
        let left = up.saturating_duration_since(tokio::time::Instant::now());
        let patience = if complete { Duration::from_millis(200) } else { left };
        let Ok(message) = timeout(patience, messages.next()).await else { return Ok(arrivals) };
        let message = message.context("the consumer has ended")??;
        let at = SystemTime::now();
        let row = row(&message.payload).context("a message without its row")?;
        let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
        arrivals.push(Arrival { row, stored: SystemTime::from(info.published), at });
        seen.insert(row);
    }
}

/// The whole stream, once nothing is to come any more.
pub(crate) async fn read(nats: String, stream: &'static str, rows: u32) -> Result<Vec<Arrival>> {
    on_a_thread(Duration::ZERO, move || consume(nats, stream, rows, PATIENCE)).join().await
}

/// The number behind `"order":` in a payload, by whomever it was printed.
pub(crate) fn row(payload: &[u8]) -> Option<u32> {
    let key = b"\"order\":";
    let at = payload.windows(key.len()).position(|window| window == key)? + key.len();
    let digits = payload.get(at..)?.trim_ascii_start();
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(digits.get(..end)?).ok()?.parse().ok()
}
