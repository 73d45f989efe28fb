//! A model of Postgres: the log, the slot and its walsender, the two tables of the relay, a standby
//! that lags.
//!
//! Everything that is written has an LSN, so that a crash, and the promotion of a standby that lacks
//! the end of the log, know what they keep. The walsender speaks the real protocol over a duplex
//! socket.

use super::World;
use super::wire::{self, OUTBOX};
use crate::delivery::checkpoint::{Checkpoint, Objects};
use crate::delivery::history::History;
use crate::delivery::opening::KnownLetter;
use crate::delivery::position::Place;
use crate::error::{Code, Failure};
use crate::outbox::{Reason, Resolved};
use crate::postgres::connection::Connection;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{Slot, Table, TableColumn, TableSize};
use crate::postgres::snapshot::Snapshot;
use crate::postgres::timestamp::Timestamp;
use crate::relay::sides;
use crate::state::dead_letter::{Letter, Owner};
use crate::state::obstacles::Obstacles;
use crate::state::survey::Survey;
use bytes::{Buf, Bytes, BytesMut};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, interval, sleep};

pub(super) const SYSTEM: u64 = 7_000_000_000_000_000_001;
pub(super) const OBJECTS: Objects = Objects { publication: 1, membership: 2, table: OUTBOX };

/// The server ends a walsender whose client has been silent for so long.
const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(30);

/// A client that answers whatever it hears keeps a core of the server busy.
const UPDATES_A_SECOND: u32 = 10;

/// A row of the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) event_type: String,
}

/// A committed transaction.
#[derive(Debug, Clone)]
pub(super) struct Transaction {
    pub(super) commit: Lsn,
    pub(super) end: Lsn,
    pub(super) time: i64,
    pub(super) rows: Vec<Row>,
}

/// A dead letter, and where it was committed and resolved.
#[derive(Debug, Clone)]
pub(super) struct LetterRow {
    committed: Lsn,
    pub(super) place: Place,
    pub(super) reason: Reason,
    pub(super) row: Row,
    pub(super) resolved: Option<(Lsn, &'static str)>,
}

/// The present primary.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) up: bool,
    started: u64,
    pub(super) timeline: u32,
    switches: Vec<(u32, Lsn)>,
    pub(super) log: Vec<Transaction>,
    pub(super) end: watch::Sender<Lsn>,
    pub(super) confirmed: Lsn,
    /// What a crash leaves of it.
    saved: Lsn,
    /// What a standby was told: the end of the log then, and the confirmed LSN.
    synced: Vec<(Lsn, Lsn)>,
    /// Which walsender has the slot.
    active: Option<u64>,
    /// The checkpoint row, as each write left it.
    rows: Vec<(Lsn, Checkpoint)>,
    pub(super) letters: Vec<LetterRow>,
    connections: u64,
    /// Sent to whoever is connected, when all connections end.
    epoch: watch::Sender<u64>,
    /// Rows of transactions that a fail-over lost.
    pub(super) abandoned: Vec<(u32, Transaction)>,
}

impl Server {
    /// Just after `init`.
    pub(super) fn new() -> Server {
        let start = Lsn(0x0100_0000);
        let row = Checkpoint {
            slot: "postrider".to_owned(),
            stream: "OUTBOX".to_owned(),
            stream_created: crate::postgres::timestamp::Timestamp(5),
            system_id: SYSTEM,
            timeline: 1,
            objects: OBJECTS,
            phase: "ready".to_owned(),
            session: 0,
            seq: 0,
            last: None,
            passed_seq: 0,
            settled_lsn: start,
            confirmed_seq: 0,
        };
        Server {
            up: true,
            started: 1,
            timeline: 1,
            switches: Vec::new(),
            log: Vec::new(),
            end: watch::channel(start).0,
            confirmed: start,
            saved: start,
            synced: vec![(start, start)],
            active: None,
            rows: vec![(start, row)],
            letters: Vec::new(),
            connections: 0,
            epoch: watch::channel(0).0,
            abandoned: Vec::new(),
        }
    }

    pub(super) fn wal_end(&self) -> Lsn {
        *self.end.borrow()
    }

