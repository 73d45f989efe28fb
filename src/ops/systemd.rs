//! Tells systemd what `run` is at, by sd_notify(3); elsewhere it is silent.
//!
//! | message | when |
//! | --- | --- |
//! | `READY=1` | the relay streams, stands by, or waits for a server: it does what it can. What ends it at its start (exit 2 to 5) comes before, so that `systemctl start` fails |
//! | `EXTEND_TIMEOUT_USEC` | before that, while the loop turns: a slow start is no hung one |
//! | `WATCHDOG=1` | after that, while the loop turns, by the same [`Pulse`] that `/healthz` goes by. An outage of Postgres or NATS is none of the loop's |
//! | `STATUS=` | role, state and reason, when they change |
//! | `STOPPING=1` | at the first SIGTERM or SIGINT |
//!
//! A thread of its own looks at the board, so that nothing here can slow the pump. Not the crate sd-notify:
//! it knows no abstract sockets, waits where the socket is full, and takes line breaks as they come.

use super::http::Pulse;
use super::status::{Board, Role, Status};
use crate::config::Environment;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// What changed is told so soon.
const LOOK_APART: Duration = Duration::from_millis(200);

/// A start that hangs ends so long after the loop's last sign.
const START_EXTENDED: Duration = Duration::from_secs(60);

const EXTEND_APART: Duration = Duration::from_secs(10);

/// Signs of life come so often within the watchdog's time: one may be late, or lost.
const SIGNS: u32 = 4;

/// The way to whoever started the process.
#[derive(Debug, Clone)]
pub struct Systemd {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// As `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say.
    #[must_use]
    pub fn of(environment: &Environment) -> Systemd {
        let socket = environment.get("NOTIFY_SOCKET").and_then(|name| {
            connect(name)
                .inspect_err(|error| warn!(socket = name, %error, "systemd is not told how it goes"))
                .ok()
        });
        let ours = environment.get("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = environment.get("WATCHDOG_USEC").filter(|_| ours).and_then(|text| text.parse().ok());
        Systemd { socket: socket.map(Arc::new), watchdog: watchdog.map(Duration::from_micros) }
    }

    /// Tells what there is to tell, until the process ends.
    pub fn watch(&self, board: Board, pulse: Pulse) {
        if self.socket.is_none() {
            return;
        }
        let systemd = self.clone();
        let spawned = std::thread::Builder::new().name("systemd".to_owned()).spawn(move || {
            let mut told = Told::default();
            let apart = systemd.watchdog.map_or(LOOK_APART, |watchdog| LOOK_APART.min(watchdog / SIGNS));
            loop {
                let turns = pulse.stuck_for().is_none();
                let (text, after) = told.next(&board.read(), turns, systemd.watchdog, Instant::now());
                if text.is_empty() || systemd.say(&text) {
                    told = after;
                }
                std::thread::sleep(apart);
            }
        });
        if let Err(error) = spawned {
            warn!(%error, "systemd is not told how it goes");
        }
    }

    /// The process was asked to end.
    pub fn stopping(&self) {
        self.say("STOPPING=1\n");
    }

    /// The last word: what `systemctl status` shows of a relay that has ended.
    pub fn ended(&self, status: &Status) {
        self.say(&format!("STATUS={}\n", words(status)));
    }

    /// Whether it is on its way. A full socket is tried again at the next look.
    fn say(&self, text: &str) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.send(text.as_bytes()).is_ok())
    }
}

fn connect(name: &str) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// What was told.
#[derive(Debug, Clone, Default)]
struct Told {
    ready: bool,
    words: String,
    sign: Option<Instant>,
}

