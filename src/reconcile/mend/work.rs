//! Does what the survey found, under a row that keeps relays away.

use super::*;

impl Mending<'_> {
    pub(super) async fn mend(
        &mut self,
        nats: &Nats,
        connection: Connection,
        failover: bool,
        survey: &Survey,
        progress: &mut impl FnMut(Progress),
    ) -> Result<Mended, Failure> {
        let look = match self.look().await? {
            Some(look) => look,
            None => self.stream.create(&New::of(&self.config.nats, self.resolved.subject())?).await?,
        };
        self.created = Some(look.end.created);
        let session = fastrand::i64(1..);
        let row = self.claimed(&look, session);
        checkpoint::put(&self.side.client, &self.config.postgres.schema, &row).await?;
        self.relay_ended().await?;
        let look = self.look().await?.ok_or_else(|| self.vanished())?;
        let last_seq = look.end.last_seq;
        self.scan(last_seq, progress).await?;
        self.begin().await?;
        let way = self.way().await?;
        let (begins, (behind, of)) = match &way {
            Way::Keep { confirmed, .. } => (*confirmed, self.to_come(&way).await?),
            Way::Anew { drop, .. } => {
                self.commit().await?;
                let begins = self.new_slot(connection, *drop, failover).await?;
                (begins, self.to_come(&way).await?)
            }
        };
        let base = way.base(begins);
        let mut filler = self.filler(nats, &look, session, base).await?;
        self.fill(&mut filler, behind, last_seq, of, progress).await?;
        let done = std::mem::take(&mut filler.done);
        // What is before a time to begin at was proved by a slot that stays, and stays as it was known.
        let lists = self.asked.since.is_none() || matches!(way, Way::Anew { .. }) || !survey.fits();
        if lists {
            self.ids.take_left_out(self.rows(), behind).await?;
        }
        self.commit().await?;
        let left_out = if lists { self.ids.list_left_out().await? } else { 0 };
        let last = done.last.as_ref().map_or(last_seq, |(seq, _)| (*seq).max(last_seq));
        let look = self.look().await?.ok_or_else(|| self.vanished())?;
        self.goes_on(&look, last)?;
        let row = self.settled(row, &way, begins, base, &done, last).await?;
        if !checkpoint::write(self.side, &self.config.postgres.schema, &row).await? {
            return Err(fenced());
        }
        Ok(Mended {
            published: done.published,
            lettered: done.lettered,
            accepted: if self.asked.accept { survey.foreign } else { 0 },
            left_out,
            slot_lsn: begins.to_string(),
            last_seq: look.end.last_seq,
        })
    }

    /// The row while this goes on: with what now identifies everything, and no one may stream.
    fn claimed(&self, look: &Look, session: i64) -> Checkpoint {
        let last_seq = look.end.last_seq;
        let known = self.row.as_ref();
        Checkpoint {
            slot: self.slot().to_owned(),
            stream: self.stream.name().to_owned(),
            stream_created: look.end.created,
            system_id: self.system.id,
            timeline: self.system.timeline,
            objects: self.objects,
            phase: self.asked.phase.as_str().to_owned(),
            session,
            seq: known.map_or(last_seq, |row| row.seq.min(last_seq)),
            last: known.and_then(|row| row.last.clone()),
            // Also for an attempt after this one, which need not be told.
            passed_seq: match self.asked.adopt {
                true => self.read,
                false => known.map_or(0, |row| row.passed_seq.min(last_seq)),
            },
            settled_lsn: known.map_or(Lsn::ZERO, |row| row.settled_lsn),
            confirmed_seq: known.map_or(0, |row| row.confirmed_seq.min(last_seq)),
        }
    }

    /// The row behind which the relay goes on.
    async fn settled(
        &self,
        row: Checkpoint,
        way: &Way,
        begins: Lsn,
        base: Lsn,
        done: &Done,
        last_seq: u64,
    ) -> Result<Checkpoint, Failure> {
        // What was stored though its answer was lost was read since.
        let read = match self.ids.last_seq_at(base).await? {
            Some(seq) => Some((seq, *self.event(seq).await?)),
            None => None,
        };
        let filled = read.into_iter().chain(done.last.clone()).max_by_key(|(seq, _)| *seq);
        let kept = match way {
            Way::Keep { behind, .. } => behind.as_ref().map(|(seq, event)| (*seq, (**event).clone())),
            Way::Anew { .. } => None,
        };
        let last: Option<(u64, Identity)> = filled.clone().or(kept.clone());
        let other_history = matches!(way, Way::Anew { other_history: true, .. });
        let judged = self.asked.accept || self.asked.adopt || other_history;
        Ok(Checkpoint {
            phase: "ready".to_owned(),
            seq: last.as_ref().map_or(last_seq, |(seq, _)| *seq),
            last: last.map(|(_, event)| event),
            passed_seq: if judged { last_seq } else { row.passed_seq },
            settled_lsn: begins,
            // The slot will not send those rows: the stream must keep them.
            confirmed_seq: match (&filled, &kept) {
                (Some((seq, _)), _) => *seq,
                (None, Some(_)) => row.confirmed_seq,
                (None, None) => last_seq,
            },
            ..row
        })
    }

    /// A relay whose row was taken ends its session.
    async fn relay_ended(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + RELAY_ENDS_MAX;
        while facts::slot_is_active(self.side, self.slot()).await? {
            if Instant::now() >= deadline {
                return Err(in_use(self.slot()));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Makes the slot anew and goes on in the snapshot that it begins with: its consistent point.
    async fn new_slot(&self, mut connection: Connection, drop: bool, failover: bool) -> Result<Lsn, Failure> {
        let name = self.slot();
        if drop {
            self.side.client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await?;
        }
        let options = match (connection.server_version(), failover) {
            (..=14, _) => "EXPORT_SNAPSHOT",
            (_, false) => "(SNAPSHOT 'export')",
            (_, true) => "(SNAPSHOT 'export', FAILOVER)",
        };
        let create =
            format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {options}", escape_identifier(name));
        let made = match connection.query(&create).await {
            Ok(made) => made,
            Err(Error::Timeout(_)) => {
                let blocked = preflight::blocked(self.side, name).await?;
                // It would wait on, and be made at last.
                let end =
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1";
                self.side.client.query(end, &[&name]).await?;
                return Err(blocked);
            }
            Err(error) => return Err(Failure::from(error).context("create the slot")),
        };
        let odd = || Failure::new(Code::Unexpected, "CREATE_REPLICATION_SLOT answers oddly", "report it");
        let text = |at: usize| made.first().and_then(|row| row.get(at).cloned().flatten()).ok_or_else(odd);
        let consistent: Lsn = text(1)?.parse().map_err(|_| odd())?;
        self.begin().await?;
        let snapshot = format!("SET TRANSACTION SNAPSHOT {}", escape_literal(&text(2)?));
        self.sql.client.batch_execute(&snapshot).await?;
        Ok(consistent)
    }

    async fn filler<'f>(
        &'f self,
        nats: &Nats,
        look: &Look,
        session: i64,
        base: Lsn,
    ) -> Result<Filler<'f>, Failure> {
        let publisher = Publisher::new(nats, self.stream.name(), self.config.outbox.cloudevents).await?;
        let System { id, timeline, .. } = *self.system;
        let columns: Vec<_> =
            self.table.columns.iter().map(|column| (column.name.clone(), column.type_oid)).collect();
        Ok(Filler {
            config: self.config,
            stream: &self.stream,
            limits: Limits::of(&look.config, publisher.max_payload()),
            publisher,
            side: self.side,
            owner: Owner { slot: self.slot().to_owned(), system_id: id },
            session,
            shape: Arc::new(Shape {
                table: preflight::bound(self.resolved, self.table)?,
                columns,
                key: self.config.encrypt.key()?.map(Arc::new),
            }),
            timeline,
            origin: format!("{id}/{timeline}/{}/", self.slot()).into(),
            base,
            index: self.ids.next_index(base).await?,
            now: facts::now(self.side).await?,
            done: Done::default(),
        })
    }

    /// Publishes round by round until none is lacking.
    async fn fill(
        &self,
        filler: &mut Filler<'_>,
        behind: Option<Place>,
        mut last_seq: u64,
        of: u64,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), Failure> {
        let mut moved = (Instant::now(), 0);
        loop {
            let mut rows = self.ids.lacking_rows(self.table, self.rows(), behind).await?;
            let filled = filler
                .fill(&mut rows, last_seq, |published| progress(Progress::Published(published, of)))
                .await;
            drop(rows);
            let Err(failure) = filled else { return Ok(()) };
            self.ids.put_settled(&std::mem::take(&mut filler.done.lettered_ids)).await?;
            let settled = filler.done.published + filler.done.lettered;
            if settled > moved.1 {
                moved = (Instant::now(), settled);
            }
            let hopeless = failure.code == Code::SessionTaken || moved.0.elapsed() >= PATIENCE;
            if failure.code.disposition() != Disposition::Retry || hopeless {
                return Err(failure);
            }
            sleep(PAUSE).await;
            match self.read_again(filler, &mut last_seq).await {
                Err(failure) if failure.code.disposition() != Disposition::Retry => return Err(failure),
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// What of the last round was stored, behind `last_seq`, which becomes the stream's end.
    async fn read_again(&self, filler: &Filler<'_>, last_seq: &mut u64) -> Result<(), Failure> {
        let look = self.look().await?.ok_or_else(|| self.vanished())?;
        let stored = filler.done.last.as_ref().map_or(0, |(seq, _)| *seq);
        self.goes_on(&look, stored.max(*last_seq))?;
        while *last_seq < look.end.last_seq {
            let upto = look.end.last_seq.min(*last_seq + CHUNK);
            let mut ours = Vec::new();
            for (seq, stored) in self.stream.messages(*last_seq + 1, upto).await? {
                match stored {
                    Stored::Event(event) if event.position.slot != self.slot() => {}
                    Stored::Event(event) if event.position.place.commit_lsn == filler.base => {
                        ours.push((event, seq));
                    }
                    // A relay's that had lost the slot: it belongs before what was published since.
                    Stored::Event(_) => {
                        return Err(Failure::new(
                            Code::SlotInUse,
                            format!("message {seq} came late from a relay that had ended"),
                            "the same command again: it reads the stream anew",
                        ));
                    }
                    Stored::Gone | Stored::Foreign(_) => {}
                }
            }
            self.ids.put_messages(&ours).await?;
            *last_seq = upto;
        }
        Ok(())
    }
}