    /// Takes room in the log; where it ends.
    pub(super) fn write(&mut self, bytes: u64) -> Lsn {
        let end = Lsn(self.wal_end().0 + bytes.next_multiple_of(8));
        self.end.send_replace(end);
        end
    }

    /// Commits rows.
    pub(super) fn commit(&mut self, rows: Vec<Row>, time: i64) {
        let commit = Lsn(self.wal_end().0 + 40 + 80 * rows.len() as u64);
        let end = Lsn(commit.0 + 48);
        self.log.push(Transaction { commit, end, time, rows });
        self.end.send_replace(end);
    }

    fn row(&self) -> &Checkpoint {
        &self.rows.last().unwrap().1
    }

    fn put(&mut self, row: Checkpoint) {
        let end = self.write(200);
        self.rows.push((end, row));
    }

    /// Resolves an open letter, and inserts its row again.
    pub(super) fn replay(&mut self, at: usize, time: i64) {
        let end = Lsn(self.wal_end().0 + 200);
        let letter = &mut self.letters[at];
        letter.resolved = Some((end, "replayed"));
        let row = letter.row.clone();
        self.commit(vec![row], time);
    }

    pub(super) fn drop_letter(&mut self, at: usize) {
        let end = self.write(100);
        self.letters[at].resolved = Some((end, "dropped"));
    }

    /// A checkpoint saves the slot; a standby is told of it.
    pub(super) fn checkpoint(&mut self) {
        self.saved = self.confirmed;
        self.write(120);
    }

    pub(super) fn sync_standby(&mut self) {
        self.synced.push((self.wal_end(), self.confirmed));
    }

    /// All connections end, and what was not saved of the slot is forgotten.
    pub(super) fn crash(&mut self) {
        self.up = false;
        self.end_connections();
        self.confirmed = self.saved;
    }

    pub(super) fn start(&mut self) {
        self.up = true;
        self.started += 1;
        self.write(100);
    }

    /// Every connection is ended by the server, or by the network.
    pub(super) fn end_connections(&mut self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// A standby that has the log up to `end` is promoted.
    pub(super) fn fail_over(&mut self, end: Lsn) {
        self.end_connections();
        self.active = None;
        self.started += 1;
        let kept = self.log.partition_point(|transaction| transaction.end <= end);
        let timeline = self.timeline;
        self.abandoned.extend(self.log.drain(kept..).map(|transaction| (timeline, transaction)));
        self.rows.retain(|(lsn, _)| *lsn <= end);
        self.letters.retain(|letter| letter.committed <= end);
        for letter in &mut self.letters {
            letter.resolved = letter.resolved.filter(|(lsn, _)| *lsn <= end);
        }
        self.synced.retain(|(lsn, confirmed)| *lsn <= end && *confirmed <= end);
        self.confirmed = self.synced.last().unwrap().1;
        self.saved = self.confirmed;
        // It may not have followed the last promotion yet: then that timeline is none of its past.
        let behind = self.switches.iter().find(|(_, lsn)| *lsn > end).map(|(timeline, _)| *timeline);
        self.switches.retain(|(_, lsn)| *lsn <= end);
        self.switches.push((behind.unwrap_or(self.timeline), end));
        self.timeline += 1;
        self.end.send_replace(end);
        self.write(150);
    }

    pub(super) fn history(&self) -> History {
        let file: String =
            self.switches.iter().map(|(timeline, lsn)| format!("{timeline}\t{lsn}\tpromoted\n")).collect();
        History::parse(SYSTEM, self.timeline, &file).unwrap()
    }

    fn slot(&self) -> Slot {
        Slot {
            plugin: Some("pgoutput".to_owned()),
            database: Some("shop".to_owned()),
            here: "shop".to_owned(),
            temporary: false,
            two_phase: false,
            active_pid: self.active.map(|_| 1),
            wal_status: Some("reserved".to_owned()),
            invalidation: None,
            restart_lsn: Some(self.saved),
            confirmed: Some(self.confirmed),
            wal_end: self.wal_end(),
            safe_wal_size: None,
        }
    }
}

fn broken() -> Failure {
    Failure::new(Code::PostgresSession, "the connection broke", "")
}

/// An SQL connection.
#[derive(Clone)]
pub(super) struct Sql {
    world: Rc<World>,
    epoch: u64,
    began: watch::Receiver<u64>,
}

pub(super) async fn connect(world: &Rc<World>) -> Result<Sql, Failure> {
    sleep(world.latency()).await;
    let server = world.server.borrow();
    if !server.up {
        return Err(Failure::new(Code::PostgresUnreachable, "connection refused", ""));
    }
    let began = server.epoch.subscribe();
    let epoch = *began.borrow();
    Ok(Sql { world: Rc::clone(world), epoch, began })
}

impl Sql {
    fn is_broken(&self) -> bool {
        *self.began.borrow() != self.epoch || !self.world.server.borrow().up
    }

