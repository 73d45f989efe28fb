//! How fast a backlog flows.
//!
//! | who | what it does | from | to |
//! | --- | --- | --- | --- |
//! | `pg_recvlogical` | a slot over the same backlog, to /dev/null | start | end of the process |
//! | publisher | bare async-nats: equal messages, headers and chain, the relay's window | first send | last ack |
//! | relay | `postrider run` | first message stored, by the server's clock | last message stored |
//!
//! The relay's start-up and its rate from the start of the process are reported too. CPU is that of
//! the client, of all of Postgres and of nats-server while the client runs; a round in which others
//! keep the machine busy says little.

use super::{FLOORS, FLOORS_STREAM, Lab, PAYLOAD, STREAM, headers, median, process};
use anyhow::{Context, Result, bail, ensure};
use async_nats::Subject;
use bytes::Bytes;
use futures_util::StreamExt;
use postrider::nats::publish::{Answer, parse};
use postrider::postgres::lsn::Lsn;
use postrider::postgres::timestamp::Timestamp;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// `delivery.window_messages` of the relay's defaults.
const WINDOW: u64 = 2048;
const GOAL: f64 = 0.9;

/// Who is measured; the order of the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    PgRecvlogical,
    Publisher,
    Relay,
}

const ALL: [Who; 3] = [Who::PgRecvlogical, Who::Publisher, Who::Relay];

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Run {
    who: Who,
    took: Duration,
    cpu: Used,
    start_up: Duration,
    memory_mib: f64,
}

/// CPU time so far.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    client: Duration,
    postgres: Duration,
    nats: Duration,
    /// All of the machine's.
    machine: Duration,
    at: Instant,
}

/// CPU time between two moments.
#[derive(Debug, Clone, Copy)]
struct Used {
    client: Duration,
    postgres: Duration,
    nats: Duration,
    /// Cores that whoever else is on this machine kept busy.
    others: f64,
}

/// A row as the publisher needs it.
struct Row {
    id: String,
    position: String,
    payload: Bytes,
}

pub(crate) async fn measure(lab: &Lab, rows: u32, size: u32, rounds: usize) -> Result<()> {
    ensure!(size > 0 && rows >= size, "a transaction of {size} of {rows} rows");
    let rows = rows / size * size;
    println!("\ndrain of {rows} rows in transactions of {size}");
    println!(
        "round  who               rows/s  CPU µs/row: client  Postgres  nats-server  cores busy with others"
    );
    let mut runs = Vec::new();
    for round in 0..rounds {
        lab.reset().await?;
        fill(lab, rows, size).await?;
        let messages = read_back(lab, size).await?;
        ensure!(messages.len() == usize::try_from(rows)?, "{} rows were written", messages.len());
        let mut of_round = Vec::new();
        for turn in 0..ALL.len() {
            let run = match ALL[(round + turn) % ALL.len()] {
                Who::PgRecvlogical => match lab.pg_recvlogical() {
                    Some(program) => pg_recvlogical(lab, &program).await?,
                    None => {
                        println!("{round:>5}  pg_recvlogical is not installed: left out");
                        continue;
                    }
                },
                Who::Publisher => publisher(lab, &messages).await?,
                Who::Relay => relay(lab, rows).await?,
            };
            println!(
                "{round:>5}  {:<14} {:>9.0} {:>19.1} {:>9.1} {:>12.1} {:>23.2}",
                format!("{:?}", run.who),
                run.rate(rows),
                per_row(run.cpu.client, rows),
                per_row(run.cpu.postgres, rows),
                per_row(run.cpu.nats, rows),
                run.cpu.others,
            );
            of_round.push(run);
        }
        // Equal messages take equal room in a stream.
        let published = lab.wait_for(FLOORS_STREAM, rows.into()).await?.bytes;
        let relayed = lab.wait_for(STREAM, rows.into()).await?.bytes;
        ensure!(
            published == relayed,
            "the publisher's messages take {published} bytes, the relay's {relayed}"
        );
        runs.push(of_round);
    }
    summarize(&runs, rows);
    Ok(())
}

fn summarize(runs: &[Vec<Run>], rows: u32) {
    let of = |who: Who| runs.iter().flatten().filter(move |run| run.who == who);
    for who in ALL {
        print_spread(&format!("{who:?} rows/s"), of(who).map(|run| run.rate(rows)), 0);
    }
    let whole = |run: &Run| f64::from(rows) / (run.took + run.start_up).as_secs_f64();
    print_spread("Relay rows/s from the start of the process", of(Who::Relay).map(whole), 0);
    print_spread("Relay start-up, ms", of(Who::Relay).map(|run| run.start_up.as_secs_f64() * 1e3), 0);
    print_spread("Relay peak memory, MiB", of(Who::Relay).map(|run| run.memory_mib), 1);
    let ratio = |rate: &dyn Fn(&Run) -> f64| -> Vec<f64> {
        let of_round = |round: &Vec<Run>| {
            let (relay, floors): (Vec<&Run>, Vec<&Run>) = round.iter().partition(|run| run.who == Who::Relay);
            let floor = floors.iter().map(|run| run.rate(rows)).fold(f64::INFINITY, f64::min);
            relay.first().map_or(f64::NAN, |run| rate(run)) / floor
        };
        runs.iter().map(of_round).collect()
    };
    print_spread(&format!("relay / slower floor (goal {GOAL})"), ratio(&|run| run.rate(rows)), 2);
    print_spread("the same from the start of the process", ratio(&whole), 2);
}

