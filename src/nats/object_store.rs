//! The claim check: a payload that is too large for a message goes into an object store beside the
//! stream, and the message says where it is (ADR-20).
//!
//! An object is named by its event's place and its content, is written before the message that
//! refers to it, and is never overwritten: sending the event again finds it there.

use super::stream::Stream;
use crate::delivery::position::Place;
use crate::error::{Code, Failure};
use crate::outbox::Event;
use crate::postgres::text::Text;
use async_nats::HeaderName;
use async_nats::jetstream::object_store::{Config, InfoErrorKind, ObjectStore};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;
use std::fmt::Write;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// The header that names the object.
pub static OBJECT: HeaderName = HeaderName::from_static("Postrider-Object");

/// Far above what a payload takes; what a user may not read never comes.
const READ_MAX: Duration = Duration::from_secs(60);

/// The store beside `stream`.
#[must_use]
pub fn bucket(stream: &str) -> String {
    format!("{stream}_PAYLOADS")
}

/// Whether the store exists.
///
/// # Errors
/// Nobody answers.
pub async fn exists(stream: &Stream) -> Result<bool, Failure> {
    match stream.sibling(&format!("OBJ_{}", bucket(stream.name()))).await?.look().await {
        Ok(_) => Ok(true),
        Err(failure) if failure.code == Code::StreamMissing => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Creates the store: as many copies as the stream has, objects that live as long as its messages.
///
/// # Errors
/// Nobody answers, or the account's limits are reached.
pub async fn create(stream: &Stream, replicas: usize, max_age: Option<Duration>) -> Result<(), Failure> {
    let config = Config {
        bucket: bucket(stream.name()),
        description: Some("payloads that are too large for messages, written by postrider".to_owned()),
        max_age: max_age.unwrap_or_default(),
        max_bytes: -1,
        num_replicas: replicas,
        ..Config::default()
    };
    stream.context().create_object_store(config).await.map_err(|error| failed(stream, &error))?;
    Ok(())
}

/// Puts the payload of `event` into the store: the event that refers to it.
///
/// # Errors
/// The store does not exist, or nobody answers.
pub async fn claim_check(stream: &Stream, mut event: Event, place: Place) -> Result<Event, Failure> {
    let bucket = bucket(stream.name());
    let store = stream.context().get_object_store(&bucket).await.map_err(|error| failed(stream, &error))?;
    let digest = digest(&SHA256, &event.payload);
    let mut object = format!("{:016X}-{}-", place.commit_lsn.0, place.index);
    for byte in digest.as_ref().iter().take(8) {
        let _ = write!(object, "{byte:02x}");
    }
    let digest = match stored(stream, &store, &object, event.payload.len()).await? {
        Some(digest) => digest,
        None => {
            let info = store.put(object.as_str(), &mut event.payload.as_ref()).await;
            info.map_err(|error| failed(stream, &error))?.digest
        }
    };
    let reference = json!({
        "bucket": bucket, "object": object, "digest": digest, "size": event.payload.len(),
    });
    event.payload = reference.to_string().into();
    event.headers.push((OBJECT.clone(), Text::from(object)));
    Ok(event)
}

/// The content of an object of the store, whose digest is checked.
///
/// # Errors
/// It is not there or not whole, or nobody answers.
pub async fn fetch(stream: &Stream, object: &str) -> Result<Vec<u8>, Failure> {
    let reading = async {
        let store = stream.context().get_object_store(&bucket(stream.name())).await;
        let store = store.map_err(|error| failed(stream, &error))?;
        let mut object = store.get(object).await.map_err(|error| failed(stream, &error))?;
        let mut content = Vec::new();
        object.read_to_end(&mut content).await.map_err(|error| failed(stream, &error))?;
        Ok(content)
    };
    let read = timeout(READ_MAX, reading).await;
    read.unwrap_or_else(|_| Err(failed(stream, &format!("object `{object}` does not come"))))
}

/// The digest of the object when it is there whole.
async fn stored(
    stream: &Stream,
    store: &ObjectStore,
    object: &str,
    size: usize,
) -> Result<Option<Option<String>>, Failure> {
    match store.info(object).await {
        Ok(info) => Ok((!info.deleted && info.size == size).then_some(info.digest)),
        Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(stream, &error)),
    }
}

fn failed(stream: &Stream, error: &dyn std::fmt::Display) -> Failure {
    let failure = stream.forbidden().unwrap_or_else(|| {
        Failure::new(Code::NatsSession, error.to_string(), "see nats-server's log: nats object ls")
    });
    failure.context("the object store for large payloads")
}
