//! What the relay would publish beside what the poller has processed. No I/O, no clock.
//!
//! ```text
//!            inserted ─────────► under way ─── processed ──► compared, with both latencies
//!                                    │
//!   at the end: overtaken, or nothing processed for the grace ──► missing; else pending
//!
//!   processed, and not under way: known before ──► nothing new, or earlier; else extra
//! ```
//!
//! A poller that lags is no poller that forgets. A row that waits is missing only when the poller has
//! gone past it (it has processed a row that was committed later by the grace) or has processed
//! nothing at all for the grace, by the times of the log and up to where it is read; a backlog that is
//! worked off in order is pending, however old.
//!
//! Both memories are bounded: ids under way by their bytes, known ones by their number. What does not
//! fit is counted as not compared, and `extra` is not judged any more, which the report says.

use super::observer::{Inserted, Moment};
use super::report::{Latencies, Quantiles, Report};
use crate::outbox::{MarkColumn, Reason};
use crate::postgres::timestamp::Timestamp;
use hdrhistogram::{CreationError, Histogram};
use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher;
use std::time::Duration;

/// Some million ids.
const UNDER_WAY_BYTES_MAX: usize = 128 << 20;

/// What an id takes besides its own bytes.
const ENTRY_BYTES: usize = 96;

/// Ids that were there before or are done, 8 bytes each in a table that is half empty at times: 40 MiB.
pub(super) const KNOWN_MAX: usize = 2_000_000;

/// So many of each kind are named.
const NAMED_MAX: usize = 20;

/// A day in microseconds; more is told as a day.
const LATENCY_MAX: u64 = 86_400_000_000;

/// How much is remembered.
#[derive(Debug, Clone, Copy)]
struct Room {
    under_way_bytes: usize,
    known: usize,
}

pub(super) struct Comparison {
    grace: Duration,
    room: Room,
    under_way: HashMap<Box<str>, Moment>,
    under_way_bytes: usize,
    known: Known,
    /// Whatever was committed before this moment is read.
    read_to: Timestamp,
    /// What was committed before waited for the shadow, and says nothing of the relay's latency.
    reads_since: Timestamp,
    /// Commit of the poller's last statement that processed a row for the first time.
    last_processed: Option<Timestamp>,
    /// Commit of the latest row that it has processed.
    furthest: Option<Timestamp>,
    postrider: Histogram<u64>,
    poller: Histogram<u64>,
    letters: BTreeMap<Reason, (u64, String)>,
    /// All that needs no end to be judged.
    so_far: Report,
}

impl Comparison {
    pub(super) fn new(grace: Duration) -> Result<Comparison, CreationError> {
        Comparison::within(grace, Room { under_way_bytes: UNDER_WAY_BYTES_MAX, known: KNOWN_MAX })
    }

    fn within(grace: Duration, room: Room) -> Result<Comparison, CreationError> {
        Ok(Comparison {
            grace,
            room,
            under_way: HashMap::new(),
            under_way_bytes: 0,
            known: Known::default(),
            read_to: Timestamp(i64::MIN),
            reads_since: Timestamp(i64::MIN),
            last_processed: None,
            furthest: None,
            postrider: Histogram::new_with_bounds(1, LATENCY_MAX, 3)?,
            poller: Histogram::new_with_bounds(1, LATENCY_MAX, 3)?,
            letters: BTreeMap::new(),
            so_far: Report { extra_judged: true, ..Report::default() },
        })
    }

    /// Whose marks the report names.
    pub(super) fn goes_by(&mut self, marks: &[MarkColumn]) {
        self.so_far.marks = marks.iter().map(|mark| mark.name.clone()).collect();
    }

    /// The log is read from now on.
    pub(super) fn begins(&mut self, now: Timestamp) {
        self.reads_since = now;
    }

    /// The log is read up to what was committed then.
    pub(super) fn has_read_to(&mut self, moment: Timestamp) {
        self.read_to = self.read_to.max(moment);
    }

    /// A row that was there before the slot, processed already or not.
    pub(super) fn there_before(&mut self, id: &str, processed: bool) {
        if processed {
            self.remember(id);
        } else if self.known.len() < self.room.known {
            self.known.there_before(id);
        } else {
            self.so_far.extra_judged = false;
        }
    }

    pub(super) fn has_lasted(&mut self, seconds: f64) {
        self.so_far.seconds = seconds;
    }

    pub(super) fn compared(&self) -> u64 {
        self.so_far.compared
    }

    /// A row was inserted; its event was ready at `ready`, by Postgres's clock.
    pub(super) fn inserted(&mut self, inserted: Inserted, ready: Timestamp) {
        let Inserted { id, moment, marked, poison } = inserted;
        self.so_far.seen += 1;
        self.has_read_to(moment.committed);
        if moment.committed >= self.reads_since {
            record(&mut self.postrider, moment.committed, ready);
        }
        if let Some(poison) = poison {
            self.letters.entry(poison.reason).or_insert((0, poison.message)).0 += 1;
        }
        match id {
            None => self.so_far.uncompared += 1,
            Some(id) if marked => {
                self.remember(&id);
                self.missing_own(&id);
            }
            Some(id) if self.under_way_bytes >= self.room.under_way_bytes => {
                // Its mark must not look like one of a row that was never inserted.
                self.remember(&id);
                self.so_far.uncompared += 1;
            }
            Some(id) => match self.under_way.entry(Box::from(&*id)) {
                Entry::Occupied(_) => self.so_far.uncompared += 1,
                Entry::Vacant(entry) => {
                    self.under_way_bytes += entry.key().len() + ENTRY_BYTES;
                    entry.insert(moment);
                }
            },
        }
    }

