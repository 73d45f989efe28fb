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
//! | otherwise | the messages behind `seq` must be, one by one, the next that the slot sends, dead letters apart |

use super::checkpoint::Checkpoint;
use super::history::History;
use super::position::{Identity, Place};
use super::resume::{Expected, Resume};
use crate::error::{Code, Failure};
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use std::collections::BTreeSet;

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

/// A dead letter that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownLetter {
    /// Its event's place.
    pub place: Place,
    /// Nobody has resolved it.
    pub open: bool,
}

/// How a session begins.
#[derive(Debug)]
pub enum Opening {
    /// It streams.
    Stream(Box<Plan>),
    /// The stream went back: read its last messages, then [`back_to`](super::rewind::back_to).
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
    /// Dead letters whose events the stream has all the same: it wins.
    pub stored_letters: Vec<Place>,
    /// Open letters behind the last stored event.
    pub letters_in_a_row: usize,
}

pub(super) const RECOVER: &str = "stop the relay; recover publishes the rows that the stream lacks, and the relay goes on behind them (--dry-run shows \
     it first)";

const RECOVERING: &str = "postrider recover --yes";

/// The row is a command's that publishes rows of the table, or was when it was killed.
#[must_use]
pub fn unfinished(row: &Checkpoint) -> Option<Failure> {
    let command = match row.phase.as_str() {
        "ready" => return None,
        "backfill" => "postrider init --backfill",
        _ => "postrider recover",
    };
    let failure = Failure::new(
        Code::CheckpointUnfit,
        format!("the checkpoint row of slot `{}` is in phase `{}`", row.slot, row.phase),
        "wait until that command ends; if it was killed, run it again: it goes on where it was",
    );
    Some(failure.command(command))
}

/// Whether the stream still has what the confirmed LSN relies on.
///
/// # Errors
/// PR0408, PR0409.
pub fn relied_on(row: &Checkpoint, end: StreamEnd) -> Result<(), Failure> {
    recreated(row, end).or_else(|| lost_confirmed(row, end)).map_or(Ok(()), Err)
}

fn recreated(row: &Checkpoint, end: StreamEnd) -> Option<Failure> {
    (row.stream_created != end.created).then(|| {
        let what = format!(
            "stream `{}` was created at {}, the checkpoint row knows one of {}",
            row.stream, end.created, row.stream_created
        );
        Failure::new(Code::StreamRecreated, what, RECOVER).command(RECOVERING)
    })
}

fn lost_confirmed(row: &Checkpoint, end: StreamEnd) -> Option<Failure> {
    (end.last_seq < row.confirmed_seq).then(|| {
        let what = format!(
            "stream `{}` ends at sequence {}, but the confirmed LSN relies on {}",
            row.stream, end.last_seq, row.confirmed_seq
        );
        let remedy = format!("the lost events cannot come from the slot again; {RECOVER}");
        Failure::new(Code::StreamWentBack, what, remedy).command(RECOVERING)
    })
}

/// What can be said before the stream's messages are read.
///
/// # Errors
/// The rules of the first rows of the table.
pub fn judge(row: &Checkpoint, server: &Server, end: StreamEnd) -> Result<Option<Failure>, Failure> {
    let history = &server.history;
    if let Some(failure) = unfinished(row) {
        return Err(failure);
    }
    if row.system_id != history.system_id {
        return Err(Failure::new(
            Code::OtherSystem,
            format!("system identifier {} is not the checkpoint row's {}", history.system_id, row.system_id),
            RECOVER,
        )
        .command(RECOVERING));
    }
    if let Some(failure) = recreated(row, end) {
        return Err(failure);
    }
    if row.timeline > history.timeline {
        return Ok(Some(stale(history.timeline, row.timeline)));
    }
    if let Some(failure) = lost_confirmed(row, end) {
        return Err(failure);
    }
    let limit = if row.timeline == history.timeline { row.settled_lsn } else { history.own_start() };
    if server.confirmed > limit {
        return Err(Failure::new(
            Code::ConfirmedElsewhere,
            format!(
                "slot `{}` is confirmed up to {}, but only {limit} was settled",
                server.slot, server.confirmed
            ),
            format!("find out who read or advanced the slot; {RECOVER}"),
        )
        .command(RECOVERING));
    }
    let behind = row.last.as_ref().is_none_or(|last| last.position.place.commit_lsn < server.start);
    Ok((server.start > Lsn::ZERO && behind).then(|| {
        Failure::new(Code::SessionTaken, "the checkpoint row went back between reading and taking it", "")
    }))
}

