//! The source.

use super::{Report, care};
use crate::config::Config;
use crate::delivery::checkpoint::{Checkpoint, Objects};
use crate::error::{Code, Failure};
use crate::ops::forecast;
use crate::outbox::Resolved;
use crate::postgres::client::Sql;
use crate::postgres::preflight::{self as facts, Publication, Server, Service, Slot, System, Table};
use crate::postgres::target::{Address, SslMode};
use crate::relay::{preflight, schemas};
use crate::state::{checkpoint, dead_letter};
use bytesize::ByteSize;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use std::time::Duration;

/// A slot that no one reads is not worth a word below this.
const ABANDONED_MIN: u64 = 1 << 30;

/// What became known.
pub(super) struct Base {
    pub(super) sql: Sql,
    pub(super) resolved: Option<Resolved>,
    pub(super) slot: Option<Slot>,
    pub(super) row: Option<Checkpoint>,
    pub(super) system: Option<System>,
}

/// Looks at everything in Postgres; none when it cannot even be asked.
pub(super) async fn examine(config: &Config, old: Duration, report: &mut Report) -> Option<Base> {
    let target = report.told(config.postgres.database.resolve())?;
    let sql = report.told(Sql::connect_any(&target).await)?;
    let server = report.told(facts::server(&sql).await)?;
    encryption(&sql, report);
    let unfit = preflight::fit_server(&server);
    if unfit.is_empty() {
        report.sound(format!("Postgres {} at {}, as {}", server.version, sql.host, server.role));
    }
    unfit.into_iter().for_each(|failure| report.error(failure));

    let table = report.told(preflight::table(&sql, config).await);
    let resolved = table.as_ref().and_then(|table| columns(config, table, report));
    let objects = match &table {
        Some(table) => publication(&sql, config, table, resolved.as_ref(), report).await,
        None => None,
    };
    // The slot first: a relay that runs writes the row before it confirms.
    let slot = slot(&sql, config, report).await;
    let row = own_tables(&sql, config, report).await;
    if let (Some(objects), Some(row)) = (objects, &row)
        && objects != row.objects
    {
        report.error(preflight::changed(&config.postgres.publication, Some(objects), row.objects));
    }
    if let (Some(table), Some(resolved)) = (&table, &resolved) {
        care::examine(&sql, config, table, resolved, report).await;
    }
    settings(&sql, config, &server, slot.as_ref(), report).await;
    room(&sql, config, &server, report).await;
    held_back(&sql, old, report).await;
    abandoned(&sql, config, report).await;
    let system = walsender(&sql, report).await;
    Some(Base { sql, resolved, slot, row, system })
}

fn encryption(sql: &Sql, report: &mut Report) {
    let mode = sql.target.encryption.mode;
    if is_unproved(&sql.host.address, mode) {
        report.advice(Failure::new(
            Code::ServerUnproved,
            format!("sslmode={} does not prove that {} is the server", mode.name(), sql.host),
            "sslmode=verify-full, with sslrootcert=<the authority's file> or sslrootcert=system",
        ));
    }
}

/// Beyond one machine a server that proves nothing may be anyone.
fn is_unproved(address: &Address, mode: SslMode) -> bool {
    let local = match address {
        Address::Unix(_) => true,
        Address::Tcp(name) => name == "localhost" || name.starts_with("127.") || name == "::1",
    };
    !local && mode < SslMode::VerifyCa
}

fn columns(config: &Config, table: &Table, report: &mut Report) -> Option<Resolved> {
    let mapping = report.told(schemas::mapping(config))?;
    let resolved = report.told(preflight::columns(&mapping, table))?;
    report.sound(format!(
        "table {}, preset {}, subject {}",
        config.outbox.table,
        resolved.preset(),
        resolved.subject()
    ));
    Some(resolved)
}

