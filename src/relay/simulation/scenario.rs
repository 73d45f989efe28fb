//! One seed: writers, faults, and what must be left in the end.

use super::jetstream::{Broker, Message};
use super::postgres::{Row, Server, Transaction};
use super::{Models, REFUSED, SYNC_INTERVAL, World};
use crate::care::Wanted;
use crate::config::{Config, Environment, Flags, Loaded};
use crate::delivery::position::Place;
use crate::error::{Disposition, Failure};
use crate::ops::http::Pulse;
use crate::ops::status::{Board, Status};
use crate::outbox::Reason;
use crate::postgres::lsn::Lsn;
use crate::relay::{Pace, run_between};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// After the last fault everything must be settled within this time: patience with a silent walsender
/// and every back-off fit in.
const CALM: Duration = Duration::from_secs(400);

/// What can happen. A seed draws some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Terminate,
    Freeze,
    Standby,
    Loss,
    Cut,
    NatsRestart,
    PowerFailure,
    Silence,
    PostgresCrash,
    ConnectionsEnd,
    FailOver,
    Purge,
    Replay,
    Drop,
    Reconfigure,
}

const FAULTS: [Fault; 16] = [
    Fault::Kill,
    Fault::Terminate,
    Fault::Freeze,
    Fault::Standby,
    Fault::Loss,
    Fault::Cut,
    Fault::NatsRestart,
    Fault::PowerFailure,
    Fault::Silence,
    Fault::PostgresCrash,
    Fault::ConnectionsEnd,
    Fault::FailOver,
    Fault::Purge,
    Fault::Replay,
    Fault::Drop,
    Fault::Reconfigure,
];

/// What a run came to.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) events: usize,
    pub(super) letters: usize,
    pub(super) unaccounted: usize,
    pub(super) faults: usize,
    pub(super) phantoms: usize,
}

impl std::ops::Add for Tally {
    type Output = Tally;

    fn add(self, other: Tally) -> Tally {
        Tally {
            events: self.events + other.events,
            letters: self.letters + other.letters,
            unaccounted: self.unaccounted + other.unaccounted,
            faults: self.faults + other.faults,
            phantoms: self.phantoms + other.phantoms,
        }
    }
}

/// Runs a seed.
///
/// # Errors
/// What the oracle found, with the whole story.
pub(super) fn run(seed: u64) -> Result<Tally, String> {
    in_paused_time(seed, async |world| {
        let tally = play(&world).await;
        let findings = world.findings.borrow();
        match findings.first() {
            None => Ok(tally),
            Some(first) => Err(format!("seed {seed}: {first}\n{}", world.story.borrow().join("\n"))),
        }
    })
}

fn in_paused_time<T>(seed: u64, playing: impl AsyncFnOnce(Rc<World>) -> T) -> T {
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    LocalSet::new().block_on(&runtime.unwrap(), async { playing(World::new(seed)).await })
}

// ---- The relay as a process -------------------------------------------------------------------

/// Whether a process is stopped (SIGSTOP), and who is to be woken after.
#[derive(Default)]
struct Frozen {
    is: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

struct Process {
    task: JoinHandle<Result<(), Failure>>,
    stop: watch::Sender<bool>,
    frozen: Rc<Frozen>,
}

impl Process {
    fn start(world: &Rc<World>, config: Config) -> Process {
        let (stop, stopping) = watch::channel(false);
        let frozen = Rc::new(Frozen::default());
        let (models, stopped) = (Models(Rc::clone(world)), Rc::clone(&frozen));
        let task = spawn_local(async move {
            let board = Board::new(Status::default());
            let pulse = Pulse::default();
            let pace = Pace::default();
            let mut relay =
                Box::pin(run_between(&models, &config, &board, &pulse, &pace, Wanted::default(), stopping));
            poll_fn(move |context| {
                if stopped.is.get() {
                    stopped.waker.replace(Some(context.waker().clone()));
                    return Poll::Pending;
                }
                Pin::as_mut(&mut relay).poll(context)
            })
            .await
        });
        Process { task, stop, frozen }
    }

    fn freeze(&self) {
        self.frozen.is.set(true);
    }

