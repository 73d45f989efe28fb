//! Where a session goes on: from the checkpoint row, the slot and the end of the stream.
//!
//! Each rule closes a way to lose, double or reorder events that an executable model of the protocol
//! found. F is the slot's confirmed_flush_lsn, L the stream's last sequence.
//!
//! | found | then |
//! | --- | --- |
//! | another system, phase or stream; the stream created anew; L before `confirmed_seq` | exit 5 |
//! | F beyond `settled_lsn` (a row of an older timeline: beyond where this server's own begins) | exit 5: someone else moved the slot |
//! | a message or a row of a newer timeline | this server is a former primary: not to be followed |
//! | L before `seq`, or another event stands at `seq` | the stream went back: REWIND to its last message |
//! | otherwise | the messages behind `seq` must be, one by one, the next that the slot sends |

use super::checkpoint::Checkpoint;
use super::history::History;
use super::position::Identity;
use super::resume::{Expected, Resume};
use crate::error::{Code, Failure};
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;

/// What a session knows of the server that it streams from.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its past.
    pub history: History,
    /// The slot's name.
    pub slot: String,
    /// F, read after START.
    pub confirmed: Lsn,
    /// Where START began; 0/0 when the server chose.
    pub start: Lsn,
    /// The end of the WAL, read after START.
    pub wal_end: Lsn,
}

/// Where the stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEnd {
    /// L.
    pub last_seq: u64,
    /// When it was created.
    pub created: Timestamp,
}

/// What stands at a sequence of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Nothing any more: expired, purged, consumed.
    Gone,
    /// A message without a position; its subject.
    Foreign(String),
    /// An event, of whichever pipeline.
    Event(Box<Identity>),
}

/// How a session begins.
#[derive(Debug)]
pub enum Opening {
    /// It streams.
    Stream(Box<Plan>),
    /// The stream went back: read its last messages, then [`rewind`].
    Rewind,
    /// Not now; the next session may.
    Again(Failure),
}

/// Where streaming goes on.
#[derive(Debug)]
pub struct Plan {
    /// What the slot must send before anything is new.
    pub resume: Resume,
    /// The sequence of the last stored event of the settled prefix.
    pub seq: u64,
    /// That event.
    pub last: Option<Identity>,
    /// Messages up to here are judged.
    pub passed_seq: u64,
    /// Settled before the session.
    pub settled_lsn: Lsn,
    /// Events of a history that this server does not have, in the stream.
    pub phantoms: u64,
}

const ADOPT: &str = "postrider init --adopt (it says what is given up)";

/// What can be said before the stream's messages are read.
///
/// # Errors
/// The rules of the first rows of the table.
pub fn judge(row: &Checkpoint, server: &Server, end: StreamEnd) -> Result<Option<Failure>, Failure> {
    let history = &server.history;
    if row.phase != "ready" {
        return Err(Failure::new(
            Code::CheckpointUnfit,
            format!("the checkpoint row of slot `{}` is in phase `{}`", row.slot, row.phase),
            "finish or repeat the command that left it so",
        ));
    }
    if row.system_id != history.system_id {
        return Err(Failure::new(
            Code::OtherSystem,
            format!("system identifier {} is not the checkpoint row's {}", history.system_id, row.system_id),
            ADOPT,
        ));
    }
    if row.stream_created != end.created {
        return Err(Failure::new(
            Code::StreamRecreated,
            format!(
                "stream `{}` was created at {}, the checkpoint row knows one of {}",
                row.stream, end.created, row.stream_created
            ),
            ADOPT,
        ));
    }
    if row.timeline > history.timeline {
        return Ok(Some(stale(history.timeline, row.timeline)));
    }
    if end.last_seq < row.confirmed_seq {
        return Err(Failure::new(
            Code::StreamWentBack,
            format!(
                "stream `{}` ends at sequence {}, but the confirmed LSN relies on {}",
                row.stream, end.last_seq, row.confirmed_seq
            ),
            format!("events lost by the stream are in the outbox table only; {ADOPT}"),
        ));
    }
    let limit = if row.timeline == history.timeline { row.settled_lsn } else { history.own_start() };
    if server.confirmed > limit {
        return Err(Failure::new(
            Code::ConfirmedElsewhere,
            format!(
                "slot `{}` is confirmed up to {}, but only {limit} was settled",
                server.slot, server.confirmed
            ),
            format!(
                "find out who read or advanced the slot: those events are in the outbox table only; {ADOPT}"
            ),
        ));
    }
    let behind = row.last.as_ref().is_none_or(|last| last.position.place.commit_lsn < server.start);
    Ok((server.start > Lsn::ZERO && behind).then(|| {
        Failure::new(Code::SessionTaken, "the checkpoint row went back between reading and taking it", "")
    }))
}

