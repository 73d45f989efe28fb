//! What there is to do: slot, stream, row and table are looked at, and left as they are.

use super::*;

/// What there is to do.
#[derive(Debug, Clone, Serialize)]
pub struct Survey {
    /// Rows that are to be published.
    pub missing: u64,
    /// Rows that the stream lacks and that are left out, for they are marked as processed.
    pub marked: u64,
    /// The columns that mark them.
    pub mark_columns: Vec<String>,
    /// Messages of others that are not accepted.
    pub foreign: u64,
    /// The first of them.
    pub foreign_messages: Vec<Stray>,
    /// The slot is made anew, and why; none: it stays.
    pub new_slot: Option<String>,
    /// The stream does not exist.
    pub new_stream: bool,
    /// What the checkpoint row says that is so no more.
    pub outdated: Vec<String>,
}

impl Survey {
    /// There is nothing to do.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.missing == 0 && self.fits()
    }

    /// Slot, stream and row belong together, as they did before.
    pub(super) fn fits(&self) -> bool {
        self.new_slot.is_none() && !self.new_stream && self.outdated.is_empty()
    }
}

impl Mending<'_> {
    /// What there is to do; leaves everything as it is.
    pub(super) async fn survey(&mut self, progress: &mut impl FnMut(Progress)) -> Result<Survey, Failure> {
        let look = self.look().await?;
        self.created = look.as_ref().map(|look| look.end.created);
        let last_seq = look.as_ref().map_or(0, |look| look.end.last_seq);
        self.scan(last_seq, progress).await?;
        // Again: messages may have expired meanwhile.
        let look = self.look().await?;
        self.is_permitted(look.as_ref())?;
        self.begin().await?;
        let way = self.way().await?;
        let (behind, missing) = self.to_come(&way).await?;
        let marked = self.ids.marked_count(self.rows(), behind).await?;
        let mark_columns = self.ids.mark_names(self.rows())?;
        let lists_stored = self.asked.since.is_none() && self.ids.lists_stored().await?;
        self.commit().await?;
        let (foreign, foreign_messages) = self.order.foreign();
        let mut outdated = self.outdated(look.as_ref(), &way);
        if lists_stored {
            outdated.push("rows that are stored are among those that clean-up leaves alone".to_owned());
        }
        let new_slot = match &way {
            Way::Anew { why, .. } => Some(why.clone()),
            Way::Keep { .. } => None,
        };
        let new_stream = look.is_none();
        Ok(Survey {
            missing,
            marked,
            mark_columns,
            foreign,
            foreign_messages,
            new_slot,
            new_stream,
            outdated,
        })
    }

    /// What must be said before ids of the stream are taken for this pipeline's, and gaps for losses.
    fn is_permitted(&self, look: Option<&Look>) -> Result<(), Failure> {
        let slot = self.slot();
        let adopting = "postrider recover --adopt compares the rows with the messages of this slot's name in the \
             stream, whichever cluster wrote them";
        match &self.row {
            Some(row) if row.system_id != self.system.id && !self.asked.adopt => {
                return Err(Failure::new(
                    Code::OtherSystem,
                    format!(
                        "system identifier {} is not the checkpoint row's {}: the database was moved, or this is \
                         another one",
                        self.system.id, row.system_id
                    ),
                    format!("if it was moved and the old one is gone for good: {adopting}"),
                ));
            }
            None if self.read > 0 && !self.asked.adopt => {
                return Err(Failure::new(
                    Code::CheckpointMissing,
                    format!(
                        "stream `{}` has messages, and slot `{slot}` has no checkpoint row",
                        self.stream.name()
                    ),
                    adopting,
                ));
            }
            _ => {}
        }
        let used = self.own > 0 || self.row.as_ref().is_some_and(|row| row.last.is_some());
        match look {
            Some(look) if used && self.asked.since.is_none() => verify::is_bounded(&self.stream, look),
            _ => Ok(()),
        }
    }

    /// What the row says that is so no more.
    fn outdated(&self, look: Option<&Look>, way: &Way) -> Vec<String> {
        let mut outdated = Vec::new();
        let Some(row) = &self.row else { return vec!["there is no checkpoint row".to_owned()] };
        let mut add = |is: bool, what: String| is.then(|| outdated.push(what));
        add(row.phase != "ready", format!("a {} was begun and did not end", row.phase));
        add(row.system_id != self.system.id, format!("the cluster was {}", row.system_id));
        add(row.objects != self.objects, "publication or table were made anew or put back".to_owned());
        add(row.stream != self.stream.name(), format!("the stream was `{}`", row.stream));
        if let Some(look) = look {
            let again = row.stream == self.stream.name() && row.stream_created != look.end.created;
            add(again, format!("the stream was made on {}", row.stream_created));
            let short = look.end.last_seq < row.confirmed_seq;
            add(!again && short, format!("the stream went up to message {} at least", row.confirmed_seq));
        }
        if let Way::Keep { confirmed, .. } = way {
            let moved = *confirmed > row.settled_lsn && row.timeline == self.system.timeline;
            add(
                moved,
                format!("everything before {} was stored, the slot is confirmed beyond", row.settled_lsn),
            );
        }
        outdated
    }

    /// Reads the stream up to `last`.
    pub(super) async fn scan(
        &mut self,
        last: u64,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), Failure> {
        while self.read < last {
            let upto = last.min(self.read + CHUNK);
            let mut ours = Vec::new();
            for (seq, stored) in self.stream.messages(self.read + 1, upto).await? {
                match self.order.message(seq, stored) {
                    Seen::Ours(event) if !self.is_phantom(&event) => ours.push((event, seq)),
                    Seen::Ours(_) | Seen::Other => {}
                }
            }
            self.own += ours.len() as u64;
            self.ids.put_messages(&ours).await?;
            self.read = upto;
            progress(Progress::Read(upto, last));
        }
        Ok(())
    }

    /// What becomes of the slot, from a snapshot that begins here.
    pub(super) async fn way(&mut self) -> Result<Way, Failure> {
        // The first statement takes the snapshot, and then reads this.
        let upto = wal_insert_lsn(self.sql).await?;
        let name = self.slot();
        let unusable = |exists, why: String| Found { unusable: Some(why), exists, ..Found::default() }.way();
        let Some(slot) = facts::slot(self.side, name).await? else {
            return Ok(unusable(false, "there is none".to_owned()));
        };
        match preflight::fit_slot(name, &slot) {
            Err(failure) if matches!(failure.code, Code::SlotLost | Code::SlotAhead) => {
                return Ok(unusable(true, failure.message));
            }
            fit => fit?,
        }
        if slot.active_pid.is_some() {
            return Err(in_use(name));
        }
        let Some(confirmed) = slot.confirmed else { return Err(preflight::blocked(self.side, name).await?) };
        match self.ids.peek(self.side, self.table.oid, None, upto).await? {
            Peeked::Busy => return Err(in_use(name)),
            Peeked::Undecodable(why) => return Ok(unusable(true, why)),
            Peeked::Done => {}
        }
        let last = self.last_sent(confirmed).await?;
        let mut found = self.ids.found(confirmed, last).await?;
        found.differs = self.other_history.clone().or(found.differs);
        if let Some(event) = &found.differs {
            self.ids.forget_other_history(confirmed).await?;
            self.other_history = Some(event.clone());
        }
        Ok(found.way())
    }

    /// The last event that the slot would send again and that was stored: by the stream, or by the row where
    /// its message has expired.
    async fn last_sent(&self, confirmed: Lsn) -> Result<Option<(u64, Box<Identity>)>, Failure> {
        let mut last = None;
        if let Some(seq) = self.ids.last_seq_from(confirmed).await? {
            last = Some((seq, self.event(seq).await?));
        }
        let Some(row) = &self.row else { return Ok(last) };
        let Some(known) = row.last.as_ref().filter(|known| self.history.contains(&known.position)) else {
            return Ok(last);
        };
        let place = known.position.place;
        let later = last.as_ref().is_none_or(|(_, event)| event.position.place < place);
        let of_this = row.stream == self.stream.name() && Some(row.stream_created) == self.created;
        if place.commit_lsn >= confirmed && later && of_this && row.seq <= self.read {
            let gone = self.stream.message(row.seq).await? == Stored::Gone;
            last = if gone { Some((row.seq, Box::new(known.clone()))) } else { last };
        }
        Ok(last)
    }

    /// The place behind which what the slot holds is to come by itself, and how many rows lack besides.
    pub(super) async fn to_come(&self, way: &Way) -> Result<(Option<Place>, u64), Failure> {
        if let Way::Anew { .. } = way {
            // A new slot sends none of it.
            self.ids.forget_slot().await?;
        }
        let Way::Keep { behind: Some((_, event)), .. } = way else {
            return Ok((None, self.ids.lacking_count(self.rows(), None).await?));
        };
        let place = event.position.place;
        let lacking = self.ids.lacking_count(self.rows(), Some(place)).await?;
        let (rest, deleted) = self.ids.rest_of(place).await?;
        if lacking == 0 || rest == 0 {
            return Ok((Some(place), lacking));
        }
        if deleted > 0 {
            return Err(plan::cut(event));
        }
        // The relay goes on behind the whole transaction: its rest is published with the others.
        let whole = Place { index: u64::MAX, ..place };
        Ok((Some(whole), self.ids.lacking_count(self.rows(), Some(whole)).await?))
    }
}
