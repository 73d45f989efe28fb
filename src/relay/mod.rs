//! The relay: sessions one after the other, each a pump from the slot into the stream.
//!
//! | file | what it does |
//! | --- | --- |
//! | `sides` | what a session sees of Postgres and NATS |
//! | `servers` | real ones |
//! | `session` | begins one: who are we talking to, where do we go on |
//! | `pump` | the one loop |
//! | `intake` | the slot's messages → events with a place |
//! | `taken` | one of them: what is published for it, or lettered |
//! | [`Pace`] | lets frames and answers gather under load |
//! | `faults` | a fault that repeats is one line a minute in the log |
//! | `upkeep` | beside the loop: publication, stream's end, checkpoint row |
//! | `slot_watch` | when the slot is lost if nothing changes, on the board and in the log |
//! | [`shadow`] | beside a poller: what would be published, and is not |
//! | [`preflight`] | what must hold, with the remedy where it does not |
//!
//! An error ends the session; [`Code::disposition`] says what
//! comes next: another session after a back-off, or the end of the process.

mod faults;
mod intake;
mod latency;
mod pace;
pub mod preflight;
mod pump;
pub mod schemas;
mod servers;
mod session;
pub mod shadow;
mod sides;
#[cfg(test)]
mod simulation;
mod slot_watch;
pub(crate) mod taken;
mod upkeep;

use crate::care::{self, Wanted};
use crate::config::Config;
use crate::error::{Code, Disposition, Failure};
use crate::ops::counters::{Counters, Retry};
use crate::ops::forecast;
use crate::ops::http::Pulse;
use crate::ops::status::{Board, Latency, Role, State};
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::state::obstacles::Obstacles;
use crate::state::survey::Survey;
use faults::{FaultLog, ObstacleLog};
pub use pace::Pace;
use pump::{End, LetterLog, Process, Summary};
use servers::Servers;
use sides::Sides;
use slot_watch::SlotWatch;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info};

const PAUSE_MIN: Duration = Duration::from_millis(100);

/// A server that restarts is back within seconds; a longer pause would only add to them.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Between two looks at what a person must mend.
const PROBE_APART: Duration = Duration::from_secs(10);

/// How long a walsender may be silent though it is asked for a sign of life. Doubled with each
/// session that made no progress: it may be decoding a giant transaction.
const PATIENCE_MIN: Duration = Duration::from_secs(60);
const PATIENCE_MAX: Duration = Duration::from_secs(3600);

/// Where no session looks at the slot and the outbox, they are looked at so often.
const SURVEY_APART: Duration = Duration::from_secs(10);

/// Runs until asked to stop, or until going on could lose or double events.
///
/// # Errors
/// The failure that ended it, see [`Failure::exit`].
pub async fn run(
    config: &Config,
    board: &Board,
    pulse: &Pulse,
    pace: &Pace,
    stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let sides = Servers { config: Arc::new(config.clone()) };
    let wanted = care::start(config, board.clone());
    Box::pin(run_between(&sides, config, board, pulse, pace, wanted, stop)).await
}