/// Judges the messages: `at_seq` is what stands at `row.seq`, `tail` everything behind it, `letters`
/// the dead letters that the slot may send again. All were stored before `gone_before`, where that
/// is known: so what is gone can be told from what was committed since.
///
/// # Errors
/// The stream does not fit to row and slot.
pub fn open(
    row: &Checkpoint,
    server: &Server,
    end: StreamEnd,
    at_seq: &Stored,
    tail: Vec<(u64, Stored)>,
    gone_before: Option<Timestamp>,
    letters: &[KnownLetter],
) -> Result<Opening, Failure> {
    let history = &server.history;
    let newest = tail.iter().filter_map(|(_, stored)| match stored {
        Stored::Event(event) if event.position.system_id == history.system_id => {
            Some(event.position.timeline)
        }
        _ => None,
    });
    if let Some(newer) = newest.max().filter(|timeline| *timeline > history.timeline) {
        return Ok(Opening::Again(stale(history.timeline, newer)));
    }
    if went_back(row, end, at_seq) {
        return Ok(Opening::Rewind);
    }
    let confirmed = server.confirmed;
    let mut plan = Plan {
        resume: Resume::new(row.last.clone(), confirmed, server.wal_end),
        seq: row.seq,
        last: row.last.clone(),
        // Phantoms at the end may be lost like any other message.
        passed_seq: row.passed_seq.min(end.last_seq),
        settled_lsn: row.settled_lsn.max(confirmed),
        phantoms: 0,
        stored_letters: Vec::new(),
        letters_in_a_row: 0,
    };
    let mut passed_over: BTreeSet<_> = letters.iter().map(|letter| letter.place).collect();
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
            Stored::Event(event) if !history.contains(&event.position) => {
                plan.phantoms += 1;
                plan.passed_seq = plan.passed_seq.max(seq);
            }
            Stored::Event(event) => {
                let place = event.position.place;
                if passed_over.remove(&place) {
                    plan.stored_letters.push(place);
                }
                if place.commit_lsn >= confirmed {
                    expected.push(Expected { seq, event: Some(*event) });
                    continue;
                }
                // The row went back by a fail-over, and the slot will not send it again.
                expected.clear();
                plan.seq = seq;
                plan.resume = Resume::new(Some((*event).clone()), confirmed, server.wal_end);
                plan.last = Some(*event);
            }
        }
    }
    let last = match expected.last() {
        Some(Expected { event: None, .. }) => None,
        Some(Expected { event, .. }) => Some(event.as_ref()),
        None => Some(plan.last.as_ref()),
    };
    if let Some(last) = last.map(|event| event.map(|event| event.position.place)) {
        let behind = |letter: &&KnownLetter| letter.open && Some(letter.place) > last;
        plan.letters_in_a_row = letters.iter().filter(behind).count();
    }
    plan.resume.pass_over(passed_over);
    plan.resume.expect(expected, gone_before)?;
    Ok(Opening::Stream(Box::new(plan)))
}

fn went_back(row: &Checkpoint, end: StreamEnd, at_seq: &Stored) -> bool {
    let other = match (at_seq, &row.last) {
        (Stored::Event(there), Some(last)) => !there.is_same_event(last),
        _ => false,
    };
    end.last_seq < row.seq || other
}

/// The stream holds an event of a timeline that this server does not know.
pub(super) fn stale(own: u32, newer: u32) -> Failure {
    Failure::new(
        Code::StalePrimary,
        format!("the server is on timeline {own}, events of timeline {newer} are known"),
        "shut the former primary down, and name the present one in postgres.url: with several hosts the relay tries \
         the next by itself",
    )
}

