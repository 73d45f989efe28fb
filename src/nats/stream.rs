//! The stream as the leader knows it: what it is, where it ends, what stands where.
//!
//! Requests are made by hand, since async-nats's types leave out fields that decide here. Never by
//! direct get: any replica may answer it, and it may lag behind the leader (ADR-31).

use super::ApiError;
use super::answer::{self, Answer};
use super::connect::Nats;
use super::stream_config::{Config, New};
use crate::delivery::opening::{Stored, StreamEnd};
use crate::delivery::position::Identity;
use crate::error::{Code, Failure};
use crate::postgres::timestamp::Timestamp;
use async_nats::RequestErrorKind;
use async_nats::jetstream::message::{StreamMessage, StreamMessageError};
use async_nats::jetstream::stream::{RawMessageError, RawMessageErrorKind};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// Requests for single messages at a time: as many as their payloads may take memory for.
const READ_AHEAD_MAX: usize = 256;
const READ_AHEAD_MIN: usize = 4;
const READ_AHEAD_BYTES: usize = 4 << 20;

/// That nobody answers requests is believed when it is so again after this.
const NO_RESPONDERS_TWICE: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
struct State {
    #[serde(default)]
    first_seq: u64,
    last_seq: u64,
    messages: u64,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    consumer_count: usize,
    last_ts: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    /// None of a server that stands alone.
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Info {
    config: Config,
    state: State,
    cluster: Option<Cluster>,
    created: String,
    /// Since 2.10.
    ts: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Refused {
    error: ApiError,
}

/// What a publish that cannot be stored showed.
#[derive(Debug)]
pub enum Probe {
    /// It was answered.
    Allowed,
    /// It was not, or refused for another reason than its sequence.
    Refused(Failure),
}

/// No stream ends here.
const IMPOSSIBLE_SEQUENCE: &str = "18446744073709551614";

/// What a look at the stream shows.
#[derive(Debug, Clone)]
pub struct Look {
    /// How it is configured.
    pub config: Config,
    /// The first message that is still there; one behind the last when none is.
    pub first_seq: u64,
    /// Where it ends.
    pub end: StreamEnd,
    /// How many messages it holds.
    pub messages: u64,
    /// How many bytes they take.
    pub bytes: u64,
    /// How many consumers it has.
    pub consumers: usize,
    /// The cluster that it lives in.
    pub cluster: Option<String>,
    /// When the last message was stored, be it there or gone; none before the first.
    pub last_at: Option<Timestamp>,
    /// The server's clock; none before 2.10.
    pub now: Option<Timestamp>,
}

/// One stream by name.
#[derive(Debug, Clone)]
pub struct Stream {
    nats: Nats,
    raw: async_nats::jetstream::stream::Stream<()>,
    name: String,
}

impl Stream {
    /// The stream `name`, whether it exists or not.
    ///
    /// # Errors
    /// The name is none.
    pub async fn named(nats: &Nats, name: &str) -> Result<Stream, Failure> {
        let raw = nats.jetstream().get_stream_no_info(name).await.map_err(|error| {
            Failure::new(Code::InvalidValue, format!("nats.stream `{name}`: {error}"), "choose another name")
        })?;
        Ok(Stream { nats: nats.clone(), raw, name: name.to_owned() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// To ask for what is beside the stream.
    pub(super) fn context(&self) -> async_nats::jetstream::Context {
        self.nats.jetstream()
    }

    /// Another stream, over the same connection.
    pub(super) async fn sibling(&self, name: &str) -> Result<Stream, Failure> {
        Stream::named(&self.nats, name).await
    }

    /// Asks the leader.
    ///
    /// # Errors
    /// PR0304 when it does not exist, PR0303 without JetStream, PR0311 when nobody answers.
    pub async fn look(&self) -> Result<Look, Failure> {
        let answer = self.ask("STREAM.INFO", &json!({})).await?;
        let info: Info = serde_json::from_slice(&answer).map_err(|error| self.unreadable(&error))?;
        Ok(Look {
            config: info.config,
            first_seq: info.state.first_seq,
            end: StreamEnd { last_seq: info.state.last_seq, created: moment(&info.created)? },
            messages: info.state.messages,
            bytes: info.state.bytes,
            consumers: info.state.consumer_count,
            cluster: info.cluster.and_then(|cluster| cluster.name),
            // Go's zero time stands for none.
            last_at: info
                .state
                .last_ts
                .filter(|at| !at.starts_with("0001-"))
                .as_deref()
                .map(moment)
                .transpose()?,
            now: info.ts.as_deref().map(moment).transpose()?,
        })
    }

    /// Creates it: file storage, limits, discard new.
    ///
    /// # Errors
    /// As [`look`](Stream::look), and whatever the server has against it.
    pub async fn create(&self, new: &New) -> Result<Look, Failure> {
        let nanos = new.max_age.map_or(0, |age| age.as_nanos());
        let request = json!({
            "name": self.name, "subjects": new.subjects, "storage": "file", "retention": "limits",
            "discard": "new", "num_replicas": new.replicas, "max_age": u64::try_from(nanos).unwrap_or(0),
            "max_bytes": new.max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            "max_msgs": -1, "max_msg_size": -1, "max_msgs_per_subject": -1, "max_consumers": -1,
            "description": "an outbox, written by postrider alone",
        });
        self.ask("STREAM.CREATE", &request).await?;
        self.look().await
    }

    /// Its whole configuration, also what is unknown here.
    pub(super) async fn raw_config(&self) -> Result<serde_json::Value, Failure> {
        let answer = self.ask("STREAM.INFO", &json!({})).await?;
        let mut info: serde_json::Value =
            serde_json::from_slice(&answer).map_err(|error| self.unreadable(&error))?;
        Ok(info["config"].take())
    }

    /// Changes its configuration.
    pub(super) async fn update(&self, config: &serde_json::Value) -> Result<(), Failure> {
        self.ask("STREAM.UPDATE", config).await.map(drop)
    }

    pub(super) fn is_server_compatible(&self, major: i64, minor: i64, patch: i64) -> bool {
        self.nats.client.is_server_compatible(major, minor, patch)
    }

    /// Deletes it with all that it holds.
    ///
    /// # Errors
    /// As [`look`](Stream::look).
    pub async fn delete(&self) -> Result<(), Failure> {
        self.ask("STREAM.DELETE", &json!({})).await.map(drop)
    }

    async fn ask(&self, what: &str, request: &serde_json::Value) -> Result<bytes::Bytes, Failure> {
        let subject = format!("{}.{what}.{}", self.nats.api(), self.name);
        let payload = bytes::Bytes::from(request.to_string());
        let mut asked = self.nats.client.request(subject.clone(), payload.clone()).await;
        if matches!(&asked, Err(error) if error.kind() == RequestErrorKind::NoResponders) {
            // A server that is shutting down is gone by then.
            tokio::time::sleep(NO_RESPONDERS_TWICE).await;
            asked = self.nats.client.request(subject, payload).await;
        }
        let answer = asked.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => self.no_jetstream(),
            RequestErrorKind::TimedOut => self.forbidden().unwrap_or_else(|| self.silent(&error.to_string())),
            _ => self.silent(&error.to_string()),
        })?;
        match serde_json::from_slice::<Refused>(&answer.payload) {
            Ok(refused) => Err(self.refused(&refused.error)),
            Err(_) => Ok(answer.payload),
        }
    }

    fn refused(&self, error: &ApiError) -> Failure {
        let name = &self.name;
        match (error.err_code, error.code) {
            (10_059, _) => {
                Failure::new(Code::StreamMissing, format!("stream `{name}` does not exist"), "init makes it")
                    .command("postrider init")
            }
            (10_039 | 10_076, _) => self.no_jetstream(),
            (10_065, _) => Failure::new(
                Code::StreamUnfit,
                format!("stream `{name}`: {}", error.description),
                "another stream binds these subjects (nats stream ls --subject): remove it or choose another outbox.subject",
            ),
            (_, 503) | (10_008 | 10_009, _) => self.silent(&error.description),
            (code, _) => Failure::new(
                Code::PublishRefused,
                format!("stream `{name}`: {} (error {code})", error.description),
                "see the account's JetStream limits: nats account info",
            ),
        }
    }

    /// A request that is not permitted is not answered at all; the server only complains.
    pub(super) fn forbidden(&self) -> Option<Failure> {
        let link = self.nats.link.borrow();
        let complaint = link.complaint.as_ref()?;
        let api = self.nats.api();
        let remedy = if complaint.contains("Subscription to") {
            "permit the user to subscribe to its inbox (nats.inbox_prefix, `_INBOX.>` by default)".to_owned()
        } else if complaint.contains(&api) {
            format!(
                "permit the user to publish to {api}.STREAM.INFO.{0} and {api}.STREAM.MSG.GET.{0}",
                self.name
            )
        } else {
            return None;
        };
        let remedy = format!("{remedy}; postrider init --print-nats prints all that it needs");
        Some(Failure::new(Code::PublishForbidden, format!("the server says: {complaint}"), remedy))
    }

    fn no_jetstream(&self) -> Failure {
        Failure::new(
            Code::NoJetStream,
            format!(
                "nobody answers at {}: JetStream is not enabled on this server or for this account",
                self.nats.api()
            ),
            "start it with `nats-server -js`, or enable JetStream for the account in its configuration; behind a leaf \
             node or in another account set nats.domain or nats.js_prefix",
        )
    }

    fn silent(&self, why: &str) -> Failure {
        Failure::new(
            Code::NatsSession,
            format!("JetStream does not answer for stream `{}`: {why}", self.name),
            answer::LEADERLESS,
        )
    }

    fn unreadable(&self, error: &serde_json::Error) -> Failure {
        self.silent(&format!("an answer that does not parse: {error}"))
    }

    /// Whether publishing to `subject` is permitted: a message that expects a sequence which cannot be is
    /// refused by the stream, and answered at all only where the user may publish.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn probe(&self, subject: &str) -> Result<Probe, Failure> {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(async_nats::header::NATS_EXPECTED_STREAM, self.name.as_str());
        headers.insert(async_nats::header::NATS_EXPECTED_LAST_SEQUENCE, IMPOSSIBLE_SEQUENCE);
        let subject = subject.to_owned();
        let asked =
            self.nats.client.request_with_headers(subject.clone(), headers, bytes::Bytes::new()).await;
        match asked {
            Ok(answer) => Ok(match answer::parse(&answer.payload) {
                // Wrong last sequence: as it was meant.
                Answer::Refused { err_code: 10_071, .. } => Probe::Allowed,
                other => Probe::Refused(other.failure(&self.name, &subject)),
            }),
            Err(error) => match error.kind() {
                RequestErrorKind::NoResponders => {
                    Ok(Probe::Refused(Answer::NoResponders.failure(&self.name, &subject)))
                }
                _ => Ok(Probe::Refused(Failure::new(
                    Code::PublishForbidden,
                    format!(
                        "a publish to `{subject}` is not answered: the user may not publish there, or not see answers"
                    ),
                    format!(
                        "permit the user to publish to `{subject}` and to subscribe to its inbox; \
                         postrider init --print-nats prints all permissions"
                    ),
                ))),
            },
        }
    }

    /// What stands at `seq`.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn message(&self, seq: u64) -> Result<Stored, Failure> {
        self.sized_message(seq).await.map(|(stored, _)| stored)
    }

    /// The message, and how many bytes came with it.
    async fn sized_message(&self, seq: u64) -> Result<(Stored, usize), Failure> {
        match self.raw.get_raw_message(seq).await {
            Ok(message) => {
                let stored = match identify(&message.headers) {
                    Some(event) => Stored::Event(Box::new(event)),
                    None => Stored::Foreign(message.subject.to_string()),
                };
                Ok((stored, message.payload.len()))
            }
            Err(error) if is_gone(&error) => Ok((Stored::Gone, 0)),
            // It is there, and no header block of ours is unreadable.
            Err(error) if is_unreadable(&error) => Ok((Stored::Foreign("?".to_owned()), 0)),
            Err(error) => Err(self.unread(&error)),
        }
    }

    /// The message at `seq`, with headers and body; none where there is none, or none with headers that can
    /// be read: that is no message of ours.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn whole_message(&self, seq: u64) -> Result<Option<StreamMessage>, Failure> {
        match self.raw.get_raw_message(seq).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if is_gone(&error) || is_unreadable(&error) => Ok(None),
            Err(error) => Err(self.unread(&error)),
        }
    }

    fn unread(&self, error: &RawMessageError) -> Failure {
        self.forbidden().unwrap_or_else(|| self.silent(&error.to_string()))
    }

    /// What stands at `first` to `last`, in order.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn messages(&self, first: u64, last: u64) -> Result<Vec<(u64, Stored)>, Failure> {
        let mut found = Vec::new();
        let mut next = first;
        let mut ahead = READ_AHEAD_MIN;
        while next <= last {
            let chunk = last.min(next + ahead as u64 * 16 - 1);
            let read: Vec<_> = stream::iter(next..=chunk)
                .map(|seq| async move { Ok::<_, Failure>((seq, self.sized_message(seq).await?)) })
                .buffered(ahead)
                .try_collect()
                .await?;
            let bytes: usize = read.iter().map(|(_, (_, bytes))| bytes).sum();
            let size = (bytes / read.len().max(1)).max(1);
            ahead = (READ_AHEAD_BYTES / size).clamp(READ_AHEAD_MIN, READ_AHEAD_MAX);
            found.extend(read.into_iter().map(|(seq, (stored, _))| (seq, stored)));
            next = chunk + 1;
        }
        Ok(found)
    }
}

