//! What was seen so far, of the shop's sales and at the consumer. No I/O.

use super::proof::{EventId, Verdict, judge};
use super::shop::Sale;
use hdrhistogram::Histogram;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Something that happened, at the moment that matters for the latency.
#[derive(Debug)]
pub(super) enum Observation {
    /// A transaction of the shop ended.
    Sold(Sale),
    /// A message came to the consumer.
    Consumed {
        /// Its `Postrider-Event-Id`, if that is one of the shop's.
        id: Option<EventId>,
        /// Its place in the stream.
        sequence: u64,
        /// When it came.
        at: Instant,
    },
}

/// Longest latency told apart from longer ones.
const LATENCY_MAX_US: u64 = 600_000_000;

#[derive(Debug)]
pub(super) struct Tally {
    /// Events of committed transactions, by transaction.
    committed: HashMap<String, Vec<EventId>>,
    /// In the order in which they came.
    consumed: Vec<Option<EventId>>,
    /// Commit or consumption of an event of which the other is still to come: the message may be
    /// here before the shop hears of its commit.
    halves: HashMap<EventId, Instant>,
    latency_us: Histogram<u64>,
    /// Events of committed transactions.
    pub(super) committed_events: usize,
    /// Events of transactions that were rolled back.
    pub(super) rolled_back_events: usize,
    /// The consumer's place in the stream.
    pub(super) sequence: u64,
    /// When the consumer last got a message.
    pub(super) consumed_at: Option<Instant>,
}

impl Tally {
    pub(super) fn new() -> Result<Tally, hdrhistogram::CreationError> {
        Ok(Tally {
            committed: HashMap::new(),
            consumed: Vec::new(),
            halves: HashMap::new(),
            latency_us: Histogram::new_with_bounds(1, LATENCY_MAX_US, 2)?,
            committed_events: 0,
            rolled_back_events: 0,
            sequence: 0,
            consumed_at: None,
        })
    }

    pub(super) fn observe(&mut self, observation: Observation) {
        match observation {
            Observation::Sold(sale) if sale.committed => {
                self.committed_events += sale.events.len();
                for id in &sale.events {
                    if let Some(consumed) = self.halves.insert(*id, sale.at) {
                        self.halves.remove(id);
                        self.record(consumed.saturating_duration_since(sale.at));
                    }
                }
                self.committed.insert(sale.xid, sale.events);
            }
            Observation::Sold(sale) => self.rolled_back_events += sale.events.len(),
            Observation::Consumed { id, sequence, at } => {
                self.consumed.push(id);
                self.sequence = sequence;
                self.consumed_at = Some(at);
                if let Some(id) = id
                    && let Some(committed) = self.halves.insert(id, at)
                {
                    self.halves.remove(&id);
                    self.record(at.saturating_duration_since(committed));
                }
            }
        }
    }

    pub(super) fn consumed_events(&self) -> usize {
        self.consumed.len()
    }

    pub(super) fn committed_transactions(&self) -> usize {
        self.committed.len()
    }

    /// Latency from commit to consumer at a quantile, in milliseconds.
    pub(super) fn latency_ms(&self, quantile: f64) -> f64 {
        Duration::from_micros(self.latency_us.value_at_quantile(quantile)).as_secs_f64() * 1e3
    }

    /// Judges against the transactions in the order in which Postgres committed them.
    ///
    /// # Errors
    /// The shop knows of a commit that is not among them.
    pub(super) fn judge(&self, commit_order: &[String]) -> Result<Verdict, String> {
        let known: Vec<&Vec<EventId>> =
            commit_order.iter().filter_map(|xid| self.committed.get(xid)).collect();
        if known.len() != self.committed.len() {
            let (committed, known) = (self.committed.len(), known.len());
            return Err(format!(
                "the shop committed {committed} transactions, Postgres's log tells of {known}"
            ));
        }
        let committed: Vec<EventId> = known.into_iter().flatten().copied().collect();
        Ok(judge(&committed, &self.consumed))
    }

    fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_MAX_US);
        self.latency_us.saturating_record(us.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sale(xid: &str, events: &[EventId], committed: bool, at: Instant) -> Observation {
        Observation::Sold(Sale { xid: xid.into(), events: events.to_vec(), committed, at })
    }

    fn consumed(id: EventId, sequence: u64, at: Instant) -> Observation {
        Observation::Consumed { id: Some(id), sequence, at }
    }

    #[test]
    fn latency_is_from_commit_to_consumer_whichever_is_heard_of_first() {
        let (start, mut tally) = (Instant::now(), Tally::new().unwrap());
        let ms = |ms| start + Duration::from_millis(ms);
        tally.observe(sale("1", &[1], true, ms(0)));
        tally.observe(consumed(1, 1, ms(10)));
        tally.observe(consumed(2, 2, ms(20)));
        tally.observe(sale("2", &[2], true, ms(0)));
        assert!((tally.latency_ms(0.5) - 10.0).abs() < 0.2, "{}", tally.latency_ms(0.5));
        assert!((tally.latency_ms(1.0) - 20.0).abs() < 0.4, "{}", tally.latency_ms(1.0));
    }

    #[test]
    fn the_order_is_that_of_the_commits_in_postgres_not_that_in_which_the_shop_heard_of_them() {
        let (now, mut tally) = (Instant::now(), Tally::new().unwrap());
        tally.observe(sale("8", &[2, 3], true, now));
        tally.observe(sale("9", &[4], false, now));
        tally.observe(sale("7", &[1], true, now));
        for (sequence, id) in [(1, 1), (2, 2), (3, 3)] {
            tally.observe(consumed(id, sequence, now));
        }
        let order = |xids: &[&str]| xids.iter().map(|xid| (*xid).to_owned()).collect::<Vec<_>>();
        assert!(tally.judge(&order(&["6", "7", "8"])).unwrap().holds());
        assert_eq!(tally.judge(&order(&["8", "7"])).unwrap().misordered, 2);
        tally.observe(consumed(4, 4, now));
        assert_eq!(tally.judge(&order(&["7", "8"])).unwrap().never_committed, 1);
        assert!(tally.judge(&order(&["7"])).is_err());
    }
}
