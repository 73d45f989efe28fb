//! What is done beside the path of an event, once a second: look at the publication, look at the
//! stream, write the row. One at a time, and the pump goes on meanwhile.

use super::sides::{Base, Stream};
use crate::delivery::checkpoint::Objects;
use crate::delivery::confirm::Write;
use crate::delivery::opening::StreamEnd;
use crate::delivery::position::Place;
use crate::error::{Code, Failure};
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{Slot, TableSize};
use crate::state::dead_letter::Owner;
use crate::state::obstacles::Obstacles;

/// What to do this time.
pub(super) struct Plan {
    /// Look at the publication, which must still be made of these, and at the letters.
    pub(super) check: Option<Check>,
    /// Look at the stream.
    pub(super) look: bool,
    /// Write the row, after looking at the stream where its `confirmed_seq` rises.
    pub(super) write: Option<Write>,
    /// Ask what the walsender waits for.
    pub(super) ask: bool,
}

/// What a check needs.
pub(super) struct Check {
    pub(super) objects: Objects,
    pub(super) owner: Owner,
    pub(super) id_column: String,
    /// Letters whose events the stream has all the same.
    pub(super) void: Vec<Place>,
    /// Also look at what keeps rows from being published.
    pub(super) obstacles: bool,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Done {
    pub(super) checked: Option<Checked>,
    /// The stream's end. None: nobody answered, or it was not asked.
    pub(super) looked: Option<StreamEnd>,
    /// Why nobody answered.
    pub(super) silent: Option<Failure>,
    /// The row, committed.
    pub(super) written: Option<Write>,
    /// What the walsender waits for.
    pub(super) waits_for: Option<String>,
}

/// What a check found.
pub(super) struct Checked {
    /// The WAL's end before the publication was seen whole.
    pub(super) lsn: Lsn,
    /// The slot after.
    pub(super) slot: Slot,
    pub(super) open_letters: u64,
    pub(super) outbox: TableSize,
    /// None: not looked at this time.
    pub(super) obstacles: Option<Obstacles>,
}

/// Does what `plan` says. The row is not written when the stream could not be looked at or ends
/// before `settled`: it would state what is no longer so.
pub(super) async fn keep(
    base: impl Base,
    stream: impl Stream,
    plan: Plan,
    settled: StreamEnd,
) -> Result<Done, Failure> {
    let mut done = Done::default();
    if plan.ask {
        done.waits_for = base.walsender_waits_for().await?;
    }
    if let Some(Check { objects, owner, id_column, void, obstacles }) = plan.check {
        let (lsn, slot) = base.check(objects).await?;
        base.void_letters(&owner, &void).await?;
        let open_letters = base.tend_letters(&owner, &id_column).await?;
        let outbox = base.outbox_size().await?;
        let obstacles = if obstacles { Some(base.obstacles().await?) } else { None };
        done.checked = Some(Checked { lsn, slot, open_letters, outbox, obstacles });
    }
    if plan.look {
        match stream.look().await {
            Ok(look) => done.looked = Some(look.end),
            Err(failure) => {
                done.silent = Some(failure);
                return Ok(done);
            }
        }
        let fits = |end: StreamEnd| end.created == settled.created && end.last_seq >= settled.last_seq;
        if !done.looked.is_some_and(fits) {
            return Ok(done);
        }
    }
    if let Some(write) = plan.write {
        if !base.write(&write.row).await? {
            return Err(taken());
        }
        done.written = Some(write);
    }
    Ok(done)
}

/// Another session took the row, or it is gone.
pub(super) fn taken() -> Failure {
    Failure::new(
        Code::SessionTaken,
        "the checkpoint row is another session's now",
        "none is needed: this relay stands by",
    )
}
