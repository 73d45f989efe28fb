//! What is done to the pipeline, and how it is drawn.

use crate::proxy::Way;
use crate::store::{Sync, Tail};
use fastrand::Rng;
use std::time::Duration;

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
}
