//! What the relay stands on, and cannot be faster than: each half of its way alone.

use crate::lab::{FLOORS, FLOORS_STREAM, Lab, PATIENCE};
use crate::on_a_thread;
use crate::process::{self, Used};
use anyhow::{Context, Result, bail, ensure};
use async_nats::header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_STREAM};
use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use postrider::nats::answer::{Answer, parse};
use postrider::nats::envelope::{COMMIT_TIME, POSITION};
use postrider::postgres::connection::Connection;
use postrider::postgres::lsn::Lsn;
use postrider::postgres::pgoutput::Message;
use postrider::postgres::replication::{Received, ReplicationStream};
use postrider::postgres::target::Target;
use postrider::postgres::timestamp::Timestamp;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// `delivery.window_messages` of the relay's defaults.
const WINDOW: u64 = 2048;

/// The relay's own rest under load (see `src/relay/pace.rs`).
const REST: Duration = Duration::from_micros(200);

const EVENT_ID: HeaderName = HeaderName::from_static("Postrider-Event-Id");
const EVENT_TYPE: HeaderName = HeaderName::from_static("Postrider-Event-Type");
const CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");

/// How long it took, and what it cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    pub(crate) took: Duration,
    pub(crate) cpu: Used,
}

/// A row as the publisher needs it.
pub(crate) struct Row {
    id: String,
    position: String,
    payload: Bytes,
}

/// The backlog, with positions as long as the relay's. Their LSNs are made up.
pub(crate) async fn read_back(lab: &Lab, size: u32) -> Result<Vec<Row>> {
    let system: String = {
        let sql = "SELECT system_identifier::text FROM pg_control_system()";
        lab.sql.query_one(sql, &[]).await?.get(0)
    };
    let rows = lab.sql.query("SELECT id, payload::text FROM outbox ORDER BY id", &[]).await?;
    let row = |row: tokio_postgres::Row| -> Result<Row> {
        let (id, payload) = (u32::try_from(row.get::<_, i32>(0))?, row.get::<_, String>(1));
        let position = format!("{system}/1/postrider/{id:016X}/{}", (id - 1) % size);
        Ok(Row { id: id.to_string(), position, payload: payload.into() })
    };
    rows.into_iter().map(row).collect()
}

/// `pg_recvlogical` over the backlog, to /dev/null.
pub(crate) async fn pg_recvlogical(lab: &Lab, program: &Path) -> Result<Floor> {
    let end: String = lab.sql.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?.get(0);
    let url = lab.postgres.url("postgres");
    let mut command = Command::new(program);
    command
        .args(["-d", &url, "--slot", FLOORS, "--start", "--no-loop", "--endpos", &end, "-f", "/dev/null"])
        .args(["-o", "proto_version=1", "-o", "publication_names=postrider"])
        .stdin(Stdio::null());
    let us = std::process::id();
    let (before, begun) = (lab.cpu(process::cpu_of_family(us)?)?, Instant::now());
    let status = command.status()?;
    let took = begun.elapsed();
    // Its walsender is counted when the postmaster has reaped it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let cpu = lab.cpu(process::cpu_of_family(us)?)?.since(before);
    ensure!(status.success(), "pg_recvlogical: {status}");
    Ok(Floor { took, cpu })
}

/// The walsender into the relay's decoder and no further. A reader that rests before it waits spares
/// the walsender the waking.
pub(crate) async fn walsender(lab: &Lab, rows: u32, rests: bool) -> Result<Floor> {
    let url = lab.postgres.url("postgres");
    let us = std::process::id();
    let (before, begun) = (lab.cpu(process::cpu(us)?)?, Instant::now());
    let rest = if rests { REST } else { Duration::ZERO };
    let reading = on_a_thread(rest, move || async move {
        let mut stream = replication(&url).await?;
        let mut left = rows;
        while left > 0 {
            let mut next = Some(timeout(PATIENCE, stream.next()).await.context("no row comes")??);
            while let Some(received) = next {
                match received {
                    Received::Data(Message::Insert(_), _) => left -= 1,
                    Received::Keepalive { wal_end, reply_requested: true } => {
                        stream.send_status(wal_end, Lsn(0), false).await?;
                    }
                    _ => {}
                }
                next = stream.buffered()?;
            }
        }
        stream.close().await;
        Ok(())
    });
    reading.join().await?;
    let took = begun.elapsed();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let cpu = lab.cpu(process::cpu(us)?)?.since(before);
    Ok(Floor { took, cpu })
}

/// The slot of the floors.
pub(crate) async fn replication(url: &str) -> Result<ReplicationStream> {
    let target = Target::parse(Some(url), &|_| None)?;
    let host = target.hosts.first().context("a URL without a host")?;
    let mut connection = Connection::connect(&target, host).await?;
    connection.start_replication(FLOORS, Lsn(0), "postrider").await?;
    Ok(connection.into_stream())
}

/// Bare async-nats: equal messages, headers and chain, the relay's window; from first send to last
/// ack.
pub(crate) async fn publisher(lab: &Lab, rows: &[Row]) -> Result<Floor> {
    let client = &lab.nats.client;
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(format!("{inbox}.*")).await?;
    let subject = Subject::from(format!("{FLOORS}.order_created"));
    let commit_time = Timestamp::now().to_string();
    let us = std::process::id();
    let (before, begun) = (lab.cpu(process::cpu(us)?)?, Instant::now());
    let (mut sent, mut acked) = (0, 0);
    for row in rows {
        if sent - acked == WINDOW {
            acked = take_ack(&mut acks, acked).await?;
        }
        let headers = headers(&row.position, &commit_time, &row.id, sent);
        sent += 1;
        let reply = Subject::from(format!("{inbox}.{sent}"));
        client.publish_with_reply_and_headers(subject.clone(), reply, headers, row.payload.clone()).await?;
    }
    while acked < sent {
        acked = take_ack(&mut acks, acked).await?;
    }
    let took = begun.elapsed();
    let cpu = lab.cpu(process::cpu(us)?)?.since(before);
    Ok(Floor { took, cpu })
}

async fn take_ack(acks: &mut async_nats::Subscriber, acked: u64) -> Result<u64> {
    let ack = acks.next().await.context("the client has ended")?;
    match parse(&ack.payload) {
        Answer::Stored(seq) if seq == acked + 1 => Ok(seq),
        other => bail!("after {acked} acks: {other:?}"),
    }
}

/// What a message of the relay carries, for a publisher that makes its own: it must follow message
/// `expected`.
pub(crate) fn headers(position: &str, commit_time: &str, id: &str, expected: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(POSITION.clone(), HeaderValue::from(position));
    headers.insert(COMMIT_TIME.clone(), HeaderValue::from(commit_time));
    headers.insert(EVENT_ID, HeaderValue::from(id));
    headers.insert(EVENT_TYPE, HeaderValue::from("order_created"));
    headers.insert(CONTENT_TYPE, HeaderValue::from("application/json"));
    headers.insert(NATS_EXPECTED_STREAM, HeaderValue::from(FLOORS_STREAM));
    headers.insert(NATS_EXPECTED_LAST_SEQUENCE, HeaderValue::from(expected));
    headers
}
