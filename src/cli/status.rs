//! `postrider status`

use super::{Ended, block_on, load};
use crate::config::{Config, Flags};
use crate::doctor;
use crate::error::{Code, Failure};
use crate::nats::connect;
use crate::nats::stream::Stream;
use crate::ops::forecast;
use crate::ops::status::{LastError, Status};
use crate::postgres::client::Sql;
use crate::postgres::timestamp::Timestamp;
use crate::state::survey;
use bytes::Bytes;
use bytesize::ByteSize;
use http_body_util::{BodyExt, Empty};
use hyper::StatusCode;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// A running relay answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// All looks of doctor take a second or two.
const LOOK_MAX: Duration = Duration::from_secs(6);

/// As doctor has it by default.
const OLD_TRANSACTION: Duration = Duration::from_secs(300);

const WATCH_APART: Duration = Duration::from_secs(1);

/// Show where the relay is: asks the running relay, else reads checkpoint row, slot and stream.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider status
  postrider status --watch
  postrider status --json | jq .lag_bytes
  postrider status --check    # for supervisors: 0 while the relay's loop turns, as its /healthz says; else 6")]
pub(super) struct Args {
    /// Print one JSON object; with --watch one a second, each on its line.
    #[arg(long)]
    json: bool,
    /// Show it anew each second; where the output is no terminal, as one line.
    #[arg(long)]
    watch: bool,
    /// Ask only the running relay, and only whether its loop turns; exit status 6 where none does.
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    check: bool,
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args) -> Ended {
    let config = load(&args.flags)?;
    block_on(async {
        if args.check {
            return check(&config).await;
        }
        if args.watch {
            return watch(&config, args.json).await;
        }
        let status = look(&config).await?;
        let text = if args.json { format!("{status}\n") } else { human(&status) };
        // A reader that has seen enough is no error.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(())
    })
}

/// An outage of a server is no reason to start the relay again, so it is not looked at.
async fn check(config: &Config) -> Result<(), Failure> {
    let unhealthy =
        |message: String| Failure::new(Code::Unhealthy, message, "see the relay's log; postrider status");
    let Some(address) = config.http.listen else {
        return Err(unhealthy("http.listen is off: nobody can be asked".to_owned()));
    };
    match timeout(ANSWER_MAX, get(address, "/healthz", config)).await.ok().flatten() {
        Some((StatusCode::OK, _)) => Ok(()),
        Some((_, body)) => Err(unhealthy(String::from_utf8_lossy(&body).trim().to_owned())),
        None => Err(unhealthy(format!("no relay answers at {address}"))),
    }
}

/// Once a second, until interrupted or nobody reads any more.
async fn watch(config: &Config, json: bool) -> Result<(), Failure> {
    let terminal = std::io::stdout().is_terminal();
    let mut ticks = interval(WATCH_APART);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let status = look(config).await;
        let text = match (&status, json, terminal) {
            (Ok(status), true, _) => format!("{status}\n"),
            (Ok(status), false, false) => line(status),
            // Home, each line to its end, and what is below: nothing flickers.
            (Ok(status), false, true) => redrawn(&human(status)),
            (Err(failure), false, true) => redrawn(&format!("{failure}\n")),
            (Err(failure), _, _) => {
                eprintln!("{failure}");
                continue;
            }
        };
        let mut stdout = std::io::stdout();
        if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            return Ok(());
        }
    }
}

