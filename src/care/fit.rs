//! What the catalogues say of table, role, publication and archive, and what of it keeps rows from being
//! cleaned up.

use super::plan::{Archive, DATE, TIMESTAMP, TIMESTAMPTZ};
use super::standing;
use crate::config::{Care, Config, TableName};
use crate::error::{Code, Failure};
use crate::outbox::{PresetChoice, Resolved};
use crate::postgres::client::Sql;
use crate::postgres::preflight::{self as facts, Table};
use crate::state::checkpoint;
use crate::state::older::{self, Older};
use postgres_protocol::escape::escape_identifier;
use tokio_postgres::error::SqlState;

/// What the catalogues say.
pub(super) struct Found {
    may_use: bool,
    may_select: bool,
    may_delete: bool,
    may_lock: bool,
    may_mark: bool,
    owns: bool,
    hides: bool,
    may_read_older: bool,
    of_earlier_version: bool,
    referring: Option<String>,
    marks_key: bool,
    marks_filter: bool,
    pub(super) filter: Option<String>,
    /// Of a table that is partitioned by range of one column.
    pub(super) key_type: Option<u32>,
    pub(super) older: Older,
    id: String,
}

impl Found {
    pub(super) async fn of(
        sql: &Sql,
        config: &Config,
        table: &Table,
        resolved: &Resolved,
        mark: Option<&str>,
    ) -> Result<Found, Failure> {
        let name = &config.outbox.table;
        // The columns of a partition key depend on their table as a whole (StorePartitionKey).
        let query = "SELECT has_schema_privilege(c.relnamespace, 'USAGE'), has_table_privilege(c.oid, 'SELECT'), \
            has_table_privilege(c.oid, 'DELETE'), has_any_column_privilege(c.oid, 'UPDATE'), \
            $2::text IS NULL OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = $2 \
            AND has_column_privilege(c.oid, a.attnum, 'UPDATE')), pg_has_role(c.relowner, 'USAGE'), \
            (SELECT string_agg(DISTINCT f.conrelid::regclass::text, ', ') FROM pg_constraint f \
            WHERE f.contype = 'f' AND f.confrelid = c.oid), \
            EXISTS (SELECT FROM (SELECT c.oid AS relid UNION SELECT relid::oid FROM pg_partition_tree(c.oid)) AS tree \
            JOIN pg_attribute a ON a.attrelid = tree.relid JOIN pg_depend d ON d.classid = 'pg_class'::regclass \
            AND d.refclassid = d.classid AND d.objid = tree.relid AND d.refobjid = tree.relid \
            AND d.objsubid = a.attnum AND d.refobjsubid = 0 AND d.deptype = 'i' WHERE a.attname = $2), \
            (SELECT k.atttypid FROM pg_partitioned_table p JOIN pg_attribute k ON k.attrelid = p.partrelid \
            AND k.attnum = p.partattrs[0] WHERE p.partrelid = c.oid AND p.partstrat = 'r' AND p.partnatts = 1), \
            row_security_active(c.oid), coalesce(has_table_privilege(to_regclass($3)::oid, 'SELECT'), true) \
            FROM pg_class c WHERE c.oid = $1";
        let list = older::table(&config.postgres.schema);
        let row = sql.client.query_one(query, &[&table.oid, &mark, &list]).await?;
        let publication =
            facts::publication(sql, &config.postgres.publication, &name.schema, &name.name).await?;
        let membership = publication.as_ref().map_or(0, |publication| publication.membership);
        let reads = "SELECT EXISTS (SELECT FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid \
            AND a.attnum = d.refobjsubid WHERE d.classid = 'pg_publication_rel'::regclass AND d.objid = $1 \
            AND d.refobjid = $2 AND a.attname = $3)";
        let reads = sql.client.query_one(reads, &[&membership, &table.oid, &mark]).await?;
        let known = older(sql, config).await?;
        Ok(Found {
            may_use: row.get(0),
            may_select: row.get(1),
            may_delete: row.get(2),
            may_lock: row.get(3),
            may_mark: row.get(4),
            owns: row.get(5),
            referring: row.get(6),
            marks_key: row.get(7),
            key_type: row.get(8),
            marks_filter: reads.get(0),
            filter: publication.and_then(|publication| publication.row_filter),
            hides: row.get(9),
            may_read_older: row.get(10),
            of_earlier_version: known.is_none(),
            older: known.unwrap_or(Older::None),
            id: escape_identifier(resolved.id_column()),
        })
    }

