//! Writers that keep a pace, for claims about pauses.

use crate::support::{Message, connect};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Statement};

/// Before a writer connects again.
const APART: Duration = Duration::from_millis(20);

/// What a server that hangs is given.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Single rows, each a transaction of its own, by several connections.
pub(crate) struct Paced {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    begun: Instant,
    writers: JoinSet<()>,
}

impl Paced {
    /// `url` may name several hosts: the writers are at the one that takes writes. A payload says who
    /// wrote it, and as what number.
    pub(crate) fn start(url: &str, writers: u32, rows_a_second: u32) -> Paced {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let url = format!("{url}?target_session_attrs=read-write&connect_timeout=3");
        let mut set = JoinSet::new();
        for writer in 0..writers {
            let (stop, committed, url) = (Arc::clone(&stop), Arc::clone(&committed), url.clone());
            let mut due = tokio::time::interval(Duration::from_secs(1) * writers / rows_a_second);
            set.spawn(async move {
                let (mut ready, mut n) = (None, 0);
                while !stop.load(Ordering::Relaxed) {
                    due.tick().await;
                    n += 1;
                    let writing = write(&mut ready, &url, i64::from(writer), n);
                    match tokio::time::timeout(ANSWER_MAX, writing).await {
                        Ok(Ok(())) => _ = committed.fetch_add(1, Ordering::Relaxed),
                        // Whether the commit took place, the table tells.
                        _ => {
                            ready = None;
                            tokio::time::sleep(APART).await;
                            due.reset();
                        }
                    }
                }
            });
        }
        Paced { stop, committed, begun: Instant::now(), writers: set }
    }

    /// Lets each writer end its transaction; rows a second, from the start on.
    pub(crate) async fn finish(mut self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(writer) = self.writers.join_next().await {
            writer.unwrap();
        }
        self.committed() as f64 / self.begun.elapsed().as_secs_f64()
    }

    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }
}

async fn write(
    ready: &mut Option<(Client, Statement)>,
    url: &str,
    writer: i64,
    n: i64,
) -> Result<(), tokio_postgres::Error> {
    let (client, insert) = match ready {
        Some(ready) => ready,
        None => {
            let client = connect(url).await?;
            let insert = "INSERT INTO outbox (event_type, payload) \
                 VALUES ('order', jsonb_build_object('writer', $1::bigint, 'n', $2::bigint))";
            let insert = client.prepare(insert).await?;
            ready.insert((client, insert))
        }
    };
    client.execute(insert, &[&writer, &n]).await.map(drop)
}

/// The longest time between two messages that stand one behind the other.
pub(crate) fn longest_pause(messages: &[Message]) -> Duration {
    let apart = |pair: &[Message]| pair[1].stored_at.duration_since(pair[0].stored_at).unwrap_or_default();
    messages.windows(2).map(apart).max().unwrap_or_default()
}