    /// A statement: the server runs it to its end though the client goes away meanwhile.
    async fn run<T: 'static>(
        &self,
        statement: impl FnOnce(&mut Server) -> T + 'static,
    ) -> Result<T, Failure> {
        let (done, answer) = oneshot::channel();
        let sql = self.clone();
        tokio::task::spawn_local(async move {
            sleep(sql.world.latency()).await;
            if !sql.is_broken() {
                let value = statement(&mut sql.world.server.borrow_mut());
                sleep(sql.world.latency()).await;
                if !sql.is_broken() {
                    let _ = done.send(value);
                }
            }
        });
        answer.await.map_err(|_| broken())
    }
}

impl sides::Base for Sql {
    async fn closed(&self) -> String {
        let mut began = self.began.clone();
        let _ = began.wait_for(|now| *now != self.epoch).await;
        "the connection broke".to_owned()
    }

    async fn table(&self) -> Result<Table, Failure> {
        let column = |(name, type_oid): (&str, u32)| TableColumn { name: name.to_owned(), type_oid };
        let columns = wire::COLUMNS.map(column).into();
        self.run(|_| Table { oid: OUTBOX, kind: 'r', persistence: 'p', columns }).await
    }

    async fn fits_care(&self, _: &Table, _: &Resolved) -> Result<(), Failure> {
        Ok(())
    }

    async fn objects(&self, _: &Table) -> Result<Objects, Failure> {
        self.run(|_| OBJECTS).await
    }

    async fn slot(&self) -> Result<Slot, Failure> {
        self.run(|server| server.slot()).await
    }

    async fn slot_is_active(&self) -> Result<bool, Failure> {
        self.run(|server| server.active.is_some()).await
    }

    async fn started_at(&self) -> Result<String, Failure> {
        self.run(|server| server.started.to_string()).await
    }

    async fn now(&self) -> Result<Timestamp, Failure> {
        let now = self.world.moment(Instant::now());
        self.run(move |_| now).await
    }

    async fn walsender(&self) -> Result<Connection, Failure> {
        sleep(self.world.latency()).await;
        if !self.world.server.borrow().up {
            return Err(Failure::new(Code::PostgresUnreachable, "connection refused", ""));
        }
        let (ours, theirs) = duplex(4096);
        tokio::task::spawn_local(walsender(Rc::clone(&self.world), theirs));
        Ok(Connection::over(ours))
    }

    async fn walsender_waits_for(&self) -> Result<Option<String>, Failure> {
        self.run(|_| None).await
    }

    async fn snapshot(&self) -> Result<Snapshot, Failure> {
        // Whatever is sent is visible at once.
        let text = format!("{0}:{0}:", u64::from(u32::MAX) >> 1);
        self.run(move |_| text.parse().expect("a snapshot")).await
    }

    async fn row(&self) -> Result<Option<Checkpoint>, Failure> {
        self.run(|server| Some(server.row().clone())).await
    }

    async fn take(&self, session: i64) -> Result<Option<Checkpoint>, Failure> {
        self.run(move |server| {
            let row = Checkpoint { session, ..server.row().clone() };
            server.put(row.clone());
            Some(row)
        })
        .await
    }

    async fn write(&self, row: &Checkpoint) -> Result<bool, Failure> {
        let row = row.clone();
        self.run(move |server| {
            let mine = server.row().session == row.session;
            if mine {
                server.put(row);
            }
            mine
        })
        .await
    }

