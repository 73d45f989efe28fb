//! What is there before anything is made, and what follows from it.

use crate::config::Config;
use crate::delivery::checkpoint::{Checkpoint, Objects};
use crate::delivery::opening::{Stored, foreign};
use crate::error::{Code, Failure};
use crate::nats::stream::{Look, Stream};
use crate::postgres::preflight::{Slot, System};
use crate::relay::preflight;

/// What is there before anything is made.
pub(super) struct Before {
    pub(super) slot: Option<Slot>,
    pub(super) row: Option<Checkpoint>,
    pub(super) stream: Option<Look>,
}

pub(super) enum Next {
    Nothing,
    /// Rows that are there are published, and all is made on the way.
    Backfill,
    Make {
        given_up: Vec<String>,
    },
    Refuse(Box<Failure>),
}

impl Before {
    /// Nothing is to be made, or only with a look at what was lost.
    pub(super) fn is_ready(&self) -> bool {
        self.row.as_ref().is_some_and(|row| row.phase == "ready")
    }

    pub(super) fn plan(&self, adopt: bool, config: &Config, objects: Objects, system_id: u64) -> Next {
        let slot = &config.postgres.slot;
        let refuse =
            |code, message: String, remedy: &str| Next::Refuse(Box::new(Failure::new(code, message, remedy)));
        let empty = self.stream.as_ref().is_none_or(|look| look.messages == 0);
        let unused = self.stream.as_ref().is_none_or(|look| look.end.last_seq == 0);
        let whole = self.row.as_ref().zip(self.stream.as_ref()).is_some_and(|(row, look)| {
            row.stream == config.nats.stream
                && row.stream_created == look.end.created
                && row.objects == objects
                && row.system_id == system_id
        });
        match (&self.slot, &self.row) {
            (Some(_), Some(_)) if whole && !adopt => Next::Nothing,
            // A new slot sends new rows only.
            (None, None) if empty => Next::Make { given_up: Vec::new() },
            // An init that was killed half-way: nothing was ever published.
            (Some(_), None) if unused => Next::Make { given_up: Vec::new() },
            (None, Some(_)) if !adopt => Next::Refuse(Box::new(preflight::missing_slot(slot, true))),
            (Some(_), None) if !adopt => refuse(
                Code::CheckpointMissing,
                format!("slot `{slot}` exists and stream `{}` has been written to, but the checkpoint row is missing", config.nats.stream),
                "postrider init --adopt goes on from where the slot stands",
            ),
            (Some(_), Some(_)) if !adopt => refuse(
                Code::CheckpointUnfit,
                format!("the checkpoint row of slot `{slot}` knows another stream, publication, table or server"),
                "if that was meant: postrider init --adopt (it says what is given up)",
            ),
            (None, None) if !adopt => Next::Make { given_up: Vec::new() },
            (Some(_), Some(row)) if row.system_id != system_id => Next::Make {
                given_up: vec![
                    "that nothing is stored twice: rows behind the slot's confirmed LSN are published again if they are in the stream already"
                        .to_owned(),
                ],
            },
            (Some(_), Some(_)) => Next::Make {
                given_up: vec![
                    "messages that stand in the stream now and are not this relay's are passed over".to_owned(),
                    "what the stream lost, and rows written while the publication did not have the table, stay unpublished".to_owned(),
                ],
            },
            (Some(_), None) => Next::Make {
                given_up: vec![
                    "that nothing is stored twice: rows behind the slot's confirmed LSN are published again if they are in the stream already".to_owned(),
                ],
            },
            (None, _) => Next::Make {
                given_up: vec![
                    "rows committed before now and not in the stream: they stay in the outbox table, unpublished".to_owned(),
                ],
            },
        }
    }
}

/// A stream that holds messages is taken only with `--adopt`.
pub(super) async fn judge_messages(
    adopt: bool,
    stream: &Stream,
    before: &Before,
    system: &System,
    config: &Config,
) -> Result<(), Failure> {
    let Some(look) = before.stream.as_ref().filter(|look| look.messages > 0 && !adopt) else {
        return Ok(());
    };
    let last = look.end.last_seq;
    Err(match stream.message(last).await? {
        Stored::Event(event)
            if event.position.system_id == system.id && event.position.slot == config.postgres.slot =>
        {
            preflight::missing_slot(&config.postgres.slot, true)
        }
        Stored::Event(event) => foreign(stream.name(), last, &format!("position {}", event.position)),
        Stored::Foreign(subject) => foreign(stream.name(), last, &format!("subject `{subject}`")),
        Stored::Gone => foreign(stream.name(), last, "it is gone"),
    })
}