    /// A row was marked or deleted.
    pub(super) fn processed(&mut self, id: &str, by: Moment) {
        self.has_read_to(by.committed);
        let Some((key, inserted)) = self.under_way.remove_entry(id) else {
            return self.not_under_way(id, by);
        };
        self.last_processed = Some(by.committed);
        self.under_way_bytes -= key.len() + ENTRY_BYTES;
        self.remember(id);
        if inserted.commit_lsn == by.commit_lsn {
            self.missing_own(id);
            return;
        }
        self.so_far.compared += 1;
        self.furthest = self.furthest.max(Some(inserted.committed));
        record(&mut self.poller, inserted.committed, by.committed);
    }

    fn not_under_way(&mut self, id: &str, by: Moment) {
        match self.known.processed_again(id) {
            Some(Again::Earlier) => {
                self.last_processed = Some(by.committed);
                self.so_far.earlier += 1;
            }
            // Perhaps a clean-up of old rows, which may go on though the poller does not.
            Some(Again::Done) => {}
            None if self.so_far.extra_judged => {
                self.so_far.extra += 1;
                name(&mut self.so_far.extra_ids, id);
                self.remember(id);
            }
            None => {}
        }
    }

    /// Processed by the transaction that inserted it: no poller has ever seen it.
    fn missing_own(&mut self, id: &str) {
        self.so_far.missing += 1;
        name(&mut self.so_far.missing_ids, id);
    }

    fn remember(&mut self, id: &str) {
        if self.known.len() < self.room.known {
            self.known.done(id);
        } else {
            self.so_far.extra_judged = false;
        }
    }

    /// The verdict at the moment up to which the log is read. By the clock, a shadow that reads late would call
    /// missing what the poller has done in time.
    pub(super) fn judge(&self) -> Report {
        let now = self.read_to;
        let mut report = self.so_far.clone();
        let mut missing: Vec<(Moment, &str)> = Vec::new();
        let mut oldest: Option<Timestamp> = None;
        for (id, moment) in &self.under_way {
            if self.is_missing(moment.committed, now) {
                missing.push((*moment, id));
            } else {
                report.pending += 1;
                oldest = Some(oldest.map_or(moment.committed, |oldest| oldest.min(moment.committed)));
            }
        }
        report.missing += missing.len() as u64;
        missing.sort_unstable_by_key(|(moment, id)| (moment.commit_lsn, id.len(), *id));
        for (_, id) in missing.iter().take(NAMED_MAX) {
            name(&mut report.missing_ids, id);
        }
        report.oldest_pending_seconds = oldest.map(|oldest| since(oldest, now).as_secs_f64());
        report.would_be_dead_letters = self.letters.values().map(|(count, _)| count).sum();
        report.dead_letters =
            self.letters.iter().map(|(reason, (count, _))| (reason.as_str(), *count)).collect();
        report.dead_letter_examples = self.letters.values().map(|(_, message)| message.clone()).collect();
        report.latency_ms =
            Latencies { postrider: Quantiles::of(&self.postrider), poller: Quantiles::of(&self.poller) };
        report
    }

    fn is_missing(&self, committed: Timestamp, now: Timestamp) -> bool {
        let overtaken = self.furthest.is_some_and(|furthest| since(committed, furthest) >= self.grace);
        let idle = self.last_processed.is_none_or(|last| since(last, now) >= self.grace);
        overtaken || (idle && since(committed, now) >= self.grace)
    }
}

/// Rows that are not under way, as hashes: two of a million share one with a chance of 3 in 10⁸.
#[derive(Default)]
struct Known {
    hasher: RandomState,
    before: HashSet<u64>,
    done: HashSet<u64>,
}

/// What is known of a row that is processed and not under way.
enum Again {
    /// It was there before the slot, and not processed.
    Earlier,
    /// It was processed already, perhaps before the slot, or was not compared.
    Done,
}

impl Known {
    fn len(&self) -> usize {
        self.before.len() + self.done.len()
    }

    fn there_before(&mut self, id: &str) {
        self.before.insert(self.hasher.hash_one(id));
    }

    fn done(&mut self, id: &str) {
        self.done.insert(self.hasher.hash_one(id));
    }

    fn processed_again(&mut self, id: &str) -> Option<Again> {
        let hash = self.hasher.hash_one(id);
        if self.before.remove(&hash) {
            self.done.insert(hash);
            return Some(Again::Earlier);
        }
        self.done.contains(&hash).then_some(Again::Done)
    }
}

fn since(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::from_micros(later.0.saturating_sub(earlier.0).max(0).unsigned_abs())
}

fn record(histogram: &mut Histogram<u64>, from: Timestamp, to: Timestamp) {
    let micros = u64::try_from(since(from, to).as_micros()).unwrap_or(LATENCY_MAX);
    histogram.saturating_record(micros.max(1));
}

/// Ids are any text.
fn name(ids: &mut Vec<String>, id: &str) {
    const CHARS_MAX: usize = 80;
    if ids.len() < NAMED_MAX {
        ids.push(id.chars().take(CHARS_MAX).collect());
    }
}

#[cfg(test)]
mod tests;
