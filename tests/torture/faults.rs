//! What is done to the pipeline: each fault begins, lasts, and ends healed.

use crate::cluster;
use crate::proxy::{Mode, Proxy, Way};
use crate::rig::Rig;
use crate::store::{Copy, Mark, Sync, Tail};
use crate::support::{connect, within};
use fastrand::Rng;
use futures_util::future::join_all;
use postrider::demo::servers::{NatsServer, Stop};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

/// A walsender whose relay cannot answer holds a fast stop up until `wal_sender_timeout`, 30 s.
const POSTGRES_STOP_MAX: Duration = Duration::from_secs(90);
/// Until a restarted node has caught up; the next is restarted then, or later all the same.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
const TERMINATE: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'postrider'";

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Relay(OfRelay),
    Postgres(OfServer),
    /// An administrator ends the relay's sessions.
    PostgresTerminates,
    Nats {
        node: usize,
        fault: OfServer,
    },
    PostgresLink(OfLink),
    /// Of one node, or of all.
    NatsLink {
        node: Option<usize>,
        fault: OfLink,
    },
    /// The machine of the NATS store loses power: it comes back as it was a moment ago.
    StorePutBack,
    /// The same, with a newest block that ends early.
    StoreCut {
        share: f64,
        tail: Tail,
        without_index: bool,
    },
    StepDown,
    RestartAllNodes,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum OfRelay {
    Kill(usize),
    Terminate(usize),
    Freeze(usize),
    /// A second one begins, or one of two ends.
    Second(usize),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum OfServer {
    Kill,
    Stop,
    Freeze,
    /// Takes no one new and lets those go on who are there (a smart stop, lame duck mode).
    Leave,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum OfLink {
    Cut,
    Refuse,
    Stall { then_cut: bool },
    Delay(Duration),
    Lose(Way),
}

/// What a fault that has begun needs for its end.
pub(crate) struct Begun {
    fault: Fault,
    copies: Vec<Copy>,
    mark: Option<Mark>,
}

impl Fault {
    pub(crate) fn draw(rng: &mut Rng, nodes: usize) -> Fault {
        let node = rng.usize(..nodes);
        let clustered = nodes > 1;
        match rng.u32(..100) {
            0..28 => Fault::Relay(OfRelay::draw(rng)),
            28..39 => Fault::Postgres(OfServer::draw(rng)),
            39..42 => Fault::PostgresTerminates,
            42..58 => Fault::Nats { node, fault: OfServer::draw(rng) },
            58..68 => Fault::PostgresLink(OfLink::draw(rng)),
            68..82 => {
                let node = if rng.bool() { Some(node) } else { None };
                Fault::NatsLink { node, fault: OfLink::draw(rng) }
            }
            82..88 => Fault::StorePutBack,
            88..95 if clustered => Fault::StepDown,
            95.. if clustered => Fault::RestartAllNodes,
            _ => Fault::StoreCut {
                share: rng.f64(),
                tail: if rng.bool() { Tail::Gone } else { Tail::Zeros },
                without_index: rng.bool(),
            },
        }
    }

    /// How long it lasts.
    pub(crate) fn draw_hold(self, rng: &mut Rng, sync: Sync) -> Duration {
        let seconds = match rng.u32(..16) {
            0 => 12.0 + 28.0 * rng.f64(),
            1..4 => 4.0 + 8.0 * rng.f64(),
            _ => 0.1 + 2.9 * rng.f64(),
        };
        Duration::from_secs_f64(match self {
            Fault::StorePutBack | Fault::StoreCut { .. } => {
                rng.f64().mul_add(sync.wait_max().as_secs_f64() - 2.0, 2.0)
            }
            Fault::Relay(OfRelay::Second(_))
            | Fault::PostgresLink(OfLink::Cut)
            | Fault::NatsLink { fault: OfLink::Cut, .. }
            | Fault::PostgresTerminates
            | Fault::StepDown
            | Fault::RestartAllNodes => f64::min(seconds, 1.0),
            _ => seconds,
        })
    }

    /// It loses what was stored meanwhile, so something should be.
    pub(crate) fn is_of_store(self) -> bool {
        matches!(self, Fault::StorePutBack | Fault::StoreCut { .. })
    }

    /// Two faults of one part would end one another.
    pub(crate) fn may_meet(self, other: Fault) -> bool {
        self.part() != other.part()
    }

    fn part(self) -> u32 {
        match self {
            Fault::Relay(_) => 0,
            Fault::Postgres(_) | Fault::PostgresTerminates => 1,
            Fault::PostgresLink(_) => 2,
            Fault::NatsLink { .. } => 3,
            _ => 4,
        }
    }

    pub(crate) async fn begin(self, rig: &mut Rig) -> Begun {
        rig.note(&format!("{self:?}"));
        let (mut copies, mut mark) = (Vec::new(), None);
        match self {
            Fault::Relay(fault) => fault.begin(rig).await,
            Fault::Postgres(fault) => match fault {
                OfServer::Kill => rig.postgres.kill().await,
                OfServer::Freeze => rig.postgres.freeze(),
                OfServer::Leave => send(rig.postgres.pid(), Signal::TERM),
                OfServer::Stop => {
                    let took = rig.postgres.stop(Stop::Fast, POSTGRES_STOP_MAX).await.unwrap();
                    rig.note(&format!("stopped in {took:.1?}"));
                }
            },
            Fault::PostgresTerminates => {
                let client = connect(&rig.postgres.url("postgres")).await.unwrap();
                let ended = client.execute(TERMINATE, &[]).await.unwrap();
                rig.note(&format!("{ended} sessions are ended"));
            }
            Fault::Nats { node, fault } => match fault {
                OfServer::Kill => rig.nodes[node].kill(),
                OfServer::Freeze => rig.nodes[node].freeze(),
                OfServer::Leave => send(rig.nodes[node].pid(), Signal::USR2),
                OfServer::Stop => rig.nodes[node].stop().await.unwrap(),
            },
            Fault::PostgresLink(fault) => fault.begin(&rig.postgres_link),
            Fault::NatsLink { node, fault } => each_link(rig, node, |link| fault.begin(link)),
            Fault::StorePutBack => {
                // Killed first, so that the copy is of one moment.
                rig.nodes.iter_mut().for_each(|node| node.kill());
                copies = rig.nodes.iter().map(Copy::take).collect();
                start_nodes(rig).await;
            }
            Fault::StoreCut { .. } => mark = Mark::take(&rig.nodes[0]),
            Fault::StepDown => {
                let agreed = cluster::step_down(&rig.jetstream).await;
                rig.note(if agreed { "the leader steps down" } else { "no leader answers" });
            }
            Fault::RestartAllNodes => restart_all(rig).await,
        }
        Begun { fault: self, copies, mark }
    }
}

impl Begun {
    pub(crate) async fn end(self, rig: &mut Rig) {
        match self.fault {
            Fault::Relay(fault) => fault.end(rig).await,
            Fault::Postgres(OfServer::Freeze) => rig.postgres.thaw(),
            Fault::Postgres(_) => {
                rig.postgres.stop(Stop::Fast, POSTGRES_STOP_MAX).await.unwrap();
                rig.postgres.start_again().await.unwrap();
            }
            Fault::Nats { node, fault: OfServer::Freeze } => rig.nodes[node].thaw(),
            Fault::Nats { node, .. } => {
                rig.nodes[node].kill();
                rig.nodes[node].start_again().await.unwrap();
            }
            Fault::PostgresLink(fault) => fault.end(&rig.postgres_link),
            Fault::NatsLink { node, fault } => each_link(rig, node, |link| fault.end(link)),
            Fault::StorePutBack => {
                let before = rig.last_seq().await;
                rig.nodes.iter_mut().for_each(|node| node.kill());
                let copies: Vec<_> = self
                    .copies
                    .into_iter()
                    .zip(&rig.nodes)
                    .map(|(copy, node)| copy.put_back(node, rig.sync))
                    .collect();
                start_nodes(rig).await;
                went_back(rig, &copies.join("; "), before).await;
            }
            Fault::StoreCut { share, tail, without_index } => {
                let before = rig.last_seq().await;
                // 2.9 counts a record that ends in zeros, and cannot read it: a hole instead of a lost
                // tail, at which the relay rightly halts.
                let tail = if rig.is_nats_2_9 { Tail::Gone } else { tail };
                rig.nodes[0].kill();
                let cut = self.mark.map(|mark| mark.cut(&rig.nodes[0], rig.sync, share, tail, without_index));
                start_nodes(rig).await;
                went_back(rig, &cut.unwrap_or_default(), before).await;
            }
            Fault::PostgresTerminates | Fault::StepDown | Fault::RestartAllNodes => {}
        }
        rig.note(&format!("{:?} is over", self.fault));
    }
}

impl OfRelay {
    fn draw(rng: &mut Rng) -> OfRelay {
        let relay = rng.usize(..2);
        match rng.u32(..10) {
            0..4 => OfRelay::Kill(relay),
            4..6 => OfRelay::Terminate(relay),
            6..8 => OfRelay::Freeze(relay),
            _ => OfRelay::Second(relay),
        }
    }

    async fn begin(self, rig: &mut Rig) {
        match self {
            OfRelay::Kill(relay) => rig.kill_relay(rig.running(relay)),
            OfRelay::Terminate(relay) => rig.signal(rig.running(relay), Signal::TERM),
            OfRelay::Freeze(relay) => rig.signal(rig.running(relay), Signal::STOP),
            OfRelay::Second(relay) => {
                if let Some(free) = rig.relays.iter().position(Option::is_none) {
                    rig.start_relay(free);
                } else {
                    rig.signal(relay, Signal::TERM);
                    rig.terminated(relay).await;
                }
            }
        }
    }

    async fn end(self, rig: &mut Rig) {
        match self {
            OfRelay::Kill(_) => {
                if let Some(free) = rig.relays.iter().position(Option::is_none) {
                    rig.start_relay(free);
                }
            }
            OfRelay::Terminate(relay) => {
                let relay = rig.running(relay);
                rig.terminated(relay).await;
                rig.start_relay(relay);
            }
            OfRelay::Freeze(relay) => rig.signal(rig.running(relay), Signal::CONT),
            OfRelay::Second(_) => {}
        }
    }
}

impl OfServer {
    fn draw(rng: &mut Rng) -> OfServer {
        match rng.u32(..7) {
            0..2 => OfServer::Kill,
            2..4 => OfServer::Stop,
            4..6 => OfServer::Freeze,
            _ => OfServer::Leave,
        }
    }
}

impl OfLink {
    fn draw(rng: &mut Rng) -> OfLink {
        match rng.u32(..6) {
            0 => OfLink::Cut,
            1 => OfLink::Refuse,
            2 => OfLink::Stall { then_cut: rng.bool() },
            3 => OfLink::Delay(Duration::from_millis(rng.u64(5..250))),
            4 => OfLink::Lose(Way::Up),
            _ => OfLink::Lose(Way::Down),
        }
    }

    fn begin(self, link: &Proxy) {
        match self {
            OfLink::Cut => link.cut(),
            OfLink::Refuse => {
                link.set(Mode::Refuse);
                link.cut();
            }
            OfLink::Stall { .. } => link.set(Mode::Stall),
            OfLink::Delay(delay) => link.set(Mode::Delay(delay)),
            OfLink::Lose(way) => link.set(Mode::Lose(way)),
        }
    }

    fn end(self, link: &Proxy) {
        // What has lost bytes is of no use any more.
        if matches!(self, OfLink::Stall { then_cut: true } | OfLink::Lose(_)) {
            link.cut();
        }
        link.set(Mode::Pass);
    }
}

fn send(pid: Option<u32>, signal: Signal) {
    let pid = pid.and_then(|pid| Pid::from_raw(pid.try_into().unwrap())).unwrap();
    kill_process(pid, signal).unwrap();
}

fn each_link(rig: &Rig, node: Option<usize>, act: impl FnMut(&Proxy)) {
    let links = &rig.nats_links;
    match node {
        Some(node) => links[node..=node].iter().for_each(act),
        None => links.iter().for_each(act),
    }
}

async fn start_nodes(rig: &mut Rig) {
    // At once: one alone is not ready before it sees another.
    let starts = join_all(rig.nodes.iter_mut().map(NatsServer::start_again)).await;
    starts.into_iter().for_each(Result::unwrap);
}

async fn went_back(rig: &mut Rig, how: &str, before: Option<u64>) {
    let jetstream = rig.jetstream.clone();
    let after = within(CATCH_UP_MAX, "the stream is there again", async || {
        Some(jetstream.get_stream("OUTBOX").await.ok()?.cached_info().state.last_sequence)
    });
    let after = after.await;
    rig.note(&format!("{how}: from {before:?} to {after}"));
}

async fn restart_all(rig: &mut Rig) {
    for node in 0..rig.nodes.len() {
        rig.nodes[node].stop().await.unwrap();
        rig.nodes[node].start_again().await.unwrap();
        let deadline = Instant::now() + CATCH_UP_MAX;
        while cluster::is_whole(&rig.jetstream).await.is_none() && Instant::now() < deadline {
            rig.pause_until(Instant::now() + Duration::from_millis(100)).await;
        }
        rig.note(&format!("node {node} is back"));
    }
}
