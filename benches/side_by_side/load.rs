//! Rows: a backlog, or an open loop of writers.

use crate::lab::{Lab, note, payload, sql};
use crate::on_a_thread;
use anyhow::Result;
use std::thread;
use std::time::{Duration, SystemTime};
use tokio_postgres::types::Type;

/// Connections that commit in turn. One alone would wait for its own fsync; more than are needed would
/// only be a load.
fn writers(rate: u32) -> u32 {
    (rate / 500).clamp(4, 16)
}

/// Connections of the closed loop.
const WRITERS: u32 = 4;

/// From the start of the threads until the first row is due.
const LEAD: Duration = Duration::from_millis(500);

/// A row's moments at its writer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    pub(crate) due: SystemTime,
    pub(crate) returned: SystemTime,
}

/// What a contender's insert takes: the row's number and its payload.
const PARAMETERS: [Type; 2] = [Type::INT4, Type::TEXT];

/// The payload of row `row`, as [`payload`] makes it in SQL.
fn text(row: u32, bytes: u32) -> String {
    serde_json::json!({
        "order": row,
        "customer": format!("customer-{}", row % 1000),
        "cents": row % 100_000,
        "currency": "EUR",
        "note": "x".repeat(note(bytes)),
    })
    .to_string()
}

/// Writes `rows` rows, 1 and up, in transactions of `size`; `insert` is of one row, as
/// [`Contender::insert`](crate::contender::Contender::insert) gives it.
pub(crate) async fn fill(lab: &Lab, insert: &str, rows: u32, size: u32, bytes: u32) -> Result<()> {
    lab.sql.batch_execute("SET synchronous_commit = off").await?;
    let (per, payload) = (rows / size, payload(bytes));
    let insert = insert.replace("$1", "i").replace("$2", &format!("({payload})::text"));
    let fill = format!(
        "DO $fill$ BEGIN FOR t IN 0..{} LOOP \
            FOR i IN t * {size} + 1..(t + 1) * {size} LOOP {insert}; END LOOP; \
            COMMIT; \
        END LOOP; END $fill$",
        per - 1
    );
    lab.sql.batch_execute(&fill).await?;
    lab.sql.batch_execute("RESET synchronous_commit").await?;
    // Nothing is left to be written while contenders are measured.
    lab.sql.batch_execute("CHECKPOINT").await?;
    Ok(())
}

/// `rate` rows a second in transactions of one: each writer, a thread with a connection, sends what is
/// due when it is due, whether or not anyone keeps up. The commits by row, the first of which is row 1.
pub(crate) async fn write(lab: &Lab, insert: &str, rate: u32, rows: u32, bytes: u32) -> Result<Vec<Commit>> {
    let begin = SystemTime::now() + LEAD;
    let count = writers(rate);
    let writers: Vec<_> = (0..count)
        .map(|writer| {
            let (url, insert) = (lab.postgres.url("postgres"), insert.to_owned());
            on_a_thread(Duration::ZERO, move || async move {
                let client = sql(&url).await?;
                let insert = client.prepare_typed(&insert, &PARAMETERS).await?;
                let mut commits = Vec::new();
                for row in (writer..rows).step_by(usize::try_from(count)?) {
                    let due = begin + Duration::from_secs(1) * row / rate;
                    // The thread sleeps, not the runtime, whose timers tick in milliseconds.
                    thread::sleep(due.duration_since(SystemTime::now()).unwrap_or_default());
                    client.execute(&insert, &[&i32::try_from(row + 1)?, &text(row + 1, bytes)]).await?;
                    commits.push((row, Commit { due, returned: SystemTime::now() }));
                }
                Ok(commits)
            })
        })
        .collect();
    let mut commits = Vec::new();
    for writer in writers {
        commits.extend(writer.join().await?);
    }
    commits.sort_by_key(|(row, _)| *row);
    Ok(commits.into_iter().map(|(_, commit)| commit).collect())
}

/// What the closed loop of [`WRITERS`] commits in `seconds`, rows a second.
pub(crate) async fn write_flat_out(lab: &Lab, insert: &str, seconds: f64, bytes: u32) -> Result<f64> {
    let begin = SystemTime::now() + LEAD;
    let end = begin + Duration::from_secs_f64(seconds);
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (url, insert) = (lab.postgres.url("postgres"), insert.to_owned());
            on_a_thread(Duration::ZERO, move || async move {
                let client = sql(&url).await?;
                let insert = client.prepare_typed(&insert, &PARAMETERS).await?;
                let text = text(1, bytes);
                thread::sleep(begin.duration_since(SystemTime::now()).unwrap_or_default());
                let mut rows = 0_u32;
                while SystemTime::now() < end {
                    client.execute(&insert, &[&1, &text]).await?;
                    rows += 1;
                }
                Ok(rows)
            })
        })
        .collect();
    let mut rows = 0;
    for writer in writers {
        rows += writer.join().await?;
    }
    Ok(f64::from(rows) / seconds)
}
