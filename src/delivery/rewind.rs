//! REWIND: the stream went back, and its lost events are to be sent again onto the same sequences.

use super::checkpoint::Checkpoint;
use super::opening::{RECOVER, Server, Stored, StreamEnd, differs, foreign, stale};
use super::position::Identity;
use crate::error::{Code, Failure};

/// Looks at the message at `seq`, from the stream's end backwards, until one is an event of this
/// history: the row that the next session begins with. `None`: look at the one before it.
///
/// # Errors
/// The stream's end is not ours, or is gone.
pub fn back_to(
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
        Stored::Event(event) if event.position.timeline > server.history.timeline => {
            Err(stale(server.history.timeline, event.position.timeline))
        }
        _ if seq == 0 && row.confirmed_seq == 0 => Ok(Some(to(end.last_seq, None))),
        // What was judged is all there was when the slot began.
        _ if row.last.is_none() && seq > 0 && seq <= row.passed_seq => Ok(Some(to(end.last_seq, None))),
        _ if seq == 0 => Err(Failure::new(
            Code::StreamWentBack,
            format!("stream `{}` holds no event of this history any more", row.stream),
            RECOVER,
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
            match seq > row.passed_seq {
                true => Err(foreign(&row.stream, seq, &format!("position {}", event.position))),
                false => Ok(None),
            }
        }
        Stored::Event(event) if server.history.contains(&event.position) => Ok(Some(to(seq, Some(*event)))),
        Stored::Event(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::History;
    use super::super::opening::tests::{end, event, event_of, row, server, stored};
    use super::super::position::Position;
    use super::*;
    use crate::postgres::lsn::Lsn;

    #[test]
    fn a_rewind_goes_to_the_last_message_of_this_history() {
        let back = back_to(&row(), &server(), end(1), 1, stored(event(10))).unwrap().unwrap();
        assert_eq!(
            (back.seq, back.last, back.settled_lsn, back.confirmed_seq),
            (1, Some(event(10)), Lsn(15), 1)
        );
    }

    #[test]
    fn a_rewind_claims_nothing_behind_its_message_and_names_the_present_timeline() {
        let row = Checkpoint { passed_seq: 9, confirmed_seq: 2, ..row() };
        let history = History::parse(7, 2, "1\t0/50\tpromoted\n").unwrap();
        let promoted = Server { history, ..server() };
        let back = back_to(&row, &promoted, end(3), 1, stored(event(10))).unwrap().unwrap();
        assert_eq!((back.timeline, back.seq, back.confirmed_seq, back.passed_seq), (2, 1, 1, 3));
    }

    #[test]
    fn a_rewind_of_an_emptied_stream_begins_at_the_slot() {
        let row = Checkpoint { confirmed_seq: 0, ..row() };
        let back = back_to(&row, &server(), end(0), 0, Stored::Gone).unwrap().unwrap();
        assert_eq!((back.seq, back.last, back.settled_lsn), (0, None, Lsn(15)));
    }

    #[test]
    fn a_rewind_onto_a_message_that_is_gone_or_foreign_is_refused() {
        let nothing_relied_on = Checkpoint { confirmed_seq: 0, ..row() };
        for row in [row(), nothing_relied_on] {
            let to = |stored| back_to(&row, &server(), end(1), 1, stored).unwrap_err().code;
            assert_eq!(to(Stored::Gone), Code::HistoryDiffers);
            assert_eq!(to(Stored::Foreign("x".into())), Code::ForeignMessage);
            let of_slot = Position { slot: "t".into(), ..event(10).position };
            assert_eq!(to(stored(Identity { position: of_slot, ..event(10) })), Code::ForeignMessage);
            let of_system = Position { system_id: 8, ..event(10).position };
            assert_eq!(to(stored(Identity { position: of_system, ..event(10) })), Code::ForeignMessage);
        }
    }

    #[test]
    fn a_rewind_looks_further_back_from_what_was_judged_and_from_phantoms() {
        let judged = Checkpoint { passed_seq: 1, ..row() };
        let foreign = back_to(&judged, &server(), end(1), 1, Stored::Foreign("x".into())).unwrap();
        assert_eq!(foreign, None);
        let promoted = Server { history: History::parse(7, 2, "1\t0/9\tx").unwrap(), ..server() };
        assert_eq!(back_to(&row(), &promoted, end(1), 1, stored(event(10))).unwrap(), None);
    }

    #[test]
    fn a_rewind_by_a_former_primary_is_refused() {
        let newer = stored(event_of(2, 10));
        assert_eq!(back_to(&row(), &server(), end(1), 1, newer).unwrap_err().code, Code::StalePrimary);
    }

    #[test]
    fn a_rewind_that_finds_no_event_of_this_history_though_some_were_confirmed_is_refused() {
        let none = back_to(&row(), &server(), end(1), 0, Stored::Gone);
        assert_eq!(none.unwrap_err().code, Code::StreamWentBack);
    }
}