    pub(super) fn problems(&self, sql: &Sql, config: &Config, mark: Option<&str>) -> Vec<Failure> {
        let (care, name) = (&config.care, &config.outbox.table);
        let mut problems = Vec::new();
        problems.extend(self.privileges(sql, config, mark));
        let role = escape_identifier(&sql.target.user);
        let refused = |what: String, sql: String| Failure::new(Code::CarePrivileges, what, "let it").sql(sql);
        if self.hides {
            problems.push(refused(
                format!("policies hide rows of {name} from the role, which clean-up must see"),
                format!("ALTER ROLE {role} BYPASSRLS;"),
            ));
        }
        if !self.may_read_older {
            let list = older::table(&config.postgres.schema);
            problems.push(refused(
                format!("the role may not read {list}, the rows that clean-up leaves alone"),
                format!("GRANT SELECT ON {list} TO {role};"),
            ));
        }
        if self.of_earlier_version {
            problems.push(standing::earlier_version(config));
        }
        if let (Some(mark), true) = (mark, self.marks_key || self.marks_filter) {
            let (what, remedy) = match self.marks_key {
                true => (
                    "is part of the partition key: a marked row moves, and is published again",
                    "mark another column (care.mark_column)",
                ),
                false => (
                    "stands in the publication's row filter",
                    "mark another column (care.mark_column), or filter by another",
                ),
            };
            problems.push(Failure::new(
                Code::CareMoves,
                format!("care.mark: column `{mark}` of {name} {what}"),
                remedy,
            ));
        }
        if let (Some(_), Some(referring)) = (care.delete_after, &self.referring) {
            problems.push(Failure::new(
                Code::CareReferred,
                format!("care.delete_after: rows of {referring} refer to rows of {name}"),
                "drop that foreign key: events are not to be referred to; or set care.delete_after = \"off\"",
            ));
        }
        if care.drop_partitions_after.is_some() {
            let what = match (self.key_type, &self.filter) {
                (Some(DATE | TIMESTAMP | TIMESTAMPTZ), None) => None,
                (Some(_), Some(_)) => {
                    Some("is published through a row filter: partitions hold rows of others")
                }
                _ => Some("is not partitioned by range of one date or timestamp column"),
            };
            problems.extend(what.map(|what| {
                let what = format!("care.drop_partitions_after: {name} {what}");
                Failure::new(
                    Code::CarePartitions,
                    what,
                    "use care.delete_after instead; docs/table.md shows a table by month",
                )
            }));
        }
        problems
    }

    fn privileges(&self, sql: &Sql, config: &Config, mark: Option<&str>) -> Option<Failure> {
        let (care, name) = (&config.care, &config.outbox.table);
        let role = escape_identifier(&sql.target.user);
        let refused = |what: String| Failure::new(Code::CarePrivileges, what, "let it");
        if !self.may_use {
            let schema = escape_identifier(&name.schema);
            let failure = refused(format!("the role may not use schema {schema}, which clean-up needs"));
            return Some(failure.sql(format!("GRANT USAGE ON SCHEMA {schema} TO {role};")));
        }
        if care.drop_partitions_after.is_some() && !self.owns {
            let what = format!("care.drop_partitions_after: the role does not own {name}");
            let owner = "(SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = ";
            return Some(refused(what).sql(format!(
                "DO $$ BEGIN EXECUTE format('GRANT %I TO {role}', {owner}'{name}'::regclass)); END $$;"
            )));
        }
        let deletes = care.delete_after.is_some();
        let lacks =
            !self.may_select || care.mark && !self.may_mark || deletes && !(self.may_delete && self.may_lock);
        lacks.then(|| {
            let what = match (care.mark, deletes) {
                (true, true) => "mark and delete",
                (true, false) => "mark",
                (false, _) => "delete",
            };
            refused(format!("the role may not {what} rows of {name}")).sql(grant(
                &name.to_string(),
                care,
                mark,
                &self.id,
                &role,
            ))
        })
    }
}

/// What the role needs on the outbox.
fn grant(name: &str, care: &Care, mark: Option<&str>, id: &str, role: &str) -> String {
    // Locking takes the privilege to update some column.
    let column = mark.filter(|_| care.mark).map_or_else(|| id.to_owned(), escape_identifier);
    let delete = if care.delete_after.is_some() { ", DELETE" } else { "" };
    format!("GRANT SELECT{delete}, UPDATE ({column}) ON {name} TO {role};")
}

/// What `init --print-sql` grants `role` for clean-up, where the table need not exist yet.
#[must_use]
pub fn grants(config: &Config, role: &str) -> Vec<String> {
    let (care, name) = (&config.care, config.outbox.table.to_string());
    let (mark, id) = match config.outbox.preset {
        PresetChoice::Auto | PresetChoice::Article => ("processed", "id"),
        PresetChoice::OpenOutbox => ("processed_at", "event_id"),
        PresetChoice::Debezium | PresetChoice::Columns => ("processed_at", "id"),
    };
    let mut grants = Vec::new();
    if care.mark || care.delete_after.is_some() {
        let mark = care.mark_column.as_deref().unwrap_or(mark);
        let id = escape_identifier(config.outbox.columns.id.as_deref().unwrap_or(id));
        grants.push(grant(&name, care, Some(mark), &id, role));
    }
    if let Some(archive) = &care.archive_table {
        grants.push(format!("GRANT INSERT, SELECT ON {archive} TO {role};"));
    }
    if care.drop_partitions_after.is_some() {
        grants.push(format!(
            "-- care.drop_partitions_after: {role} must be a member of the role that owns {name}"
        ));
    }
    grants
}

