//! `init --backfill` and `recover`: the rows that the stream lacks are published, and the checkpoint row is
//! written so that the relay goes on behind them.
//!
//! One mechanism, which may be killed at any moment and run again:
//!
//! 1. the row says `backfill` or `recover`: no relay streams until it says `ready` again;
//! 2. the slot stays where it can ([`Way`]); else a new one is made, which shows the table as it was at its
//!    beginning (manual, "Exported Snapshots");
//! 3. the rows of that snapshot are published which neither stream nor letters have, nor the slot will send:
//!    so what an attempt that was killed has published already is not published again;
//! 4. the row says `ready`, with what now identifies stream, cluster and publication.
//!
//! The slot shows what was flushed, a snapshot also what was not yet (synchronous_commit = off): so the end of
//! the WAL is read after the snapshot was taken, and the slot is looked into once all before it is flushed.

use super::ids::{Ids, Peeked, Rows};
use super::order::{Order, Seen};
use super::plan::{self, Found, Way};
use super::publish::{Done, Filler, fenced};
use super::{Progress, Stray, verify};
use crate::config::Config;
use crate::delivery::checkpoint::{Checkpoint, Objects};
use crate::delivery::history::History;
use crate::delivery::opening::Stored;
use crate::delivery::position::{Identity, Place};
use crate::error::{Code, Disposition, Failure};
use crate::nats::connect::Nats;
use crate::nats::limits::Limits;
use crate::nats::publish::Publisher;
use crate::nats::stream::{Look, New, Stream};
use crate::outbox::Resolved;
use crate::postgres::client::Sql;
use crate::postgres::connection::Connection;
use crate::postgres::error::Error;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{self as facts, System, Table, wal_insert_lsn};
use crate::postgres::timestamp::Timestamp;
use crate::relay::taken::Shape;
use crate::relay::{preflight, schemas};
use crate::state::checkpoint;
use crate::state::dead_letter::Owner;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// So many messages are read before their ids go into the database.
const CHUNK: u64 = 8192;

/// Without a row published for so long the command ends; the next goes on where it was.
const PATIENCE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(500);

/// A relay that lost its row ends its session by then.
const RELAY_ENDS_MAX: Duration = Duration::from_secs(15);

/// Which command it is: what the row says meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `init --backfill`
    Backfill,
    /// `recover`
    Recover,
}

impl Phase {
    /// As the checkpoint row has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Backfill => "backfill",
            Phase::Recover => "recover",
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// By which command.
    pub phase: Phase,
    /// Only rows that were created then or later.
    pub since: Option<Timestamp>,
    /// Also rows that are marked as processed.
    pub processed: bool,
    /// Messages of others that are in the stream are passed over from now on.
    pub accept: bool,
    /// The database is another cluster than the row says, or there is no row.
    pub adopt: bool,
}

/// What there is to do.
#[derive(Debug, Clone, Serialize)]
pub struct Survey {
    /// Rows that are to be published.
    pub missing: u64,
    /// Messages of others that are not accepted.
    pub foreign: u64,
    /// The first of them.
    pub foreign_messages: Vec<Stray>,
    /// The slot is made anew, and why; none: it stays.
    pub new_slot: Option<String>,
    /// The stream does not exist.
    pub new_stream: bool,
    /// What the checkpoint row says that is so no more.
    pub outdated: Vec<String>,
}

impl Survey {
    /// There is nothing to do.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.missing == 0 && self.new_slot.is_none() && !self.new_stream && self.outdated.is_empty()
    }
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Mended {
    /// Rows that were published.
    pub published: u64,
    /// Rows that became dead letters.
    pub lettered: u64,
    /// Messages of others that are passed over from now on.
    pub accepted: u64,
    /// From where the slot goes on.
    pub slot_lsn: String,
    /// The stream's last message.
    pub last_seq: u64,
}

