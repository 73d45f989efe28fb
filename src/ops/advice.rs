//! What a person should do, in words; the same on the page, in `/status` and in `postrider status`.

use super::forecast::{self, Outlook};
use super::obstacles;
use super::status::{Role, State, Status};
use crate::error::Code;
use bytesize::ByteSize;
use serde::Serialize;
use std::time::Duration;

/// So little of what the slot may retain is left: it is time to act.
const SAFE_SHARE_MIN: u64 = 10;

/// A slot that is lost sooner is worth a warning.
pub const LOSS_WARNED: Duration = Duration::from_secs(3600);

/// A slot that is lost sooner leaves no time for anything else.
const LOSS_NEAR: Duration = Duration::from_secs(600);

/// How urgent it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is published, or the slot is gone.
    Error,
    /// Something must be done soon.
    Warning,
    /// It is as it should be; this says why.
    Note,
}

/// What is so, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// See [`Level`].
    pub level: Level,
    /// Its place in the catalogue, where it has one.
    pub code: Option<String>,
    /// What is so, with its code.
    pub message: String,
    /// What to do; empty where nothing is.
    pub remedy: String,
}

impl Advice {
    fn new(level: Level, message: impl Into<String>, remedy: impl Into<String>) -> Advice {
        Advice { level, code: None, message: message.into(), remedy: remedy.into() }
    }

