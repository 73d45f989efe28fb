//! The shadow's slot, read from beginning to end.

use super::comparison::{Comparison, KNOWN_MAX};
use super::observer::{Observed, Observer};
use super::publication::Publication;
use super::report::Report;
use super::{Options, commits_do_not_wait};
use crate::config::{Config, Oversize};
use crate::delivery::history::History;
use crate::error::{Code, Failure};
use crate::nats::limits::Limits;
use crate::outbox::{MarkColumn, Resolved};
use crate::postgres::client::{AS_PGOUTPUT, Sql};
use crate::postgres::error::Error;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{self as facts, System, Table};
use crate::postgres::replication::{Received, ReplicationStream};
use crate::postgres::timestamp::Timestamp;
use crate::relay::intake::Intake;
use crate::relay::unanswered;
use futures_util::TryStreamExt;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use std::cell::Cell;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_postgres::Statement;
use tracing::info;

/// Between two looks at whether the shadow does no harm: so many at the clock.
const TEND_APART: u32 = 5;

/// A few small questions take milliseconds; a server that needs so long is as good as away.
const ANSWERS_MAX: Duration = Duration::from_secs(30);

const TICK: Duration = Duration::from_secs(1);

/// The walsender's patience is 30 s.
const STATUS_APART: Duration = Duration::from_secs(5);

/// Postgres's clock, by ours, and where its log ended.
#[derive(Default)]
pub(super) struct Clock {
    /// Microseconds by which ours is behind.
    behind: Cell<i64>,
    /// Whatever was committed before that moment lies before that place.
    end: Cell<(Timestamp, Lsn)>,
}

impl Clock {
    fn now(&self) -> Timestamp {
        Timestamp(Timestamp::now().0.saturating_add(self.behind.get()))
    }

    /// It may be wrong by half of the round trip.
    async fn set(&self, sql: &Sql, clock: &Statement) -> Result<(), Failure> {
        let asked = Timestamp::now().0;
        let row = sql.client.query_one(clock, &[]).await?;
        let (theirs, ours) =
            (Timestamp::from_system_time(row.get(0)), asked + (Timestamp::now().0 - asked) / 2);
        self.behind.set(theirs.0.saturating_sub(ours));
        let flushed = row.get::<_, &str>(1).parse().map_err(|error| Error::Protocol(format!("{error}")))?;
        self.end.set((theirs, flushed));
        Ok(())
    }
}

/// What a session needs that does not change.
pub(super) struct Shadow<'a> {
    pub(super) config: &'a Config,
    pub(super) options: &'a Options,
    pub(super) sql: &'a Sql,
    pub(super) publication: &'a Publication,
    pub(super) clock: Clock,
}

