//! The path of an event: frames in, publishes out, answers back, and what is settled by them.

use super::*;

impl<S: Sides> Pump<'_, S> {
    /// Takes the frame, and those that are complete in the buffer behind it.
    pub(super) fn frames(&mut self, first: Received) -> Result<(), Failure> {
        self.heard = Instant::now();
        self.asked = None;
        let mut next = Some(first);
        let mut left = FRAMES_A_TURN;
        let before = self.window.len();
        let mut bytes = 0;
        while let Some(received) = next {
            if let Received::Data(_, length) = received {
                bytes += length;
            }
            self.frame(received)?;
            left -= 1;
            next = if left > 0 && self.window.has_room() {
                self.session.replication.buffered().map_err(stream_failure)?
            } else {
                None
            };
        }
        self.load.took(self.window.len().saturating_sub(before), bytes, self.heard);
        Ok(())
    }

    pub(super) fn frame(&mut self, received: Received) -> Result<(), Failure> {
        match received {
            Received::Data(message, bytes) => match self.session.intake.take(message)? {
                Step::Event(taken) => self.event(taken, bytes)?,
                Step::Commit { commit_lsn, end_lsn } => {
                    self.received = self.received.max(end_lsn);
                    if self.session.resume.commit(commit_lsn)? {
                        self.window.boundary(end_lsn);
                    }
                }
                Step::Nothing => {}
            },
            Received::Keepalive { wal_end, reply_requested } => {
                self.reply_requested |= reply_requested;
                self.received = self.received.max(wal_end);
                self.wal_end = self.wal_end.max(wal_end);
                if !self.session.intake.in_transaction() && self.session.resume.keepalive(wal_end)? {
                    self.window.boundary(wal_end);
                }
            }
            // At each commit, for as long as it lasts: nothing is skipped, all of it comes later.
            Received::Notice(notice) if notice.awaits_standby() => {
                let notice = notice.to_string();
                self.process.fault_log.awaits(&notice);
                self.standby_awaited = Some((self.heard, notice));
            }
            Received::Notice(notice) => {
                if notice.message.contains("skipped loading publication") || notice.code.code() == "55000" {
                    return Err(Failure::new(
                        Code::PublicationMissing,
                        format!("Postgres skips rows: {notice}"),
                        "the publication did not exist when these rows were written: they are in the outbox \
                         table; stop the relay, then postrider recover publishes them",
                    ));
                }
                warn!(%notice, "Postgres");
            }
        }
        Ok(())
    }

    pub(super) fn event(&mut self, taken: Taken, bytes: usize) -> Result<(), Failure> {
        let seen = Seen { place: taken.place, commit_time: taken.commit_time, event_id: taken.id.as_deref() };
        match self.session.resume.event(seen)? {
            Admit::Skip => {}
            // Its letter was committed by an earlier session: the ledger began behind all of them.
            Admit::Lettered => {
                self.settle();
                self.session.ledger.letter(Lsn::ZERO);
            }
            Admit::Unaccounted => {
                warn!(id = ?taken.id, place = ?taken.place, "the stream holds later events, but not this one");
                self.unaccounted.push_back(Item::new(taken));
            }
            Admit::Stored(seq) => {
                // Boundaries before it are settled by what came before it.
                self.settle();
                let id = taken.id.unwrap_or_default();
                self.session.ledger.event(seq, taken.timeline, taken.place, taken.commit_time, id);
                if self.session.resume.is_done() {
                    self.plan_due = Instant::now();
                    info!(seq, "every message behind the checkpoint is accounted for");
                }
            }
            Admit::New => {
                self.window.push(Item::new(taken), bytes);
            }
        }
        Ok(())
    }

    /// Publishes what may go out now.
    pub(super) fn publish(&mut self) -> Result<(), Failure> {
        if self.stopping.is_some() || !self.session.resume.is_done() || self.aside.is_some() {
            return Ok(());
        }
        if !self.unaccounted.is_empty() {
            return self.set_aside(Poison::new(
                Reason::Unaccounted,
                "the stream holds later events, but neither it nor a dead letter has this one",
            ));
        }
        let mut now = None;
        loop {
            if self.config.delivery.wait_visible && !self.is_visible() {
                return Ok(());
            }
            let Some(item) = self.window.waiting() else { return Ok(()) };
            let may = match self.phase {
                Phase::Stream => true,
                Phase::Probe => self.window.in_flight() == 0,
                Phase::Sync(_) | Phase::Drain { .. } | Phase::BackOff { .. } => false,
            };
            if !may {
                return Ok(());
            }
            let event = match self.publishable(item) {
                Ok(event) => event,
                Err(poison) if self.window.in_flight() == 0 => return self.set_aside(poison),
                // Once everything before it is stored.
                Err(_) => return Ok(()),
            };
            let publisher = &mut self.session.broker.publisher;
            if publisher.awaited() == 0 {
                self.alive = Instant::now();
            }
            publisher.send(self.window.next_seq(), &event, item.taken.stamp());
            self.sent_up_to = self.sent_up_to.max(Some(item.taken.place));
            if let Some(item) = self.window.waiting_mut() {
                item.sent = *now.get_or_insert_with(Instant::now);
            }
            self.window.send();
        }
    }

    fn publishable(&self, item: &Item) -> Result<Event, Poison> {
        let event = item.event()?;
        self.limits.check(&event)?;
        match &self.condemned {
            Some((place, failure)) if *place == item.taken.place => {
                Err(Poison::new(Reason::of(failure.code), failure.message.clone()))
            }
            _ => Ok(event),
        }
    }

    /// Takes the answer, and those that are here behind it.
    pub(super) fn answers(&mut self, first: (u64, Answer)) {
        self.alive = Instant::now();
        let mut next = Some(first);
        while let Some((seq, answer)) = next {
            match answer {
                Answer::Stored(stored) if stored == seq && self.window.ack(seq).is_ok() => {
                    if matches!(self.phase, Phase::Probe) {
                        self.streaming();
                    }
                }
                other => {
                    debug!(seq, answer = ?other, "an answer other than expected");
                    self.refused.insert(seq, other);
                    self.drain(Retry::PublishRefused, "a publish was not stored where it must be");
                }
            }
            next = self.session.broker.publisher.answered();
        }
    }

    pub(super) fn streaming(&mut self) {
        self.phase = Phase::Stream;
        self.back_off = BACK_OFF_MIN;
        self.cause = None;
        if !self.process.streamed {
            self.process.streamed = true;
        }
        debug!("streaming");
    }

    /// Takes out what is settled.
    pub(super) fn settle(&mut self) {
        let mut now = None;
        while let Some(settled) = self.window.settle() {
            match settled {
                Settled::Event(seq, item) => {
                    let (wall, now) = *now.get_or_insert_with(|| (Timestamp::now(), Instant::now()));
                    self.letters_in_a_row = 0;
                    let taken = item.taken;
                    // Both clocks are of one machine, or the difference is theirs too.
                    let since_commit = wall.0.saturating_sub(taken.commit_time.0).max(0).unsigned_abs();
                    self.process.latency.record(since_commit);
                    let since_sent = micros(now.saturating_duration_since(item.sent));
                    self.process.counters.stored(since_commit, since_sent);
                    let id = taken.id.unwrap_or_default();
                    self.session.ledger.event(seq, taken.timeline, taken.place, taken.commit_time, id);
                }
                Settled::Boundary(lsn) => self.session.ledger.boundary(lsn, Instant::now()),
            }
        }
    }
}
