//! `postrider decrypt`: the plain payload of a message.

use super::{Ended, block_on, load};
use crate::config::{Config, Environment, Flags, Loaded, read_keys};
use crate::error::{Code, Failure};
use crate::nats::connect::connect;
use crate::nats::object_store::{self, OBJECT};
use crate::nats::stream::Stream;
use crate::outbox::headers::EVENT_ID;
use crate::outbox::seal;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

/// Print the plain payload of an encrypted message.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider decrypt --seq 17                      # message 17 of the stream
  nats stream get OUTBOX 17 --json | jq -r .data | base64 -d > body
  postrider decrypt --key-file keys --event-id 42 --key-id 2026-11 < body

The second way asks no server: the message's headers Postrider-Event-Id and Postrider-Key-Id say what the
two are. A payload that went to the object store is fetched from there by the first.")]
pub(super) struct Args {
    /// The message with this sequence.
    #[arg(long, value_name = "N", required_unless_present = "event_id")]
    #[arg(conflicts_with_all = ["event_id", "key_id"])]
    seq: Option<u64>,
    /// The body comes from standard input; its message's Postrider-Event-Id.
    #[arg(long, value_name = "ID", requires = "key_id", allow_hyphen_values = true)]
    event_id: Option<String>,
    /// Its Postrider-Key-Id.
    #[arg(long, value_name = "KEY", requires = "event_id", allow_hyphen_values = true)]
    key_id: Option<String>,
    /// The file with the keys [default: encrypt.key_file].
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args, env: &Environment, out: &mut dyn Write) -> Ended {
    if let (Some(event_id), Some(key_id)) = (&args.event_id, &args.key_id) {
        let key_file = args.key_file.clone().or_else(|| configured(args, env));
        let payload = given(key_file.as_deref(), event_id, key_id).map_err(|failure| vec![failure])?;
        return print(&payload, out).map_err(|failure| vec![failure]);
    }
    let config = load(&args.flags)?;
    let key_file = args.key_file.clone().or_else(|| config.encrypt.key_file.clone());
    block_on(async {
        let payload = stored(&config, key_file.as_deref(), args.seq.unwrap_or_default()).await?;
        print(&payload, out)
    })
}

/// Of encrypt.key_file, whatever else is wrong or missing: no server is asked.
fn configured(args: &Args, env: &Environment) -> Option<PathBuf> {
    let values = Loaded::from(&args.flags, env).values;
    let value = values.into_iter().find(|value| value.key.name == "encrypt.key_file")?;
    value.text.filter(|text| text != "off").map(Into::into)
}

/// The payload of the body on standard input.
fn given(key_file: Option<&Path>, event_id: &str, key_id: &str) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut body);
    read.map_err(|error| {
        Failure::new(Code::Unexpected, format!("read the body: {error}"), "give it on standard input")
    })?;
    open(key_file, key_id, event_id, &body)
}

/// The payload of the stream's message.
async fn stored(config: &Config, key_file: Option<&Path>, seq: u64) -> Result<Vec<u8>, Failure> {
    let nats = connect(&config.nats.access).await?;
    let stream = Stream::named(&nats, &config.nats.stream).await?;
    let last = stream.look().await?.end.last_seq;
    let Some(message) = stream.whole_message(seq).await? else {
        return Err(Failure::new(
            Code::MessageMissing,
            format!("stream `{}` holds no message {seq}; its last is {last}", stream.name()),
            format!("nats stream info {}", stream.name()),
        ));
    };
    let header =
        |name: &async_nats::HeaderName| message.headers.get(name.clone()).map(|value| value.as_str());
    let body = match header(&OBJECT) {
        Some(object) => object_store::fetch(&stream, object).await?,
        None => message.payload.to_vec(),
    };
    match (header(&seal::ENCRYPTION), header(&seal::KEY_ID), header(&EVENT_ID)) {
        (None, ..) => Ok(body),
        (Some(seal::ALGORITHM), Some(key_id), Some(event_id)) => open(key_file, key_id, event_id, &body)
            .map_err(|failure| failure.context(&format!("message {seq}"))),
        (Some(other), ..) => Err(Failure::new(
            Code::NotOpened,
            format!(
                "message {seq} is encrypted by `{}`, as this version does not do it",
                other.escape_debug()
            ),
            "a newer postrider wrote it: open it with that one",
        )),
    }
}

fn open(key_file: Option<&Path>, key_id: &str, event_id: &str, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let shown = key_id.escape_debug();
    let Some(path) = key_file else {
        return Err(Failure::new(
            Code::MissingValue,
            format!("it takes key `{shown}`, and nothing says where the keys are"),
            "--key-file FILE, or set encrypt.key_file",
        ));
    };
    let keys = read_keys(path)?;
    let Some(key) = keys.find(key_id) else {
        let known: Vec<_> = keys.ids().collect();
        return Err(Failure::new(
            Code::KeyMissing,
            format!("key `{shown}` is not in {}, which has {}", path.display(), known.join(", ")),
            format!(
                "put key `{shown}` back into the file, behind the first, or name the file that has it: --key-file"
            ),
        ));
    };
    key.open(event_id, body).ok_or_else(|| {
        Failure::new(
            Code::NotOpened,
            format!("the body does not open with key `{shown}` for event {event_id:?}"),
            format!(
                "give the body to the byte, with the event id of its message; else the key that {} has as `{shown}` \
                 is not the one that the relay had under that id",
                path.display()
            ),
        )
    })
}

/// To the byte; a person's terminal gets its line ended.
fn print(payload: &[u8], out: &mut dyn Write) -> Result<(), Failure> {
    let end: &[u8] = if std::io::stdout().is_terminal() { b"\n" } else { b"" };
    let written = out.write_all(payload).and_then(|()| out.write_all(end)).and_then(|()| out.flush());
    written.map_err(|error| Failure::new(Code::Unexpected, format!("write the payload: {error}"), ""))
}
