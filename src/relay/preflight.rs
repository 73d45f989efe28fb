//! What must hold before a slot is streamed, each with its remedy. The facts come from
//! [`postgres::preflight`](crate::postgres::preflight); here they are judged.

use crate::config::Config;
use crate::delivery::checkpoint::Objects;
use crate::error::{Code, Failure};
use crate::outbox::{self, ColumnInfo, Kind, Mapping, Resolved};
use crate::postgres::client::Sql;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{self, Publication, Server, Service, Slot, Table};
use crate::state::{checkpoint, dead_letter};
use postgres_protocol::escape::escape_identifier;

/// The oldest major version that is supported.
const VERSION_MIN: i32 = 140_000;

/// Creating a slot waits for every transaction that is writing; longer than this it is better to
/// name them.
pub const SLOT_CREATION_MAX_SECONDS: u32 = 30;

/// The server: version, wal_level, encoding, role.
///
/// # Errors
/// PR0205, PR0206, PR0207, PR0217.
pub async fn server(sql: &Sql) -> Result<Server, Failure> {
    let server = preflight::server(sql).await?;
    match fit_server(&server).into_iter().next() {
        Some(failure) => Err(failure),
        None => Ok(server),
    }
}

/// All that keeps the server from being streamed.
#[must_use]
pub fn fit_server(server: &Server) -> Vec<Failure> {
    let mut unfit = Vec::new();
    if server.version_num < VERSION_MIN {
        unfit.push(Failure::new(
            Code::PostgresVersion,
            format!("Postgres {} is not supported", server.version),
            "upgrade Postgres to 14 or later",
        ));
    }
    if server.wal_level != "logical" {
        unfit.push(
            Failure::new(
                Code::WalLevel,
                format!("wal_level is `{}`", server.wal_level),
                server.service.remedy("wal_level", "logical", true),
            )
            .sql_where(server.service == Service::Own, "ALTER SYSTEM SET wal_level = 'logical';"),
        );
    }
    if server.encoding == "SQL_ASCII" {
        unfit.push(Failure::new(
            Code::PostgresEncoding,
            "the database's encoding is SQL_ASCII",
            "move the outbox to a database with ENCODING 'UTF8'",
        ));
    }
    if !server.may_replicate {
        let role = escape_identifier(&server.role);
        let grant = match server.service {
            Service::Rds => format!("GRANT rds_replication TO {role};"),
            _ => format!("ALTER ROLE {role} REPLICATION;"),
        };
        let what = format!("role `{}` may not replicate", server.role);
        unfit.push(Failure::new(Code::ReplicationRole, what, "let it, as a superuser").sql(grant));
    }
    unfit
}

/// Whether `synchronous_standby_names` has commits wait for whoever calls itself `us`.
#[must_use]
pub fn counts_as_standby(synchronous_standby_names: &str, us: &str) -> bool {
    let names =
        synchronous_standby_names.split(|c: char| c == ',' || c == '(' || c == ')' || c.is_whitespace());
    names.map(|name| name.trim_matches('"')).any(|name| name == "*" || name.eq_ignore_ascii_case(us))
}

/// The outbox table.
///
/// # Errors
/// PR0210, PR0211.
pub async fn table(sql: &Sql, config: &Config) -> Result<Table, Failure> {
    let name = &config.outbox.table;
    let table = preflight::table(sql, &name.schema, &name.name).await?.ok_or_else(|| {
        Failure::new(
            Code::TableMissing,
            format!("table {name} does not exist"),
            "correct outbox.table, or let Postrider make one",
        )
        .command("postrider init --create-table")
    })?;
    let unfit = match (table.kind, table.persistence) {
        ('r' | 'p', 'p') => return Ok(table),
        ('r' | 'p', 'u') => "is unlogged: its rows are not in the WAL",
        ('r' | 'p', _) => "is temporary",
        _ => "is not a table",
    };
    let unlogged = table.persistence == 'u';
    let remedy =
        if unlogged { "have its rows logged" } else { "point outbox.table at the table that is written" };
    Err(Failure::new(Code::TableUnfit, format!("{name} {unfit}"), remedy)
        .sql_where(unlogged, format!("ALTER TABLE {name} SET LOGGED;")))
}

/// The columns, as the preset reads them.
///
/// # Errors
/// PR0212, PR0213.
pub fn columns(mapping: &Mapping, table: &Table) -> Result<Resolved, Failure> {
    let resolved = mapping.resolve(&infos(table))?;
    bound(&resolved, table)?;
    Ok(resolved)
}

/// What makes events of the table's rows, in the order of its columns.
///
/// # Errors
/// PR0212.
pub fn bound(resolved: &Resolved, table: &Table) -> Result<outbox::Table, Failure> {
    resolved.bind(&infos(table))
}

