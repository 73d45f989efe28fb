//! What a relay counts: plain numbers with one owner, the loop. It changes them without a lock, a
//! channel or an allocation, and leaves a copy on the board at its timer; `/metrics` shows the copy.

use crate::error::{Code, Exit};
use crate::outbox::Reason;
use std::time::Duration;

/// Why publishing was broken off and begun again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The connection to NATS is down.
    NatsDown,
    /// JetStream does not answer.
    NatsSilent,
    /// JetStream's answer was another than stored, at the sequence that was due.
    PublishRefused,
    /// The stream does not end where the relay left it.
    StreamChanged,
    /// A session ended or could not begin for NATS.
    Nats,
    /// The same for Postgres.
    Postgres,
    /// The same for slot, checkpoint row or history.
    Slot,
    /// A fault of the relay's own.
    Internal,
}

impl Retry {
    /// All of them.
    pub const ALL: [Retry; 8] = [
        Retry::NatsDown,
        Retry::NatsSilent,
        Retry::PublishRefused,
        Retry::StreamChanged,
        Retry::Nats,
        Retry::Postgres,
        Retry::Slot,
        Retry::Internal,
    ];

    /// As the metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Retry::NatsDown => "nats_down",
            Retry::NatsSilent => "nats_silent",
            Retry::PublishRefused => "publish_refused",
            Retry::StreamChanged => "stream_changed",
            Retry::Nats => "nats",
            Retry::Postgres => "postgres",
            Retry::Slot => "slot",
            Retry::Internal => "internal",
        }
    }

    /// Of a session that ended with `code`.
    #[must_use]
    pub const fn of_session(code: Code) -> Retry {
        match code.exit() {
            Exit::Nats => Retry::Nats,
            Exit::Postgres => Retry::Postgres,
            Exit::History => Retry::Slot,
            Exit::Done | Exit::Unexpected | Exit::Usage | Exit::Findings | Exit::Poison => Retry::Internal,
        }
    }
}

/// A server at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Postgres.
    Postgres,
    /// NATS.
    Nats,
}

impl Peer {
    /// Both.
    pub const ALL: [Peer; 2] = [Peer::Postgres, Peer::Nats];

    /// As the metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Peer::Postgres => "postgres",
            Peer::Nats => "nats",
        }
    }
}

/// The upper ends of the buckets in microseconds. A quick pipeline takes less than one millisecond, an
/// outage minutes; quantiles of both must be told from them.
pub const BOUNDS_MICROS: [u64; 18] = [
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// Times by bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BOUNDS_MICROS.len()],
    beyond: u64,
    sum_micros: u64,
}

impl Histogram {
    /// One more.
    pub fn observe(&mut self, micros: u64) {
        let place = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        *self.buckets.get_mut(place).unwrap_or(&mut self.beyond) += 1;
        self.sum_micros = self.sum_micros.saturating_add(micros);
    }

    /// How many took at most so many microseconds, by bound.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut sum = 0;
        BOUNDS_MICROS.iter().zip(self.buckets).map(move |(bound, count)| {
            sum += count;
            (*bound, sum)
        })
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum::<u64>() + self.beyond
    }

    /// All of them together, in microseconds.
    #[must_use]
    pub fn sum_micros(&self) -> u64 {
        self.sum_micros
    }
}

/// Of this process, over all its sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events stored.
    pub published: u64,
    dead_lettered: [u64; Reason::ALL.len()],
    retries: [u64; Retry::ALL.len()],
    reconnects: [u64; Peer::ALL.len()],
    connected: [bool; Peer::ALL.len()],
    /// From commit to stored.
    pub commit_to_ack: Histogram,
    /// From sent to stored.
    pub publish_to_ack: Histogram,
}

impl Counters {
    /// An event committed and sent so many microseconds ago is stored.
    pub fn stored(&mut self, since_commit: u64, since_sent: u64) {
        self.published += 1;
        self.commit_to_ack.observe(since_commit);
        self.publish_to_ack.observe(since_sent);
    }

    /// An event became a dead letter.
    pub fn dead_letter(&mut self, reason: Reason) {
        self.dead_lettered[reason as usize] += 1;
    }

    /// Publishing is broken off and begun again.
    pub fn retry(&mut self, reason: Retry) {
        self.retries[reason as usize] += 1;
    }

    /// A connection is made; each but the first is one made anew.
    pub fn connected(&mut self, peer: Peer) {
        if std::mem::replace(&mut self.connected[peer as usize], true) {
            self.reconnects[peer as usize] += 1;
        }
    }

    /// So many connections were lost and made anew.
    pub fn reconnected(&mut self, peer: Peer, times: u64) {
        self.reconnects[peer as usize] += times;
    }

    /// Dead letters of this reason.
    #[must_use]
    pub fn dead_lettered(&self, reason: Reason) -> u64 {
        self.dead_lettered[reason as usize]
    }

    /// Dead letters of all reasons.
    #[must_use]
    pub fn dead_lettered_total(&self) -> u64 {
        self.dead_lettered.iter().sum()
    }

    /// Retries of this reason.
    #[must_use]
    pub fn retries(&self, reason: Retry) -> u64 {
        self.retries[reason as usize]
    }

    /// Retries of all reasons.
    #[must_use]
    pub fn retries_total(&self) -> u64 {
        self.retries.iter().sum()
    }

    /// Connections to this peer that were made anew.
    #[must_use]
    pub fn reconnects(&self, peer: Peer) -> u64 {
        self.reconnects[peer as usize]
    }
}

/// Whole microseconds: `Duration::as_micros` divides 128 bits for them.
#[must_use]
pub fn micros(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000) + u64::from(time.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_stands_at_its_own_place() {
        let mut counters = Counters::default();
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| counters.dead_letter(reason));
        }
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(counters.dead_lettered(reason), times as u64, "{reason}");
        }
        for retry in Retry::ALL {
            counters.retry(retry);
            assert_eq!(counters.retries(retry), 1, "{}", retry.as_str());
        }
        assert_eq!(counters.retries_total(), Retry::ALL.len() as u64);
    }

    #[test]
    fn a_time_that_is_a_bound_is_within_it() {
        let mut histogram = Histogram::default();
        for micros in [0, 250, 251, 300_000_000, 300_000_001] {
            histogram.observe(micros);
        }
        let counts: Vec<_> = histogram.cumulative().collect();
        assert_eq!(counts[..3], [(250, 2), (500, 3), (1_000, 3)]);
        assert_eq!(counts.last(), Some(&(300_000_000, 4)));
        assert_eq!((histogram.count(), histogram.sum_micros()), (5, 600_000_502));
    }

    #[test]
    fn the_first_connection_is_no_reconnect() {
        let mut counters = Counters::default();
        counters.connected(Peer::Nats);
        assert_eq!(counters.reconnects(Peer::Nats), 0);
        counters.connected(Peer::Nats);
        counters.reconnected(Peer::Nats, 2);
        assert_eq!((counters.reconnects(Peer::Nats), counters.reconnects(Peer::Postgres)), (3, 0));
    }

    #[test]
    fn a_session_s_end_is_counted_by_whom_it_is_about() {
        for (code, retry) in [
            (Code::NatsUnreachable, Retry::Nats),
            (Code::PostgresUnreachable, Retry::Postgres),
            (Code::SessionTaken, Retry::Slot),
            (Code::InvalidValue, Retry::Internal),
        ] {
            assert_eq!(Retry::of_session(code), retry, "{code}");
        }
    }
}
