//! Round the circle DRAIN → back-off → SYNC → PROBE: what went wrong on the way into the stream, and
//! where it goes on.

use super::*;

impl<S: Sides> Pump<'_, S> {
    /// Something went wrong on the way into the stream.
    pub(super) fn drain(&mut self, reason: Retry, why: &str) {
        if matches!(self.phase, Phase::Probe | Phase::Stream) {
            self.process.counters.retry(reason);
            self.process.fault_log.drains(why, self.window.in_flight());
            if self.session.broker.publisher.awaited() == 0 {
                // Nothing was due: silence is counted from here.
                self.alive = Instant::now();
            }
            self.phase = Phase::Drain { until: Instant::now() + STALL };
            self.process
                .board
                .update(|status| (status.state, status.reason) = (State::Drain, why.to_owned()));
        }
    }

    /// The window is answered, or no more answers are awaited: find the cause and go on.
    pub(super) fn drained(&mut self) -> Result<(), Failure> {
        self.settle();
        let silent = self.session.broker.publisher.awaited() > 0;
        let root = self.refused.iter().find(|(_, answer)| !answer.is_consequence());
        let failure = match root {
            Some((seq, answer)) => Some(self.judge(*seq, answer)),
            None if silent => Some(self.silence()),
            None => None,
        };
        let cause = root.map(|(seq, _)| *seq);
        let failure = failure.or_else(|| self.duplicate());
        let Some(failure) = failure else {
            // Only consequences: a message was lost, or another relay published. The stream tells.
            self.back_off();
            return Ok(());
        };
        match failure.code.disposition() {
            Disposition::Retry => {}
            Disposition::Operator if self.process.streamed => {}
            // What went before it may not be stored yet: SYNC first, and set it aside at the front.
            Disposition::Poison => {
                info!(code = %failure.code, error = failure.message, "JetStream refuses an event");
                let place = cause.and_then(|seq| self.window.at(seq)).map(|item| item.taken.place);
                self.condemned = place.map(|place| (place, failure));
                self.back_off();
                return Ok(());
            }
            Disposition::Operator | Disposition::Halt => return Err(failure),
        }
        self.cause = Some(failure.clone());
        self.process.fault_log.warn(&failure, self.back_off, "publishing pauses");
        self.process.board.update(|status| {
            status.reason = failure.message.clone();
            status.last_error = Some((&failure).into());
        });
        self.back_off();
        Ok(())
    }

    pub(super) fn back_off(&mut self) {
        // Jittered: two relays must not meet again and again.
        let wait = self.back_off.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.phase = Phase::BackOff { until: Instant::now() + wait };
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
    }

    /// With `nats.msg_id`, an id that returns within the stream's window is never stored.
    pub(super) fn duplicate(&self) -> Option<Failure> {
        let (seq, answer) = self.refused.first_key_value()?;
        let Answer::Duplicate(stored) = answer else { return None };
        let id = self.window.at(*seq).and_then(|item| item.taken.id.as_deref()).unwrap_or("?");
        Some(Failure::new(
            Code::PublishRefused,
            format!("JetStream takes event {} for a duplicate of message {stored}", excerpt(id)),
            "set nats.msg_id = false, or wait for the stream's duplicate window to pass",
        ))
    }

    pub(super) fn judge(&self, seq: u64, answer: &Answer) -> Failure {
        let event = self.window.at(seq).and_then(|item| item.event().ok());
        let subject = event.as_ref().map_or("?", |event| event.subject.as_str());
        answer.failure(self.session.broker.stream.name(), subject)
    }

    /// No answer at all: a lost connection, a stream without a leader, or a publish that is not
    /// permitted, which the server only complains about.
    pub(super) fn silence(&self) -> Failure {
        let link = self.session.broker.link.borrow();
        let recent = link.complaint.as_ref().filter(|_| link.complaints > self.complaint);
        let told = recent.map_or_else(String::new, |complaint| format!(": {complaint}"));
        match recent.filter(|text| text.to_lowercase().contains("permissions violation for publish")) {
            Some(complaint) => Failure::new(
                Code::PublishForbidden,
                format!("the server says: {complaint}"),
                "grant the NATS account publish permission for the subjects of outbox.subject",
            ),
            None => Failure::new(
                Code::NatsSession,
                if link.up {
                    format!("JetStream does not answer publishes{told}")
                } else {
                    format!("the connection to NATS is down{told}")
                },
                if link.up { LEADERLESS } else { "see nats-server; the relay tries again" },
            ),
        }
    }

    pub(super) fn sync(&mut self) {
        self.session.broker.publisher.next_epoch();
        self.refused.clear();
        self.complaint = self.session.broker.link.borrow().complaints;
        let stream = self.session.broker.stream.clone();
        let (judged, seq) = (self.session.ledger.judged_seq(), self.session.ledger.seq());
        let settled = self.session.ledger.last().filter(|_| seq > 0);
        self.phase = Phase::Sync(Box::pin(async move {
            let look = stream.look().await?;
            let settled = match settled {
                Some(_) if seq <= look.end.last_seq => stream.message(seq).await?,
                _ => Stored::Gone,
            };
            let tail = stream.messages(judged + 1, look.end.last_seq).await?;
            Ok(Ending { look, settled, tail })
        }));
    }

    pub(super) fn synced(&mut self, read: Result<Ending, Failure>) -> Result<(), Failure> {
        let Ending { look, settled, tail } = match read {
            Ok(read) => read,
            Err(failure) => match failure.code.disposition() {
                Disposition::Retry => {
                    self.back_off();
                    return Ok(());
                }
                _ => return Err(failure),
            },
        };
        if !self.session.broker.link.borrow().up {
            // Lost again meanwhile: a publish would go nowhere.
            self.back_off();
            return Ok(());
        }
        self.alive = Instant::now();
        let name = self.session.broker.stream.name();
        look.config.fits(name, &self.session.template)?;
        let known = self.session.ledger.committed();
        // Also before the tail was verified: the next session reads it anew.
        if look.end.created != known.stream_created
            || look.end.last_seq < self.session.ledger.judged_seq()
            || !self.is_accounted()
        {
            return Err(Failure::new(
                Code::NatsSession,
                format!(
                    "the stream ends at {}, the relay was at {}",
                    look.end.last_seq,
                    self.session.ledger.seq()
                ),
                "none is needed: the next session begins from the checkpoint",
            ));
        }
        // Lost, and its place filled by someone else: the number alone does not show it.
        let stands = match (&settled, self.session.ledger.last()) {
            (Stored::Event(there), Some(last)) => there.is_same_event(&last),
            (Stored::Foreign(_), Some(_)) => false,
            _ => true,
        };
        if !stands {
            let seq = self.session.ledger.seq();
            return Err(Failure::new(
                Code::NatsSession,
                format!("message {seq} of stream `{name}` is not the event that was stored there"),
                "none is needed: the next session goes back to the stream's last event",
            ));
        }
        let server = &self.session.server;
        if let Err(seq) =
            self.window.restart(look.end.last_seq, &tail, |item, stored| item.is(stored, server))
        {
            let what = tail.iter().find(|(at, _)| *at == seq).map(|(_, stored)| stored);
            return Err(match what {
                Some(Stored::Foreign(subject)) => {
                    foreign(name, seq, &format!("subject `{subject}`, no position of this relay"))
                }
                _ => Failure::new(
                    Code::NatsSession,
                    format!("message {seq} of stream `{name}` is not the event that must come there"),
                    "none is needed: the next session looks who wrote it",
                ),
            });
        }
        debug!(last_seq = look.end.last_seq, stored = tail.len(), "synchronised");
        self.limits = Limits::of(&look.config, self.session.broker.publisher.max_payload());
        self.session.look = look;
        self.phase = Phase::Probe;
        self.look_due = Instant::now() + LOOK_APART;
        Ok(())
    }
}
