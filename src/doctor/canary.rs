//! One event from end to end: a row is inserted and deleted in one transaction, which the log holds all
//! the same, and its message must come to stand in the stream.

use super::Report;
use crate::config::Config;
use crate::delivery::opening::Stored;
use crate::error::{Code, Failure};
use crate::nats::connect;
use crate::nats::stream::Stream;
use crate::outbox::{Mapping, Resolved};
use crate::postgres::client::Sql;
use crate::postgres::error::Error;
use crate::relay::preflight;
use postgres_protocol::escape::escape_identifier as quoted;
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;

/// Text in every column that needs some.
const NAME: &str = "postrider_canary";

/// How often the stream's end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Sends one, and waits for it.
pub async fn fly(config: &Config, limit: Duration, report: &mut Report) {
    match flown(config, limit).await {
        Ok(took) => report.sound(format!("canary: commit to stream in {:.1} ms", took.as_secs_f64() * 1e3)),
        Err(failure) => report.error(failure),
    }
}

async fn flown(config: &Config, limit: Duration) -> Result<Duration, Failure> {
    let sql = Sql::connect_any(&config.postgres.database.resolve()?).await?;
    let nats = connect::connect(&config.nats.access).await?;
    let stream = Stream::named(&nats, &config.nats.stream).await?;
    let table = preflight::table(&sql, config).await?;
    let resolved = preflight::columns(&Mapping::new(&config.outbox.settings(&config.nats))?, &table)?;

    let insert = insert(&sql, config, &resolved, table.oid).await?;
    let mut seen = stream.look().await?.end.last_seq;
    let id = quoted(resolved.id_column());
    let table_name = config.outbox.table.to_string();
    let sequence = "SELECT pg_get_serial_sequence($1, $2)";
    let sequence = sql.client.query_one(sequence, &[&table_name, &resolved.id_column()]).await;
    let sequence: Option<String> = sequence?.get(0);
    let refused = |error: tokio_postgres::Error| {
        let role = quoted(&sql.target.user);
        if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
            let what = format!("the outbox does not take the canary: {}", Error::from(error));
            return Failure::new(
                Code::CanaryLost,
                what,
                "leave --canary out, or let the table take such a row",
            );
        }
        let failure = Failure::from(error).context("write the canary");
        let failure = failure.sql(format!("GRANT INSERT, SELECT, DELETE ON {table_name} TO {role};"));
        match &sequence {
            Some(sequence) => failure.sql(format!("GRANT USAGE ON SEQUENCE {sequence} TO {role};")),
            None => failure,
        }
    };
    let delete = format!("DELETE FROM {} WHERE {id}::text = $1", config.outbox.table);
    sql.client.batch_execute("BEGIN").await.map_err(refused)?;
    let inserted: String = sql.client.query_one(&insert, &[]).await.map_err(refused)?.get(0);
    sql.client.execute(&delete, &[&inserted]).await.map_err(refused)?;
    sql.client.batch_execute("COMMIT").await.map_err(refused)?;

    let committed = Instant::now();
    while committed.elapsed() < limit {
        let end = stream.look().await?.end.last_seq;
        for (seq, stored) in stream.messages(seen + 1, end).await? {
            seen = seq;
            if matches!(&stored, Stored::Event(event) if event.event_id == inserted) {
                return Ok(committed.elapsed());
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(Failure::new(
        Code::CanaryLost,
        format!(
            "the canary `{inserted}` is not in the stream {} after its commit",
            humantime::format_duration(limit)
        ),
        "see why by postrider status; with a backlog, allow more time: --canary-timeout 1m",
    ))
}

/// The statement: a value for every column that is read or that must not be null.
async fn insert(sql: &Sql, config: &Config, resolved: &Resolved, table: u32) -> Result<String, Failure> {
    let query = "SELECT a.attname::text, t.typname::text, t.typcategory::text, a.attnotnull, \
        a.atthasdef OR a.attidentity <> '' FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
        WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''";
    let columns = sql.client.query(query, &[&table]).await?;
    let read = resolved.column_names();
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for row in &columns {
        let (name, kind, category): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let (not_null, has_default): (bool, bool) = (row.get(3), row.get(4));
        let is_id = name == resolved.id_column();
        if has_default || !(not_null || is_id || read.contains(&name)) {
            continue;
        }
        let value = match (kind.as_str(), category.as_str()) {
            ("uuid", _) => "gen_random_uuid()".to_owned(),
            ("json" | "jsonb", _) => "'{}'".to_owned(),
            ("bytea", _) => "'{}'::bytea".to_owned(),
            (_, "S") if is_id => format!("'{NAME}-' || gen_random_uuid()"),
            (_, "S") => format!("'{NAME}'"),
            (_, "N") if is_id => "-floor(random() * 1e9)".to_owned(),
            (_, "N") => "0".to_owned(),
            (_, "B") => "false".to_owned(),
            (_, "D") => "now()".to_owned(),
            _ if !not_null => continue,
            (other, _) => {
                return Err(Failure::new(
                    Code::CanaryLost,
                    format!(
                        "no canary can be made: column {} of type {other} must not be null",
                        quoted(&name)
                    ),
                    "give the column a default",
                ));
            }
        };
        names.push(quoted(&name));
        values.push(value);
    }
    let id = quoted(resolved.id_column());
    let what = if names.is_empty() {
        "DEFAULT VALUES".to_owned()
    } else {
        format!("({}) VALUES ({})", names.join(", "), values.join(", "))
    };
    Ok(format!("INSERT INTO {} {what} RETURNING {id}::text", config.outbox.table))
}