/// Judges the messages: `at_seq` is what stands at `row.seq`, `tail` everything behind it.
///
/// # Errors
/// The stream does not fit to row and slot.
pub fn open(
    row: &Checkpoint,
    server: &Server,
    end: StreamEnd,
    at_seq: &Stored,
    tail: Vec<(u64, Stored)>,
) -> Result<Opening, Failure> {
    if went_back(row, end, at_seq) {
        return Ok(Opening::Rewind);
    }
    let history = &server.history;
    let confirmed = server.confirmed;
    let mut plan = Plan {
        resume: Resume::new(row.last.clone(), confirmed, server.wal_end),
        seq: row.seq,
        last: row.last.clone(),
        passed_seq: row.passed_seq,
        settled_lsn: row.settled_lsn.max(confirmed),
        phantoms: 0,
    };
    let mut expected = Vec::new();
    for (seq, stored) in tail {
        let passed = seq <= row.passed_seq;
        match stored {
            Stored::Gone if passed => {}
            Stored::Gone if row.timeline != history.timeline => {
                return Err(differs(format!(
                    "message {seq} is gone from the stream, and the server changed its timeline since: what it was cannot be told"
                )));
            }
            Stored::Gone => expected.push(Expected { seq, event: None }),
            Stored::Foreign(subject) if !passed => {
                return Err(foreign(
                    &row.stream,
                    seq,
                    &format!("subject `{subject}`, no position of this relay"),
                ));
            }
            Stored::Foreign(_) => {}
            Stored::Event(event)
                if event.position.system_id != history.system_id || event.position.slot != server.slot =>
            {
                if !passed {
                    return Err(foreign(&row.stream, seq, &format!("position {}", event.position)));
                }
            }
            Stored::Event(event) if event.position.timeline > history.timeline => {
                return Ok(Opening::Again(stale(history.timeline, event.position.timeline)));
            }
            Stored::Event(event) if !history.contains(&event.position) => {
                plan.phantoms += 1;
                plan.passed_seq = plan.passed_seq.max(seq);
            }
            // Before F: the row went back by a fail-over, and the slot will not send it again.
            Stored::Event(event) if event.position.place.commit_lsn < confirmed => {
                expected.clear();
                plan.seq = seq;
                plan.resume = Resume::new(Some((*event).clone()), confirmed, server.wal_end);
                plan.last = Some(*event);
            }
            Stored::Event(event) => expected.push(Expected { seq, event: Some(*event) }),
        }
    }
    plan.resume.expect(expected)?;
    Ok(Opening::Stream(Box::new(plan)))
}

fn went_back(row: &Checkpoint, end: StreamEnd, at_seq: &Stored) -> bool {
    let other = match (at_seq, &row.last) {
        (Stored::Event(there), Some(last)) => **there != *last,
        _ => false,
    };
    end.last_seq < row.seq || other
}

/// Looks at the message at `seq`, from the stream's end backwards, until one is an event of this
/// history: the row that the next session begins with. `None`: look at the one before it.
///
/// # Errors
/// The stream's end is not ours, or is gone.
pub fn rewind(
    row: &Checkpoint,
    server: &Server,
    end: StreamEnd,
    seq: u64,
    stored: Stored,
) -> Result<Option<Checkpoint>, Failure> {
    let to = |seq: u64, last: Option<Identity>| Checkpoint {
        seq,
        last,
        settled_lsn: server.confirmed,
        timeline: server.history.timeline,
        confirmed_seq: row.confirmed_seq.min(seq),
        passed_seq: row.passed_seq.min(end.last_seq),
        ..row.clone()
    };
    match stored {
        _ if seq == 0 && row.confirmed_seq == 0 => Ok(Some(to(end.last_seq, None))),
        _ if seq == 0 => Err(Failure::new(
            Code::StreamWentBack,
            format!("stream `{}` holds no event of this history any more", row.stream),
            ADOPT,
        )),
        Stored::Gone => Err(differs(format!(
            "the stream went back, and its message {seq} is gone: what it was cannot be told"
        ))),
        Stored::Foreign(subject) if seq > row.passed_seq => {
            Err(foreign(&row.stream, seq, &format!("subject `{subject}`, no position of this relay")))
        }
        Stored::Foreign(_) => Ok(None),
        Stored::Event(event)
            if event.position.system_id != server.history.system_id || event.position.slot != server.slot =>
        {
            Err(foreign(&row.stream, seq, &format!("position {}", event.position)))
        }
        Stored::Event(event) if server.history.contains(&event.position) => Ok(Some(to(seq, Some(*event)))),
        Stored::Event(_) => Ok(None),
    }
}

/// The stream holds an event of a timeline that this server does not know.
fn stale(own: u32, newer: u32) -> Failure {
    Failure::new(
        Code::StalePrimary,
        format!("the server is on timeline {own}, events of timeline {newer} are known"),
        "point postgres.url at the present primary; shut the former one down",
    )
}

pub(super) fn differs(message: String) -> Failure {
    Failure::new(
        Code::HistoryDiffers,
        message,
        format!(
            "if the server's disk was put back to an earlier state, its new events are in the outbox table only; {ADOPT}"
        ),
    )
}

/// Someone else's message in our stream.
#[must_use]
pub fn foreign(stream: &str, seq: u64, what: &str) -> Failure {
    Failure::new(
        Code::ForeignMessage,
        format!("message {seq} of stream `{stream}` is not this relay's: {what}"),
        format!(
            "give the other writer a stream of its own and let one stream source both \
             (nats stream add ALL --source {stream} --source OTHER); \
             then `postrider init --adopt` goes on behind the message. Do not delete it"
        ),
    )
}