async fn publication(
    sql: &Sql,
    config: &Config,
    table: &Table,
    resolved: Option<&Resolved>,
    report: &mut Report,
) -> Option<Objects> {
    let found = report.told(preflight::publication(sql, config, table).await)?;
    let name = &config.postgres.publication;
    let quoted = escape_identifier(name);
    let Publication { more, columns, row_filter, has_others, .. } = &found;
    if *more {
        let what = format!(
            "publication `{name}` also publishes updates, deletes or truncates, which are decoded for nothing"
        );
        let remedy = if *has_others {
            "give the outbox a publication of its own, with inserts alone (postgres.publication)"
        } else {
            "publish inserts alone"
        };
        let sql = format!("ALTER PUBLICATION {quoted} SET (publish = 'insert');");
        report.advice(Failure::new(Code::PublishesMore, what, remedy).sql_where(!has_others, sql));
    }
    if let Some(filter) = row_filter {
        report.advice(Failure::new(
            Code::PublishesMore,
            format!("publication `{name}` sends only rows with {filter}"),
            "none is needed where that is meant (sharding)",
        ));
    }
    let missing: Vec<_> = resolved
        .map(Resolved::column_names)
        .unwrap_or_default()
        .into_iter()
        .filter(|column| columns.as_ref().is_some_and(|listed| !listed.contains(column)))
        .collect();
    if !missing.is_empty() {
        report.error(
            Failure::new(
                Code::PublicationUnfit,
                format!("publication `{name}` leaves out columns that are read: {}", missing.join(", ")),
                "publish the whole row; taking the table out and putting it back makes a hole, if a row is written just then",
            )
            .sql(format!("ALTER PUBLICATION {quoted} DROP TABLE {};", config.outbox.table))
            .sql(format!("ALTER PUBLICATION {quoted} ADD TABLE {};", config.outbox.table))
            .command("postrider recover --yes"),
        );
    }
    report.sound(format!("publication {name}"));
    Some(preflight::objects(&found, table))
}

/// Schema, privileges and checkpoint row.
async fn own_tables(sql: &Sql, config: &Config, report: &mut Report) -> Option<Checkpoint> {
    let schema = &config.postgres.schema;
    let role = escape_identifier(&sql.target.user);
    let may_use = "SELECT has_schema_privilege(n.oid, 'USAGE') FROM pg_namespace n WHERE nspname = $1";
    let may_use = sql.client.query_opt(may_use, &[schema]).await;
    match report.told(may_use)? {
        None => {
            let what = format!("schema {} does not exist", escape_identifier(schema));
            report.error(Failure::new(Code::SchemaMissing, what, "init makes it").command("postrider init"));
            return None;
        }
        Some(row) if !row.get::<_, bool>(0) => {
            let schema = escape_identifier(schema);
            let what = format!("the role may not use schema {schema}");
            let failure =
                Failure::new(Code::PostgresRefuses, what, "sql/privileges.sql lists all that run needs");
            report.error(failure.sql(format!("GRANT USAGE ON SCHEMA {schema} TO {role};")));
            return None;
        }
        Some(_) => {}
    }
    if report.told(preflight::letters(sql, config).await).is_some() {
        let open = dead_letter::open_count(sql, schema, &config.postgres.slot).await;
        if let Some(open @ 1..) = report.told(open) {
            let what = format!("{open} dead letters are open: events that were not published");
            let remedy =
                "postrider dlq list and show say why; mend it, then postrider dlq replay --all, or drop";
            report.warning(Failure::new(Code::LettersOpen, what, remedy));
        }
    }
    report.told(preflight::checkpoints(sql, config).await)?;
    let row = report.told(checkpoint::read(sql, schema, &config.postgres.slot).await)?;
    if row.is_none() {
        let what = format!("slot `{}` has no checkpoint row", config.postgres.slot);
        report.error(
            Failure::new(
                Code::CheckpointMissing,
                what,
                "new here: make it; postrider init says what is known",
            )
            .command("postrider init"),
        );
    }
    row
}