/// What is known of older rows; none when the checkpoint row has no place for it.
async fn older(sql: &Sql, config: &Config) -> Result<Option<Older>, Failure> {
    let table = checkpoint::table(&config.postgres.schema);
    let query = format!("SELECT older_rows FROM {table} WHERE slot = $1");
    match sql.client.query_opt(&query, &[&config.postgres.slot]).await {
        Ok(row) => Ok(Some(Older::read(row.as_ref().and_then(|row| row.get(0))))),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_COLUMN) => Ok(None),
        // That there is no such table, or that it may not be read, is told where the row is read.
        Err(error) if error.as_db_error().is_some() => Ok(Some(Older::None)),
        Err(error) => Err(error.into()),
    }
}

/// Whether the archive takes what the outbox has: the columns that go there.
pub(super) async fn fit_archive(
    sql: &Sql,
    config: &Config,
    table: &Table,
    archive: &TableName,
) -> Result<Result<Archive, Failure>, Failure> {
    let outbox = &config.outbox.table;
    let unfit = |what: String| {
        Failure::new(
            Code::CareArchive,
            format!("care.archive_table: {archive} {what}"),
            "make one like the outbox, or mend this one",
        )
    };
    let Some(found) = facts::table(sql, &archive.schema, &archive.name).await? else {
        let make = format!("CREATE TABLE {archive} (LIKE {outbox});");
        return Ok(Err(unfit("does not exist".to_owned()).sql(make)));
    };
    if !matches!(found.kind, 'r' | 'p') {
        return Ok(Err(unfit("is not a table".to_owned())));
    }
    let query = "SELECT o.attname::text, a.attname IS NOT NULL, \
        a.atttypid = o.atttypid AND a.atttypmod IN (o.atttypmod, -1), coalesce(a.attgenerated, '') <> '', \
        format_type(o.atttypid, o.atttypmod) \
        FROM pg_attribute o LEFT JOIN pg_attribute a ON a.attrelid = $2 AND a.attname = o.attname AND a.attnum > 0 \
        AND NOT a.attisdropped WHERE o.attrelid = $1 AND o.attnum > 0 AND NOT o.attisdropped ORDER BY o.attnum";
    let mut columns = Vec::new();
    let outbox_columns = sql.client.query(query, &[&table.oid, &found.oid]).await?;
    for row in &outbox_columns {
        let (column, there, fits): (String, bool, Option<bool>) = (row.get(0), row.get(1), row.get(2));
        let (quoted, type_name): (_, String) = (escape_identifier(&column), row.get(4));
        if !there {
            let add = format!("ALTER TABLE {archive} ADD COLUMN {quoted} {type_name};");
            return Ok(Err(unfit(format!("has no column `{column}`")).sql(add)));
        }
        if fits != Some(true) {
            return Ok(Err(unfit(format!(
                "has another type in column `{column}`, which is {type_name} in the outbox"
            ))));
        }
        if !row.get::<_, bool>(3) {
            columns.push(quoted);
        }
    }
    let query = "SELECT string_agg(a.attname, ', ') FROM pg_attribute a WHERE a.attrelid = $2 AND a.attnum > 0 \
        AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' \
        AND NOT EXISTS (SELECT FROM pg_attribute o WHERE o.attrelid = $1 AND o.attname = a.attname AND o.attnum > 0)";
    let row = sql.client.query_one(query, &[&table.oid, &found.oid]).await?;
    if let Some(needs) = row.get::<_, Option<String>>(0) {
        return Ok(Err(unfit(format!("wants values that the outbox does not have: {needs}"))));
    }
    let name = archive.to_string();
    let query = "SELECT has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, 'INSERT') \
        AND has_table_privilege(oid, 'SELECT') FROM pg_class WHERE oid = $1";
    let may = sql.client.query_one(query, &[&found.oid]).await?;
    if !may.get::<_, bool>(0) {
        let role = escape_identifier(&sql.target.user);
        let what = format!("the role may not insert into {archive}");
        return Ok(Err(Failure::new(Code::CarePrivileges, what, "let it")
            .sql(format!("GRANT USAGE ON SCHEMA {} TO {role};", escape_identifier(&archive.schema)))
            .sql(format!("GRANT INSERT, SELECT ON {name} TO {role};"))));
    }
    Ok(Ok(Archive { table: name, columns, of: outbox_columns.len() }))
}