    fn thaw(&self) {
        self.frozen.is.set(false);
        if let Some(waker) = self.frozen.waker.take() {
            waker.wake();
        }
    }
}

/// The relays that are to run, and the configuration of those that start next.
struct Operator {
    world: Rc<World>,
    relays: Vec<Process>,
    /// Events of the type `a.b` are published, not lettered.
    mended: bool,
    hold_back: Duration,
}

impl Operator {
    fn config(&self) -> Config {
        let subject = if self.mended { "outbox.{event_type:tokens}" } else { "outbox.{event_type}" };
        let hold_back = humantime::format_duration(self.hold_back).to_string();
        let variables = [
            ("DATABASE_URL", "postgres://app@db/shop"),
            ("NATS_URL", "nats://n"),
            ("USER", "me"),
            ("POSTRIDER_OUTBOX_SUBJECT", subject),
            ("POSTRIDER_DELIVERY_HOLD_BACK", &hold_back),
            ("POSTRIDER_DELIVERY_WINDOW_MESSAGES", "16"),
            ("POSTRIDER_DELIVERY_DEAD_LETTERS_MAX", "1000000"),
        ];
        Loaded::from(&Flags::default(), &Environment::of(variables)).config.unwrap()
    }

    fn start(&mut self) {
        let process = Process::start(&self.world, self.config());
        self.relays.push(process);
    }

    /// Restarts what has ended; an end that was not asked for is a finding where a person would have
    /// to act.
    async fn tend(&mut self, at_least: usize) {
        let mut running = Vec::new();
        for relay in self.relays.drain(..) {
            if !relay.task.is_finished() {
                running.push(relay);
                continue;
            }
            match relay.task.await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => {
                    self.world.tell(format!("a relay ended: {failure}"));
                    if matches!(failure.code.disposition(), Disposition::Halt | Disposition::Poison) {
                        self.world.find(format!("HALT {failure}"));
                    }
                }
                Err(error) => self.world.find(format!("PANIC {error}")),
            }
        }
        self.relays = running;
        while self.relays.len() < at_least {
            self.start();
        }
    }
}

// ---- The play ---------------------------------------------------------------------------------

async fn play(world: &Rc<World>) -> Tally {
    let mut kinds: Vec<_> = FAULTS.into_iter().filter(|_| world.chance(0.35)).collect();
    if kinds.contains(&Fault::FailOver) || kinds.contains(&Fault::PowerFailure) {
        // What a message that is gone was cannot be told over either of them: the relay halts, rightly.
        kinds.retain(|kind| *kind != Fault::Purge);
    }
    let hold_back = if kinds.contains(&Fault::PowerFailure) || world.chance(0.5) {
        2 * SYNC_INTERVAL + Duration::from_secs(2)
    } else {
        Duration::ZERO
    };
    {
        let stream = &mut world.broker.borrow_mut().stream;
        (stream.max_msg_size, stream.size_first) = (1 << 20, world.chance(0.5));
    }
    world.loses_power.set(kinds.contains(&Fault::PowerFailure));
    world.tell(format!("faults {kinds:?}, hold-back {hold_back:?}"));
    let mut operator = Operator { world: Rc::clone(world), relays: Vec::new(), mended: false, hold_back };
    operator.start();
    let writing = Rc::new(Cell::new(true));
    let writer = spawn_local(write(Rc::clone(world), Rc::clone(&writing)));

    let faults = if kinds.is_empty() { 0 } else { 2 + world.below(9) };
    let mut wanted = 1;
    for _ in 0..faults {
        sleep(if world.chance(0.7) { world.millis(10..1500) } else { world.millis(1500..20_000) }).await;
        operator.tend(wanted).await;
        let fault = kinds[world.below(kinds.len())];
        world.tell(format!("{fault:?}"));
        inflict(world, &mut operator, fault, &mut wanted).await;
        if !world.findings.borrow().is_empty() {
            break;
        }
    }
    sleep(world.millis(0..3000)).await;
    writing.set(false);
    let _ = writer.await;
    world.tell("calm");
    world.broker.borrow_mut().heal();
    calm(world, &mut operator, wanted).await;
    judge(world, faults)
}

/// Commits transactions of one to six rows, now and then nothing for a while, and WAL of other tables.
async fn write(world: Rc<World>, writing: Rc<Cell<bool>>) {
    let mut id = 0;
    while writing.get() {
        sleep(if world.chance(0.9) { world.millis(0..120) } else { world.millis(100..6000) }).await;
        if !world.server.borrow().up {
            continue;
        }
        if world.chance(0.2) {
            world.server.borrow_mut().write(50 + world.below(100_000) as u64);
            continue;
        }
        let rows = (0..=world.below(6)).map(|_| {
            id += 1;
            let event_type = match world.below(40) {
                0 => "a.b",
                1 => REFUSED,
                _ => "good",
            };
            Row { id, event_type: event_type.to_owned() }
        });
        let rows: Vec<_> = rows.collect();
        world.server.borrow_mut().commit(rows, world.moment(Instant::now()).0);
    }
}

