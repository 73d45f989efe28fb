//! Real servers on both sides.

use super::preflight;
use super::sides::{Base, Broker, Publisher, Sides, Stream};
use super::unanswered;
use crate::care;
use crate::config::Config;
use crate::delivery::checkpoint::{Checkpoint, Objects};
use crate::delivery::opening::{KnownLetter, Stored};
use crate::delivery::position::Place;
use crate::error::Failure;
use crate::nats::answer::Answer;
use crate::nats::envelope::Stamp;
use crate::nats::stream::Look;
use crate::nats::{connect, object_store, publish, stream};
use crate::outbox::{Event, Resolved};
use crate::postgres::client::Sql;
use crate::postgres::connection::Connection;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{self as facts, Slot, Table, TableSize};
use crate::postgres::snapshot::Snapshot;
use crate::postgres::timestamp::Timestamp;
use crate::state::checkpoint;
use crate::state::dead_letter::{self, Letter, Owner};
use crate::state::obstacles::{self, Obstacles};
use crate::state::survey::{self, Survey};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A few questions to the catalogues take milliseconds; a server that needs so long is as good as away.
const ANSWERS_MAX: Duration = Duration::from_secs(30);

/// As the configuration names them.
pub(super) struct Servers {
    pub(super) config: Arc<Config>,
}

impl Sides for Servers {
    type Base = Postgres;
    type Stream = stream::Stream;
    type Publisher = publish::Publisher;

    async fn nats(&self) -> Result<Broker<stream::Stream, publish::Publisher>, Failure> {
        let nats = connect::connect(&self.config.nats.access).await?;
        let stream = stream::Stream::named(&nats, &self.config.nats.stream).await?;
        let publisher =
            publish::Publisher::new(&nats, &self.config.nats.stream, self.config.outbox.cloudevents).await?;
        Ok(Broker {
            stream,
            publisher,
            link: nats.link.clone(),
            version: nats.client.server_info().version,
            msg_id_is_safe: nats.client.is_server_compatible(2, 12, 0),
        })
    }

    async fn postgres(&self, first: usize) -> Result<Postgres, Failure> {
        let sql = Sql::connect_from(&self.config.postgres.database.resolve_again()?, first).await?;
        Ok(Postgres { sql: Arc::new(sql), config: Arc::clone(&self.config) })
    }

    async fn survey(&self, first: usize) -> Result<Survey, Failure> {
        self.postgres(first).await?.survey().await
    }
}

/// One SQL connection, and what to ask with it.
#[derive(Clone)]
pub(super) struct Postgres {
    sql: Arc<Sql>,
    config: Arc<Config>,
}

impl Postgres {
    fn schema(&self) -> &str {
        &self.config.postgres.schema
    }

    fn slot_name(&self) -> &str {
        &self.config.postgres.slot
    }

    /// The WAL's end is read first: what is seen whole afterwards was whole up to there.
    async fn look(&self, objects: Objects) -> Result<(Lsn, Slot), Failure> {
        let lsn = facts::wal_insert_lsn(&self.sql).await?;
        let (table, publication) = (&self.config.outbox.table, &self.config.postgres.publication);
        let found = facts::table(&self.sql, &table.schema, &table.name).await?;
        let published = facts::publication(&self.sql, publication, &table.schema, &table.name).await?;
        let now = published.filter(|published| published.has_table && published.inserts).zip(found);
        let now = now.map(|(published, table)| preflight::objects(&published, &table));
        if now != Some(objects) {
            return Err(preflight::changed(publication, now, objects));
        }
        Ok((lsn, preflight::slot(&self.sql, &self.config).await?))
    }
}

impl Base for Postgres {
    async fn closed(&self) -> String {
        self.sql.closed().await
    }

    async fn table(&self) -> Result<Table, Failure> {
        in_time(preflight::server(&self.sql)).await?;
        in_time(preflight::table(&self.sql, &self.config)).await
    }

    async fn fits_care(&self, table: &Table, resolved: &Resolved) -> Result<(), Failure> {
        let problems = in_time(care::examine(&self.sql, &self.config, table, resolved)).await?;
        problems.into_iter().next().map_or(Ok(()), Err)
    }

    async fn objects(&self, table: &Table) -> Result<Objects, Failure> {
        let publication = in_time(preflight::publication(&self.sql, &self.config, table)).await?;
        in_time(preflight::letters(&self.sql, &self.config)).await?;
        in_time(preflight::slot(&self.sql, &self.config)).await?;
        Ok(preflight::objects(&publication, table))
    }

    async fn slot(&self) -> Result<Slot, Failure> {
        in_time(preflight::slot(&self.sql, &self.config)).await
    }

    async fn slot_is_active(&self) -> Result<bool, Failure> {
        in_time(facts::slot_is_active(&self.sql, self.slot_name())).await
    }

