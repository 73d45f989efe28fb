//! Why a relay that is sound publishes nothing, or less than someone expects, in words.

use super::advice::Level;
use super::status::{Role, State, Status};
use crate::error::Code;
use crate::state::obstacles::{Client, Writer};
use postgres_protocol::escape::escape_literal;
use std::time::Duration;

/// A transaction that takes longer is worth a word.
const OPEN_NAMED: Duration = Duration::from_secs(5);

/// One that takes longer was most likely forgotten.
const OPEN_WARNED: Duration = Duration::from_secs(600);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Its place in the catalogue.
    pub code: Code,
    /// How urgent it is.
    pub level: Level,
    /// What is so.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// All that are there.
#[must_use]
pub fn of(status: &Status) -> Vec<Obstacle> {
    let found = [stranger(status), commits(status), writer(status), filter(status), nobody(status)];
    found.into_iter().flatten().collect()
}

fn stranger(status: &Status) -> Option<Obstacle> {
    let Client { pid, name } = status.obstacles.stranger.as_ref().filter(|_| status.role == Role::Standby)?;
    Some(Obstacle {
        code: Code::SlotHeld,
        level: Level::Warning,
        message: format!(
            "slot `{}` is read by process {pid} ({name}), which does not call itself as this relay does",
            status.slot
        ),
        remedy: format!(
            "if that is no relay of yours, end it, this relay then takes over: SELECT pg_terminate_backend({pid});"
        ),
    })
}

fn commits(status: &Status) -> Option<Obstacle> {
    let (waiting, standbys) = (status.obstacles.commits_waiting, &status.obstacles.standbys);
    (waiting > 0 && !standbys.is_empty()).then(|| Obstacle {
        code: Code::CommitsHang,
        level: Level::Warning,
        message: format!("{waiting} sessions wait in their commit for a standby: synchronous_standby_names = '{standbys}'"),
        remedy: "bring that standby back (pg_stat_replication shows which are connected); or go on without it: ALTER SYSTEM \
                 SET synchronous_standby_names = ''; SELECT pg_reload_conf();"
            .to_owned(),
    })
}

fn writer(status: &Status) -> Option<Obstacle> {
    let (who, age, end) = match status.obstacles.writer.as_ref()? {
        Writer::Session(Client { pid, name }, age) => (
            format!("the transaction of process {pid} ({name})"),
            *age,
            format!("SELECT pg_terminate_backend({pid});"),
        ),
        Writer::Prepared(gid, age) => (
            format!("the prepared transaction `{gid}`"),
            *age,
            format!("COMMIT PREPARED {0}; or ROLLBACK PREPARED {0};", escape_literal(gid).trim()),
        ),
    };
    (age >= OPEN_NAMED).then(|| Obstacle {
        code: Code::RowsUncommitted,
        level: if age < OPEN_WARNED { Level::Note } else { Level::Warning },
        message: format!(
            "{who} has written to the outbox and is not committed since {}: its rows are published when it is",
            humantime::format_duration(Duration::from_secs(age.as_secs()))
        ),
        remedy: format!("let it commit; if nobody does: {end}"),
    })
}

fn filter(status: &Status) -> Option<Obstacle> {
    let filter = status.obstacles.row_filter.as_ref()?;
    Some(Obstacle {
        code: Code::PublishesMore,
        level: Level::Note,
        message: format!("the publication has a row filter: only rows with {filter} are published"),
        remedy: "none is needed where that is meant (sharding); else ALTER PUBLICATION … SET TABLE … without WHERE, and \
                 postrider recover publishes the rows that were left out"
            .to_owned(),
    })
}

fn nobody(status: &Status) -> Option<Obstacle> {
    let before = status.inserted_before?;
    let idle = status.role == Role::Leader
        && status.state == State::Stream
        && (status.published_total, status.dead_lettered_total) == (Some(0), Some(0))
        && before.looks > 1
        && status.obstacles.inserted == Some(before.inserted);
    let namesakes = match status.obstacles.namesakes.as_slice() {
        [] => String::new(),
        others => format!(" There is also {}.", others.join(", ")),
    };
    idle.then(|| Obstacle {
        code: Code::NothingInserted,
        level: Level::Note,
        message: format!(
            "nothing was inserted into {} since this relay began; it holds about {} rows",
            status.obstacles.outbox, status.obstacles.rows
        ),
        remedy: format!(
            "where rows are expected: do the writers insert into this table of this database, and commit?{namesakes} \
             outbox.table and postgres.url say where the relay looks"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::obstacles::Obstacles;

    fn codes(status: &Status) -> Vec<Code> {
        of(status).into_iter().map(|obstacle| obstacle.code).collect()
    }

    fn client() -> Client {
        Client { pid: 7, name: "psql, user ann".to_owned() }
    }

    #[test]
    fn an_open_transaction_is_named_after_seconds_and_warned_of_after_minutes() {
        let mut status = Status::default();
        for (seconds, level) in [(4, None), (5, Some(Level::Note)), (600, Some(Level::Warning))] {
            let writer = Writer::Session(client(), Duration::from_secs(seconds));
            status.obstacles.writer = Some(writer);
            assert_eq!(of(&status).first().map(|obstacle| obstacle.level), level, "{seconds}");
        }
        status.obstacles.writer = Some(Writer::Prepared("it's".to_owned(), Duration::from_secs(60)));
        assert!(of(&status)[0].remedy.contains("COMMIT PREPARED 'it''s';"), "{:?}", of(&status));
    }

    #[test]
    fn an_idle_outbox_is_named_only_while_nothing_was_published_and_after_a_second_look() {
        let look = || Obstacles { inserted: Some(3), ..Obstacles::default() };
        let mut status = Status {
            role: Role::Leader,
            state: State::Stream,
            published_total: Some(0),
            dead_lettered_total: Some(0),
            ..Status::default()
        };
        status.obstructed(look());
        assert_eq!(codes(&status), []);
        status.obstructed(look());
        assert_eq!(codes(&status), [Code::NothingInserted]);
        status.published_total = Some(1);
        assert_eq!(codes(&status), []);
        status.published_total = Some(0);
        status.obstructed(Obstacles { inserted: Some(4), ..Obstacles::default() });
        assert_eq!(codes(&status), []);
    }

    #[test]
    fn a_stranger_matters_to_a_standby_and_a_standby_server_only_while_commits_wait() {
        let mut status = Status { role: Role::Standby, ..Status::default() };
        status.obstacles.stranger = Some(client());
        status.obstacles.standbys = "elsewhere".to_owned();
        assert_eq!(codes(&status), [Code::SlotHeld]);
        (status.role, status.obstacles.commits_waiting) = (Role::Leader, 2);
        assert_eq!(codes(&status), [Code::CommitsHang]);
    }
}
