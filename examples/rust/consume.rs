//! Reads events, and has the effect of each once: `consume [inventory] [shipping] [orders]`
//!
//! Start as many as you like. `BUCKETS` says which buckets this one reads.

mod envelope;
mod services;

use crate::envelope::{Keys, header, payload, read_keys};
use crate::services::{Order, Service};
use anyhow::{Context as _, bail};
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, AckKind};
use futures_util::StreamExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};
use tracing::warn;

const STREAM: &str = "OUTBOX";
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// Far above what an effect and the reading of an object take.
const HANDLE_TIMEOUT: Duration = Duration::from_secs(60);

struct Shop {
    jetstream: jetstream::Context,
    database_url: String,
    keys: Keys,
    ack_wait: Duration,
}

async fn handle(db: &mut Client, service: Service, event_id: &str, order: &Order) -> anyhow::Result<()> {
    let transaction = db.transaction().await?; // the id and the effect, or neither
    let remember = "INSERT INTO inbox (consumer, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    if transaction.execute(remember, &[&service.name(), &event_id]).await? > 0 {
        service.effect(&transaction, order).await?;
    } // else it was done before, and only its acknowledgement got lost
    Ok(transaction.commit().await?)
}

impl Shop {
    /// Reads one bucket until it is told to stop, or something is wrong.
    async fn read(
        &self,
        service: Service,
        bucket: &str,
        stop: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let (mut db, connection) = tokio_postgres::connect(&self.database_url, NoTls).await?;
        tokio::spawn(connection);
        let durable = format!("{}-{bucket}", service.name());
        let config = pull::Config {
            durable_name: Some(durable.clone()),
            filter_subject: format!("outbox.{}.{bucket}", service.event_type()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            // One at a time, whoever reads: a message that comes again comes before its successors.
            max_ack_pending: 1,
            ..pull::Config::default()
        };
        let stream = self.jetstream.get_stream(STREAM).await?;
        let consumer = stream.get_or_create_consumer(&durable, config).await?;
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(1)
            .heartbeat(Duration::from_secs(2))
            .expires(Duration::from_secs(10))
            .messages()
            .await?;
        loop {
            let message = select! {
                message = messages.next() => message.context("the subscription ended")??,
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            };
            let event_id = header(&message, "Postrider-Event-Id").context("no Postrider-Event-Id")?;
            let handling = async {
                let order = serde_json::from_slice(&payload(&self.jetstream, &self.keys, &message).await?)?;
                handle(&mut db, service, event_id, &order).await
            };
            let handled = timeout(HANDLE_TIMEOUT, handling).await.map_err(anyhow::Error::from).flatten();
            // After the commit, never before it. One that fails keeps its bucket waiting: to go on without
            // it would break the order of its key.
            let answer = if handled.is_ok() { AckKind::Ack } else { AckKind::Nak(Some(RETRY_DELAY)) };
            message.ack_with(answer).await.map_err(anyhow::Error::from_boxed)?;
            handled.with_context(|| format!("event {event_id}"))?;
        }
    }

    async fn work(self: Arc<Shop>, service: Service, bucket: String, mut stop: watch::Receiver<bool>) {
        while let Err(error) = self.read(service, &bucket, &mut stop).await {
            warn!(service = service.name(), %bucket, error = format!("{error:#}"), "begins again");
            select! {
                () = sleep(RETRY_DELAY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }
}

fn setting(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| name.to_owned())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let buckets = setting("BUCKETS").unwrap_or("0,1,2,3".to_owned()); // of bucket(4) in postrider.toml
    let keys = match setting("KEY_FILE") {
        Ok(path) => read_keys(&std::fs::read_to_string(&path).context(path)?)?,
        Err(_) => Keys::new(),
    };
    let nats = async_nats::ConnectOptions::new().retry_on_initial_connect(); // and again without end
    let client = nats.connect(setting("NATS_URL")?).await?;
    let shop = Arc::new(Shop {
        jetstream: jetstream::new(client.clone()),
        database_url: setting("DATABASE_URL")?,
        keys,
        // Longer than an effect takes.
        ack_wait: Duration::try_from_secs_f64(setting("ACK_WAIT").unwrap_or("30".to_owned()).parse()?)?,
    });
    let names: Vec<String> = std::env::args().skip(1).collect();
    let known = |name: &String| Service::ALL.iter().any(|service| service.name() == name);
    if let Some(name) = names.iter().find(|name| !known(name)) {
        bail!("no service is called {name}");
    }
    let (stopping, stop) = watch::channel(false);
    let mut workers = JoinSet::new();
    for service in Service::ALL {
        if !names.is_empty() && !names.iter().any(|name| name == service.name()) {
            continue;
        }
        for bucket in buckets.split(',') {
            workers.spawn(Arc::clone(&shop).work(service, bucket.to_owned(), stop.clone()));
        }
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stopping.send(true)?; // what is under way is finished and acknowledged
    workers.join_all().await;
    client.drain().await?;
    Ok(())
}