impl Shadow<'_> {
    /// Reads until there is enough, or until asked to stop.
    pub(super) async fn watch(
        &self,
        table: &Table,
        resolved: Resolved,
        marks: Vec<MarkColumn>,
        comparison: &mut Comparison,
        stop: &mut watch::Receiver<bool>,
        progress: impl FnMut(&Report),
    ) -> Result<(), Failure> {
        let id_column = resolved.id_column().to_owned();
        let clock =
            self.sql.client.prepare("SELECT clock_timestamp(), pg_current_wal_flush_lsn()::text").await?;
        self.clock.set(self.sql, &clock).await?;
        let (stream, system) = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            begun = self.begin(&id_column, &marks, comparison) => begun?,
        };
        info!(
            table = %self.config.outbox.table,
            preset = %resolved.preset(),
            subject = %resolved.subject(),
            "watching; nothing is published"
        );
        let names: Vec<_> = marks.into_iter().map(|mark| mark.name).collect();
        if names.is_empty() {
            info!("no column is a mark: a row is processed when it is deleted; --mark-column names one");
        } else {
            info!(marks = names.join(", "), "a row is processed when a mark is set, or it is deleted");
        }
        let history = History::first(system.id, system.timeline);
        // No payload is encrypted for nobody.
        let intake = Intake::new(history, self.config.postgres.slot.clone(), table.oid, resolved, None);
        let limits = Limits::without_server(self.config.delivery.oversize == Oversize::ObjectStore);
        let mut observer = Observer::new(intake, table.oid, id_column, names, limits);
        let mut following =
            Following { shadow: self, comparison, observer: &mut observer, stream, seen: Lsn::ZERO };
        let ended = following.follow(&clock, stop, progress).await;
        following.stream.close().await;
        ended
    }

    /// The started slot, and all ids that were there before it.
    async fn begin(
        &self,
        id_column: &str,
        marks: &[MarkColumn],
        comparison: &mut Comparison,
    ) -> Result<(ReplicationStream, System), Failure> {
        let target = self.config.postgres.database.resolve_again()?;
        let mut connection = self.sql.walsender(&target).await?;
        let system = facts::identify(&mut connection).await?;
        if system.started_at != facts::started_at(self.sql).await? {
            return Err(Failure::new(
                Code::PostgresSession,
                "SQL and replication reached two different servers",
                "try again; name the server in postgres.url rather than a moving address",
            ));
        }
        let slot = format!("postrider_shadow_{:08x}", fastrand::u32(..));
        let beginning = match connection.create_temporary_slot(&slot).await {
            Ok(beginning) => beginning,
            Err(error) => return Err(self.no_slot(error).await?),
        };
        self.read_ids(&beginning.snapshot, id_column, marks, comparison).await?;
        connection.query("SET lock_timeout = 0").await?;
        comparison.begins(self.clock.now());
        connection.start_replication(&slot, Lsn::ZERO, &self.publication.name).await?;
        Ok((connection.into_stream(), system))
    }

    async fn no_slot(&self, error: Error) -> Result<Failure, Failure> {
        let state = match &error {
            Error::Server(said) => said.code.code(),
            Error::Timeout(_) => "55P03",
            _ => "",
        };
        Ok(match state {
            "55P03" => Failure::new(
                Code::SlotBlocked,
                format!(
                    "the shadow's slot cannot be created: it waits for {}",
                    facts::writers(self.sql).await?
                ),
                "let them end (SELECT pg_terminate_backend(pid) where nobody needs them), then again",
            ),
            "53400" | "53300" => Failure::new(
                Code::ShadowRefused,
                error.to_string(),
                "raise max_replication_slots and max_wal_senders, which takes a restart, or drop a slot that nobody \
                 uses",
            ),
            _ => Failure::from(error).context("create the shadow's slot"),
        })
    }

    /// The ids of all rows that the slot does not bring. Over a connection of its own, which goes with its
    /// transaction when it is stopped or fails: the publication is dropped over the other.
    async fn read_ids(
        &self,
        snapshot: &str,
        id_column: &str,
        marks: &[MarkColumn],
        comparison: &mut Comparison,
    ) -> Result<(), Failure> {
        let client = Sql::connect(&self.sql.target, &self.sql.host).await?.client;
        client.batch_execute(AS_PGOUTPUT).await?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; \
             SET LOCAL statement_timeout = 0; SET LOCAL row_security = off",
            escape_literal(snapshot)
        );
        client.batch_execute(&begin).await?;
        let id = escape_identifier(id_column);
        let query = format!(
            "SELECT format('%s', o.{id}), {} FROM {} AS o WHERE o.{id} IS NOT NULL LIMIT {}",
            MarkColumn::any_is_set(marks),
            self.config.outbox.table,
            KNOWN_MAX + 1
        );
        let doing = |error: tokio_postgres::Error| Failure::from(error).context("read the ids of the outbox");
        let mut rows = pin!(client.query_raw(&query, [] as [&str; 0]).await.map_err(doing)?);
        while let Some(row) = rows.try_next().await.map_err(doing)? {
            comparison.there_before(row.get(0), row.get(1));
        }
        Ok(client.batch_execute("COMMIT").await?)
    }

    /// Keeps the clock, and looks that the shadow does no harm. Comes back with what went wrong.
    async fn tend(&self, clock: &Statement) -> Failure {
        let outbox = self.config.outbox.table.to_string();
        let mut looks: u32 = 0;
        loop {
            sleep(TICK).await;
            looks = looks.wrapping_add(1);
            let tending = async {
                if looks.is_multiple_of(TEND_APART) {
                    commits_do_not_wait(self.sql).await?;
                    self.publication.still_harmless(self.sql, &outbox).await?;
                }
                self.clock.set(self.sql, clock).await
            };
            match timeout(ANSWERS_MAX, tending).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => return failure,
                Err(_) => return unanswered(),
            }
        }
    }
}

