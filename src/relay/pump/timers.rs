//! What the loop looks at ten times a second: that both sides live, that Postgres hears of us, and
//! that the row is written and the slot confirmed.

use super::*;

impl<S: Sides> Pump<'_, S> {
    pub(super) async fn tick(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        self.process.pulse.beat();
        self.load.took(0, 0, now);
        self.process.letter_log.sum_up();
        self.count_reconnects();
        let awaited = self.session.broker.publisher.awaited();
        match self.phase {
            Phase::Drain { until } if now >= until || awaited == 0 => self.drained()?,
            // Over another connection than publishes go: it says nothing of that one.
            Phase::BackOff { until } if now >= until && self.session.broker.link.borrow().up => self.sync(),
            Phase::Probe | Phase::Stream if awaited > 0 && now >= self.alive + STALL => {
                self.drain(Retry::NatsSilent, "JetStream does not answer");
            }
            _ => {}
        }
        if self.stopping.is_some_and(|until| now >= until) {
            return Err(Failure::new(
                Code::NatsSession,
                "what was in flight at the end was not answered",
                "",
            ));
        }
        self.watch_progress(now)?;
        self.watch_nats(now)?;
        self.watch_postgres(now).await?;
        self.keep(now);
        self.show();
        Ok(())
    }

    fn count_reconnects(&mut self) {
        let link = self.session.broker.link.borrow();
        if link.up && link.losses > self.losses {
            self.process.counters.reconnected(Peer::Nats, link.losses - self.losses);
            self.losses = link.losses;
        }
    }

    /// Something is to be done and nothing is under way: no wait that has a name, and an end, of its own.
    pub(super) fn watch_progress(&mut self, now: Instant) -> Result<(), Failure> {
        let waits = matches!(self.phase, Phase::Sync(_) | Phase::Drain { .. } | Phase::BackOff { .. })
            || self.aside.is_some()
            || self.visibility.asking.is_some()
            || self.session.broker.publisher.awaited() > 0
            || !self.session.resume.is_done()
            || self.window.is_empty() && self.unaccounted.is_empty();
        if waits {
            self.idle_since = None;
            return Ok(());
        }
        match *self.idle_since.get_or_insert(now) {
            since if now < since + IDLE_MAX => Ok(()),
            _ => Err(Failure::new(
                Code::Stalled,
                format!("{} events wait to be published and nothing is under way", self.window.len()),
                "report it, with the log; the next session begins anew",
            )),
        }
    }

    /// An unconfirming reader keeps Postgres from shutting down, and holds WAL: let go.
    pub(super) fn watch_nats(&mut self, now: Instant) -> Result<(), Failure> {
        let idle = matches!(self.phase, Phase::Stream | Phase::Probe)
            && self.session.broker.publisher.awaited() == 0;
        if idle && self.session.broker.link.borrow().up
            || now < self.alive + self.config.postgres.release_after
        {
            return Ok(());
        }
        if let Some(cause) = self.cause.take() {
            return Err(cause);
        }
        Err(Failure::new(
            Code::NatsSession,
            format!(
                "no answer from JetStream for {:?}: letting go of Postgres",
                self.config.postgres.release_after
            ),
            "see nats-server; the relay tries again",
        ))
    }

    pub(super) async fn watch_postgres(&mut self, now: Instant) -> Result<(), Failure> {
        let silent = now.saturating_duration_since(self.heard);
        let waits = self.filling;
        let ask = waits && silent >= SILENCE_ASK && self.asked.is_none_or(|asked| now >= asked + SILENCE_ASK);
        if waits && silent >= self.patience {
            return Err(Failure::new(
                Code::WalsenderSilent,
                format!(
                    "the walsender has been silent for {silent:?}; it waits for {}",
                    self.waits_for.as_deref().unwrap_or("nothing: it works")
                ),
                "none is needed: the relay tries again. A giant transaction of other tables takes the server that \
                 long to decode: see wait_event of the walsender in pg_stat_activity",
            ));
        }
        let flush = self.session.ledger.confirmed_lsn();
        let (sent, reported) = self.status_sent;
        let since = now.saturating_duration_since(sent);
        let due = since >= self.config.postgres.status_apart()
            || ask
            || since >= STATUS_APART_MIN && (flush > reported || self.reply_requested);
        if due {
            self.session.replication.send_status(self.received, flush, ask).await?;
            self.status_sent = (now, flush);
            self.reply_requested = false;
            if ask {
                self.asked = Some(now);
            }
        }
        Ok(())
    }

    /// Sends upkeep out when there is something to do.
    pub(super) fn keep(&mut self, now: Instant) {
        if self.upkeep.is_some() || now < self.plan_due || !matches!(self.phase, Phase::Probe | Phase::Stream)
        {
            return;
        }
        self.plan_due = now + UPKEEP_APART;
        let settled = self.is_accounted();
        self.session.ledger.want(self.process.wanted.lsn());
        let check = (now >= self.check_due || self.session.ledger.wants_check()).then(|| Check {
            objects: self.session.ledger.committed().objects,
            owner: self.session.owner.clone(),
            id_column: self.session.id_column.clone(),
            // Clean-up may want a check each second.
            obstacles: now >= self.obstacles_due,
            void: if settled { std::mem::take(&mut self.session.stored_letters) } else { Vec::new() },
        });
        let write = if settled { self.session.ledger.due(now) } else { None };
        let known = self.session.ledger.committed();
        let rises = write.as_ref().is_some_and(|write| write.row.confirmed_seq > known.confirmed_seq);
        let confirms = settled && self.session.ledger.confirmable(now).is_some();
        let look = settled && (rises || confirms || now >= self.look_due);
        let ask = now.saturating_duration_since(self.heard) >= SILENCE_NAMED && self.filling;
        if check.is_none() && write.is_none() && !look && !ask {
            return;
        }
        let end = StreamEnd { last_seq: self.session.ledger.judged_seq(), created: known.stream_created };
        let plan = Plan { check, look, write, ask };
        self.upkeep_began = (now, end.last_seq);
        let (base, stream) = (self.session.base.clone(), self.session.broker.stream.clone());
        let keeping = timeout(UPKEEP_MAX, upkeep::keep(base, stream, plan, end));
        self.upkeep =
            Some(Box::pin(async { keeping.await.unwrap_or_else(|_| Err(crate::relay::unanswered())) }));
    }

    /// Upkeep is back.
    pub(super) fn kept(&mut self, done: upkeep::Done) -> Result<(), Failure> {
        let now = Instant::now();
        if done.waits_for.is_some() && self.waits_for.is_none() {
            info!(wait_event = done.waits_for, silent = ?self.heard.elapsed(), "the walsender is silent");
        }
        self.waits_for = done.waits_for;
        if let Some(checked) = done.checked {
            self.session.ledger.checked(checked.lsn);
            self.wal_end = self.wal_end.max(checked.lsn);
            let patience = forecast::patience(self.config.delivery.hold_back(&self.config.nats));
            self.process.slot_watch.saw(&self.process.board, &checked.slot, Some(patience));
            // What is not flushed yet (`checked.lsn`) cannot be delivered.
            self.unread.mark(checked.slot.wal_end, Timestamp::now(), now);
            self.slot = Some(checked.slot);
            if let Some(obstacles) = checked.obstacles {
                self.process.board.update(|status| status.obstructed(obstacles));
                self.process.obstacle_log.tell(&self.process.board);
                self.obstacles_due = now + CHECK_APART;
            }
            self.open_letters = Some(checked.open_letters);
            self.outbox = checked.outbox;
            self.check_due = now + CHECK_APART;
        }
        if let Some(write) = done.written {
            self.session.ledger.written(write, now);
        }
        if let Some(failure) = done.silent {
            if failure.code.disposition() != Disposition::Retry && !self.process.streamed {
                return Err(failure);
            }
            self.drain(Retry::NatsSilent, &failure.message);
            return Ok(());
        }
        let Some(end) = done.looked else { return Ok(()) };
        let (began, settled_seq) = self.upkeep_began;
        self.alive = self.alive.max(began);
        self.look_due = now + LOOK_APART;
        let known = self.session.ledger.committed();
        if end.created != known.stream_created || end.last_seq > self.window.last_sent() {
            self.drain(Retry::StreamChanged, "the stream is not as the relay left it");
            return Ok(());
        }
        if end.last_seq < settled_seq {
            self.drain(Retry::StreamChanged, "the stream went back");
            return Ok(());
        }
        // Marks that came of age before the look, and are covered by the row.
        if let Some(lsn) = self.session.ledger.confirmable(began) {
            self.session.ledger.confirm(lsn);
        }
        Ok(())
    }

    /// The row once more, and the confirmation that it allows.
    pub(super) async fn last_words(&mut self) {
        self.settle();
        if !self.is_accounted() {
            return;
        }
        // What upkeep is about to write must not come after this.
        if let Some(Ok(done)) = OptionFuture::from(self.upkeep.take()).await
            && let Some(write) = done.written
        {
            self.session.ledger.written(write, Instant::now());
        }
        let now = Instant::now();
        let write: Write = self.session.ledger.write(now);
        if write.row == *self.session.ledger.committed() {
            return;
        }
        let end = StreamEnd {
            last_seq: self.session.ledger.judged_seq(),
            created: self.session.ledger.committed().stream_created,
        };
        let plan = Plan { check: None, look: true, write: Some(write), ask: false };
        let (base, stream) = (self.session.base.clone(), self.session.broker.stream.clone());
        match upkeep::keep(base, stream, plan, end).await {
            Ok(upkeep::Done { written: Some(write), .. }) => {
                self.session.ledger.written(write, now);
                if let Some(lsn) = self.session.ledger.confirmable(now) {
                    self.session.ledger.confirm(lsn);
                }
            }
            Ok(_) => {}
            Err(failure) => {
                warn!(error = %failure, "the checkpoint row is not written: the next start reads the stream instead")
            }
        }
        let flush = self.session.ledger.confirmed_lsn();
        if let Err(error) = self.session.replication.send_status(self.received, flush, false).await {
            debug!(%error, "the last status was not sent");
        }
    }
}