impl Told {
    /// What is to be told now, and what will have been told then.
    fn next(&self, status: &Status, turns: bool, watchdog: Option<Duration>, now: Instant) -> (String, Told) {
        let (mut text, mut told) = (String::new(), self.clone());
        if !told.ready && works(status) {
            told.ready = true;
            text.push_str("READY=1\n");
        }
        let words = words(status);
        if told.words != words {
            text += &format!("STATUS={words}\n");
            told.words = words;
        }
        let sign = match watchdog {
            _ if !told.ready => {
                Some((EXTEND_APART, format!("EXTEND_TIMEOUT_USEC={}\n", START_EXTENDED.as_micros())))
            }
            Some(watchdog) => Some((watchdog / SIGNS, "WATCHDOG=1\n".to_owned())),
            None => None,
        };
        if let Some((apart, sign)) = sign.filter(|_| turns)
            && self.sign.is_none_or(|last| now.saturating_duration_since(last) >= apart)
        {
            text += &sign;
            told.sign = Some(now);
        }
        (text, told)
    }
}

/// Streams, stands by, or waits for a server: an error that is kept is one that did not end the process.
fn works(status: &Status) -> bool {
    status.role != Role::Halted && (status.is_ready(true) || status.last_error.is_some())
}

/// On one line, whatever a server said.
fn words(status: &Status) -> String {
    let words = format!("{} {}: {}", status.role.as_str(), status.state.as_str(), status.reason);
    words.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Code, Failure};
    use crate::ops::status::State;

    const WATCHDOG: Option<Duration> = Some(Duration::from_secs(8));

    fn streaming() -> Status {
        Status {
            role: Role::Leader,
            state: State::Stream,
            reason: "streaming".to_owned(),
            ..Status::default()
        }
    }

    #[test]
    fn a_relay_that_streams_is_ready_once_and_its_words_are_told_when_they_change() {
        let (text, told) = Told::default().next(&streaming(), true, None, Instant::now());
        assert_eq!(text, "READY=1\nSTATUS=leader stream: streaming\n");
        let (text, told) = told.next(&streaming(), true, None, Instant::now());
        assert_eq!(text, "");
        let drained = Status { state: State::Drain, reason: "gone\nREADY=1".to_owned(), ..streaming() };
        assert_eq!(told.next(&drained, true, None, Instant::now()).0, "STATUS=leader drain: gone READY=1\n");
    }

    #[test]
    fn a_start_that_looks_at_its_servers_is_not_ready_and_is_given_time_while_the_loop_turns() {
        let starting = Status { state: State::Discover, ..Status::default() };
        let (text, told) = Told::default().next(&starting, true, WATCHDOG, Instant::now());
        assert_eq!(text, "STATUS=waiting discover: \nEXTEND_TIMEOUT_USEC=60000000\n");
        let later = Instant::now() + EXTEND_APART;
        assert_eq!(told.next(&starting, false, WATCHDOG, later).0, "");
        assert_eq!(told.next(&starting, true, WATCHDOG, later).0, "EXTEND_TIMEOUT_USEC=60000000\n");
    }

    #[test]
    fn a_standby_and_a_relay_that_waits_for_a_server_are_ready_and_one_that_halts_is_not() {
        let failure = Failure::new(Code::NatsUnreachable, "NATS is away", "start it");
        let waiting = Status { last_error: Some((&failure).into()), ..Status::default() };
        assert!(works(&waiting));
        assert!(works(&Status { role: Role::Standby, ..Status::default() }));
        assert!(!works(&Status { role: Role::Halted, ..waiting }));
        assert!(!works(&Status::default()));
    }

    #[test]
    fn the_watchdog_is_fed_in_time_and_only_while_the_loop_turns() {
        let began = Instant::now();
        let (text, told) = Told::default().next(&streaming(), true, WATCHDOG, began);
        assert!(text.ends_with("WATCHDOG=1\n"), "{text}");
        assert_eq!(told.next(&streaming(), true, WATCHDOG, began + Duration::from_secs(1)).0, "");
        let due = began + Duration::from_secs(2);
        assert_eq!(told.next(&streaming(), true, WATCHDOG, due).0, "WATCHDOG=1\n");
        assert_eq!(told.next(&streaming(), false, WATCHDOG, due).0, "");
    }
}
