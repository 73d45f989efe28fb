//! Reads the stream from its first message on, as any consumer would.

use super::servers::broken;
use super::tally::Observation;
use crate::error::Failure;
use async_nats::jetstream::{consumer::push::OrderedConfig, stream::Stream};
use futures_util::StreamExt;
use std::time::Instant;
use tokio::sync::mpsc;

/// Runs until no one listens to `observed`.
pub(super) async fn consume(
    stream: Stream,
    inbox: String,
    observed: mpsc::UnboundedSender<Observation>,
) -> Result<(), Failure> {
    let config = OrderedConfig { deliver_subject: inbox, ..OrderedConfig::default() };
    let consumer = stream.create_consumer(config).await.map_err(|error| unwell(&error))?;
    let mut messages = consumer.messages().await.map_err(|error| unwell(&error))?;
    while let Some(message) = messages.next().await {
        let message = message.map_err(|error| unwell(&error))?;
        let at = Instant::now();
        let id = message.headers.as_ref().and_then(|headers| headers.get("Postrider-Event-Id"));
        let id = id.and_then(|id| id.as_str().parse().ok());
        let sequence =
            message.info().map_err(|error| broken(format!("the consumer: {error}")))?.stream_sequence;
        if observed.send(Observation::Consumed { id, sequence, at }).is_err() {
            return Ok(());
        }
    }
    Err(broken("the consumer's subscription ended"))
}

fn unwell(error: &dyn std::error::Error) -> Failure {
    broken(format!("the consumer: {error}"))
}