async fn slot(sql: &Sql, config: &Config, report: &mut Report) -> Option<Slot> {
    let name = &config.postgres.slot;
    let known = facts::slot(sql, name).await;
    let Some(slot) = report.told(known)? else {
        report.error(preflight::missing_slot(name, preflight::is_known(sql, config).await));
        return None;
    };
    match preflight::fit_slot(name, &slot) {
        Err(failure) => report.error(failure),
        Ok(()) => read_by(name, &slot, report),
    }
    Some(slot)
}

/// Whether a relay reads it, and what it keeps meanwhile.
fn read_by(name: &str, slot: &Slot, report: &mut Report) {
    let retained = slot.retained().unwrap_or(0);
    match slot.active_pid {
        Some(pid) => report.sound(format!("slot {name}, read by walsender {pid}")),
        None if retained < ABANDONED_MIN => report.sound(format!("slot {name}, no relay reads it")),
        None => report.warning(Failure::new(
            Code::SlotAbandoned,
            format!("no relay reads slot `{name}`, which retains {} of WAL", ByteSize(retained)),
            "start one (postrider run); if it is gone for good, postrider remove ends the slot",
        )),
    }
}

/// Settings that end in an outage.
async fn settings(sql: &Sql, config: &Config, server: &Server, slot: Option<&Slot>, report: &mut Report) {
    let query = "SELECT (SELECT setting::bigint << 20 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
        (SELECT max(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
        ELSE pg_current_wal_lsn() END, restart_lsn))::bigint FROM pg_replication_slots), \
        coalesce(current_setting('idle_replication_slot_timeout', true), '0'), \
        current_setting('synchronous_standby_names'), \
        (SELECT (to_jsonb(s)->>'failover')::bool FROM pg_replication_slots s WHERE slot_name = $1), \
        EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'physical'), \
        (SELECT spill_txns FROM pg_stat_replication_slots WHERE slot_name = $1), \
        (SELECT setting::bigint >> 10 FROM pg_settings WHERE name = 'logical_decoding_work_mem')";
    let asked = sql.client.query_one(query, &[&config.postgres.slot]).await;
    let Some(row) = report.told(asked) else { return };
    let own = server.service == Service::Own;
    let change = |code, what: String, setting: &str, value: &str| {
        Failure::new(code, what, server.service.remedy(setting, value, false)).setting(own, setting, value)
    };
    let (limit, retained): (i64, Option<i64>) = (row.get(0), row.get(1));
    let enough = forecast::enough_wal(limit, retained.unwrap_or(0));
    if limit < 0 {
        report.warning(change(
            Code::OutageFillsDisk,
            "max_slot_wal_keep_size is -1: while no relay reads the slot, WAL grows until the disk is full"
                .to_owned(),
            "max_slot_wal_keep_size",
            &enough,
        ));
    }
    if slot.is_some_and(|slot| slot.wal_status.as_deref() == Some("unreserved")) {
        report.error(change(
            Code::OutageLosesSlot,
            format!(
                "slot `{}` retains more than max_slot_wal_keep_size: the next checkpoint loses it",
                config.postgres.slot
            ),
            "max_slot_wal_keep_size",
            &enough,
        ));
    }
    let idle: &str = row.get(2);
    if idle != "0" {
        report.warning(change(
            Code::SlotTimesOut,
            format!("idle_replication_slot_timeout is {idle}: a slot that no one reads for so long is lost"),
            "idle_replication_slot_timeout",
            "0",
        ));
    }
    let names: &str = row.get(3);
    let us = sql.target.application_name.as_str();
    if preflight::counts_as_standby(names, us) {
        report.error(Failure::new(
            Code::CommitsWait,
            format!(
                "synchronous_standby_names = `{names}` counts the relay as a standby: commits wait for it"
            ),
            format!("name the standbys one by one, without `*` and `{us}`, in synchronous_standby_names"),
        ));
    }
    if !names.trim().is_empty() && !config.delivery.wait_visible {
        report.advice(Failure::new(
            Code::EventsBeforeRows,
            format!(
                "commits wait for `{names}` (synchronous_standby_names), and their events do not: consumers see an event \
                 before the database shows its row"
            ),
            "delivery.wait_visible = true, if consumers read the database",
        ));
    }
    if row.get::<_, Option<bool>>(4) == Some(false) && row.get(5) {
        report.advice(Failure::new(
            Code::SlotNotSynced,
            format!("slot `{}` is not synchronized to standbys: a failover loses it", config.postgres.slot),
            "while no relay runs, on a replication connection: ALTER_REPLICATION_SLOT … (FAILOVER true); and \
             sync_replication_slots = on at the standby",
        ));
    }
    let memory: i64 = row.get(7);
    if row.get::<_, Option<i64>>(6).is_some_and(|spilled| spilled > 0) {
        report.advice(change(
            Code::DecodingSpills,
            "transactions were larger than logical_decoding_work_mem and went to disk on their way"
                .to_owned(),
            "logical_decoding_work_mem",
            &format!("{}MB", (memory * 2).max(256)),
        ));
    }
}

