//! Rows, messages and letters against each other, for `verify`.

use super::*;

impl Ids<'_> {
    /// Takes the ids of the rows, also of those that are no `rows` for their mark: the end of the WAL, before which
    /// all of them were committed.
    pub(in super::super) async fn take_rows(&self, rows: Rows) -> Result<Lsn, Failure> {
        let statement = format!(
            "INSERT INTO pg_temp.postrider_rows SELECT {}, {} FROM {} AS o WHERE {}",
            self.id(),
            MarkColumn::any_is_set(self.marks(rows)?),
            self.source,
            self.counted(Rows { processed: true, ..rows })?
        );
        self.sql
            .client
            .execute(&statement, &[])
            .await
            .map_err(|error| Failure::from(error).context("read the ids of the outbox"))?;
        Ok(wal_insert_lsn(self.sql).await?)
    }

    /// How many rows are neither stored nor put aside for good.
    pub(in super::super) async fn unfound(&self, row: &Checkpoint) -> Result<u64, Failure> {
        let query = format!("SELECT count(*) FROM ({}) AS u", self.unfound_rows());
        let found = self.sql.client.query_one(&query, &[&row.slot]).await?;
        Ok(unsigned(found.get(0)))
    }

    /// Rows without message or letter, but for those that someone else has published.
    fn unfound_rows(&self) -> String {
        format!(
            "SELECT r.id FROM pg_temp.postrider_rows AS r WHERE NOT r.processed \
             AND NOT EXISTS (SELECT FROM pg_temp.postrider_messages AS m WHERE m.id = r.id) \
             AND NOT EXISTS (SELECT FROM {} AS l WHERE l.slot = $1 AND btrim(l.event_id, {TRIMMED}) = r.id \
                             AND (l.resolution IS NULL OR l.resolution = 'dropped'))",
            dead_letter::table(&self.config.postgres.schema)
        )
    }

    /// The verdict on each row; of those that were not found in time it is left open.
    pub(in super::super) async fn judge(&self, row: &Checkpoint, undecided: bool) -> Result<Report, Failure> {
        let client = &self.sql.client;
        let rows = client
            .query_one(
                "SELECT count(*), count(m.id), count(*) FILTER (WHERE r.processed AND m.id IS NULL) \
                 FROM pg_temp.postrider_rows AS r \
                 LEFT JOIN (SELECT DISTINCT id FROM pg_temp.postrider_messages) AS m ON m.id = r.id",
                &[],
            )
            .await?;
        let (all, stored, processed) = (unsigned(rows.get(0)), unsigned(rows.get(1)), unsigned(rows.get(2)));
        let unfound = self.unfound(row).await?;
        let to_come = "EXISTS (SELECT FROM pg_temp.postrider_slot AS s WHERE s.id = u.id)";
        let query = format!("SELECT count(*) FROM ({}) AS u WHERE {to_come}", self.unfound_rows());
        let held = unsigned(client.query_one(&query, &[&row.slot]).await?.get(0));
        let pending = if undecided { unfound } else { held };
        let missing = unfound.saturating_sub(pending);
        let query = format!(
            "SELECT u.id FROM ({}) AS u WHERE NOT {to_come} ORDER BY length(u.id), u.id LIMIT {NAMED_MAX}",
            self.unfound_rows()
        );
        let missing_ids = client.query(&query, &[&row.slot]).await?;
        let query = format!(
            "SELECT id, (sum(count(*) - 1) OVER ())::bigint FROM pg_temp.postrider_messages \
             GROUP BY id HAVING count(*) > 1 ORDER BY length(id), id LIMIT {NAMED_MAX}"
        );
        let doubled = client.query(&query, &[]).await?;
        Ok(Report {
            rows: all,
            stored,
            lettered: all.saturating_sub(stored + processed + unfound),
            pending,
            processed,
            missing,
            doubled: doubled.first().map_or(0, |row| unsigned(row.get(1))),
            missing_ids: missing_ids.iter().filter(|_| missing > 0).map(|row| row.get(0)).collect(),
            doubled_ids: doubled.iter().map(|row| row.get(0)).collect(),
            undecided: undecided && unfound > 0,
            ..Report::default()
        })
    }
}
