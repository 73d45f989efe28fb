//! The shadow's own publication: through it the log shows what the poller does to its rows, with the
//! time of the commit.
//!
//! A publication of updates makes Postgres refuse updates of a table without replica identity, and that
//! would break the poller. So it is made in a transaction that commits only after Postgres has planned
//! an UPDATE and a DELETE of the table under it, which runs the very check that would refuse theirs
//! (`CheckCmdReplicaIdentity`); and the same is tried again every few seconds while the shadow runs.
//!
//! It bears the table's oid in its name, and whoever made it holds an advisory lock on that number for
//! as long as its session lives. One without its lock was left by a shadow that was killed, and the
//! next one in that database drops it.

use crate::config::Config;
use crate::error::{Code, Failure};
use crate::outbox::MarkColumn;
use crate::postgres::client::Sql;
use crate::postgres::preflight::Table;
use postgres_protocol::escape::escape_identifier;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tracing::{info, warn};

const PREFIX: &str = "postrider_shadow_";

/// The upper half of the advisory locks' keys: `shad`.
const LOCKS: i64 = 0x7368_6164 << 32;

/// Far below `deadlock_timeout` (1 s), after which whoever waits for an autovacuum of the table ends it: so we try
/// again. A commit of ours waits for no standby, which we might be ourselves by now.
const SETTINGS: &str = "SET LOCAL lock_timeout = '300ms'; SET LOCAL synchronous_commit = local";

/// A table that is locked for longer is left to whoever locks it.
const LOCKED_MAX: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(200);

/// One that exists.
pub(super) struct Publication {
    pub(super) name: String,
    table_oid: u32,
    /// Statements that Postgres plans only if it would let the poller's pass.
    trials: String,
}

impl Publication {
    /// Makes it, for a poller that updates `marks` or deletes its rows.
    pub(super) async fn make(
        sql: &Sql,
        config: &Config,
        table: &Table,
        marks: &[MarkColumn],
    ) -> Result<Publication, Failure> {
        let outbox = config.outbox.table.to_string();
        if !lock(sql, table.oid).await? {
            return Err(Failure::new(
                Code::ShadowBusy,
                format!("another shadow watches {outbox}"),
                "wait until it has ended, or end it; it holds an advisory lock: SELECT pid FROM pg_locks WHERE \
                 locktype = 'advisory'",
            ));
        }
        sweep(sql, table.oid).await?;
        let update = marks.iter().map(|mark| escape_identifier(&mark.name));
        let update = update.map(|mark| format!("EXPLAIN UPDATE {outbox} SET {mark} = {mark};"));
        let publication = Publication {
            name: format!("{PREFIX}{}", table.oid),
            table_oid: table.oid,
            trials: format!("{} EXPLAIN DELETE FROM {outbox}", update.collect::<String>()),
        };
        let create = format!(
            "BEGIN; {SETTINGS}; CREATE PUBLICATION {} FOR TABLE {outbox} \
             WITH (publish = 'insert, update, delete', publish_via_partition_root = true); {}; COMMIT",
            publication.name, publication.trials
        );
        let began = Instant::now();
        while let Err(error) = sql.client.batch_execute(&create).await {
            sql.client.batch_execute("ROLLBACK").await?;
            if !is_locked(&error) || began.elapsed() >= LOCKED_MAX {
                return Err(refused(error, &outbox));
            }
            sleep(PAUSE).await;
        }
        Ok(publication)
    }

    /// Whether Postgres still lets updates and deletes pass. A table that is locked just now is none the
    /// worse for it.
    pub(super) async fn still_harmless(&self, sql: &Sql, outbox: &str) -> Result<(), Failure> {
        let again = format!("BEGIN; {SETTINGS}; {}; COMMIT", self.trials);
        let Err(error) = sql.client.batch_execute(&again).await else { return Ok(()) };
        if sql.client.is_closed() {
            return Err(error.into());
        }
        sql.client.batch_execute("ROLLBACK").await?;
        if is_locked(&error) { Ok(()) } else { Err(refused(error, outbox)) }
    }