    async fn started_at(&self) -> Result<String, Failure> {
        in_time(facts::started_at(&self.sql)).await
    }

    async fn now(&self) -> Result<Timestamp, Failure> {
        in_time(facts::now(&self.sql)).await
    }

    async fn walsender(&self) -> Result<Connection, Failure> {
        let postgres = &self.config.postgres;
        let mut connection = self.sql.walsender(&postgres.database.resolve_again()?).await?;
        connection.end_after_silence(postgres.wal_sender_timeout).await?;
        Ok(connection)
    }

    async fn walsender_waits_for(&self) -> Result<Option<String>, Failure> {
        in_time(facts::walsender_waits_for(&self.sql, self.slot_name())).await
    }

    async fn snapshot(&self) -> Result<Snapshot, Failure> {
        in_time(facts::snapshot(&self.sql)).await
    }

    async fn row(&self) -> Result<Option<Checkpoint>, Failure> {
        in_time(checkpoint::read(&self.sql, self.schema(), self.slot_name())).await
    }

    async fn take(&self, session: i64) -> Result<Option<Checkpoint>, Failure> {
        in_time(checkpoint::take(&self.sql, self.schema(), self.slot_name(), session)).await
    }

    async fn write(&self, row: &Checkpoint) -> Result<bool, Failure> {
        in_time(checkpoint::write(&self.sql, self.schema(), row)).await
    }

    async fn check(&self, objects: Objects) -> Result<(Lsn, Slot), Failure> {
        in_time(self.look(objects)).await
    }

    async fn letters(&self, owner: &Owner, from: Lsn) -> Result<(Vec<KnownLetter>, Lsn), Failure> {
        in_time(dead_letter::behind(&self.sql, self.schema(), owner, from)).await
    }

    async fn letter(&self, owner: &Owner, session: i64, letter: &Letter) -> Result<Option<Lsn>, Failure> {
        in_time(dead_letter::insert(&self.sql, self.schema(), owner, session, letter)).await
    }

    async fn void_letters(&self, owner: &Owner, places: &[Place]) -> Result<(), Failure> {
        in_time(dead_letter::void(&self.sql, self.schema(), owner, places)).await
    }

    async fn outbox_size(&self) -> Result<TableSize, Failure> {
        let table = &self.config.outbox.table;
        in_time(facts::table_size(&self.sql, &table.schema, &table.name)).await
    }

    async fn obstacles(&self) -> Result<Obstacles, Failure> {
        in_time(obstacles::read(&self.sql, &self.config)).await
    }

    async fn survey(&self) -> Result<Survey, Failure> {
        in_time(survey::read(&self.sql, &self.config)).await
    }

    async fn tend_letters(&self, owner: &Owner, id_column: &str) -> Result<u64, Failure> {
        let outbox = dead_letter::Outbox { table: &self.config.outbox.table.to_string(), id: id_column };
        let retention = self.config.delivery.dead_letter_retention;
        in_time(dead_letter::sweep(&self.sql, self.schema(), owner, &outbox, retention)).await?;
        in_time(dead_letter::open_count(&self.sql, self.schema(), &owner.slot)).await
    }
}

/// A server that hangs must not hang the relay without a word.
async fn in_time<T, E: Into<Failure>>(asking: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    match timeout(ANSWERS_MAX, asking).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(unanswered()),
    }
}

impl Stream for stream::Stream {
    fn name(&self) -> &str {
        self.name()
    }

    async fn look(&self) -> Result<Look, Failure> {
        self.look().await
    }

    async fn message(&self, seq: u64) -> Result<Stored, Failure> {
        self.message(seq).await
    }

    async fn messages(&self, first: u64, last: u64) -> Result<Vec<(u64, Stored)>, Failure> {
        self.messages(first, last).await
    }

    async fn has_object_store(&self) -> Result<bool, Failure> {
        object_store::exists(self).await
    }

    async fn claim_check(&self, event: Event, place: Place) -> Result<Event, Failure> {
        object_store::claim_check(self, event, place).await
    }
}

impl Publisher for publish::Publisher {
    fn max_payload(&self) -> usize {
        self.max_payload()
    }

    fn next_epoch(&mut self) {
        self.next_epoch();
    }

    fn awaited(&self) -> u64 {
        self.awaited()
    }

    fn unanswered(&self) -> u64 {
        self.unanswered()
    }

    fn send(&mut self, seq: u64, event: &Event, stamp: Stamp<'_>) {
        self.send(seq, event, stamp);
    }

    async fn answer(&mut self) -> (u64, Answer) {
        self.answer().await
    }

    fn answered(&mut self) -> Option<(u64, Answer)> {
        self.answered()
    }
}
