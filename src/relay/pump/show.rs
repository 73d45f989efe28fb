//! The pump's state on the board, and once in a while in the log.

use super::*;

/// The log sums up so often what was done.
const SUMMARY_APART: Duration = Duration::from_secs(60);

/// What the log told last.
pub(in crate::relay) struct Summary {
    at: Instant,
    told: Counters,
}

impl Summary {
    pub(in crate::relay) fn new() -> Summary {
        Summary { at: Instant::now(), told: Counters::default() }
    }
}

impl<S: Sides> Pump<'_, S> {
    pub(super) fn show(&mut self) {
        let ledger = &self.session.ledger;
        let (p50, p99) = self.process.latency.quantiles();
        let state = if self.stopping.is_some() { State::Drain } else { self.phase.state() };
        // Nothing to prove while nothing is to be sent: an idle relay is ready.
        let caught_up = self.received >= self.session.server.wal_end && self.is_accounted();
        let state =
            if state == State::Probe && self.window.is_empty() && caught_up { State::Stream } else { state };
        if state == State::Stream {
            self.process.streamed = true;
            self.process.fault_log.streams();
        }
        let oldest = self.window.oldest().map(|item| item.taken.commit_time);
        let unread = self.unread.since(self.received, Instant::now());
        let outstanding = self.session.resume.outstanding();
        let silent = self.heard.elapsed();
        let silence = (self.filling && silent >= SILENCE_NAMED).then(|| {
            let waits_for = self.waits_for.as_deref().unwrap_or("nothing: it works");
            format!("the walsender has been silent for {} s; it waits for {waits_for}", silent.as_secs())
        });
        let awaited = self.standby_awaited.as_ref();
        let awaited = awaited.filter(|(said, _)| said.elapsed() < 2 * self.config.postgres.status_apart());
        let waits = awaited.map(|(_, notice)| format!("Postgres sends nothing: {notice}")).or(silence);
        let server = &self.session.server;
        let slot = self.slot.as_ref();
        let counters = &self.process.counters;
        let rate = self.process.rate.at(counters.published);
        self.process.board.count(counters);
        self.process.board.update(|status| {
            status.role = Role::Leader;
            status.state = state;
            status.reason = match state {
                _ if self.aside.is_some() => "setting an event aside that cannot be published".to_owned(),
                _ if self.stopping.is_some() => {
                    format!("stopping: awaiting {} answers", self.window.in_flight())
                }
                State::Stream | State::Probe if waits.is_some() => waits.unwrap_or_default(),
                State::Stream => "streaming".to_owned(),
                State::Probe if outstanding > 0 => {
                    format!("proving {outstanding} stored messages against the slot")
                }
                State::Probe if self.window.is_empty() => "awaiting the first rows of the slot".to_owned(),
                State::Probe => "awaiting the first answer of JetStream".to_owned(),
                _ => std::mem::take(&mut status.reason),
            };
            status.system_id = Some(server.history.system_id.to_string());
            status.timeline = Some(server.history.timeline);
            status.position = ledger.last().map(|last| last.position.to_string());
            status.settled_lsn = Some(ledger.settled_lsn().to_string());
            status.confirmed_lsn = Some(ledger.confirmed_lsn().to_string());
            status.lag_bytes = Some(self.wal_end.bytes_since(ledger.settled_lsn()));
            status.lag_seconds = Some(oldest.map_or(0.0, Timestamp::age));
            status.unpublished_since = match (oldest, caught_up) {
                (None, true) => unread,
                (None, false) => status.unpublished_since.or_else(|| Some(Timestamp::now())),
                (oldest, _) => oldest,
            };
            status.published_total = Some(counters.published);
            status.published_per_second = Some(rate);
            status.dead_lettered_total = Some(counters.dead_lettered_total());
            status.dead_letters = self.open_letters.or(status.dead_letters);
            status.in_flight_messages = Some(self.window.len() as u64);
            status.in_flight_bytes = Some(self.window.bytes() as u64);
            status.latency_seconds.p50 = p50;
            status.latency_seconds.p99 = p99;
            status.slot_is_missing = false;
            if let Some(slot) = slot {
                status.retained_wal_bytes = slot.restart_lsn.map(|restart| self.wal_end.bytes_since(restart));
                status.safe_wal_bytes = slot.safe_wal_size;
                status.wal_status.clone_from(&slot.wal_status);
                status.outbox_table_bytes = self.outbox.bytes;
                status.outbox_dead_tuples = self.outbox.dead_tuples;
            }
        });
        self.sum_up();
    }

    /// A line for what was done, where anything was.
    fn sum_up(&mut self) {
        let Summary { at, told } = &mut self.process.summary;
        if at.elapsed() < SUMMARY_APART {
            return;
        }
        let (counters, seconds) = (self.process.counters, at.elapsed().as_secs());
        let done = counters != *told;
        let published = counters.published - told.published;
        let dead_lettered = counters.dead_lettered_total() - told.dead_lettered_total();
        let retries = counters.retries_total() - told.retries_total();
        (*at, *told) = (Instant::now(), counters);
        if !done {
            return;
        }
        let (p50, p99) = self.process.latency.quantiles();
        let millis = |seconds: Option<f64>| seconds.map(|seconds| (seconds * 1e5).round() / 1e2);
        let ledger = &self.session.ledger;
        info!(
            published,
            dead_lettered,
            retries,
            seconds,
            p50_ms = millis(p50),
            p99_ms = millis(p99),
            in_flight = self.window.len(),
            lag_bytes = self.wal_end.bytes_since(ledger.settled_lsn()),
            settled_lsn = %ledger.settled_lsn(),
            confirmed_lsn = %ledger.confirmed_lsn(),
            "progress"
        );
    }
}
