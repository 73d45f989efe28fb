//! `postrider status`

use super::{Ended, block_on, load, of_schema};
use crate::config::{Config, Flags};
use crate::error::{Code, Failure};
use crate::nats::connect;
use crate::nats::stream::Stream;
use crate::ops::status::{LastError, Status};
use crate::postgres::client::Sql;
use crate::postgres::preflight;
use crate::state::{checkpoint, dead_letter};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A running relay answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Show where the relay is: asks the running relay, else reads checkpoint row, slot and stream.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider status
  postrider status --json | jq .lag_bytes")]
pub(super) struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args) -> Ended {
    let config = load(&args.flags)?;
    block_on(async {
        let live = match config.http.listen {
            Some(address) => timeout(ANSWER_MAX, ask(address, &config)).await.ok().flatten(),
            None => None,
        };
        let status = match live {
            Some(status) => status,
            None => to_json(&read(&config).await?)?,
        };
        let text = if args.json { format!("{status}\n") } else { human(&status) };
        // A reader that has seen enough is no error.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(())
    })
}

/// The running relay's `/status`; none when none answers for this slot.
async fn ask(address: SocketAddr, config: &Config) -> Option<serde_json::Value> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let mut request = hyper::Request::get("/status").header(hyper::header::HOST, address.to_string());
    if let Some(token) = &config.http.token {
        request = request.header(hyper::header::AUTHORIZATION, format!("Bearer {}", token.expose()));
    }
    let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).ok()?).await.ok()?;
    let body = response.into_body().collect().await.ok()?.to_bytes();
    let status: serde_json::Value = serde_json::from_slice(&body).ok()?;
    (status.get("slot")?.as_str()? == config.postgres.slot).then_some(status)
}

/// What Postgres and NATS know of it; the live fields stay null.
async fn read(config: &Config) -> Result<Status, Failure> {
    let mut status = Status {
        slot: config.postgres.slot.clone(),
        stream: config.nats.stream.clone(),
        hold_back_seconds: config.delivery.hold_back(&config.nats).as_secs_f64(),
        ..Status::default()
    };
    let sql = Sql::connect_any(&config.postgres.database.resolve()?).await?;
    let slot = preflight::slot(&sql, &config.postgres.slot).await?;
    let row =
        of_schema(checkpoint::read(&sql, &config.postgres.schema, &config.postgres.slot).await)?.flatten();
    let open = dead_letter::open_count(&sql, &config.postgres.schema, &config.postgres.slot).await;
    status.dead_letters = of_schema(open)?.unwrap_or(0);
    let held = slot.as_ref().and_then(|slot| slot.active_pid);
    status.reason = match (&slot, &row, held) {
        (None, _, _) => format!("slot `{}` does not exist: postrider init", config.postgres.slot),
        (_, None, _) => "there is no checkpoint row: postrider init".to_owned(),
        (_, _, Some(pid)) => {
            format!("a relay holds the slot (walsender {pid}), but none answers on http.listen")
        }
        (Some(slot), _, None) => {
            let retained = bytesize::ByteSize(slot.retained().unwrap_or(0));
            format!(
                "no relay runs, and the slot retains {retained} of WAL: start one, or end it by postrider remove"
            )
        }
    };
    if let Some(slot) = slot {
        status.confirmed_lsn = slot.confirmed.map(|lsn| lsn.to_string());
        status.retained_wal_bytes = slot.retained();
        status.safe_wal_bytes = slot.safe_wal_size;
        status.wal_status = slot.wal_status;
        status.lag_bytes = row.as_ref().map(|row| slot.wal_end.bytes_since(row.settled_lsn));
    }
    if let Some(row) = row {
        status.system_id = Some(row.system_id.to_string());
        status.timeline = Some(row.timeline);
        status.position = row.last.map(|last| last.position.to_string());
        status.settled_lsn = Some(row.settled_lsn.to_string());
    }
    if let Err(failure) = look(config).await {
        status.last_error = Some(LastError::from(&failure));
    }
    Ok(status)
}

async fn look(config: &Config) -> Result<(), Failure> {
    let nats = connect::connect(&config.nats.access).await?;
    Stream::named(&nats, &config.nats.stream).await?.look().await?;
    Ok(())
}

fn to_json(status: &Status) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(status)
        .map_err(|error| Failure::new(Code::Unexpected, error.to_string(), "report it"))
}

/// A line a field; what is not known is left out.
fn human(status: &serde_json::Value) -> String {
    let mut text = String::new();
    for (name, value) in status.as_object().into_iter().flatten() {
        let shown = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) if text.is_empty() => continue,
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Object(parts) => {
                let parts: Vec<_> = parts
                    .iter()
                    .filter(|(_, part)| !part.is_null())
                    .map(|(part, value)| {
                        format!("{part} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                    })
                    .collect();
                if parts.is_empty() {
                    continue;
                }
                parts.join("  ")
            }
            other => other.to_string(),
        };
        let _ = writeln!(text, "{name:<20} {shown}");
    }
    text
}