/// There is no message at that sequence.
fn is_gone(error: &RawMessageError) -> bool {
    match error.kind() {
        RawMessageErrorKind::NoMessageFound => true,
        RawMessageErrorKind::JetStream(error) => error.error_code().0 == 10_037,
        _ => false,
    }
}

/// The answer came and its headers do not parse.
fn is_unreadable(error: &RawMessageError) -> bool {
    error.kind() == RawMessageErrorKind::Other
        && std::error::Error::source(error).is_some_and(|source| source.is::<StreamMessageError>())
}

/// Which event a message's headers say it is.
fn identify(headers: &async_nats::HeaderMap) -> Option<Identity> {
    use super::envelope::{COMMIT_TIME, POSITION};
    use crate::outbox::headers::EVENT_ID;
    Some(Identity {
        position: headers.get(POSITION.clone())?.as_str().parse().ok()?,
        commit_time: headers.get(COMMIT_TIME.clone())?.as_str().parse().ok()?,
        event_id: headers.get(EVENT_ID.clone())?.as_str().to_owned(),
    })
}

/// RFC 3339 in UTC with nanoseconds: kept to the microsecond, as the checkpoint row keeps it.
fn moment(text: &str) -> Result<Timestamp, Failure> {
    humantime::parse_rfc3339(text).map(Timestamp::from_system_time).map_err(|error| {
        Failure::new(
            Code::NatsSession,
            format!("the time `{text}` of the stream does not parse: {error}"),
            "",
        )
    })
}