fn infos(table: &Table) -> Vec<ColumnInfo<'_>> {
    let columns = table.columns.iter();
    columns.map(|column| ColumnInfo { name: &column.name, kind: kind(column.type_oid) }).collect()
}

/// What a built-in type means for a payload; the oids are fixed (`pg_type.dat`).
#[must_use]
pub fn kind(type_oid: u32) -> Kind {
    match type_oid {
        17 => Kind::Bytea,
        114 | 3802 => Kind::Json,
        _ => Kind::Other,
    }
}

/// The publication.
///
/// # Errors
/// PR0208, PR0209.
pub async fn publication(sql: &Sql, config: &Config, table: &Table) -> Result<Publication, Failure> {
    let outbox = &config.outbox.table;
    let name = &config.postgres.publication;
    let quoted = escape_identifier(name);
    let publication =
        preflight::publication(sql, name, &outbox.schema, &outbox.name).await?.ok_or_else(|| {
            Failure::new(
                Code::PublicationMissing,
                format!("publication `{name}` does not exist"),
                "new here: make it, before the slot. If it was dropped while the slot lived, rows written since then \
                 may not be decodable",
            )
            .command("postrider init")
        })?;
    let unfit = |what: &str, remedy: &str, sql: String| {
        Err(Failure::new(Code::PublicationUnfit, format!("publication `{name}` {what}"), remedy).sql(sql))
    };
    if table.kind == 'p' && !publication.via_root {
        return unfit(
            &format!("sends rows under the names of {outbox}'s partitions"),
            "let it send them under the root's",
            format!("ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true);"),
        );
    }
    if !publication.has_table {
        return unfit(
            &format!("does not contain {outbox}"),
            "add it; rows written before that are not in the slot. Was it in there when the slot was made, say so by \
             postrider init --adopt",
            format!("ALTER PUBLICATION {quoted} ADD TABLE {outbox};"),
        );
    }
    if !publication.inserts {
        return unfit(
            "does not publish inserts",
            "let it; rows written before that are not in the slot",
            format!(
                "ALTER PUBLICATION {quoted} SET (publish = 'insert{}');",
                if publication.more { ", update, delete, truncate" } else { "" }
            ),
        );
    }
    let read = |column: &&str| {
        publication.columns.as_ref().is_none_or(|columns| columns.iter().any(|c| c == column))
    };
    let missing: Vec<_> =
        table.columns.iter().map(|column| column.name.as_str()).filter(|column| !read(column)).collect();
    if !missing.is_empty() {
        // Which of them the preset reads shows at the first Relation; say it now, while nothing streams.
        tracing::warn!(
            publication = name,
            columns = missing.join(", "),
            "the publication leaves out columns"
        );
    }
    if let Some(filter) = &publication.row_filter {
        tracing::warn!(publication = name, filter, "the publication filters rows: only those are published");
    }
    Ok(publication)
}

/// The table of dead letters, and that the role may write it: to be told so at the first letter would
/// be late.
///
/// # Errors
/// PR0215, PR0216.
pub async fn letters(sql: &Sql, config: &Config) -> Result<(), Failure> {
    let table = dead_letter::table(&config.postgres.schema);
    privileges(sql, &table, &dead_letter::PRIVILEGES).await
}

/// The table of checkpoints, and that the role may write it.
///
/// # Errors
/// PR0215, PR0216.
pub async fn checkpoints(sql: &Sql, config: &Config) -> Result<(), Failure> {
    privileges(sql, &checkpoint::table(&config.postgres.schema), &checkpoint::PRIVILEGES).await
}