async fn run_between(
    sides: &impl Sides,
    config: &Config,
    board: &Board,
    pulse: &Pulse,
    pace: &Pace,
    wanted: Wanted,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let mapping = schemas::mapping(config)?;
    let key = config.encrypt.key()?.map(Arc::new);
    if let Some(key) = &key {
        info!(key = key.id(), "payloads are encrypted");
    }
    let mut process = Process {
        board: board.clone(),
        pulse: pulse.clone(),
        pace: pace.clone(),
        wanted,
        key,
        streamed: false,
        first_host: 0,
        counters: Counters::default(),
        letter_log: LetterLog::new(),
        fault_log: FaultLog::new(),
        latency: latency::Recent::new(),
        rate: latency::Rate::new(),
        summary: Summary::new(),
        slot_watch: SlotWatch::new(),
        obstacle_log: ObstacleLog::default(),
    };
    // What was committed before may wait since long ago: that much is not known yet.
    board.update(|status| status.unpublished_since = Some(Timestamp::now()));
    let began = Instant::now();
    // It has streamed, or stood by: it is no more about servers that are not up yet.
    let mut started = false;
    let mut resolved = None;
    let mut pause = PAUSE_MIN;
    let mut patience = PATIENCE_MIN;
    let mut surveyed: Option<Instant> = None;
    loop {
        let progress = process.progress();
        let ended =
            session::run(sides, config, &mut process, &mapping, &mut resolved, patience, &mut stop).await;
        let failure = match ended {
            End::Stopped => return Ok(()),
            End::Failed(failure) => failure,
        };
        started |= process.streamed || board.read().role == Role::Standby;
        if process.progress() > progress {
            (pause, patience) = (PAUSE_MIN, PATIENCE_MIN);
        }
        if failure.code == Code::StalePrimary {
            process.first_host += 1;
        }
        if failure.code == Code::WalsenderSilent {
            patience = (patience * 2).min(PATIENCE_MAX);
        }
        let wait = match failure.code.disposition() {
            Disposition::Halt | Disposition::Poison => return Err(halted(board, failure)),
            Disposition::Operator if !process.streamed => return Err(halted(board, failure)),
            Disposition::Operator => PROBE_APART,
            Disposition::Retry => {
                let late = config.start_timeout.is_some_and(|limit| began.elapsed() >= limit);
                if late && !started {
                    return Err(halted(board, failure.context("start_timeout has passed")));
                }
                pause.mul_f64(0.5 + fastrand::f64() / 2.0)
            }
        };
        process.fault_log.warn(&failure, wait, "the session ended");
        process.counters.retry(Retry::of_session(failure.code));
        board.count(&process.counters);
        board.update(|status| {
            if status.role == Role::Leader {
                // Live no more. From now on surveys tell the lag.
                (status.in_flight_messages, status.in_flight_bytes) = (None, None);
                (status.lag_bytes, status.lag_seconds) = (None, None);
                (status.published_per_second, status.latency_seconds) = (None, Latency::default());
            }
            (status.role, status.state, status.reason) =
                (Role::Waiting, State::Waiting, failure.message.clone());
            status.last_error = Some((&failure).into());
            status.unpublished_since.get_or_insert_with(Timestamp::now);
        });
        pause = (pause * 2).min(PAUSE_MAX);
        let due = surveyed.is_none_or(|at| at.elapsed() >= SURVEY_APART);
        let survey = async {
            if due {
                process.show_survey(sides.survey(process.first_host).await, config);
                surveyed = Some(Instant::now());
            }
            std::future::pending().await
        };
        // Cut short by the next session: a server that is slow to answer delays nothing.
        tokio::select! {
            biased;
            stopped = wait_or_stop(wait, pulse, &mut stop) => if stopped { return Ok(()) },
            () = survey => {}
        }
    }
}

/// What an error of the started stream means. A slot that was lost or dropped is told by the next
/// session's preflight, in better words.
fn stream_failure(error: Error) -> Failure {
    match &error {
        Error::Server(said) if said.code.code() == "42704" => Failure::new(
            Code::PublicationMissing,
            error.to_string(),
            "the publication did not exist when these rows were written, and making it now does not help: rows of \
             that time are in the outbox table only. Stop the relay, then postrider recover",
        ),
        Error::Server(said) if matches!(said.code.code(), "55000" | "58P01") => Failure::new(
            Code::PostgresSession,
            error.to_string(),
            "none is needed: the next session looks why",
        ),
        _ => error.into(),
    }
}

impl Process {
    /// What it tells, or that nothing is known any more: numbers of an hour ago would calm without reason.
    fn show_survey(&mut self, survey: Result<Survey, Failure>, config: &Config) {
        let slot = survey.as_ref().ok().and_then(|survey| survey.slot.clone());
        self.board.update(|status| match survey {
            Ok(survey) => survey.show(status),
            Err(failure) => {
                debug!(code = %failure.code, error = failure.message, "Postgres is not looked at");
                (status.retained_wal_bytes, status.safe_wal_bytes, status.wal_status) = (None, None, None);
                (status.lag_bytes, status.dead_letters) = (None, None);
                (status.outbox_table_bytes, status.outbox_dead_tuples) = (None, None);
                status.obstructed(Obstacles::default());
            }
        });
        match slot {
            Some(slot) => {
                let patience = forecast::patience(config.delivery.hold_back(&config.nats));
                // Another relay may read it. Where nobody does, nobody confirms anything.
                self.slot_watch.saw(&self.board, &slot, slot.active_pid.map(|_| patience));
            }
            None => self.slot_watch.lost_sight(&self.board),
        }
        self.obstacle_log.tell(&self.board);
    }
}

fn unanswered() -> Failure {
    Failure::new(
        Code::PostgresSession,
        "Postgres does not answer SQL",
        "none is needed: the relay tries again",
    )
}

fn halted(board: &Board, failure: Failure) -> Failure {
    error!(code = %failure.code, error = failure.message, remedy = failure.whole_remedy(), "halted");
    board.update(|status| {
        (status.role, status.state, status.reason) = (Role::Halted, State::Halt, failure.message.clone());
        status.last_error = Some((&failure).into());
    });
    failure
}

/// Whether it was asked to stop meanwhile.
async fn wait_or_stop(wait: Duration, pulse: &Pulse, stop: &mut watch::Receiver<bool>) -> bool {
    let until = Instant::now() + wait;
    while Instant::now() < until {
        pulse.beat();
        let step = until.min(Instant::now() + Duration::from_secs(1));
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return true,
            () = tokio::time::sleep_until(step) => {}
        }
    }
    false
}
