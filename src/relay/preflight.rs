//! What must hold before a slot is streamed, each with its remedy. The facts come from
//! [`postgres::preflight`](crate::postgres::preflight); here they are judged.

use crate::config::Config;
use crate::delivery::checkpoint::Objects;
use crate::error::{Code, Failure};
use crate::outbox::{ColumnInfo, Kind, Mapping, Resolved};
use crate::postgres::client::Sql;
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight::{self, Publication, Server, Slot, Table};
use crate::state::dead_letter;
use postgres_protocol::escape::{escape_identifier, escape_literal};

/// The oldest major version that is supported.
const VERSION_MIN: i32 = 140_000;

/// The server: version, wal_level, encoding, role.
///
/// # Errors
/// PR0205, PR0206, PR0207, PR0217.
pub async fn server(sql: &Sql) -> Result<Server, Failure> {
    let server = preflight::server(sql).await?;
    if server.version_num < VERSION_MIN {
        return Err(Failure::new(
            Code::PostgresVersion,
            format!("Postgres {} is not supported", server.version),
            "upgrade Postgres to 14 or later",
        ));
    }
    if server.wal_level != "logical" {
        return Err(Failure::new(
            Code::WalLevel,
            format!("wal_level is `{}`", server.wal_level),
            "ALTER SYSTEM SET wal_level = 'logical'; then restart Postgres",
        ));
    }
    if server.encoding == "SQL_ASCII" {
        return Err(Failure::new(
            Code::PostgresEncoding,
            "the database's encoding is SQL_ASCII",
            "move the outbox to a database with ENCODING 'UTF8'",
        ));
    }
    if !server.may_replicate {
        return Err(Failure::new(
            Code::ReplicationRole,
            format!("role `{}` may not replicate", server.role),
            format!("ALTER ROLE {} REPLICATION;", escape_identifier(&server.role)),
        ));
    }
    Ok(server)
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
            "correct outbox.table, or let Postrider make one: postrider init --create-table",
        )
    })?;
    let unfit = match (table.kind, table.persistence) {
        ('r' | 'p', 'p') => return Ok(table),
        ('r' | 'p', 'u') => "is unlogged: its rows are not in the WAL",
        ('r' | 'p', _) => "is temporary",
        _ => "is not a table",
    };
    let remedy = if table.persistence == 'u' {
        format!("ALTER TABLE {name} SET LOGGED;")
    } else {
        "point outbox.table at the table that is written".to_owned()
    };
    Err(Failure::new(Code::TableUnfit, format!("{name} {unfit}"), remedy))
}

/// The columns, as the preset reads them.
///
/// # Errors
/// PR0212, PR0213.
pub fn columns(mapping: &Mapping, table: &Table) -> Result<Resolved, Failure> {
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|column| ColumnInfo { name: &column.name, kind: kind(column.type_oid) })
        .collect();
    let resolved = mapping.resolve(&columns)?;
    resolved.bind(&columns)?;
    Ok(resolved)
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
                "postrider init makes it, before the slot. If it was dropped while the slot lived, rows written \
                 since then may not be decodable",
            )
        })?;
    let unfit = |what: &str, remedy: String| {
        Err(Failure::new(Code::PublicationUnfit, format!("publication `{name}` {what}"), remedy))
    };
    if table.kind == 'p' && !publication.via_root {
        return unfit(
            &format!("sends rows under the names of {outbox}'s partitions"),
            format!("ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true);"),
        );
    }
    if !publication.has_table {
        return unfit(
            &format!("does not contain {outbox}"),
            format!(
                "ALTER PUBLICATION {quoted} ADD TABLE {outbox}; rows written before that are not in the slot: \
                 make slot and row anew with postrider init --adopt after dropping the slot"
            ),
        );
    }
    if !publication.inserts {
        return unfit(
            "does not publish inserts",
            format!("ALTER PUBLICATION {quoted} SET (publish = 'insert');"),
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
    const NEEDED: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];
    let table = dead_letter::table(&config.postgres.schema);
    let missing = preflight::missing_privileges(sql, &table, &NEEDED).await?.ok_or_else(|| {
        Failure::new(Code::SchemaMissing, format!("table {table} does not exist"), "postrider init")
    })?;
    if missing.is_empty() {
        return Ok(());
    }
    let role = escape_identifier(&config.postgres.target.user);
    Err(Failure::new(
        Code::PostgresRefuses,
        format!("the role may not {} {table}", missing.join(", ")),
        format!(
            "GRANT {} ON {table} TO {role}; (sql/privileges.sql lists all that run needs)",
            NEEDED.join(", ")
        ),
    ))
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
        "put publication and table right, look for rows of that time in the outbox table, then \
         postrider init --adopt goes on from now",
    )
}

/// The slot.
///
/// # Errors
/// PR0401 to PR0404.
pub async fn slot(sql: &Sql, config: &Config) -> Result<Slot, Failure> {
    let name = &config.postgres.slot;
    let slot = preflight::slot(sql, name).await?.ok_or_else(|| missing_slot(name))?;
    fit_slot(name, &slot)?;
    Ok(slot)
}

/// The slot does not exist.
#[must_use]
pub fn missing_slot(name: &str) -> Failure {
    Failure::new(
        Code::SlotMissing,
        format!("slot `{name}` does not exist"),
        "new here: postrider init. If it was there and is gone, recover by hand: the events written since it \
         vanished are in the outbox table only, postrider init --adopt goes on from now",
    )
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
            format!(
                "recover by hand: SELECT pg_drop_replication_slot({}); then postrider init --adopt. Events not \
                 published yet are in the outbox table only; raise max_slot_wal_keep_size",
                escape_literal(name)
            ),
        ));
    }
    if slot.confirmed.is_some_and(|confirmed| confirmed > slot.wal_end) {
        return Err(Failure::new(
            Code::SlotAhead,
            format!(
                "slot `{name}` is confirmed up to {}, the WAL ends at {}",
                slot.confirmed.unwrap_or(Lsn::ZERO),
                slot.wal_end
            ),
            format!(
                "rows are being skipped: SELECT pg_drop_replication_slot({}); then postrider init --adopt, and \
                 look for unpublished rows in the outbox table",
                escape_literal(name)
            ),
        ));
    }
    Ok(())
}