/// Room for one slot, one walsender and two connections.
async fn room(sql: &Sql, config: &Config, server: &Server, report: &mut Report) {
    let query = "SELECT (SELECT count(*) FROM pg_replication_slots), current_setting('max_replication_slots')::bigint, \
        (SELECT count(*) FROM pg_stat_replication), current_setting('max_wal_senders')::bigint, \
        EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1), \
        EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active), \
        (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user), datconnlimit, datname::text \
        FROM pg_database WHERE datname = current_database()";
    let asked = sql.client.query_one(query, &[&config.postgres.slot]).await;
    let Some(row) = report.told(asked) else { return };
    let (slots, slots_max): (i64, i64) = (row.get(0), row.get(1));
    let (senders, senders_max): (i64, i64) = (row.get(2), row.get(3));
    let (has_slot, streams): (bool, bool) = (row.get(4), row.get(5));
    let own = server.service == Service::Own;
    let mut full = |what: String, setting: &str, value: i64| {
        let statement = format!("ALTER SYSTEM SET {setting} = {value};");
        let remedy = server.service.remedy(setting, &value.to_string(), true);
        report.error(Failure::new(Code::NoRoom, what, remedy).sql_where(own, statement));
    };
    if !has_slot && slots >= slots_max {
        full(
            format!("all {slots_max} replication slots are in use"),
            "max_replication_slots",
            slots_max + 10,
        );
    }
    if !streams && senders >= senders_max {
        full(format!("all {senders_max} walsenders are in use"), "max_wal_senders", senders_max + 10);
    }
    // SQL and replication; a second relay stands by with as many.
    let (role, database): (i32, i32) = (row.get(6), row.get(7));
    let database_name = escape_identifier(row.get(8));
    for (limit, whose, statement) in [
        (role, "the role", format!("ALTER ROLE {} CONNECTION LIMIT -1;", escape_identifier(&server.role))),
        (database, "the database", format!("ALTER DATABASE {database_name} CONNECTION LIMIT -1;")),
    ] {
        if (0..4).contains(&limit) {
            let what = format!("{whose} may have {limit} connections; a relay has two, and as many stand by");
            let failure = Failure::new(Code::RoleLimited, what, "raise its limit").sql(statement);
            if limit < 2 { report.error(failure) } else { report.warning(failure) }
        }
    }
}