/// Surveys, asks `consent`, and mends. None: there was nothing to do, or no consent.
///
/// # Errors
/// Either side says no or is away, a relay streams the slot, or what is found needs `accept`, `adopt` or
/// `since`. Nothing is changed before `consent`.
pub async fn mend(
    config: &Config,
    asked: Asked,
    nats: &Nats,
    consent: impl FnOnce(&Survey) -> Result<bool, Failure>,
    mut progress: impl FnMut(Progress),
) -> Result<Option<Mended>, Failure> {
    let target = config.postgres.database.resolve()?;
    let sql = Sql::connect_any(&target).await?;
    let side = Sql::connect(&target, &sql.host).await?;
    let server = preflight::server(&sql).await?;
    let table = preflight::table(&sql, config).await?;
    let resolved = preflight::columns(&schemas::mapping(config)?, &table)?;
    let publication = preflight::publication(&sql, config, &table).await?;
    preflight::checkpoints(&sql, config).await?;
    preflight::letters(&sql, config).await?;
    let mut connection = sql.walsender(&sql.target).await?;
    let system = facts::identify(&mut connection).await?;
    if system.started_at != facts::started_at(&sql).await? {
        return Err(Failure::new(
            Code::PostgresSession,
            "SQL and replication reached two different servers",
            "name one server in postgres.url rather than a moving address, then the same command again",
        ));
    }
    let history = History::of(system.id, system.timeline, system.history.as_deref());
    let history = history.map_err(|error| Failure::new(Code::Unexpected, error.to_string(), "report it"))?;
    let row = checkpoint::read(&sql, &config.postgres.schema, &config.postgres.slot).await?;
    let passed_seq = match (&row, asked.adopt) {
        (Some(row), false) => row.passed_seq,
        (None, false) => 0,
        (_, true) => u64::MAX,
    };
    let mut mending = Mending {
        config,
        asked,
        ids: Ids::new(&sql, config, &resolved, &table, &publication, system.id).await?,
        order: Order::new(&config.postgres.slot, system.id, passed_seq),
        objects: preflight::objects(&publication, &table),
        stream: Stream::named(nats, &config.nats.stream).await?,
        sql: &sql,
        side: &side,
        table: &table,
        resolved: &resolved,
        system: &system,
        history,
        row,
        created: None,
        other_history: None,
        read: 0,
        own: 0,
    };
    let survey = mending.survey(&mut progress).await?;
    if !consent(&survey)? || survey.is_sound() && !(asked.accept && survey.foreign > 0) {
        return Ok(None);
    }
    let failover = server.version_num >= 170_000;
    mending.mend(nats, connection, failover, &survey, &mut progress).await.map(Some)
}

struct Mending<'a> {
    config: &'a Config,
    asked: Asked,
    /// Reads rows, in one snapshot.
    sql: &'a Sql,
    /// Writes the row and letters meanwhile, and looks into the slot.
    side: &'a Sql,
    ids: Ids<'a>,
    order: Order,
    table: &'a Table,
    resolved: &'a Resolved,
    objects: Objects,
    system: &'a System,
    history: History,
    stream: Stream,
    row: Option<Checkpoint>,
    /// When the stream was made that is being read.
    created: Option<Timestamp>,
    /// The stream was found to have events that this server never had, which are forgotten since.
    other_history: Option<String>,
    /// Messages up to this one are read.
    read: u64,
    /// Of which so many are this slot's.
    own: u64,
}