async fn inflict(world: &Rc<World>, operator: &mut Operator, fault: Fault, wanted: &mut usize) {
    match fault {
        Fault::Kill => {
            if let Some(relay) = operator.relays.pop() {
                relay.task.abort();
                let _ = relay.task.await;
            }
            sleep(world.millis(0..3000)).await;
        }
        Fault::Terminate => {
            if let Some(relay) = operator.relays.pop() {
                let _ = relay.stop.send(true);
                if timeout(CALM, relay.task).await.is_err() {
                    world.find("WEDGE a relay does not end after SIGTERM".to_owned());
                }
            }
        }
        Fault::Freeze => {
            let Some(at) = operator.relays.len().checked_sub(1) else { return };
            operator.relays[at].freeze();
            // Longer than wal_sender_timeout, half of the time: then the slot is free.
            sleep(if world.chance(0.5) { world.millis(100..5000) } else { world.millis(31_000..50_000) })
                .await;
            operator.relays[at].thaw();
        }
        Fault::Standby => {
            *wanted = 2;
            operator.tend(2).await;
        }
        Fault::Loss => {
            let share = if world.chance(0.5) { 0.02 } else { 0.3 };
            world.broker.borrow_mut().lossy = (share, Instant::now() + world.millis(500..10_000));
        }
        Fault::Cut => {
            world.broker.borrow_mut().cut();
            sleep(world.millis(1..8000)).await;
            world.broker.borrow_mut().heal();
        }
        // A cluster that lost a majority goes back while a client stays connected.
        Fault::PowerFailure if world.chance(0.3) => fail_power(world, &mut world.broker.borrow_mut()),
        Fault::NatsRestart | Fault::PowerFailure => {
            {
                let mut broker = world.broker.borrow_mut();
                broker.up = false;
                broker.cut();
                if fault == Fault::PowerFailure {
                    fail_power(world, &mut broker);
                }
            }
            sleep(world.millis(50..12_000)).await;
            world.broker.borrow_mut().up = true;
            world.broker.borrow_mut().heal();
        }
        Fault::Silence => {
            let until = Instant::now() + world.millis(100..15_000);
            world.broker.borrow_mut().silent_until = until;
            if world.chance(0.5) {
                sleep_until(until).await;
            }
        }
        Fault::PostgresCrash => {
            world.server.borrow_mut().crash();
            sleep(world.millis(100..5000)).await;
            world.server.borrow_mut().start();
        }
        Fault::ConnectionsEnd => world.server.borrow_mut().end_connections(),
        Fault::FailOver => fail_over(world).await,
        Fault::Purge => {
            let keep = world.below(4) as u64;
            world.broker.borrow_mut().stream.purge(keep);
        }
        Fault::Replay | Fault::Drop => {
            let now = world.moment(Instant::now()).0;
            let mut server = world.server.borrow_mut();
            let open: Vec<_> =
                (0..server.letters.len()).filter(|at| server.letters[*at].resolved.is_none()).collect();
            if let Some(at) = open.get(world.below(open.len())).filter(|_| server.up) {
                if fault == Fault::Replay { server.replay(*at, now) } else { server.drop_letter(*at) }
            }
        }
        Fault::Reconfigure => {
            operator.mended = !operator.mended;
            for relay in operator.relays.drain(..) {
                relay.task.abort();
                let _ = relay.task.await;
            }
        }
    }
    if world.chance(0.5) {
        let mut server = world.server.borrow_mut();
        server.checkpoint();
        server.sync_standby();
    }
}

/// The machine loses what was stored within the sync interval, or less of it.
fn fail_power(world: &World, broker: &mut Broker) {
    let synced = Instant::now() - SYNC_INTERVAL;
    let safe = broker.stream.messages.iter().filter(|(_, message)| message.stored_at <= synced);
    let safe = safe.map(|(seq, _)| *seq).max().unwrap_or_default();
    let lost = usize::try_from(broker.stream.last_seq - safe).unwrap();
    let keep = broker.stream.last_seq - world.below(lost + 1) as u64;
    world.tell(format!("the stream goes back from {} to {keep}", broker.stream.last_seq));
    broker.stream.truncate(keep);
}