    async fn check(&self, _: Objects) -> Result<(Lsn, Slot), Failure> {
        self.run(|server| (server.wal_end(), server.slot())).await
    }

    async fn letters(&self, _: &Owner, from: Lsn) -> Result<(Vec<KnownLetter>, Lsn), Failure> {
        self.run(move |server| {
            let behind = server.letters.iter().filter(|letter| letter.place.commit_lsn >= from);
            let known =
                behind.map(|letter| KnownLetter { place: letter.place, open: letter.resolved.is_none() });
            let mut known: Vec<_> = known.collect();
            known.sort_by_key(|letter| letter.place);
            (known, server.wal_end())
        })
        .await
    }

    async fn letter(&self, _: &Owner, session: i64, letter: &Letter) -> Result<Option<Lsn>, Failure> {
        let (place, reason) = (letter.place, letter.reason);
        let id = letter.parts.event_id.clone().unwrap().parse().unwrap();
        let row = Row { id, event_type: letter.parts.event_type.clone().unwrap() };
        self.run(move |server| {
            if server.row().session != session {
                return None;
            }
            let committed = server.write(300);
            if !server.letters.iter().any(|known| known.place == place) {
                server.letters.push(LetterRow { committed, place, reason, row, resolved: None });
            }
            Some(committed)
        })
        .await
    }

    async fn void_letters(&self, _: &Owner, places: &[Place]) -> Result<(), Failure> {
        let places = places.to_vec();
        self.run(move |server| {
            for place in places {
                let end = server.write(100);
                let open = server.letters.iter_mut().find(|letter| letter.place == place);
                if let Some(letter) = open.filter(|letter| letter.resolved.is_none()) {
                    letter.resolved = Some((end, "stored"));
                }
            }
        })
        .await
    }

    async fn outbox_size(&self) -> Result<TableSize, Failure> {
        self.run(|_| TableSize::default()).await
    }

    async fn obstacles(&self) -> Result<Obstacles, Failure> {
        Ok(Obstacles::default())
    }

    async fn survey(&self) -> Result<Survey, Failure> {
        let open = |server: &Server| server.letters.iter().filter(|letter| letter.resolved.is_none()).count();
        let open = self.run(move |server| open(server) as u64).await?;
        let row = sides::Base::row(self).await?;
        Ok(Survey {
            slot: None,
            row,
            open_letters: Some(open),
            outbox: TableSize::default(),
            obstacles: Obstacles::default(),
        })
    }

    async fn tend_letters(&self, _: &Owner, _: &str) -> Result<u64, Failure> {
        self.run(|server| server.letters.iter().filter(|letter| letter.resolved.is_none()).count() as u64)
            .await
    }
}

/// Frees the slot when its walsender ends, however it ends.
struct Hold {
    world: Rc<World>,
    connection: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut server = self.world.server.borrow_mut();
        if server.active == Some(self.connection) {
            server.active = None;
        }
    }
}

/// One walsender, from its first command to its end.
async fn walsender(world: Rc<World>, mut io: DuplexStream) {
    let (mut epoch, connection) = {
        let mut server = world.server.borrow_mut();
        server.connections += 1;
        (server.epoch.subscribe(), server.connections)
    };
    epoch.mark_unchanged();
    tokio::select! {
        biased;
        _ = epoch.changed() => {}
        () = serve(&world, &mut io, connection) => {}
    }
}

/// What the client sent: a tag and a body.
async fn read(io: &mut DuplexStream) -> Option<(u8, Bytes)> {
    let tag = io.read_u8().await.ok()?;
    let length = usize::try_from(io.read_u32().await.ok()?).ok()?;
    let mut body = BytesMut::zeroed(length - 4);
    io.read_exact(&mut body).await.ok()?;
    Some((tag, body.freeze()))
}

