//! `postrider tail`: events as they are stored.
//!
//! Read one by one from the leader, as the relay itself reads: no consumer is made, so a stream with a work
//! queue or limits on consumers notices nothing, and the relay's own permissions suffice.

use super::{Ended, block_on, load, printable};
use crate::config::{Flags, read_keys};
use crate::error::{Code, Failure};
use crate::nats::connect;
use crate::nats::envelope::{COMMIT_TIME, POSITION};
use crate::nats::object_store::OBJECT;
use crate::nats::stream::Stream;
use crate::outbox::headers::{CONTENT_TYPE, EVENT_ID, EVENT_TYPE, KEY, NULL};
use crate::outbox::{Keys, seal};
use async_nats::HeaderName;
use async_nats::jetstream::message::StreamMessage;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::time::Duration;
use tokio::time::sleep;

/// Far below what a person notices.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A line of a terminal or two.
const PAYLOAD_SHOWN_MAX: usize = 120;

/// Show events as they are stored. Consumes, marks and changes nothing; decrypts where encrypt.key_file has the key.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider tail
  postrider tail --last 20 --type order_created --key 4711
  postrider tail --json | jq .payload
  postrider tail --last 1 --count 1 --json     # the last event of the stream")]
pub(super) struct Args {
    /// Begin with so many messages that are stored already.
    #[arg(long, value_name = "N", default_value_t = 0)]
    last: u64,
    /// End after so many events.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Only events of this type; may be given more than once.
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only events of this key; may be given more than once.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// Print one JSON object a line, with all headers and the whole payload.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags,
}

impl Args {
    fn wants(&self, message: &StreamMessage) -> bool {
        let among = |wanted: &[String], name: &HeaderName| {
            wanted.is_empty()
                || header(message, name).is_some_and(|value| wanted.iter().any(|wanted| wanted == value))
        };
        among(&self.types, &EVENT_TYPE) && among(&self.keys, &KEY)
    }
}

pub(super) fn run(args: &Args) -> Ended {
    let config = load(&args.flags)?;
    block_on(async {
        let nats = connect::connect(&config.nats.access).await?;
        let stream = Stream::named(&nats, &config.nats.stream).await?;
        let keys = config.encrypt.key_file.as_deref().map(read_keys).transpose()?;
        follow(args, &stream, keys.as_ref(), &mut std::io::stdout()).await
    })
}

/// Prints until enough is printed, or nobody reads it any more.
async fn follow(
    args: &Args,
    stream: &Stream,
    keys: Option<&Keys>,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let mut last = stream.look().await?.end.last_seq;
    let mut next = (last + 1).saturating_sub(args.last).max(1);
    let mut printed = 0;
    loop {
        while next <= last {
            if let Some(message) = stream.whole_message(next).await?.filter(|message| args.wants(message)) {
                let message = opened(message, keys);
                let line = if args.json { to_json(&message).to_string() } else { human(&message) };
                match writeln!(out, "{line}").and_then(|()| out.flush()) {
                    Ok(()) => {}
                    // The reader has seen enough.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                    Err(error) => {
                        return Err(Failure::new(Code::Unexpected, error.to_string(), ""));
                    }
                }
                printed += 1;
                if args.count.is_some_and(|count| printed >= count) {
                    return Ok(());
                }
            }
            next += 1;
        }
        sleep(LOOK_AGAIN).await;
        let end = stream.look().await?.end.last_seq;
        // A stream that went back is followed from its end.
        (last, next) = (end, next.min(end + 1));
    }
}

fn header<'m>(message: &'m StreamMessage, name: &HeaderName) -> Option<&'m str> {
    message.headers.get(name.clone()).map(|value| value.as_str())
}

/// The message with its plain payload, where a key of ours opens it. What went to the object store stays
/// there: its reference is shown.
fn opened(mut message: StreamMessage, keys: Option<&Keys>) -> StreamMessage {
    let plain = match (header(&message, &seal::KEY_ID), header(&message, &EVENT_ID)) {
        (Some(key), Some(id)) if header(&message, &OBJECT).is_none() => {
            keys.and_then(|keys| keys.find(key)).and_then(|key| key.open(id, &message.payload))
        }
        _ => None,
    };
    if let Some(plain) = plain {
        message.payload = plain.into();
    }
    message
}