impl Mending<'_> {
    fn slot(&self) -> &str {
        &self.config.postgres.slot
    }

    fn rows(&self) -> Rows {
        Rows { since: self.asked.since, processed: self.asked.processed }
    }

    /// The stream, which goes on behind what was read of it.
    async fn look(&self) -> Result<Option<Look>, Failure> {
        match self.stream.look().await {
            Ok(look) => {
                look.config.fits(self.stream.name(), self.resolved.subject())?;
                self.goes_on(&look, self.read)?;
                Ok(Some(look))
            }
            Err(failure) if failure.code == Code::StreamMissing => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Whether the stream still has what was read up to `seq`.
    fn goes_on(&self, look: &Look, seq: u64) -> Result<(), Failure> {
        let other = self.created.is_some_and(|created| created != look.end.created);
        if !other && look.end.last_seq >= seq {
            return Ok(());
        }
        Err(Failure::new(
            Code::StreamWentBack,
            format!("stream `{}` went back while it was read", self.stream.name()),
            "the same command again: it reads the stream anew",
        ))
    }

    /// What there is to do; leaves everything as it is.
    async fn survey(&mut self, progress: &mut impl FnMut(Progress)) -> Result<Survey, Failure> {
        let look = self.look().await?;
        self.created = look.as_ref().map(|look| look.end.created);
        let last_seq = look.as_ref().map_or(0, |look| look.end.last_seq);
        self.scan(last_seq, progress).await?;
        // Again: messages may have expired meanwhile.
        let look = self.look().await?;
        self.is_permitted(look.as_ref())?;
        self.begin().await?;
        let way = self.way().await?;
        let (_, missing) = self.to_come(&way).await?;
        self.commit().await?;
        let (foreign, foreign_messages) = self.order.foreign();
        let outdated = self.outdated(look.as_ref(), &way);
        let new_slot = match &way {
            Way::Anew { why, .. } => Some(why.clone()),
            Way::Keep { .. } => None,
        };
        let new_stream = look.is_none();
        Ok(Survey { missing, foreign, foreign_messages, new_slot, new_stream, outdated })
    }

    /// What must be said before ids of the stream are taken for this pipeline's, and gaps for losses.
    fn is_permitted(&self, look: Option<&Look>) -> Result<(), Failure> {
        let slot = self.slot();
        let adopting = "postrider recover --adopt compares the rows with the messages of this slot's name in the \
             stream, whichever cluster wrote them";
        match &self.row {
            Some(row) if row.system_id != self.system.id && !self.asked.adopt => {
                return Err(Failure::new(
                    Code::OtherSystem,
                    format!(
                        "system identifier {} is not the checkpoint row's {}: the database was moved, or this is \
                         another one",
                        self.system.id, row.system_id
                    ),
                    format!("if it was moved and the old one is gone for good: {adopting}"),
                ));
            }
            None if self.read > 0 && !self.asked.adopt => {
                return Err(Failure::new(
                    Code::CheckpointMissing,
                    format!(
                        "stream `{}` has messages, and slot `{slot}` has no checkpoint row",
                        self.stream.name()
                    ),
                    adopting,
                ));
            }
            _ => {}
        }
        let used = self.own > 0 || self.row.as_ref().is_some_and(|row| row.last.is_some());
        match look {
            Some(look) if used && self.asked.since.is_none() => verify::is_bounded(&self.stream, look),
            _ => Ok(()),
        }
    }

    /// What the row says that is so no more.
    fn outdated(&self, look: Option<&Look>, way: &Way) -> Vec<String> {
        let mut outdated = Vec::new();
        let Some(row) = &self.row else { return vec!["there is no checkpoint row".to_owned()] };
        let mut add = |is: bool, what: String| is.then(|| outdated.push(what));
        add(row.phase != "ready", format!("a {} was begun and did not end", row.phase));
        add(row.system_id != self.system.id, format!("the cluster was {}", row.system_id));
        add(row.objects != self.objects, "publication or table were made anew or put back".to_owned());
        add(row.stream != self.stream.name(), format!("the stream was `{}`", row.stream));
        if let Some(look) = look {
            let again = row.stream == self.stream.name() && row.stream_created != look.end.created;
            add(again, format!("the stream was made on {}", row.stream_created));
            let short = look.end.last_seq < row.confirmed_seq;
            add(!again && short, format!("the stream went up to message {} at least", row.confirmed_seq));
        }
        if let Way::Keep { confirmed, .. } = way {
            let moved = *confirmed > row.settled_lsn && row.timeline == self.system.timeline;
            add(
                moved,
                format!("everything before {} was stored, the slot is confirmed beyond", row.settled_lsn),
            );
        }
        outdated
    }

    /// Reads the stream up to `last`.
    async fn scan(&mut self, last: u64, progress: &mut impl FnMut(Progress)) -> Result<(), Failure> {
        while self.read < last {
            let upto = last.min(self.read + CHUNK);
            let mut ours = Vec::new();
            for (seq, stored) in self.stream.messages(self.read + 1, upto).await? {
                match self.order.message(seq, stored) {
                    Seen::Ours(event) if !self.is_phantom(&event) => ours.push((event, seq)),
                    Seen::Ours(_) | Seen::Other => {}
                }
            }
            self.own += ours.len() as u64;
            self.ids.put_messages(&ours).await?;
            self.read = upto;
            progress(Progress::Read(upto, last));
        }
        Ok(())
    }

    /// It was committed on a former primary and lost in a fail-over: a row of now may have its id.
    fn is_phantom(&self, event: &Identity) -> bool {
        event.position.system_id == self.system.id && !self.history.contains(&event.position)
    }

    /// One snapshot from here on.
    async fn begin(&self) -> Result<(), Failure> {
        Ok(self.sql.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?)
    }

    async fn commit(&self) -> Result<(), Failure> {
        Ok(self.sql.client.batch_execute("COMMIT").await?)
    }

    /// What becomes of the slot, from a snapshot that begins here.
    async fn way(&mut self) -> Result<Way, Failure> {
        // The first statement takes the snapshot, and then reads this.
        let upto = wal_insert_lsn(self.sql).await?;
        let name = self.slot();
        let unusable = |exists, why: String| Found { unusable: Some(why), exists, ..Found::default() }.way();
        let Some(slot) = facts::slot(self.side, name).await? else {
            return Ok(unusable(false, "there is none".to_owned()));
        };
        match preflight::fit_slot(name, &slot) {
            Err(failure) if matches!(failure.code, Code::SlotLost | Code::SlotAhead) => {
                return Ok(unusable(true, failure.message));
            }
            fit => fit?,
        }
        if slot.active_pid.is_some() {
            return Err(in_use(name));
        }
        let Some(confirmed) = slot.confirmed else { return Err(preflight::blocked(self.side, name).await?) };
        match self.ids.peek(self.side, self.table.oid, None, upto).await? {
            Peeked::Busy => return Err(in_use(name)),
            Peeked::Undecodable(why) => return Ok(unusable(true, why)),
            Peeked::Done => {}
        }
        let last = self.last_sent(confirmed).await?;
        let mut found = self.ids.found(confirmed, last).await?;
        found.differs = self.other_history.clone().or(found.differs);
        if let Some(event) = &found.differs {
            self.ids.forget_other_history(confirmed).await?;
            self.other_history = Some(event.clone());
        }
        Ok(found.way())
    }

    /// The last event that the slot would send again and that was stored: by the stream, or by the row where
    /// its message has expired.
    async fn last_sent(&self, confirmed: Lsn) -> Result<Option<(u64, Box<Identity>)>, Failure> {
        let mut last = None;
        if let Some(seq) = self.ids.last_seq_from(confirmed).await? {
            last = Some((seq, self.event(seq).await?));
        }
        let Some(row) = &self.row else { return Ok(last) };
        let Some(known) = row.last.as_ref().filter(|known| self.history.contains(&known.position)) else {
            return Ok(last);
        };
        let place = known.position.place;
        let later = last.as_ref().is_none_or(|(_, event)| event.position.place < place);
        let of_this = row.stream == self.stream.name() && Some(row.stream_created) == self.created;
        if place.commit_lsn >= confirmed && later && of_this && row.seq <= self.read {
            let gone = self.stream.message(row.seq).await? == Stored::Gone;
            last = if gone { Some((row.seq, Box::new(known.clone()))) } else { last };
        }
        Ok(last)
    }

    /// The event that was read at `seq`.
    async fn event(&self, seq: u64) -> Result<Box<Identity>, Failure> {
        match self.stream.message(seq).await? {
            Stored::Event(event) => Ok(event),
            Stored::Gone | Stored::Foreign(_) => Err(Failure::new(
                Code::NatsSession,
                format!("message {seq} of stream `{}` went while the stream was read", self.stream.name()),
                "the same command again: it reads the stream anew",
            )),
        }
    }

    /// The place behind which what the slot holds is to come by itself, and how many rows lack besides.
    async fn to_come(&self, way: &Way) -> Result<(Option<Place>, u64), Failure> {
        if let Way::Anew { .. } = way {
            // A new slot sends none of it.
            self.ids.forget_slot().await?;
        }
        let Way::Keep { behind: Some((_, event)), .. } = way else {
            return Ok((None, self.ids.lacking_count(self.rows(), None).await?));
        };
        let place = event.position.place;
        let lacking = self.ids.lacking_count(self.rows(), Some(place)).await?;
        let (rest, deleted) = self.ids.rest_of(place).await?;
        if lacking == 0 || rest == 0 {
            return Ok((Some(place), lacking));
        }
        if deleted > 0 {
            return Err(plan::cut(event));
        }
        // The relay goes on behind the whole transaction: its rest is published with the others.
        let whole = Place { index: u64::MAX, ..place };
        Ok((Some(whole), self.ids.lacking_count(self.rows(), Some(whole)).await?))
    }

    async fn mend(
        &mut self,
        nats: &Nats,
        connection: Connection,
        failover: bool,
        survey: &Survey,
        progress: &mut impl FnMut(Progress),
    ) -> Result<Mended, Failure> {
        let look = match self.look().await? {
            Some(look) => look,
            None => self.stream.create(&New::of(&self.config.nats, self.resolved.subject())?).await?,
        };
        self.created = Some(look.end.created);
        let session = fastrand::i64(1..);
        let row = self.claimed(&look, session);
        checkpoint::put(&self.side.client, &self.config.postgres.schema, &row).await?;
        self.relay_ended().await?;
        let look = self.look().await?.ok_or_else(|| self.vanished())?;
        let last_seq = look.end.last_seq;
        self.scan(last_seq, progress).await?;
        self.begin().await?;
        let way = self.way().await?;
        let (begins, (behind, of)) = match &way {
            Way::Keep { confirmed, .. } => (*confirmed, self.to_come(&way).await?),
            Way::Anew { drop, .. } => {
                self.commit().await?;
                let begins = self.new_slot(connection, *drop, failover).await?;
                (begins, self.to_come(&way).await?)
            }
        };
        let base = way.base(begins);
        let mut filler = self.filler(nats, &look, session, base).await?;
        self.fill(&mut filler, behind, last_seq, of, progress).await?;
        let done = std::mem::take(&mut filler.done);
        self.commit().await?;
        // With a time to begin at, what is before it stays as it was known.
        if self.asked.since.is_none() {
            self.ids.list_left_out(self.rows()).await?;
        }
        let last = done.last.as_ref().map_or(last_seq, |(seq, _)| (*seq).max(last_seq));
        let look = self.look().await?.ok_or_else(|| self.vanished())?;
        self.goes_on(&look, last)?;
        let row = self.settled(row, &way, begins, base, &done, last).await?;
        if !checkpoint::write(self.side, &self.config.postgres.schema, &row).await? {
            return Err(fenced());
        }
        Ok(Mended {
            published: done.published,
            lettered: done.lettered,
            accepted: if self.asked.accept { survey.foreign } else { 0 },
            slot_lsn: begins.to_string(),
            last_seq: look.end.last_seq,
        })
    }

    fn vanished(&self) -> Failure {
        Failure::new(
            Code::StreamMissing,
            format!("stream `{}` was deleted meanwhile", self.stream.name()),
            "the same command again: it makes the stream anew",
        )
    }

    /// The row while this goes on: with what now identifies everything, and no one may stream.
    fn claimed(&self, look: &Look, session: i64) -> Checkpoint {
        let last_seq = look.end.last_seq;
        let known = self.row.as_ref();
        Checkpoint {
            slot: self.slot().to_owned(),
            stream: self.stream.name().to_owned(),
            stream_created: look.end.created,
            system_id: self.system.id,
            timeline: self.system.timeline,
            objects: self.objects,
            phase: self.asked.phase.as_str().to_owned(),
            session,
            seq: known.map_or(last_seq, |row| row.seq.min(last_seq)),
            last: known.and_then(|row| row.last.clone()),
            // Also for an attempt after this one, which need not be told.
            passed_seq: match self.asked.adopt {
                true => self.read,
                false => known.map_or(0, |row| row.passed_seq.min(last_seq)),
            },
            settled_lsn: known.map_or(Lsn::ZERO, |row| row.settled_lsn),
            confirmed_seq: known.map_or(0, |row| row.confirmed_seq.min(last_seq)),
        }
    }

    /// The row behind which the relay goes on.
    async fn settled(
        &self,
        row: Checkpoint,
        way: &Way,
        begins: Lsn,
        base: Lsn,
        done: &Done,
        last_seq: u64,
    ) -> Result<Checkpoint, Failure> {
        // What was stored though its answer was lost was read since.
        let read = match self.ids.last_seq_at(base).await? {
            Some(seq) => Some((seq, *self.event(seq).await?)),
            None => None,
        };
        let filled = read.into_iter().chain(done.last.clone()).max_by_key(|(seq, _)| *seq);
        let kept = match way {
            Way::Keep { behind, .. } => behind.as_ref().map(|(seq, event)| (*seq, (**event).clone())),
            Way::Anew { .. } => None,
        };
        let last: Option<(u64, Identity)> = filled.clone().or(kept.clone());
        let other_history = matches!(way, Way::Anew { other_history: true, .. });
        let judged = self.asked.accept || self.asked.adopt || other_history;
        Ok(Checkpoint {
            phase: "ready".to_owned(),
            seq: last.as_ref().map_or(last_seq, |(seq, _)| *seq),
            last: last.map(|(_, event)| event),
            passed_seq: if judged { last_seq } else { row.passed_seq },
            settled_lsn: begins,
            // The slot will not send those rows: the stream must keep them.
            confirmed_seq: match (&filled, &kept) {
                (Some((seq, _)), _) => *seq,
                (None, Some(_)) => row.confirmed_seq,
                (None, None) => last_seq,
            },
            ..row
        })
    }

    /// A relay whose row was taken ends its session.
    async fn relay_ended(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + RELAY_ENDS_MAX;
        while facts::slot_is_active(self.side, self.slot()).await? {
            if Instant::now() >= deadline {
                return Err(in_use(self.slot()));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Makes the slot anew and goes on in the snapshot that it begins with: its consistent point.
    async fn new_slot(&self, mut connection: Connection, drop: bool, failover: bool) -> Result<Lsn, Failure> {
        let name = self.slot();
        if drop {
            self.side.client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await?;
        }
        let options = match (connection.server_version(), failover) {
            (..=14, _) => "EXPORT_SNAPSHOT",
            (_, false) => "(SNAPSHOT 'export')",
            (_, true) => "(SNAPSHOT 'export', FAILOVER)",
        };
        let create =
            format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {options}", escape_identifier(name));
        let made = match connection.query(&create).await {
            Ok(made) => made,
            Err(Error::Timeout(_)) => {
                let blocked = preflight::blocked(self.side, name).await?;
                // It would wait on, and be made at last.
                let end =
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1";
                self.side.client.query(end, &[&name]).await?;
                return Err(blocked);
            }
            Err(error) => return Err(Failure::from(error).context("create the slot")),
        };
        let odd = || Failure::new(Code::Unexpected, "CREATE_REPLICATION_SLOT answers oddly", "report it");
        let text = |at: usize| made.first().and_then(|row| row.get(at).cloned().flatten()).ok_or_else(odd);
        let consistent: Lsn = text(1)?.parse().map_err(|_| odd())?;
        self.begin().await?;
        let snapshot = format!("SET TRANSACTION SNAPSHOT {}", escape_literal(&text(2)?));
        self.sql.client.batch_execute(&snapshot).await?;
        Ok(consistent)
    }

    async fn filler<'f>(
        &'f self,
        nats: &Nats,
        look: &Look,
        session: i64,
        base: Lsn,
    ) -> Result<Filler<'f>, Failure> {
        let publisher = Publisher::new(nats, self.stream.name(), self.config.outbox.cloudevents).await?;
        let System { id, timeline, .. } = *self.system;
        let columns: Vec<_> =
            self.table.columns.iter().map(|column| (column.name.clone(), column.type_oid)).collect();
        Ok(Filler {
            config: self.config,
            stream: &self.stream,
            limits: Limits::of(&look.config, publisher.max_payload()),
            publisher,
            side: self.side,
            owner: Owner { slot: self.slot().to_owned(), system_id: id },
            session,
            shape: Arc::new(Shape {
                table: preflight::bound(self.resolved, self.table)?,
                columns,
                key: self.config.encrypt.key()?.map(Arc::new),
            }),
            timeline,
            origin: format!("{id}/{timeline}/{}/", self.slot()).into(),
            base,
            index: self.ids.next_index(base).await?,
            now: facts::now(self.side).await?,
            done: Done::default(),
        })
    }

    /// Publishes round by round until none is lacking.
    async fn fill(
        &self,
        filler: &mut Filler<'_>,
        behind: Option<Place>,
        mut last_seq: u64,
        of: u64,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), Failure> {
        let mut moved = (Instant::now(), 0);
        loop {
            let mut rows = self.ids.lacking_rows(self.table, self.rows(), behind).await?;
            let filled = filler
                .fill(&mut rows, last_seq, |published| progress(Progress::Published(published, of)))
                .await;
            drop(rows);
            let Err(failure) = filled else { return Ok(()) };
            self.ids.put_settled(&std::mem::take(&mut filler.done.lettered_ids)).await?;
            let settled = filler.done.published + filler.done.lettered;
            if settled > moved.1 {
                moved = (Instant::now(), settled);
            }
            let hopeless = failure.code == Code::SessionTaken || moved.0.elapsed() >= PATIENCE;
            if failure.code.disposition() != Disposition::Retry || hopeless {
                return Err(failure);
            }
            sleep(PAUSE).await;
            match self.read_again(filler, &mut last_seq).await {
                Err(failure) if failure.code.disposition() != Disposition::Retry => return Err(failure),
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// What of the last round was stored, behind `last_seq`, which becomes the stream's end.
    async fn read_again(&self, filler: &Filler<'_>, last_seq: &mut u64) -> Result<(), Failure> {
        let look = self.look().await?.ok_or_else(|| self.vanished())?;
        let stored = filler.done.last.as_ref().map_or(0, |(seq, _)| *seq);
        self.goes_on(&look, stored.max(*last_seq))?;
        while *last_seq < look.end.last_seq {
            let upto = look.end.last_seq.min(*last_seq + CHUNK);
            let mut ours = Vec::new();
            for (seq, stored) in self.stream.messages(*last_seq + 1, upto).await? {
                match stored {
                    Stored::Event(event) if event.position.slot != self.slot() => {}
                    Stored::Event(event) if event.position.place.commit_lsn == filler.base => {
                        ours.push((event, seq));
                    }
                    // A relay's that had lost the slot: it belongs before what was published since.
                    Stored::Event(_) => {
                        return Err(Failure::new(
                            Code::SlotInUse,
                            format!("message {seq} came late from a relay that had ended"),
                            "the same command again: it reads the stream anew",
                        ));
                    }
                    Stored::Gone | Stored::Foreign(_) => {}
                }
            }
            self.ids.put_messages(&ours).await?;
            *last_seq = upto;
        }
        Ok(())
    }
}

fn in_use(slot: &str) -> Failure {
    Failure::new(
        Code::SlotInUse,
        format!("a relay streams slot `{slot}`"),
        "stop it first (systemctl stop postrider), then the same command again",
    )
}
