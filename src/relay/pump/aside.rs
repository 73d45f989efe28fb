//! Events that do not go the usual way: dead letters, and payloads for the object store.
//!
//! Everything before such an event is settled first, and nothing behind it is sent until it is dealt
//! with: its letter is committed, or its payload is stored and it goes on as a reference.

use super::*;

/// The log names so many letters a minute; the rest are counted.
const LETTERS_LOGGED: u32 = 20;
const LETTERS_LOGGED_IN: Duration = Duration::from_secs(60);

/// What came of an event that was set aside.
pub(super) enum Aside {
    /// The letter of the event there was committed before this LSN.
    Lettered(Place, Reason, Lsn),
    /// Another session has the row.
    Fenced,
    /// The payload of the event there is stored; this refers to it.
    Claimed(Place, Event),
}

/// Letters since, and how many of them were logged.
pub(in crate::relay) struct LetterLog {
    since: Instant,
    logged: u32,
    silent: u64,
}

impl LetterLog {
    pub(in crate::relay) fn new() -> LetterLog {
        LetterLog { since: Instant::now(), logged: 0, silent: 0 }
    }

    /// Says how many letters were not named, once their time is over.
    pub(super) fn sum_up(&mut self) {
        if self.logged > 0 && self.since.elapsed() >= LETTERS_LOGGED_IN {
            if self.silent > 0 {
                warn!(letters = self.silent, "more events became dead letters: postrider dlq list");
            }
            *self = LetterLog::new();
        }
    }

    fn warn(&mut self, letter: &Letter) {
        if self.logged == 0 {
            self.since = Instant::now();
        }
        if self.logged < LETTERS_LOGGED {
            self.logged += 1;
            let code = letter.reason.code();
            let remedy = "postrider dlq list; mend the cause, then postrider dlq replay --all";
            warn!(%code, reason = %letter.reason, error = letter.error, remedy, "an event becomes a dead letter");
        } else {
            self.silent += 1;
        }
    }
}

impl<S: Sides> Pump<'_, S> {
    /// What the front event, which nothing in flight precedes, comes to instead of being published.
    pub(super) fn set_aside(&mut self, poison: Poison) -> Result<(), Failure> {
        let Some(item) = self.unaccounted.front().or_else(|| self.window.waiting()) else { return Ok(()) };
        let delivery = &self.config.delivery;
        let oversize = (poison.reason == Reason::Oversize).then_some(delivery.oversize);
        match (oversize, delivery.on_poison) {
            (Some(Oversize::ObjectStore), _) if item.claim.is_none() => {
                // The event is there: only its size is wrong.
                let Ok(event) = item.event() else { return Err(item.halt(&poison)) };
                let (stream, place) = (self.session.broker.stream.clone(), item.taken.place);
                self.aside = Some(Box::pin(async move {
                    stream.claim_check(event, place).await.map(|event| Aside::Claimed(place, event))
                }));
                return Ok(());
            }
            (Some(Oversize::Halt), _) | (_, OnPoison::Halt) => return Err(item.halt(&poison)),
            (_, OnPoison::DeadLetter) => {}
        }
        if self.letters_in_a_row >= delivery.dead_letters_max {
            return Err(Failure::new(
                Code::DeadLettersMax,
                format!("{} dead letters in a row; the next: {poison}", self.letters_in_a_row),
                "postrider dlq list. Mend the cause and start again, then postrider dlq replay --all; or raise \
                 delivery.dead_letters_max",
            ));
        }
        // What was sent behind it and never answered could fit there once the chain moves down.
        if self.session.broker.publisher.unanswered() > 0 && self.sent_up_to >= Some(item.taken.place) {
            return Err(Failure::new(
                Code::NatsSession,
                "publishes of a broken connection may be on their way still: a new one is made before an event \
                 becomes a dead letter",
                "none is needed",
            ));
        }
        let letter = item.taken.letter(poison);
        self.process.letter_log.warn(&letter);
        let (base, owner) = (self.session.base.clone(), self.session.owner.clone());
        let session = self.session.ledger.committed().session;
        self.aside = Some(Box::pin(async move {
            let committed = base.letter(&owner, session, &letter).await?;
            Ok(committed.map_or(Aside::Fenced, |lsn| Aside::Lettered(letter.place, letter.reason, lsn)))
        }));
        Ok(())
    }

    /// It is dealt with.
    pub(super) fn aside(&mut self, done: Result<Aside, Failure>) -> Result<(), Failure> {
        match done {
            Ok(Aside::Lettered(place, reason, lsn)) => {
                let is = |item: &Item| item.taken.place == place;
                if self.unaccounted.pop_front_if(|item| is(item)).is_some() {
                    self.session.ledger.late_letter(lsn);
                } else if self.window.waiting().is_some_and(is) && self.window.letter().is_some() {
                    self.session.ledger.letter(lsn);
                } else {
                    return Err(Failure::new(
                        Code::NatsSession,
                        "an event was stored late, while it became a dead letter",
                        "none is needed: the next session finds both, and the stream wins",
                    ));
                }
                self.condemned = None;
                self.back_off = BACK_OFF_MIN;
                self.letters_in_a_row += 1;
                self.open_letters = self.open_letters.map(|open| open + 1);
                self.process.counters.dead_letter(reason);
                Ok(())
            }
            Ok(Aside::Fenced) => Err(upkeep::taken()),
            Ok(Aside::Claimed(place, event)) => {
                if let Some(item) = self.window.waiting_mut().filter(|item| item.taken.place == place) {
                    item.claim = Some(event);
                }
                Ok(())
            }
            // The store is on the NATS side: the window keeps the event.
            Err(failure) if failure.code == Code::NatsSession => {
                self.drain(Retry::NatsSilent, &failure.message);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }
}