/// `12  2026-11-23T22:20:01.123456Z  outbox.order  id 7  key 4711  {"n": 1}`
fn human(message: &StreamMessage) -> String {
    let mut line =
        format!("{}  {}", message.sequence, printable(header(message, &COMMIT_TIME).unwrap_or("-")));
    for (name, value) in [
        ("", Some(message.subject.as_str())),
        ("id ", header(message, &EVENT_ID)),
        ("type ", header(message, &EVENT_TYPE)),
        ("key ", header(message, &KEY)),
    ] {
        if let Some(value) = value {
            line.push_str("  ");
            line.push_str(name);
            line.push_str(&printable(value));
        }
    }
    line.push_str("  ");
    line.push_str(&match std::str::from_utf8(&message.payload) {
        Ok(_) if header(message, &NULL).is_some() => "NULL".to_owned(),
        Ok(text) => shortened(text),
        Err(_) => format!("{} bytes", message.payload.len()),
    });
    line
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(PAYLOAD_SHOWN_MAX) {
        Some((end, _)) => format!("{}… {} bytes", printable(text.get(..end).unwrap_or(text)), text.len()),
        None => printable(text),
    }
}

fn to_json(message: &StreamMessage) -> Value {
    let headers: serde_json::Map<_, _> = message
        .headers
        .iter()
        .flat_map(|(name, values)| {
            values.iter().map(move |value| (name.to_string(), Value::from(value.as_str())))
        })
        .collect();
    let is_json = header(message, &CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/json"));
    let mut line = json!({
        "seq": message.sequence,
        "subject": message.subject.as_str(),
        "event_id": header(message, &EVENT_ID),
        "event_type": header(message, &EVENT_TYPE),
        "key": header(message, &KEY),
        "position": header(message, &POSITION),
        "commit_time": header(message, &COMMIT_TIME),
        "headers": headers,
    });
    let parsed = is_json.then(|| serde_json::from_slice(&message.payload).ok()).flatten();
    let (name, payload) = match (parsed, std::str::from_utf8(&message.payload)) {
        _ if header(message, &NULL).is_some() => ("payload", Value::Null),
        (Some(payload), _) => ("payload", payload),
        (None, Ok(text)) => ("payload", Value::from(text)),
        (None, Err(_)) => ("payload_base64", Value::from(STANDARD.encode(&message.payload))),
    };
    line[name] = payload;
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn message(headers: &[(&str, &str)], payload: &[u8]) -> StreamMessage {
        let mut map = async_nats::HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        StreamMessage {
            subject: "outbox.order".into(),
            sequence: 12,
            headers: map,
            payload: payload.to_vec().into(),
            time: SystemTime::UNIX_EPOCH.into(),
        }
    }

    #[test]
    fn a_payload_cannot_steer_the_terminal() {
        let line = human(&message(&[("Postrider-Key", "a\u{1b}[2J")], b"x\x1b]0;y\x07\nz"));
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        assert!(line.ends_with("x\\u{1b}]0;y\\u{7}\\nz"), "{line}");
    }

    #[test]
    fn a_long_payload_is_cut_between_characters() {
        let line = human(&message(&[], "é".repeat(500).as_bytes()));
        assert!(line.ends_with("é… 1000 bytes"), "{line}");
    }

    #[test]
    fn json_carries_each_payload_as_what_it_is() {
        let json = [("Content-Type", "application/json")];
        assert_eq!(to_json(&message(&json, br#"{"n": 1}"#))["payload"], json!({"n": 1}));
        assert_eq!(to_json(&message(&json, b"{"))["payload"], json!("{"));
        assert_eq!(to_json(&message(&[], b"1"))["payload"], json!("1"));
        assert_eq!(to_json(&message(&[("Postrider-Null", "true")], b""))["payload"], Value::Null);
        assert_eq!(to_json(&message(&[], b"\xff"))["payload_base64"], json!("/w=="));
    }
}
