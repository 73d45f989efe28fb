//! The article's poller: select a batch, publish row by row, mark, commit, sleep. `benches/rivals/article`
//! has it in Python.

use crate::support::{Pipeline, connect};
use async_nats::HeaderMap;
use async_nats::jetstream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

/// What becomes of a row that was published.
#[derive(Clone, Copy)]
pub(crate) enum Then {
    Mark,
    Delete,
}

/// One that runs.
pub(crate) struct Poller {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Poller {
    /// Publishes to `<prefix>.<event_type>`, and sleeps for `pause` between two rounds.
    pub(crate) async fn start(
        pipeline: &Pipeline,
        prefix: &'static str,
        then: Then,
        pause: Duration,
    ) -> Poller {
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = connect(&pipeline.postgres.url("postgres")).await.unwrap();
        let (stopped, jetstream) = (Arc::clone(&stop), pipeline.jetstream().await);
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                round(&mut client, &jetstream, prefix, then).await.unwrap();
                tokio::time::sleep(pause).await;
            }
        });
        Poller { stop, task }
    }

    /// Lets it end its round.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

async fn round(
    client: &mut Client,
    jetstream: &jetstream::Context,
    prefix: &str,
    then: Then,
) -> Result<(), Error> {
    const SELECT: &str =
        "SELECT id, event_type, payload::text FROM outbox WHERE processed = false ORDER BY id LIMIT 100";
    let transaction = client.transaction().await?;
    for row in transaction.query(SELECT, &[]).await? {
        let (id, event_type, payload): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
        let mut headers = HeaderMap::new();
        headers.insert("Postrider-Event-Id", id.to_string());
        let published =
            jetstream.publish_with_headers(format!("{prefix}.{event_type}"), headers, payload.into());
        published.await.unwrap().await.unwrap();
        let done = match then {
            Then::Mark => "UPDATE outbox SET processed = true WHERE id = $1",
            Then::Delete => "DELETE FROM outbox WHERE id = $1",
        };
        transaction.execute(done, &[&id]).await?;
    }
    transaction.commit().await
}