fn redrawn(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

/// What came of asking the running relay.
enum Asked {
    /// Its status.
    Told(Value),
    /// It tells nothing without a token, or with another one.
    Refused,
    /// Another pipeline's relay.
    Other,
    Nobody,
}

/// The running relay's, else what Postgres and NATS know.
async fn look(config: &Config) -> Result<Value, Failure> {
    let asked = match config.http.listen {
        Some(address) => timeout(ANSWER_MAX, ask(address, config)).await.ok().flatten(),
        None => None,
    };
    match asked.unwrap_or(Asked::Nobody) {
        Asked::Told(status) => Ok(status),
        unknown => to_json(&read(config, &unknown).await?),
    }
}

/// None when there is no answer that can be read.
async fn ask(address: SocketAddr, config: &Config) -> Option<Asked> {
    let (code, body) = get(address, "/status", config).await?;
    if code == StatusCode::UNAUTHORIZED {
        return Some(Asked::Refused);
    }
    let status: Value = serde_json::from_slice(&body).ok()?;
    let its = ["database", "slot", "stream"].map(|name| status[name].as_str());
    Some(if its == Status::of(config).pipeline() { Asked::Told(status) } else { Asked::Other })
}

/// What is answered; none where nobody does.
async fn get(address: SocketAddr, path: &str, config: &Config) -> Option<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let mut request = hyper::Request::get(path).header(hyper::header::HOST, address.to_string());
    if let Some(token) = &config.http.token {
        request = request.header(hyper::header::AUTHORIZATION, format!("Bearer {}", token.expose()));
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).ok()?).await.ok()?;
    let code = response.status();
    Some((code, response.into_body().collect().await.ok()?.to_bytes()))
}

/// What Postgres and NATS know of it; the live fields stay null.
async fn read(config: &Config, asked: &Asked) -> Result<Status, Failure> {
    let mut status = Status::of(config);
    let sql = Sql::connect_any(&config.postgres.database.resolve()?).await?;
    let survey = survey::read(&sql, config).await?;
    let held = survey.slot.as_ref().and_then(|slot| slot.active_pid);
    let answers = match asked {
        Asked::Other => "what answers on http.listen is another pipeline's",
        _ => "none answers on http.listen",
    };
    status.reason = match (&survey.slot, &survey.row, held) {
        (Some(_), Some(_), _) if matches!(asked, Asked::Refused) => {
            "a relay answers on http.listen, but it wants http.token".to_owned()
        }
        (None, Some(_), _) => format!("slot `{}` does not exist: postrider recover", config.postgres.slot),
        (None, None, _) => format!("slot `{}` does not exist: postrider init", config.postgres.slot),
        (_, None, _) => "there is no checkpoint row: postrider init".to_owned(),
        (_, _, Some(pid)) => {
            format!("a relay holds the slot (walsender {pid}), but {answers}")
        }
        (Some(slot), _, None) => {
            let retained = ByteSize(slot.retained().unwrap_or(0));
            format!(
                "no relay runs, and the slot retains {retained} of WAL: start one (why the last one ended stands at the \
                 end of its log), or end it by postrider remove"
            )
        }
    };
    if let Some(slot) = &survey.slot {
        let patience = held.map(|_| forecast::patience(config.delivery.hold_back(&config.nats)));
        status.foresee(&survey::trend(&sql, slot, patience).await?);
    }
    survey.show(&mut status);
    let fault = match held {
        Some(_) => look_at_stream(config).await.err().map(|failure| LastError::from(&failure)),
        None => why_none_can_run(config).await,
    };
    if let Some(fault) = &fault {
        status.reason.clone_from(&fault.message);
    }
    status.last_error = fault;
    status.complete();
    Ok(status)
}

/// The first of what keeps a relay from running, where anything does.
async fn why_none_can_run(config: &Config) -> Option<LastError> {
    // Behind a lock on the outbox it would wait for half a minute.
    let report = timeout(LOOK_MAX, doctor::examine(config, OLD_TRANSACTION)).await.ok()?;
    let worst = report.findings.into_iter().find(|finding| finding.level == doctor::Level::Error)?;
    let remedies = std::iter::once(worst.remedy).chain(worst.sql).chain(worst.command);
    Some(LastError {
        code: worst.code.to_owned(),
        message: worst.message,
        remedy: remedies.collect::<Vec<_>>().join("; "),
        at: Timestamp::now().to_string(),
    })
}

async fn look_at_stream(config: &Config) -> Result<(), Failure> {
    let nats = connect::connect(&config.nats.access).await?;
    Stream::named(&nats, &config.nats.stream).await?.look().await?;
    Ok(())
}

fn to_json(status: &Status) -> Result<Value, Failure> {
    serde_json::to_value(status)
        .map_err(|error| Failure::new(Code::Unexpected, error.to_string(), "report it"))
}