    /// Drops it; over another connection where the first is gone.
    pub(super) async fn drop(self, sql: &Sql, config: &Config) -> Result<(), Failure> {
        match drop_publication(sql, &self.name).await {
            Ok(()) => return Ok(()),
            Err(error) if !sql.client.is_closed() => return Err(left(&self.name, &error.into())),
            Err(_) => {}
        }
        let again = async {
            let sql = Sql::connect_any(&config.postgres.database.resolve_again()?).await?;
            match lock(&sql, self.table_oid).await? {
                true => drop_publication(&sql, &self.name).await.map_err(Failure::from),
                // The lock went with the first session, and the next shadow has one of its own.
                false => Ok(()),
            }
        };
        again.await.map_err(|failure| left(&self.name, &failure))
    }
}

/// Drops what killed shadows left in this database.
async fn sweep(sql: &Sql, ours: u32) -> Result<(), Failure> {
    let found = "SELECT pubname::text FROM pg_publication WHERE starts_with(pubname::text, $1)";
    for row in sql.client.query(found, &[&PREFIX]).await? {
        let name: String = row.get(0);
        let Some(oid) = name.strip_prefix(PREFIX).and_then(|oid| oid.parse().ok()) else { continue };
        if oid != ours && !lock(sql, oid).await? {
            continue;
        }
        match drop_publication(sql, &name).await {
            Ok(()) => info!(publication = name, "dropped what a killed shadow had left"),
            Err(error) if oid == ours => return Err(left(&name, &error.into())),
            Err(error) => warn!(publication = name, %error, "a killed shadow has left its publication"),
        }
        if oid != ours {
            sql.client.execute("SELECT pg_advisory_unlock($1)", &[&key(oid)]).await?;
        }
    }
    Ok(())
}

fn key(table_oid: u32) -> i64 {
    LOCKS | i64::from(table_oid)
}

async fn lock(sql: &Sql, table_oid: u32) -> Result<bool, Failure> {
    Ok(sql.client.query_one("SELECT pg_try_advisory_lock($1)", &[&key(table_oid)]).await?.get(0))
}

async fn drop_publication(sql: &Sql, name: &str) -> Result<(), tokio_postgres::Error> {
    let dropped =
        sql.client.batch_execute(&format!("BEGIN; {SETTINGS}; {}; COMMIT", drop_statement(name))).await;
    if dropped.is_err() && !sql.client.is_closed() {
        sql.client.batch_execute("ROLLBACK").await?;
    }
    dropped
}

fn is_locked(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

fn drop_statement(name: &str) -> String {
    format!("DROP PUBLICATION IF EXISTS {}", escape_identifier(name))
}

fn left(name: &str, why: &Failure) -> Failure {
    Failure::new(
        Code::ShadowLeft,
        format!("publication `{name}` could not be dropped: {}", why.message),
        "the next run --shadow by its owner drops it; or drop it by hand",
    )
    .sql(format!("{};", drop_statement(name)))
}

fn refused(error: tokio_postgres::Error, outbox: &str) -> Failure {
    let state = error.code().map(|state| state.code().to_owned()).unwrap_or_default();
    let failure = Failure::from(error);
    let new = |code, remedy: &str| Failure::new(code, failure.message.clone(), remedy);
    match state.as_str() {
        // No replica identity; a generated column in it (18).
        "55000" | "42P10" => Failure::new(
            Code::ShadowUnsafe,
            format!("{outbox} has no replica identity: watching it would make Postgres refuse the poller's statements"),
            "give the table, and each of its partitions, a primary key of columns that are not generated, or a \
             unique index of such columns that are NOT NULL as its replica identity",
        )
        .sql(format!("ALTER TABLE {outbox} ADD PRIMARY KEY (id);")),
        "42501" => new(
            Code::ShadowRefused,
            "run the shadow as the table's owner with REPLICATION and CREATE on the database, or as a superuser: it \
             makes a publication, and drops it at its end",
        ),
        "55P03" => new(
            Code::ShadowRefused,
            "someone locks the table (VACUUM, CREATE INDEX, ALTER TABLE): try again when that is done",
        ),
        _ => failure.context("make the shadow's publication"),
    }
}
