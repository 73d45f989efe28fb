//! The pollers that people write, in the best form that we know of each.
//!
//! One transaction takes a batch in the order of ids, publishes all of it without awaiting an answer
//! in between, awaits the answers, and commits. While batches come back full there is no pause. An
//! event is published at least once: a crash before the commit publishes its batch again.

use crate::lab::sql;
use anyhow::{Context, Result};
use async_nats::jetstream::context::PublishAckFuture;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use std::future::IntoFuture;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_postgres::{AsyncMessage, Client, NoTls};

/// How a poller makes sure that it takes a row once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Rows are deleted.
    Delete,
    /// Rows are marked as processed; a partial index finds those that are not.
    Update,
}

#[derive(Debug, Args)]
pub(crate) struct Poller {
    /// What becomes of a row
    #[arg(long)]
    kind: Kind,
    /// Milliseconds between polls that found less than a batch
    #[arg(long)]
    every: u64,
    /// Wait for NOTIFY too
    #[arg(long)]
    listen: bool,
    /// Rows taken at once
    #[arg(long, default_value_t = 1000)]
    batch: i64,
}

/// What the table needs besides its primary key.
pub(crate) fn setup(kind: Kind, listen: bool) -> String {
    let index = match kind {
        Kind::Delete => "",
        Kind::Update => "CREATE INDEX ON outbox (id) WHERE NOT processed;",
    };
    let notify = if listen {
        "CREATE FUNCTION wake() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NOTIFY outbox; RETURN NULL; END';
         CREATE TRIGGER wake AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION wake();"
    } else {
        ""
    };
    format!("{index} {notify}")
}

/// Polls until SIGTERM.
pub(crate) async fn run(poller: &Poller) -> Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL")?;
    let client = async_nats::connect(std::env::var("NATS_URL").context("NATS_URL")?).await?;
    let jetstream = async_nats::jetstream::ContextBuilder::new()
        .max_ack_inflight(usize::try_from(poller.batch)?)
        .backpressure_on_inflight(true)
        .build(client);
    let sql = sql(&url).await?;
    let mut woken = if poller.listen { Some(listen(&url).await?) } else { None };
    let take = match poller.kind {
        Kind::Delete => {
            "DELETE FROM outbox WHERE id IN \
             (SELECT id FROM outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED) \
             RETURNING id, event_type, payload::text"
        }
        Kind::Update => {
            "UPDATE outbox SET processed = true WHERE id IN \
             (SELECT id FROM outbox WHERE NOT processed ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED) \
             RETURNING id, event_type, payload::text"
        }
    };
    let take = sql.prepare(take).await?;
    let mut stop = signal(SignalKind::terminate())?;
    println!("ready");
    loop {
        let polling = poll(&sql, &take, &jetstream, poller.batch);
        let taken = tokio::select! {
            _ = stop.recv() => return Ok(()),
            taken = polling => taken?,
        };
        if taken == poller.batch {
            continue;
        }
        let pause = tokio::time::sleep(Duration::from_millis(poller.every));
        tokio::select! {
            _ = stop.recv() => return Ok(()),
            () = pause => {}
            Some(()) = async { woken.as_mut()?.recv().await } => {}
        }
    }
}

async fn poll(
    sql: &Client,
    take: &tokio_postgres::Statement,
    jetstream: &async_nats::jetstream::Context,
    batch: i64,
) -> Result<i64> {
    sql.batch_execute("BEGIN").await?;
    let mut rows = sql.query(take, &[&batch]).await?;
    rows.sort_by_key(|row| row.get::<_, i32>(0));
    let mut answers: Vec<PublishAckFuture> = Vec::with_capacity(rows.len());
    for row in &rows {
        let subject = format!("outbox.{}", row.get::<_, &str>(1));
        let payload = Bytes::copy_from_slice(row.get::<_, &str>(2).as_bytes());
        answers.push(jetstream.publish(subject, payload).await?);
    }
    for answer in answers {
        answer.into_future().await?;
    }
    sql.batch_execute("COMMIT").await?;
    Ok(i64::try_from(rows.len())?)
}

/// A connection of its own that hears of each commit.
async fn listen(url: &str) -> Result<tokio::sync::mpsc::Receiver<()>> {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await?;
    // One that is on its way says all.
    let (wake, woken) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if matches!(message, AsyncMessage::Notification(_)) {
                let _ = wake.try_send(());
            }
        }
    });
    client.batch_execute("LISTEN outbox").await?;
    // The connection lives as long as its client.
    tokio::spawn(async move {
        std::future::pending::<()>().await;
        drop(client);
    });
    Ok(woken)
}
