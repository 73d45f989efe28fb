//! The pump's state on the board.

use super::*;

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
        }
        let oldest = self.window.oldest().map(|item| age(item.taken.commit_time));
        let outstanding = self.session.resume.outstanding();
        let silent = self.heard.elapsed();
        let silence = (self.filling && silent >= SILENCE_NAMED).then(|| {
            let waits_for = self.waits_for.as_deref().unwrap_or("nothing: it works");
            format!("the walsender has been silent for {} s; it waits for {waits_for}", silent.as_secs())
        });
        let server = &self.session.server;
        let slot = self.slot.as_ref();
        self.process.board.update(|status| {
            status.role = Role::Leader;
            status.state = state;
            status.reason = match state {
                _ if self.aside.is_some() => "setting an event aside that cannot be published".to_owned(),
                State::Stream | State::Probe if silence.is_some() => silence.unwrap_or_default(),
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
            status.lag_seconds = Some(oldest.unwrap_or(0.0));
            status.published_total = Some(self.process.published);
            status.dead_lettered_total = Some(self.process.lettered.total());
            status.dead_letters = self.open_letters.unwrap_or(status.dead_letters);
            status.in_flight_messages = Some(self.window.len() as u64);
            status.in_flight_bytes = Some(self.window.bytes() as u64);
            status.latency_seconds.p50 = p50;
            status.latency_seconds.p99 = p99;
            if let Some(slot) = slot {
                status.retained_wal_bytes = slot.restart_lsn.map(|restart| self.wal_end.bytes_since(restart));
                status.safe_wal_bytes = slot.safe_wal_size;
                status.wal_status.clone_from(&slot.wal_status);
            }
        });
    }
}

fn age(commit_time: Timestamp) -> f64 {
    let micros = Timestamp::now().0.saturating_sub(commit_time.0).max(0);
    Duration::from_micros(micros.unsigned_abs()).as_secs_f64()
}