/// For a file or a pipe: a line a second.
fn line(status: &Value) -> String {
    let of = |name: &str| shown(name, &status[name]).unwrap_or_else(|| "-".to_owned());
    format!(
        "{} {} {}  published {}  {}/s  lag {}  in flight {}  retained {}  dead letters {}  {}\n",
        Timestamp::now(),
        of("role"),
        of("state"),
        of("published_total"),
        of("published_per_second"),
        of("lag_bytes"),
        of("in_flight_messages"),
        of("retained_wal_bytes"),
        of("dead_letters"),
        of("reason"),
    )
}

/// What to do first; then a line a field. What is not known is left out.
fn human(status: &Value) -> String {
    let mut text = String::new();
    for advice in status["advice"].as_array().into_iter().flatten() {
        let word = |name: &str| advice[name].as_str().unwrap_or_default();
        let _ = writeln!(text, "{}: {}", word("level"), word("message"));
        for remedy in word("remedy").lines() {
            let _ = writeln!(text, "  what to do: {remedy}");
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    for (name, value) in status.as_object().into_iter().flatten() {
        // Told above, and too long for a line.
        if let Some(value) =
            shown(name, value).filter(|_| !["advice", "recent_changes"].contains(&name.as_str()))
        {
            let _ = writeln!(text, "{name:<30} {value}");
        }
    }
    let changes = status["recent_changes"].as_array().filter(|changes| !changes.is_empty());
    for (place, change) in changes.into_iter().flatten().rev().take(8).enumerate() {
        let word = |name: &str| change[name].as_str().unwrap_or_default();
        let title = if place == 0 { "recent changes" } else { "" };
        let times = change["times"].as_u64().filter(|times| *times > 1);
        let times = times.map_or_else(String::new, |times| format!(", {times} times"));
        let _ = writeln!(
            text,
            "{title:<30} {} {} {}: {}{times}",
            word("last_at"),
            word("role"),
            word("state"),
            word("reason")
        );
    }
    text
}

/// A value as a person reads it; none when there is nothing to read.
fn shown(name: &str, value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => (!text.is_empty()).then(|| text.clone()),
        Value::Number(number) if name.ends_with("_bytes") => match number.as_u64() {
            Some(bytes) if bytes >= 1024 => Some(format!("{number} ({})", ByteSize(bytes))),
            _ => Some(number.to_string()),
        },
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(number) => Some(format!("{}", (number * 1e4).round() / 1e4)),
            None => Some(number.to_string()),
        },
        Value::Object(parts) => {
            let parts: Vec<_> = parts
                .iter()
                .filter_map(|(part, value)| Some(format!("{part} {}", shown(part, value)?)))
                .collect();
            (!parts.is_empty()).then(|| parts.join("  "))
        }
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_to_do_stands_first_and_what_is_not_known_is_left_out() {
        let status = json!({
            "role": "waiting", "reason": "NATS is away", "retained_wal_bytes": 2048, "lag_seconds": null,
            "latency_seconds": {"p50": 0.00123456, "p99": null}, "version": "",
            "advice": [{"level": "error", "message": "nothing is being published", "remedy": "start nats-server"}],
            "recent_changes": [{"last_at": "T1", "role": "leader", "state": "stream", "reason": "streaming", "times": 1},
                {"last_at": "T2", "role": "waiting", "state": "waiting", "reason": "NATS is away", "times": 7}],
        });
        let expected = "\
error: nothing is being published
  what to do: start nats-server

latency_seconds                p50 0.0012
reason                         NATS is away
retained_wal_bytes             2048 (2.0 KiB)
role                           waiting
recent changes                 T2 waiting waiting: NATS is away, 7 times
                               T1 leader stream: streaming
";
        assert_eq!(human(&status), expected);
    }

    #[test]
    fn a_line_has_all_that_one_watches() {
        let line =
            line(&json!({"role": "leader", "state": "stream", "published_total": 7, "reason": "streaming",
            "published_per_second": 1999.98765, "dead_letters": 0}));
        assert!(line.contains(
            "leader stream  published 7  1999.9877/s  lag -  in flight -  retained -  dead letters 0  streaming\n"
        ), "{line}");
    }
}
