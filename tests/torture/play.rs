//! Each fault begins, lasts, and ends healed.

use crate::cluster;
use crate::faults::{Fault, OfLink, OfRelay, OfServer};
use crate::proxy::{Mode, Proxy};
use crate::rig::Rig;
use crate::store::{Copy, Mark, Tail};
use crate::support::{connect, within};
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

/// What a fault that has begun needs for its end.
pub(crate) struct Begun {
    fault: Fault,
    copies: Vec<Copy>,
    mark: Option<Mark>,
}

impl Fault {
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

impl OfLink {
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