    fn coded(level: Level, code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Advice {
        let message = format!("{} ({code})", message.into());
        Advice { code: Some(code.to_owned()), ..Advice::new(level, message, remedy) }
    }
}

/// All that is to be said, the most urgent first.
#[must_use]
pub fn of(status: &Status) -> Vec<Advice> {
    let standstill = standstill(status);
    // What stands still for want of the slot says so already.
    let is_said =
        |slot: &Advice| standstill.as_ref().is_some_and(|it| it.code.is_some() && it.code == slot.code);
    let slot = slot(status).filter(|slot| !is_said(slot));
    let mut all: Vec<_> = [standstill, slot, letters(status)].into_iter().flatten().collect();
    let obstacles = obstacles::of(status).into_iter();
    all.extend(
        obstacles.map(|found| Advice::coded(found.level, found.code.as_str(), found.message, found.remedy)),
    );
    all.extend([held_back(status), standby(status)].into_iter().flatten());
    all.sort_by_key(|advice| advice.level);
    all
}

/// Why nothing is published.
fn standstill(status: &Status) -> Option<Advice> {
    let streams = status.role == Role::Leader && status.state == State::Stream;
    let error = status.last_error.as_ref();
    // It is kept after it has passed.
    let error = error.filter(|error| {
        status.role == Role::Halted || error.message == status.reason || status.state == State::Discover
    })?;
    if streams || status.role == Role::Standby {
        return None;
    }
    let what = match status.role {
        Role::Halted => "the relay has halted",
        _ => "nothing is being published",
    };
    let message = format!("{what}: {}", error.message);
    Some(Advice::coded(Level::Error, &error.code, message, error.remedy.clone()))
}

/// What becomes of the slot, or became.
#[must_use]
pub fn slot(status: &Status) -> Option<Advice> {
    let recover = "postrider recover: it publishes, once, what the stream lacks";
    if status.slot_is_missing {
        let message = format!(
            "slot `{}` does not exist: what was not published is in the outbox table only",
            status.slot
        );
        return Some(Advice::coded(Level::Error, Code::SlotMissing.as_str(), message, recover));
    }
    let retained = status.retained_wal_bytes.unwrap_or(0);
    match (status.wal_status.as_deref(), status.safe_wal_bytes) {
        (Some("lost"), _) => Some(Advice::new(
            Level::Error,
            "the slot is lost: what was not published is in the outbox table only",
            recover,
        )),
        (Some("unreserved"), _) => Some(Advice::coded(
            Level::Error,
            Code::OutageLosesSlot.as_str(),
            "the slot is about to be lost: Postgres removes its WAL at the next checkpoint",
            keeping(status),
        )),
        (_, Some(safe)) => {
            let safe = u64::try_from(safe).unwrap_or(0);
            let lost = match status.outlook {
                Outlook::Lost(after) if after < LOSS_WARNED => Some(after),
                _ => None,
            };
            let nearly = safe < safe.saturating_add(retained) / SAFE_SHARE_MIN;
            let (level, message) = match lost {
                Some(after) => (
                    if after < LOSS_NEAR { Level::Error } else { Level::Warning },
                    format!(
                        "at the present {} of WAL the slot is lost in {}",
                        present_rate(status),
                        humantime::format_duration(Duration::from_secs(after.as_secs()))
                    ),
                ),
                None if nearly => (
                    Level::Warning,
                    format!(
                        "the slot keeps {} of WAL and is in danger after {} more",
                        ByteSize(retained),
                        ByteSize(safe)
                    ),
                ),
                None => return None,
            };
            Some(Advice::coded(level, Code::OutageLosesSlot.as_str(), message, keeping(status)))
        }
        (_, None) if status.outlook == Outlook::FillsDisk => Some(Advice::coded(
            Level::Warning,
            Code::OutageFillsDisk.as_str(),
            format!(
                "nothing limits what the slot keeps: Postgres's disk fills by {} of WAL, {} up to now",
                present_rate(status),
                ByteSize(retained)
            ),
            in_order(&[
                MEND,
                "watch the disk; a limit costs the slot instead of the database, once it is reached: ALTER SYSTEM SET \
                 max_slot_wal_keep_size = '…'; SELECT pg_reload_conf();",
                KEEP,
            ]),
        )),
        _ => None,
    }
}

fn present_rate(status: &Status) -> String {
    forecast::per_second(status.wal_bytes_per_second.unwrap_or(0.0))
}

const MEND: &str = "mend what keeps the relay from publishing: NATS first, if it is away";
const KEEP: &str = "do not drop the slot: it has what was not published. Only once it is lost: postrider recover, \
    which publishes what the stream lacks";

/// How the slot is kept.
fn keeping(status: &Status) -> String {
    let retained = status.retained_wal_bytes.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(0);
    let limit = retained.saturating_add(status.safe_wal_bytes.unwrap_or(0));
    let raise = format!(
        "gain time, if the disk has room: ALTER SYSTEM SET max_slot_wal_keep_size = '{}'; SELECT pg_reload_conf();",
        forecast::enough_wal(limit, retained)
    );
    let first = match status.role {
        Role::Leader => "end transactions that have been open for long: postrider doctor names them",
        Role::Standby => "look at the relay that holds the slot: postrider status there",
        Role::Waiting | Role::Halted => MEND,
    };
    let less = if status.hold_back_seconds > 0.0 {
        "write less meanwhile (bulk jobs, REINDEX, VACUUM FULL), and have NATS sync more often, which makes the \
         hold-back shorter: jetstream { sync_interval: 1s }, then nats.sync_interval = \"1s\""
    } else {
        "write less meanwhile: bulk jobs, REINDEX, VACUUM FULL"
    };
    in_order(&[first, &raise, less, KEEP])
}

fn in_order(steps: &[&str]) -> String {
    let steps: Vec<_> = steps.iter().zip(1..).map(|(step, number)| format!("{number}. {step}")).collect();
    steps.join("\n")
}

fn letters(status: &Status) -> Option<Advice> {
    let message = match status.dead_letters {
        None | Some(0) => return None,
        Some(1) => "1 dead letter is open: an event that is not in the stream".to_owned(),
        Some(open) => format!("{open} dead letters are open: events that are not in the stream"),
    };
    let remedy =
        "postrider dlq list says why; mend the cause, then postrider dlq replay --all (or drop them)";
    Some(match &status.obstacles.newest_letter {
        Some((code, error)) => {
            Advice::coded(Level::Warning, code, format!("{message}; the newest: {error}"), remedy)
        }
        None => Advice::new(Level::Warning, message, remedy),
    })
}

/// Why published and confirmed differ.
fn held_back(status: &Status) -> Option<Advice> {
    let (settled, confirmed) = status.settled_lsn.as_ref().zip(status.confirmed_lsn.as_ref())?;
    let bytes = status.held_back_bytes.filter(|bytes| *bytes > 0)?;
    if status.role != Role::Leader || status.hold_back_seconds <= 0.0 {
        return None;
    }
    let message = format!(
        "published up to {settled}, confirmed up to {confirmed}: Postgres keeps these {} until the hold-back of {} s \
         has passed, so that a power failure of NATS loses nothing",
        ByteSize(bytes),
        status.hold_back_seconds
    );
    Some(Advice::new(Level::Note, message, ""))
}

fn standby(status: &Status) -> Option<Advice> {
    (status.role == Role::Standby && status.obstacles.stranger.is_none()).then(|| {
        Advice::new(
            Level::Note,
            format!("another relay publishes; this one takes over slot `{}` when it ends", status.slot),
            "",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::status::LastError;
    use super::*;

    fn levels(status: &Status) -> Vec<Level> {
        of(status).into_iter().map(|advice| advice.level).collect()
    }

    fn error(message: &str) -> Option<LastError> {
        Some(LastError {
            code: "PR0301".to_owned(),
            message: message.to_owned(),
            remedy: "start nats-server".to_owned(),
            at: String::new(),
        })
    }

    #[test]
    fn an_error_that_has_passed_calls_for_nothing() {
        let mut status = Status {
            role: Role::Leader,
            state: State::Stream,
            reason: "streaming".to_owned(),
            last_error: error("refused"),
            ..Status::default()
        };
        assert_eq!(levels(&status), []);
        (status.role, status.state, status.reason) = (Role::Waiting, State::Waiting, "refused".to_owned());
        let advice = of(&status);
        assert_eq!(advice.len(), 1);
        assert!(advice[0].message.contains("nothing is being published: refused (PR0301)"), "{advice:?}");
        assert_eq!(advice[0].remedy, "start nats-server");
    }

    #[test]
    fn the_slot_s_danger_is_told_before_it_is_lost() {
        let mut status = Status {
            wal_status: Some("extended".to_owned()),
            retained_wal_bytes: Some(80),
            safe_wal_bytes: Some(20),
            ..Status::default()
        };
        assert_eq!(levels(&status), []);
        (status.retained_wal_bytes, status.safe_wal_bytes) = (Some(95), Some(5));
        assert_eq!(levels(&status), [Level::Warning]);
        status.safe_wal_bytes = Some(-3);
        assert_eq!(levels(&status), [Level::Warning]);
        status.wal_status = Some("unreserved".to_owned());
        assert_eq!(levels(&status), [Level::Error]);
    }

    #[test]
    fn what_to_do_about_a_slot_near_its_loss_stands_in_order_and_never_drops_it() {
        let mut status = Status {
            wal_status: Some("extended".to_owned()),
            retained_wal_bytes: Some(100 << 30),
            safe_wal_bytes: Some(100 << 30),
            wal_bytes_per_second: Some(12.0 * 1024.0 * 1024.0),
            outlook: Outlook::Lost(Duration::from_secs(43 * 60)),
            hold_back_seconds: 250.0,
            ..Status::default()
        };
        let advice = slot(&status).unwrap();
        assert_eq!(advice.message, "at the present 12.0 MiB/s of WAL the slot is lost in 43m (PR0602)");
        let steps: Vec<_> = advice.remedy.lines().collect();
        assert!(steps[0].starts_with("1. mend what keeps"), "{steps:?}");
        assert!(steps[1].contains("ALTER SYSTEM SET max_slot_wal_keep_size = '401GB'"), "{steps:?}");
        assert!(steps[2].contains("sync_interval: 1s"), "{steps:?}");
        assert!(steps[3].starts_with("4. do not drop the slot") && steps.len() == 4, "{steps:?}");
        status.outlook = Outlook::Lost(Duration::from_secs(5 * 60));
        assert_eq!(levels(&status), [Level::Error]);
        for sound in [Outlook::Lost(LOSS_WARNED), Outlook::Follows, Outlook::Unknown] {
            status.outlook = sound;
            assert_eq!(levels(&status), [], "{sound:?}");
        }
        (status.outlook, status.safe_wal_bytes) = (Outlook::FillsDisk, None);
        let advice = slot(&status).unwrap();
        assert!(advice.message.contains("disk fills by 12.0 MiB/s"), "{advice:?}");
    }

    #[test]
    fn dead_letters_and_the_hold_back_are_explained() {
        let mut status = Status {
            role: Role::Leader,
            state: State::Stream,
            settled_lsn: Some("0/200".to_owned()),
            confirmed_lsn: Some("0/100".to_owned()),
            dead_letters: Some(2),
            hold_back_seconds: 250.0,
            ..Status::default()
        };
        status.complete();
        assert_eq!(levels(&status), [Level::Warning, Level::Note]);
        assert!(status.advice[0].remedy.contains("postrider dlq list"));
        assert!(status.advice[1].message.contains("published up to 0/200, confirmed up to 0/100"));
    }
}