pub(super) fn differs(message: String) -> Failure {
    Failure::new(Code::HistoryDiffers, message, RECOVER).command(RECOVERING)
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
             then go on behind the message. Do not delete it"
        ),
    )
    .command("postrider recover --accept --yes")
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::checkpoint::Objects;
    use super::super::position::{Place, Position};
    use super::super::resume::{Admit, Seen};
    use super::*;

    pub(in super::super) fn event_of(timeline: u32, lsn: u64) -> Identity {
        let place = Place { commit_lsn: Lsn(lsn), index: 0 };
        let position = Position { system_id: 7, timeline, slot: "s".into(), place };
        Identity { position, commit_time: Timestamp(1), event_id: lsn.to_string() }
    }

    pub(in super::super) fn event(lsn: u64) -> Identity {
        event_of(1, lsn)
    }

    pub(in super::super) fn stored(event: Identity) -> Stored {
        Stored::Event(Box::new(event))
    }

    /// Events 10 at sequence 1 and 20 at 2 are settled and confirmed up to 15.
    pub(in super::super) fn row() -> Checkpoint {
        Checkpoint {
            slot: "s".into(),
            stream: "S".into(),
            stream_created: Timestamp(5),
            system_id: 7,
            timeline: 1,
            objects: Objects { publication: 1, membership: 2, table: 3 },
            phase: "ready".into(),
            session: 9,
            seq: 2,
            last: Some(event(20)),
            passed_seq: 0,
            settled_lsn: Lsn(25),
            confirmed_seq: 1,
        }
    }

    pub(in super::super) fn server() -> Server {
        let history = History::first(7, 1);
        Server { history, slot: "s".into(), confirmed: Lsn(15), start: Lsn(20), wal_end: Lsn(100) }
    }

    pub(in super::super) fn end(last_seq: u64) -> StreamEnd {
        StreamEnd { last_seq, created: Timestamp(5) }
    }

    fn refused(row: &Checkpoint, server: &Server, end: StreamEnd) -> Code {
        judge(row, server, end).unwrap_err().code
    }

    fn plan(row: &Checkpoint, server: &Server, tail: Vec<(u64, Stored)>) -> Plan {
        let end = end(tail.last().map_or(row.seq, |(seq, _)| *seq));
        match open(row, server, end, &stored(event(20)), tail, None, &[]).unwrap() {
            Opening::Stream(plan) => *plan,
            other => panic!("{other:?}"),
        }
    }

    fn code(row: &Checkpoint, server: &Server, tail: Vec<(u64, Stored)>) -> Code {
        let end = end(tail.last().map_or(row.seq, |(seq, _)| *seq));
        open(row, server, end, &stored(event(20)), tail, None, &[]).unwrap_err().code
    }

    fn admit(plan: &mut Plan, event: &Identity) -> Admit {
        let seen = Seen {
            place: event.position.place,
            commit_time: event.commit_time,
            event_id: Some(&event.event_id),
        };
        plan.resume.event(seen).unwrap()
    }

    #[test]
    fn a_row_that_fits_is_not_refused() {
        assert!(judge(&row(), &server(), end(2)).unwrap().is_none());
    }

    #[test]
    fn another_cluster_is_refused() {
        assert_eq!(refused(&Checkpoint { system_id: 8, ..row() }, &server(), end(2)), Code::OtherSystem);
    }

    #[test]
    fn a_row_in_another_phase_is_refused() {
        assert_eq!(
            refused(&Checkpoint { phase: "recover".into(), ..row() }, &server(), end(2)),
            Code::CheckpointUnfit
        );
    }

    #[test]
    fn a_stream_created_anew_is_refused() {
        let anew = StreamEnd { created: Timestamp(6), ..end(2) };
        assert_eq!(refused(&row(), &server(), anew), Code::StreamRecreated);
    }

    #[test]
    fn a_stream_that_ends_before_what_the_slot_relies_on_is_refused() {
        assert!(judge(&row(), &server(), end(1)).is_ok());
        assert_eq!(refused(&row(), &server(), end(0)), Code::StreamWentBack);
    }

    #[test]
    fn a_slot_that_someone_else_moved_is_refused() {
        let moved = |confirmed| Server { confirmed: Lsn(confirmed), ..server() };
        assert!(judge(&row(), &moved(25), end(2)).is_ok());
        assert_eq!(refused(&row(), &moved(26), end(2)), Code::ConfirmedElsewhere);
    }

    #[test]
    fn after_a_promotion_the_slot_may_stand_up_to_where_the_timeline_begins() {
        let promoted = |confirmed| Server {
            history: History::parse(7, 2, "1\t0/1E\tx").unwrap(),
            confirmed: Lsn(confirmed),
            ..server()
        };
        assert!(judge(&row(), &promoted(30), end(2)).is_ok(), "beyond the old row's settled_lsn");
        assert_eq!(refused(&row(), &promoted(31), end(2)), Code::ConfirmedElsewhere);
    }

    #[test]
    fn a_former_primary_is_not_followed() {
        let known = Checkpoint { timeline: 2, ..row() };
        assert_eq!(judge(&known, &server(), end(2)).unwrap().unwrap().code, Code::StalePrimary);
        let newer = vec![(3, stored(event_of(2, 30)))];
        let opening = open(&row(), &server(), end(3), &stored(event(20)), newer, None, &[]).unwrap();
        assert!(matches!(opening, Opening::Again(failure) if failure.code == Code::StalePrimary));
    }

    #[test]
    fn a_row_behind_the_start_is_read_again() {
        let behind = Server { start: Lsn(21), ..server() };
        assert!(judge(&row(), &behind, end(2)).unwrap().is_some());
        let at_it = Server { start: Lsn(20), ..server() };
        assert!(judge(&row(), &at_it, end(2)).unwrap().is_none());
    }

    #[test]
    fn the_messages_behind_the_row_are_accounted_for_before_anything_is_new() {
        let mut plan = plan(&row(), &server(), vec![(3, stored(event(30)))]);
        assert_eq!(admit(&mut plan, &event(20)), Admit::Skip);
        assert_eq!(admit(&mut plan, &event(30)), Admit::Stored(3));
        assert_eq!(admit(&mut plan, &event(40)), Admit::New);
    }

    #[test]
    fn a_message_that_is_gone_is_accounted_for_by_number() {
        let mut plan = plan(&row(), &server(), vec![(3, Stored::Gone)]);
        assert_eq!(admit(&mut plan, &event(20)), Admit::Skip);
        assert_eq!(admit(&mut plan, &event(30)), Admit::Stored(3));
    }

    #[test]
    fn a_message_that_was_judged_and_is_gone_since_is_no_event() {
        let judged = Checkpoint { passed_seq: 3, ..row() };
        let mut plan = plan(&judged, &server(), vec![(3, Stored::Gone)]);
        assert_eq!(admit(&mut plan, &event(20)), Admit::Skip);
        assert_eq!(admit(&mut plan, &event(30)), Admit::New);
    }

    #[test]
    fn another_clusters_event_says_nothing_of_our_timeline() {
        let newer = event_of(2, 30);
        let other = Identity { position: Position { system_id: 8, ..newer.position.clone() }, ..newer };
        assert_eq!(code(&row(), &server(), vec![(3, stored(other))]), Code::ForeignMessage);
    }

    #[test]
    fn a_foreign_message_is_refused_unless_it_was_passed_over() {
        for other in [
            Stored::Foreign("x".into()),
            stored(Identity { position: Position { slot: "t".into(), ..event(30).position }, ..event(30) }),
            stored(Identity { position: Position { system_id: 8, ..event(30).position }, ..event(30) }),
        ] {
            assert_eq!(code(&row(), &server(), vec![(3, other.clone())]), Code::ForeignMessage);
            let accepted = Checkpoint { passed_seq: 3, ..row() };
            let mut plan = plan(&accepted, &server(), vec![(3, other)]);
            assert_eq!(admit(&mut plan, &event(20)), Admit::Skip);
            assert_eq!(admit(&mut plan, &event(30)), Admit::New);
        }
    }

    #[test]
    fn an_event_of_a_history_that_was_left_is_a_phantom() {
        let promoted = Server { history: History::parse(7, 2, "1\t0/1E\tx").unwrap(), ..server() };
        let plan = plan(&row(), &promoted, vec![(3, stored(event(30)))]);
        assert_eq!((plan.phantoms, plan.passed_seq, plan.resume.outstanding()), (1, 3, 1));
    }

    #[test]
    fn a_gap_behind_a_promotion_cannot_be_told() {
        let promoted = Server { history: History::parse(7, 2, "1\t0/1E\tx").unwrap(), ..server() };
        assert_eq!(code(&row(), &promoted, vec![(3, Stored::Gone)]), Code::HistoryDiffers);
    }

    #[test]
    fn a_message_before_the_slot_is_taken_as_it_is() {
        let beyond = Server { confirmed: Lsn(35), start: Lsn::ZERO, ..server() };
        let plan = plan(&row(), &beyond, vec![(3, stored(event(30)))]);
        assert!(plan.resume.is_done());
        assert_eq!((plan.seq, plan.last), (3, Some(event(30))));
    }

    #[test]
    fn an_event_beyond_the_wal_is_another_history() {
        assert_eq!(code(&row(), &server(), vec![(3, stored(event(101)))]), Code::HistoryDiffers);
    }

    #[test]
    fn a_shorter_stream_or_another_event_at_the_row_is_rewound() {
        let short = open(&row(), &server(), end(1), &Stored::Gone, Vec::new(), None, &[]).unwrap();
        assert!(matches!(short, Opening::Rewind));
        let other = open(&row(), &server(), end(2), &stored(event(21)), Vec::new(), None, &[]).unwrap();
        assert!(matches!(other, Opening::Rewind));
        let gone = open(&row(), &server(), end(2), &Stored::Gone, Vec::new(), None, &[]).unwrap();
        assert!(matches!(gone, Opening::Stream(_)), "purged, not rolled back");
    }

    #[test]
    fn the_same_event_under_another_timeline_or_with_a_trimmed_id_is_no_other_event() {
        let promoted = Server { history: History::parse(7, 2, "1\t0/1E\tx").unwrap(), ..server() };
        let known = Checkpoint { timeline: 2, last: Some(event_of(2, 20)), ..row() };
        let opening =
            open(&known, &promoted, end(2), &stored(event_of(1, 20)), Vec::new(), None, &[]).unwrap();
        assert!(matches!(opening, Opening::Stream(_)), "{opening:?}");
        let padded = Checkpoint { last: Some(Identity { event_id: "20  ".into(), ..event(20) }), ..row() };
        let opening = open(&padded, &server(), end(2), &stored(event(20)), Vec::new(), None, &[]).unwrap();
        assert!(matches!(opening, Opening::Stream(_)), "{opening:?}");
    }

    #[test]
    fn what_was_passed_over_and_is_lost_is_passed_over_no_more() {
        let row = Checkpoint { passed_seq: 5, ..row() };
        assert_eq!(plan(&row, &server(), vec![(3, stored(event(30)))]).passed_seq, 3);
    }

    #[test]
    fn a_letter_whose_event_is_stored_all_the_same_is_void() {
        let letters =
            [event(30), event(40)].map(|event| KnownLetter { place: event.position.place, open: true });
        let tail = vec![(3, stored(event(30)))];
        let Opening::Stream(mut plan) =
            open(&row(), &server(), end(3), &stored(event(20)), tail, None, &letters).unwrap()
        else {
            panic!("it streams")
        };
        assert_eq!(
            (plan.stored_letters.as_slice(), plan.letters_in_a_row),
            (&[event(30).position.place][..], 1)
        );
        let admitted = [20, 30, 40, 50].map(|lsn| admit(&mut plan, &event(lsn)));
        assert_eq!(admitted, [Admit::Skip, Admit::Stored(3), Admit::Lettered, Admit::New]);
    }

    #[test]
    fn open_letters_behind_the_last_stored_event_are_in_a_row() {
        let letter = |lsn, open| KnownLetter { place: event(lsn).position.place, open };
        let letters = [letter(25, true), letter(40, true), letter(50, false), letter(60, true)];
        let tail = vec![(3, stored(event(30)))];
        let opening = open(&row(), &server(), end(3), &stored(event(20)), tail, None, &letters).unwrap();
        let Opening::Stream(plan) = opening else { panic!("{opening:?}") };
        assert_eq!(plan.letters_in_a_row, 2);
    }
}