/// Transactions that have been open for long and have written, in whichever database: they hold back
/// what a restart must read again.
async fn held_back(sql: &Sql, old: Duration, report: &mut Report) {
    let seconds = old.as_secs_f64();
    let query = "SELECT pid, coalesce(usename::text, ''), coalesce(application_name, ''), \
        extract(epoch FROM clock_timestamp() - xact_start)::float8 FROM pg_stat_activity \
        WHERE backend_xid IS NOT NULL AND clock_timestamp() - xact_start > make_interval(secs => $1) \
        ORDER BY 4 DESC LIMIT 5";
    let asked = sql.client.query(query, &[&seconds]).await;
    for row in report.told(asked).unwrap_or_default() {
        let (pid, user, name, age): (i32, String, String, f64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let minutes = age / 60.0;
        report.warning(
            Failure::new(
                Code::WalHeldBack,
                format!(
                    "process {pid} ({user}, {name}) has been writing in one transaction for {minutes:.0} minutes: all \
                     WAL since is retained, and read again after a crash"
                ),
                "let it end, or end it",
            )
            .sql(format!("SELECT pg_terminate_backend({pid});")),
        );
    }
    let seen = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')";
    let seen = sql.client.query_one(seen, &[]).await;
    if report.told(seen).is_some_and(|row| !row.get::<_, bool>(0)) {
        let role = escape_identifier(&sql.target.user);
        let what =
            "the role cannot see how old the transactions of others are, which hold WAL back".to_owned();
        let failure = Failure::new(Code::WalHeldBack, what, "let it, or run doctor as a superuser");
        report.advice(failure.sql(format!("GRANT pg_read_all_stats TO {role};")));
    }
    let prepared = "SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8, database::text \
        FROM pg_prepared_xacts WHERE clock_timestamp() - prepared > make_interval(secs => $1)";
    let asked = sql.client.query(prepared, &[&seconds]).await;
    for row in report.told(asked).unwrap_or_default() {
        let (gid, age, database): (String, f64, String) = (row.get(0), row.get(1), row.get(2));
        let minutes = age / 60.0;
        report.warning(
            Failure::new(
                Code::WalHeldBack,
                format!("the prepared transaction `{gid}` has been waiting for {minutes:.0} minutes: all WAL since is retained"),
                format!("in database `{database}` COMMIT PREPARED or ROLLBACK PREPARED it; nobody else will"),
            )
            .sql(format!("ROLLBACK PREPARED {};", escape_literal(&gid))),
        );
    }
}

/// Slots of others that no one reads.
async fn abandoned(sql: &Sql, config: &Config, report: &mut Report) {
    let query = "SELECT slot_name::text, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
        ELSE pg_current_wal_lsn() END, restart_lsn)::bigint FROM pg_replication_slots \
        WHERE NOT active AND slot_name <> $1 AND restart_lsn IS NOT NULL";
    let asked = sql.client.query(query, &[&config.postgres.slot]).await;
    for row in report.told(asked).unwrap_or_default() {
        let (name, retained): (String, i64) = (row.get(0), row.get(1));
        let retained = u64::try_from(retained).unwrap_or(0);
        if retained < ABANDONED_MIN {
            continue;
        }
        report.warning(
            Failure::new(
                Code::SlotAbandoned,
                format!("slot `{name}` is read by no one and retains {} of WAL", ByteSize(retained)),
                "if nobody needs it any more, drop it",
            )
            .sql(format!("SELECT pg_drop_replication_slot({});", escape_literal(&name))),
        );
    }
}

/// The replication connection: pg_hba.conf, poolers, the login.
async fn walsender(sql: &Sql, report: &mut Report) -> Option<System> {
    let opened = sql
        .walsender(&sql.target)
        .await
        .map_err(|error| Failure::from(error).context("open a replication connection"));
    let mut connection = report.told(opened)?;
    let system = report.told(facts::identify(&mut connection).await)?;
    report.sound("replication connection".to_owned());
    Some(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_beyond_this_machine_must_prove_who_it_is() {
        let tcp = |name: &str| Address::Tcp(name.to_owned());
        assert!(is_unproved(&tcp("db.example.org"), SslMode::Require));
        assert!(is_unproved(&tcp("10.0.0.1"), SslMode::Disable));
        assert!(!is_unproved(&tcp("db.example.org"), SslMode::VerifyCa));
        for local in [tcp("localhost"), tcp("127.0.0.2"), tcp("::1"), Address::Unix("/run".into())] {
            assert!(!is_unproved(&local, SslMode::Disable), "{local:?}");
        }
    }
}