async fn privileges(sql: &Sql, table: &str, needed: &[&'static str]) -> Result<(), Failure> {
    let missing = preflight::missing_privileges(sql, table, needed).await?.ok_or_else(|| {
        Failure::new(Code::SchemaMissing, format!("table {table} does not exist"), "init makes it")
            .command("postrider init")
    })?;
    if missing.is_empty() {
        return Ok(());
    }
    let role = escape_identifier(&sql.target.user);
    Err(Failure::new(
        Code::PostgresRefuses,
        format!("the role may not {} {table}", missing.join(", ")),
        "sql/privileges.sql lists all that run needs",
    )
    .sql(format!("GRANT {} ON {table} TO {role};", needed.join(", "))))
}

/// What identifies publication, membership and table, now.
#[must_use]
pub fn objects(publication: &Publication, table: &Table) -> Objects {
    Objects { publication: publication.oid, membership: publication.membership, table: table.oid }
}

/// Publication or table are not what they were when the slot was made.
#[must_use]
pub fn changed(publication: &str, now: Option<Objects>, known: Objects) -> Failure {
    let what = match now {
        None => "it does not publish the outbox any more",
        Some(now) if now.publication != known.publication => "it was dropped and made again",
        Some(now) if now.table != known.table => "the outbox table was dropped and made again",
        Some(_) => "the outbox table was taken out and put back",
    };
    Failure::new(
        Code::PublicationChanged,
        format!("publication `{publication}`: {what}; rows written meanwhile are not in the slot"),
        "stop the relay, then let the rows that the stream lacks be published (--dry-run shows them first)",
    )
    .command("postrider recover --yes")
}

/// The slot.
///
/// # Errors
/// PR0401 to PR0404.
pub async fn slot(sql: &Sql, config: &Config) -> Result<Slot, Failure> {
    let name = &config.postgres.slot;
    let Some(slot) = preflight::slot(sql, name).await? else {
        return Err(missing_slot(name, is_known(sql, config).await));
    };
    fit_slot(name, &slot)?;
    Ok(slot)
}

/// A relay streams the slot, which this command cannot have.
#[must_use]
pub fn in_use(slot: &str, remedy: &str) -> Failure {
    Failure::new(Code::SlotInUse, format!("a relay streams slot `{slot}`"), remedy)
}

/// Whether the slot has a checkpoint row.
pub async fn is_known(sql: &Sql, config: &Config) -> bool {
    let row = checkpoint::read(sql, &config.postgres.schema, &config.postgres.slot).await;
    row.is_ok_and(|row| row.is_some())
}

/// The slot does not exist; `known`: a checkpoint row says that it did.
#[must_use]
pub fn missing_slot(name: &str, known: bool) -> Failure {
    let (remedy, command) = match known {
        false => ("make it", "postrider init"),
        true => (
            "what was committed since it vanished is in the outbox table only: stop the relay, and recover makes a new \
             one and publishes what the stream lacks (--dry-run shows it first)",
            "postrider recover --yes",
        ),
    };
    Failure::new(Code::SlotMissing, format!("slot `{name}` does not exist"), remedy).command(command)
}

/// Whether the slot can be streamed.
///
/// # Errors
/// PR0402 to PR0404.
pub fn fit_slot(name: &str, slot: &Slot) -> Result<(), Failure> {
    let unfit = |what: String| {
        Err(Failure::new(
            Code::SlotUnfit,
            format!("slot `{name}` {what}"),
            "choose another postgres.slot, and make it with postrider init",
        ))
    };
    match (slot.plugin.as_deref(), slot.database.as_deref()) {
        (Some("pgoutput"), Some(database)) if database == slot.here => {}
        (Some("pgoutput"), Some(database)) => {
            return unfit(format!("belongs to database `{database}`, this is `{}`", slot.here));
        }
        (Some(plugin), _) => return unfit(format!("uses the plugin `{plugin}`, not pgoutput")),
        (None, _) => return unfit("is a physical slot".to_owned()),
    }
    if slot.temporary {
        return unfit("is temporary: it goes with the connection that made it".to_owned());
    }
    if slot.two_phase {
        return unfit("decodes prepared transactions before they commit".to_owned());
    }
    if slot.wal_status.as_deref() == Some("lost") || slot.invalidation.is_some() {
        let why = slot.invalidation.as_deref().unwrap_or("its WAL was removed");
        return Err(Failure::new(
            Code::SlotLost,
            format!("slot `{name}` is lost: {why}"),
            "stop the relay, and recover makes a new one and publishes what the stream lacks; raise \
             max_slot_wal_keep_size",
        )
        .command("postrider recover --yes"));
    }
    if slot.confirmed.is_some_and(|confirmed| confirmed > slot.wal_end) {
        return Err(Failure::new(
            Code::SlotAhead,
            format!(
                "slot `{name}` is confirmed up to {}, the WAL ends at {}",
                slot.confirmed.unwrap_or(Lsn::ZERO),
                slot.wal_end
            ),
            "rows are being skipped: stop the relay, and recover makes a new one and publishes what the stream lacks",
        )
        .command("postrider recover --yes"));
    }
    Ok(())
}

/// Names the transactions that a new slot waits for.
///
/// # Errors
/// The connection breaks.
pub async fn blocked(sql: &Sql, slot: &str) -> Result<Failure, Failure> {
    let writers = preflight::writers(sql).await?;
    Ok(Failure::new(
        Code::SlotBlocked,
        format!("slot `{slot}` is not created within {SLOT_CREATION_MAX_SECONDS} s: it waits for {writers}"),
        "let them end (SELECT pg_terminate_backend(pid) where nobody needs them), then postrider init again",
    ))
}
