//! What slot and checkpoint row say, and how witnesses are taken.

use super::proof::Witness;
use crate::config::Config;
use crate::error::{Code, Failure};
use crate::postgres::client::Sql;
use crate::postgres::error::Error;
use crate::postgres::lsn::Lsn;
use crate::state::checkpoint;
use crate::state::older::{self, Older};
use tokio_postgres::error::SqlState;
use tracing::debug;

/// A slot that can prove something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// The slot's confirmed LSN.
    pub(super) confirmed: Lsn,
    /// What a committed row covers.
    pub(super) settled: Lsn,
    /// Someone reads the slot.
    pub(super) active: bool,
    /// The outbox that the slot sends.
    pub(super) table_oid: u32,
    pub(super) older: Older,
    /// The end of the WAL that is on disk.
    pub(super) flushed: Lsn,
}

impl Standing {
    /// Everything before it is stored, and the slot confirmed past it. The row is written before the
    /// slot is confirmed: what it does not cover was confirmed by someone else.
    pub(super) fn proved(&self) -> Lsn {
        self.confirmed.min(self.settled)
    }
}

pub(super) fn lsn(text: Option<String>) -> Result<Lsn, Failure> {
    let lsn = text.map(|text| text.parse().map_err(|error| Error::Protocol(format!("{error}")))).transpose();
    Ok(lsn?.unwrap_or_default())
}

/// Reads both.
pub(super) async fn standing(sql: &Sql, config: &Config) -> Result<Standing, Failure> {
    let (schema, slot) = (&config.postgres.schema, &config.postgres.slot);
    let query = format!(
        "SELECT s.confirmed_flush_lsn::text, p.settled_lsn::text, s.active, p.table_oid, p.older_rows, \
         pg_current_wal_flush_lsn()::text, p.phase, \
         p.system_id = (SELECT system_identifier::text FROM pg_control_system()), s.slot_name IS NOT NULL \
         FROM {} AS p LEFT JOIN pg_replication_slots AS s ON s.slot_name = p.slot \
         AND s.database = current_database() AND s.plugin = 'pgoutput' WHERE p.slot = $1",
        checkpoint::table(schema)
    );
    let row = match sql.client.query_opt(&query, &[slot]).await {
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_COLUMN) => {
            return Err(earlier_version(config));
        }
        row => row?,
    };
    let unproved = |what: &str| unproved(config, what);
    let row = row.ok_or_else(|| unproved("it has no checkpoint row"))?;
    let phase: String = row.get(6);
    if phase != "ready" {
        return Err(unproved(&format!("the phase of its checkpoint row is `{phase}`")));
    }
    if !row.get::<_, bool>(7) {
        return Err(unproved("its checkpoint row is another cluster's"));
    }
    if !row.get::<_, bool>(8) {
        return Err(unproved("it does not exist"));
    }
    Ok(Standing {
        confirmed: lsn(row.get(0))?,
        settled: lsn(row.get(1))?,
        active: row.get::<_, Option<bool>>(2).unwrap_or(false),
        table_oid: row.get(3),
        older: Older::read(row.get(4)),
        flushed: lsn(row.get(5))?,
    })
}

/// The schema has no place for what is known of older rows.
pub(super) fn earlier_version(config: &Config) -> Failure {
    let what = format!("{} is of an earlier version", checkpoint::table(&config.postgres.schema));
    Failure::new(Code::CareOlder, what, "let its owner bring it up to date").command("postrider init")
}

pub(super) fn unproved(config: &Config, what: &str) -> Failure {
    Failure::new(
        Code::CareSlot,
        format!("slot `{}` proves nothing: {what}", config.postgres.slot),
        "postrider doctor says what is wrong; no row is touched meanwhile",
    )
}

/// The list of older rows is missing.
pub(super) fn older_unknown(config: &Config, id: &str) -> Failure {
    let (schema, slot) = (&config.postgres.schema, &config.postgres.slot);
    let (slot, outbox) = (postgres_protocol::escape::escape_literal(slot), &config.outbox.table);
    Failure::new(
        Code::CareOlder,
        format!("it is not known which rows of {outbox} are older than the slot"),
        "list those that are there now, which then stay (or, with a WHERE, the old ones alone)",
    )
    .sql(format!(
        "INSERT INTO {} SELECT DISTINCT {slot}, btrim(format('%s', {id}), {}) FROM {outbox} WHERE {id} IS NOT NULL \
         ON CONFLICT DO NOTHING;",
        older::table(schema),
        older::TRIMMED
    ))
    .sql(format!(
        "UPDATE {} SET older_rows = 'listed' WHERE slot = {slot};",
        checkpoint::table(schema)
    ))
}

/// Takes a witness. One statement: its snapshot is taken before it is executed.
pub(super) async fn witness(sql: &Sql) -> Result<Witness, Failure> {
    let query = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text, pg_current_wal_insert_lsn()::text";
    let row = sql.client.query_one(query, &[]).await?;
    Ok(Witness { horizon: xid(row.get(0)).unwrap_or(0), lsn: lsn(row.get(1))? })
}

/// The transaction that keeps the horizon at `horizon`, of whatever database. A server that does not say hides an
/// explanation, and stops nothing.
pub(super) async fn holder(sql: &Sql, horizon: u64) -> Result<Option<Failure>, Failure> {
    // Of another user's process a role without pg_monitor sees the locks, and not the transaction. Who prepared a
    // transaction may have been dropped since.
    let query = "SELECT format('process %s of %s in database %s%s', a.pid, coalesce(a.usename, a.backend_type), a.datname, \
        ', ' || a.state || ', which began at ' || a.xact_start) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) \
        WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' AND l.transactionid::text::bigint = $1 \
        UNION ALL SELECT format('prepared transaction %L of %s in database %s, of %s', gid, coalesce(owner, '?'), \
        coalesce(database, '?'), prepared) FROM pg_prepared_xacts WHERE transaction::text::bigint = $1 LIMIT 1";
    let xid = i64::try_from(horizon & u64::from(u32::MAX)).unwrap_or(0);
    let holder = match sql.client.query_opt(query, &[&xid]).await.map_err(Error::from) {
        Err(Error::Server(refused)) => {
            debug!(%refused, "which transaction is open is not seen");
            None
        }
        holder => holder?,
    };
    Ok(holder.map(|row| {
        Failure::new(
            Code::CareHeld,
            format!("no row is proved: a transaction is still open: {}", row.get::<_, String>(0)),
            "let it end: pg_terminate_backend(pid), or COMMIT PREPARED / ROLLBACK PREPARED, where nobody needs it; \
             sql/monitor.sql shows all",
        )
    }))
}

/// A transaction id of 64 bits.
pub(super) fn xid(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// Gives the walsender of an idle server something to send behind a witness. It takes no transaction id.
pub(super) async fn emit(sql: &Sql) -> Result<(), Failure> {
    let emit = "SELECT pg_logical_emit_message(false, 'postrider', '')::text";
    match sql.client.query_one(emit, &[]).await {
        // Where it was taken from PUBLIC, the next commit of anyone does as well.
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(()),
        emitted => Ok(emitted.map(drop)?),
    }
}