/// A standby that lacks the last part of the log is promoted.
async fn fail_over(world: &Rc<World>) {
    let end = {
        let server = world.server.borrow();
        let lag = if world.chance(0.3) { 0 } else { world.below(1 + server.log.len().min(12)) };
        let at = server.log.len() - lag;
        at.checked_sub(1).map_or(server.wal_end(), |last| server.log[last].end)
    };
    world.server.borrow_mut().up = false;
    world.server.borrow_mut().end_connections();
    sleep(world.millis(50..6000)).await;
    let mut server = world.server.borrow_mut();
    // The slot that the standby has was synchronized with what it has of the log, at some time.
    server.fail_over(end);
    server.up = true;
    world.tell(format!("promoted at {end}, the slot at {}", server.confirmed));
}

/// Everything is healed: all must be published, and the slot confirmed, in time.
async fn calm(world: &Rc<World>, operator: &mut Operator, wanted: usize) {
    let until = Instant::now() + CALM;
    loop {
        operator.tend(wanted).await;
        if !world.findings.borrow().is_empty() {
            return;
        }
        let (target, confirmed) = {
            let server = world.server.borrow();
            let target = server.log.iter().rev().find(|transaction| !transaction.rows.is_empty());
            (target.map_or(Lsn::ZERO, |transaction| transaction.end), server.confirmed)
        };
        if confirmed >= target {
            break;
        }
        if Instant::now() >= until {
            world.find(format!("WEDGE the slot stands at {confirmed}, {target} is due"));
            return;
        }
        sleep(Duration::from_millis(500)).await;
    }
    for relay in operator.relays.drain(..) {
        let _ = relay.stop.send(true);
        match timeout(CALM, relay.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(failure))) => world.find(format!("HALT at the end: {failure}")),
            Ok(Err(error)) => world.find(format!("PANIC {error}")),
            Err(_) => world.find("WEDGE a relay does not end after SIGTERM".to_owned()),
        }
    }
}

// ---- The oracle -------------------------------------------------------------------------------

fn events(log: &[Transaction]) -> impl Iterator<Item = (Place, i64, &Row)> {
    log.iter().flat_map(|transaction| {
        let rows = (0..).zip(&transaction.rows);
        rows.map(|(index, row)| (Place { commit_lsn: transaction.commit, index }, transaction.time, row))
    })
}

/// What the stream holds of this server's history, by place.
fn held<'m>(server: &Server, broker: &'m Broker) -> BTreeMap<Place, Vec<(u64, &'m Message)>> {
    let history = server.history();
    let mut held: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (seq, message) in &broker.stream.messages {
        if let Some(event) = message.event.as_ref().filter(|event| history.contains(&event.position)) {
            held.entry(event.position.place).or_default().push((*seq, message));
        }
    }
    held
}

fn is(message: &Message, time: i64, row: &Row) -> bool {
    let event = message.event.as_ref();
    event.is_some_and(|event| event.commit_time.0 == time && event.event_id == row.id.to_string())
}

/// What a confirmation from `before` to `flush` covers and must not.
pub(super) fn unsafe_confirmation(world: &World, before: Lsn, flush: Lsn) -> Option<String> {
    let (server, broker) = (world.server.borrow(), world.broker.borrow());
    if flush > server.wal_end() {
        return Some(format!("CONFIRM of {flush}, the WAL ends at {}", server.wal_end()));
    }
    let covered =
        server.log.iter().filter(|transaction| transaction.end > before && transaction.commit < flush);
    let covered: Vec<_> = covered.cloned().collect();
    if covered.is_empty() {
        return None;
    }
    let held = held(&server, &broker);
    events(&covered).find_map(|(place, time, row)| {
        if server.letters.iter().any(|letter| letter.place == place) {
            return None;
        }
        let stored =
            held.get(&place).and_then(|held| held.iter().find(|(_, message)| is(message, time, row)));
        let what = match stored {
            None => "which is nowhere",
            Some((_, message))
                if world.loses_power.get() && message.stored_at + SYNC_INTERVAL > Instant::now() =>
            {
                "which is not on disk yet"
            }
            Some(_) => return None,
        };
        Some(format!("CONFIRM of {flush} covers event {} at {place:?}, {what}", row.id))
    })
}