struct Following<'a, 's> {
    shadow: &'a Shadow<'s>,
    comparison: &'a mut Comparison,
    observer: &'a mut Observer,
    stream: ReplicationStream,
    /// Everything before it was seen, and is confirmed: the slot retains nothing.
    seen: Lsn,
}

impl Following<'_, '_> {
    async fn follow(
        &mut self,
        clock: &Statement,
        stop: &mut watch::Receiver<bool>,
        mut progress: impl FnMut(&Report),
    ) -> Result<(), Failure> {
        let (shadow, options) = (self.shadow, self.shadow.options);
        let mut tending = pin!(shadow.tend(clock));
        let (began, mut reported) = (Instant::now(), Instant::now());
        let mut ticks = interval(TICK);
        loop {
            let (moment, end) = shadow.clock.end.get();
            if self.seen >= end {
                self.comparison.has_read_to(moment);
            }
            let seconds = began.elapsed().as_secs_f64();
            self.comparison.has_lasted((seconds * 1e3).round() / 1e3);
            let enough = options.count.is_some_and(|count| self.comparison.compared() >= count);
            if enough || options.lasts.is_some_and(|lasts| began.elapsed() >= lasts) {
                return Ok(());
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                failure = &mut tending => return Err(failure),
                _ = ticks.tick() => {
                    // An idle server says how far it has read only when it is asked.
                    let behind = self.seen < end;
                    if behind || reported.elapsed() >= STATUS_APART {
                        self.stream.send_status(self.seen, self.seen, behind).await?;
                        reported = Instant::now();
                    }
                    progress(&self.comparison.judge());
                }
                received = self.stream.next() => self.take_all(received.map_err(reading)?).await?,
            }
        }
    }

    /// What was received, and what came with it.
    async fn take_all(&mut self, received: Received) -> Result<(), Failure> {
        let mut next = Some(received);
        while let Some(received) = next {
            match received {
                Received::Data(message, _) => {
                    let observed = self.observer.take(message)?;
                    self.observe(observed);
                }
                Received::Keepalive { wal_end, reply_requested } => {
                    if !self.observer.in_transaction() {
                        self.seen = self.seen.max(wal_end);
                    }
                    // Nothing is held back, so the server has no reason to ask again at once.
                    if reply_requested {
                        self.stream.send_status(self.seen, self.seen, false).await?;
                    }
                }
                Received::Notice(notice) => {
                    return Err(Failure::new(
                        Code::PublicationMissing,
                        format!("Postgres skips rows: {notice}"),
                        "someone has dropped the shadow's publication: begin again",
                    ));
                }
            }
            next = self.stream.buffered().map_err(reading)?;
        }
        Ok(())
    }

    fn observe(&mut self, observed: Observed) {
        match observed {
            Observed::Inserted(inserted) => self.comparison.inserted(inserted, self.shadow.clock.now()),
            Observed::Processed(id, by) => self.comparison.processed(&id, by),
            Observed::Committed(end_lsn) => self.seen = self.seen.max(end_lsn),
            Observed::Nothing => {}
        }
    }
}

fn reading(error: Error) -> Failure {
    Failure::from(error).context("read the log")
}