fn print_spread(what: &str, values: impl IntoIterator<Item = f64>, digits: usize) {
    let values: Vec<f64> = values.into_iter().collect();
    if values.is_empty() {
        return;
    }
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    println!("{what:<44} median {:>9.digits$}  min {min:>9.digits$}  max {max:>9.digits$}", median(values));
}

impl Run {
    fn rate(&self, rows: u32) -> f64 {
        f64::from(rows) / self.took.as_secs_f64()
    }
}

fn per_row(cpu: Duration, rows: u32) -> f64 {
    cpu.as_secs_f64() * 1e6 / f64::from(rows)
}

async fn fill(lab: &Lab, rows: u32, size: u32) -> Result<()> {
    lab.sql.batch_execute("SET synchronous_commit = off").await?;
    let fill = format!(
        "DO $$ BEGIN FOR t IN 0..{} LOOP \
            INSERT INTO outbox (event_type, payload) SELECT 'order_created', {PAYLOAD} \
            FROM generate_series(t * {size} + 1, (t + 1) * {size}) AS i; \
            COMMIT; \
        END LOOP; END $$",
        rows / size - 1
    );
    lab.sql.batch_execute(&fill).await?;
    lab.sql.batch_execute("RESET synchronous_commit").await?;
    // Nothing is left to be written while the clients are measured.
    lab.sql.batch_execute("CHECKPOINT").await?;
    Ok(())
}

/// The backlog, with positions as long as the relay's. Their LSNs are made up.
async fn read_back(lab: &Lab, size: u32) -> Result<Vec<Row>> {
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

async fn pg_recvlogical(lab: &Lab, program: &std::path::Path) -> Result<Run> {
    let end: String = lab.sql.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?.get(0);
    let url = lab.postgres.url("postgres");
    let mut command = Command::new(program);
    command
        .args(["-d", &url, "--slot", FLOORS, "--start", "--no-loop", "--endpos", &end, "-f", "/dev/null"])
        .args(["-o", "proto_version=1", "-o", "publication_names=postrider"])
        .stdin(Stdio::null());
    let us = std::process::id();
    let (before, begun) = (Cpu::now(lab, process::cpu_of_family(us)?)?, Instant::now());
    let status = command.status()?;
    let took = begun.elapsed();
    // Its walsender is counted when the postmaster has reaped it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let cpu = Cpu::now(lab, process::cpu_of_family(us)?)?.since(before);
    ensure!(status.success(), "pg_recvlogical: {status}");
    let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
    let confirmed: String = lab.sql.query_one(sql, &[&FLOORS]).await?.get(0);
    ensure!(confirmed.parse::<Lsn>()? >= end.parse::<Lsn>()?, "pg_recvlogical ended at {confirmed} of {end}");
    Ok(Run { who: Who::PgRecvlogical, took, cpu, start_up: Duration::ZERO, memory_mib: 0.0 })
}

async fn publisher(lab: &Lab, rows: &[Row]) -> Result<Run> {
    let client = &lab.nats.client;
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(format!("{inbox}.*")).await?;
    let subject = Subject::from(format!("{FLOORS}.order_created"));
    let commit_time = Timestamp::now().to_string();
    let us = std::process::id();
    let (before, begun) = (Cpu::now(lab, process::cpu(us)?)?, Instant::now());
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
    let cpu = Cpu::now(lab, process::cpu(us)?)?.since(before);
    Ok(Run { who: Who::Publisher, took, cpu, start_up: Duration::ZERO, memory_mib: 0.0 })
}

async fn take_ack(acks: &mut async_nats::Subscriber, acked: u64) -> Result<u64> {
    let ack = acks.next().await.context("the client has ended")?;
    match parse(&ack.payload) {
        Answer::Stored(seq) if seq == acked + 1 => Ok(seq),
        other => bail!("after {acked} acks: {other:?}"),
    }
}

async fn relay(lab: &Lab, rows: u32) -> Result<Run> {
    let (before, begun) = (Cpu::now(lab, Duration::ZERO)?, SystemTime::now());
    let relay = lab.relay("run")?;
    let state = lab.wait_for(STREAM, rows.into()).await?;
    let cpu = Cpu::now(lab, process::cpu(relay.id())?)?.since(before);
    let memory_mib = process::memory_peak(relay.id())?;
    lab.stop_relay(relay).await?;
    let (first, last) = (SystemTime::from(state.first_timestamp), SystemTime::from(state.last_timestamp));
    let (start_up, took) = (first.duration_since(begun)?, last.duration_since(first)?);
    Ok(Run { who: Who::Relay, took, cpu, start_up, memory_mib })
}

impl Cpu {
    fn now(lab: &Lab, client: Duration) -> Result<Cpu> {
        let postgres = process::cpu_of_family(lab.postgres.pid().context("Postgres has ended")?)?;
        let nats = process::cpu(lab.nats_server.pid().context("nats-server has ended")?)?;
        Ok(Cpu { client, postgres, nats, machine: process::cpu_of_machine()?, at: Instant::now() })
    }

    fn since(self, before: Cpu) -> Used {
        let client = self.client.saturating_sub(before.client);
        let postgres = self.postgres.saturating_sub(before.postgres);
        let nats = self.nats.saturating_sub(before.nats);
        let others = self.machine.saturating_sub(before.machine).saturating_sub(client + postgres + nats);
        Used { client, postgres, nats, others: others.as_secs_f64() / (self.at - before.at).as_secs_f64() }
    }
}