async fn serve(world: &Rc<World>, io: &mut DuplexStream, connection: u64) {
    while let Some((tag, body)) = read(io).await {
        assert_eq!(tag, b'Q', "a command");
        let command = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned();
        sleep(world.latency()).await;
        let answer = if command == "IDENTIFY_SYSTEM" {
            let server = world.server.borrow();
            let (system, timeline) = (SYSTEM.to_string(), server.timeline.to_string());
            wire::answer(&[&system, &timeline, &server.wal_end().to_string(), "shop"])
        } else if command.starts_with("TIMELINE_HISTORY") {
            let server = world.server.borrow();
            let lines =
                server.switches.iter().map(|(timeline, lsn)| format!("{timeline}\t{lsn}\tpromoted\n"));
            wire::answer(&["history", &lines.collect::<String>()])
        } else if command.starts_with("SELECT") {
            wire::answer(&[&world.server.borrow().started.to_string()])
        } else {
            let start = command.split_whitespace().nth(4).unwrap().parse().unwrap();
            let taken = {
                let mut server = world.server.borrow_mut();
                let free = server.active.is_none();
                server.active.get_or_insert(connection);
                free
            };
            if taken {
                let _hold = Hold { world: Rc::clone(world), connection };
                stream(world, io, start).await;
                return;
            }
            wire::error("55006", "replication slot \"postrider\" is active for PID 1")
        };
        if io.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// Streams from `start` or the confirmed LSN, whichever is later.
async fn stream(world: &Rc<World>, io: &mut DuplexStream, start: Lsn) {
    let (mut end, mut next) = {
        let server = world.server.borrow();
        (server.end.subscribe(), start.max(server.confirmed))
    };
    let (mut reading, mut writing) = tokio::io::split(io);
    if writing.write_all(&wire::copy_both()).await.is_err() {
        return;
    }
    let sending = async {
        let mut described = false;
        let mut told = Lsn::ZERO;
        let mut pings = interval(WAL_SENDER_TIMEOUT / 2);
        loop {
            let transaction = {
                let server = world.server.borrow();
                let found = server.log.iter().find(|transaction| transaction.commit >= next);
                found.cloned()
            };
            let Some(Transaction { commit, end: ended, time, rows }) = transaction else {
                let sent = *end.borrow_and_update();
                if sent > told && world.chance(0.7) {
                    told = sent;
                    writing.write_all(&wire::keepalive(sent, world.chance(0.1))).await?;
                }
                let reply = tokio::select! {
                    biased;
                    _ = end.changed() => continue,
                    _ = pings.tick() => true,
                    () = world.asked.notified() => false,
                };
                let sent = *end.borrow();
                writing.write_all(&wire::keepalive(sent, reply)).await?;
                continue;
            };
            next = Lsn(commit.0 + 1);
            writing.write_all(&wire::begin(commit, time)).await?;
            if !std::mem::replace(&mut described, true) {
                writing.write_all(&wire::relation()).await?;
            }
            for row in rows {
                if world.chance(0.1) {
                    sleep(world.latency()).await;
                }
                writing.write_all(&wire::insert(row.id, &row.event_type)).await?;
            }
            writing.write_all(&wire::commit(commit, ended, time)).await?;
        }
    };
    let hearing = async {
        let (mut second, mut updates) = (Instant::now(), 0);
        loop {
            let mut head = [0; 5];
            let heard = tokio::time::timeout(WAL_SENDER_TIMEOUT, reading.read_exact(&mut head)).await;
            if !matches!(heard, Ok(Ok(_))) {
                return;
            }
            let mut body = vec![0; u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4];
            if reading.read_exact(&mut body).await.is_err() || head[0] == b'c' {
                return;
            }
            let mut body = Bytes::from(body);
            assert_eq!(body.get_u8(), b'r', "a status update");
            if second.elapsed() >= Duration::from_secs(1) {
                (second, updates) = (Instant::now(), 0);
            }
            updates += 1;
            if updates > UPDATES_A_SECOND {
                world.find(format!("CHATTY {updates} status updates within a second"));
            }
            let (_, flush) = (body.get_u64(), Lsn(body.get_u64()));
            body.advance(16);
            if body.get_u8() == 1 {
                world.asked.notify_one();
            }
            world.confirm(flush);
        }
    };
    let sending = async {
        let sent: std::io::Result<()> = sending.await;
        drop(sent);
    };
    tokio::select! {
        biased;
        () = hearing => {}
        () = sending => {}
    }
}