fn judge(world: &Rc<World>, faults: usize) -> Tally {
    let (server, broker) = (world.server.borrow(), world.broker.borrow());
    let unaccounted = server.letters.iter().filter(|letter| letter.reason == Reason::Unaccounted).count();
    let mut tally = Tally { faults, letters: server.letters.len(), unaccounted, ..Tally::default() };
    let log: BTreeMap<_, _> = events(&server.log).map(|(place, time, row)| (place, (time, row))).collect();
    let history = server.history();
    let mut stored: BTreeMap<Place, Vec<u64>> = BTreeMap::new();
    let mut last = None;
    for (seq, message) in &broker.stream.messages {
        let place = message.event.as_ref().map(|event| event.position.place);
        let ours = message.event.as_ref().is_some_and(|event| history.contains(&event.position));
        let ours =
            place.filter(|place| ours && log.get(place).is_some_and(|(time, row)| is(message, *time, row)));
        let Some(place) = ours else {
            let lost = server.abandoned.iter().any(|(_, transaction)| {
                events(std::slice::from_ref(transaction))
                    .any(|(lost, time, row)| Some(lost) == place && is(message, time, row))
            });
            tally.phantoms += usize::from(lost);
            if !lost {
                world.find(format!("INVENTED message {seq}: {:?}", message.event));
            }
            continue;
        };
        if last >= Some(place) {
            world.find(format!("ORDER message {seq} at {place:?} stands behind {last:?}"));
        }
        last = last.max(Some(place));
        stored.entry(place).or_default().push(*seq);
    }
    let sequences: BTreeSet<_> = broker.stream.messages.keys().copied().collect();
    if sequences.len() as u64 != broker.stream.last_seq {
        world.find("HOLE the stream's sequences have a gap".to_owned());
    }
    for (place, (_, row)) in log {
        tally.events += 1;
        let times = stored.get(&place).map_or(0, Vec::len);
        let letter = server.letters.iter().find(|letter| letter.place == place);
        let void = letter.is_some_and(|letter| letter.resolved.is_some_and(|(_, how)| how == "stored"));
        match (times, letter) {
            (1, None) => {}
            (1, Some(_)) if void => {}
            (0, Some(letter)) if !void => {
                let good = row.event_type == "good";
                if good {
                    world.find(format!("LETTER of the good event {} ({})", row.id, letter.reason));
                }
                if row.event_type == REFUSED && letter.reason == Reason::BadSubject {
                    world.find(format!("LETTER of event {} with the reason {}", row.id, letter.reason));
                }
            }
            (0, _) => world.find(format!("LOST event {} at {place:?}", row.id)),
            (1, Some(_)) => world.find(format!("BOTH event {} at {place:?}", row.id)),
            (times, _) => world.find(format!("STORED {times} times: event {} at {place:?}", row.id)),
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs seeds on all cores; what those that fail found, and the shortest of their stories.
    fn sweep(first: u64, count: u64) {
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        let threads: Vec<_> = (0..threads)
            .map(|part| {
                std::thread::spawn(move || {
                    (first..first + count).filter(|seed| seed % threads == part).map(run).collect::<Vec<_>>()
                })
            })
            .collect();
        let (mut sum, mut failed) = (Tally::default(), Vec::new());
        for result in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            match result {
                Ok(tally) => sum = sum + tally,
                Err(story) => failed.push(story),
            }
        }
        println!("{count} seeds from {first} on: {sum:?}");
        let heads: Vec<_> = failed.iter().filter_map(|story| story.lines().next()).collect();
        let shortest = failed.iter().min_by_key(|story| story.lines().count());
        assert!(
            failed.is_empty(),
            "{} of {count} seeds: {heads:#?}\nthe shortest:\n{}",
            failed.len(),
            shortest.map_or("", String::as_str)
        );
    }

    #[test]
    fn under_any_mix_of_faults_the_stream_is_the_log() {
        if std::env::var_os("SIMULATION_TRACE").is_some() {
            let _ = tracing_subscriber::fmt().without_time().with_max_level(tracing::Level::DEBUG).try_init();
        }
        let number = |name: &str, default| {
            std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
        };
        sweep(number("SIMULATION_SEED", 1), number("SIMULATION_COUNT", 2000));
    }

    #[test]
    fn a_seed_is_the_same_run_each_time() {
        for seed in [3, 17, 29] {
            let story = || {
                in_paused_time(seed, async |world| {
                    play(&world).await;
                    world.story.borrow().clone()
                })
            };
            assert_eq!(story(), story(), "seed {seed}");
        }
    }
}
