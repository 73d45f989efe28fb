//! `postrider demo`: a whole outbox pipeline on servers of its own, and the proof that it works.
//!
//! A shop writes orders and their events, each order in one transaction, and rolls one in
//! ten back; the relay is this program, run as a user runs it; a consumer
//! reads the stream from its beginning.
//!
//! # What is proved
//!
//! That the sequence of messages at the consumer is the sequence of the committed events: each
//! once, in commit order, and no others. It is compared with two witnesses that have no part in the
//! relay's work:
//!
//! * the shop knows the ids that each of its transactions wrote, and which of them committed;
//! * a second replication slot, which only the demo reads, says in which order Postgres committed
//!   those transactions. (Commit timestamps would not do: concurrent commits take them before
//!   their place in the log is settled.)
//!
//! The comparison is made when the relay has been stopped and the consumer has read the stream to
//! its end, so a late double would be seen. A relay that is killed meanwhile is started again, and
//! the proof must hold all the same.

pub mod servers;

mod consumer;
mod proof;
mod relay;
mod shop;
mod summary;
mod tally;
mod view;

use crate::error::{Code, Failure};
use async_nats::jetstream::{self, stream::Stream};
use relay::Relay;
use servers::{NatsServer, PostgresPrograms, PostgresServer, broken, nats_program, new_folder};
use std::time::{Duration, Instant};
use summary::Summary;
use tally::{Observation, Tally};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;
use view::View;

/// The stream of the relay's default configuration.
const STREAM: &str = "OUTBOX";
/// The slot that witnesses the commit order.
const WITNESS: &str = "demo_witness";
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Without a message for that long, what is missing is held to be lost.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How often the relay is asked how much it has published.
const PUBLISHED_INTERVAL: Duration = Duration::from_millis(200);

/// `postrider demo`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  postrider demo --seconds 30 --rate 1000\n\n\
    The exit status is 0 only if every committed event was consumed once, in commit order, and no\n\
    rolled-back one was. Ctrl-C ends the demo early, with the summary. Postgres and nats-server are\n\
    taken from PG_BIN and NATS_SERVER, PATH, /usr/lib/postgresql, or .servers of the checkout.")]
pub struct DemoArgs {
    /// How long the shop sells
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Committed events a second
    #[arg(long, value_name = "EVENTS", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// Print the summary as one JSON object, the last line of stdout
    #[arg(long)]
    pub json: bool,
}

/// Runs the demo; prints the summary.
///
/// # Errors
/// `PR0002` when the servers are not installed, `PR0003` when the proof does not hold.
pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let (stop, stopped) = watch::channel(false);
    let cannot = |error| broken(format!("listen to signals: {error}"));
    let mut interrupts = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(cannot)?;
    let second_signal = async {
        for _ in 0..2 {
            tokio::select! { _ = interrupts.recv() => {} _ = terminations.recv() => {} }
            stop.send_replace(true);
        }
    };
    let summary = tokio::select! {
        // Dropping the work ends the servers and removes their folders.
        () = second_signal => return Err(Failure::new(Code::DemoFailed, "interrupted before the proof", "")),
        summary = Box::pin(perform(&args, stopped)) => summary?,
    };
    summary.print(args.json);
    if summary.verdict.holds() {
        return Ok(());
    }
    Err(Failure::new(
        Code::DemoFailed,
        format!("the proof does not hold: {}", summary.faults()),
        "please report this with the output of `postrider demo --json`",
    ))
}

async fn perform(args: &DemoArgs, stopped: watch::Receiver<bool>) -> Result<Summary, Failure> {
    let programs = PostgresPrograms::find(None)?;
    let nats_program = nats_program(None)?;
    eprintln!("starting Postgres {} and nats-server", programs.version);
    let folder = new_folder()?;
    let (postgres, nats) =
        tokio::try_join!(PostgresServer::start(&programs, &[]), NatsServer::start(&nats_program, ""))?;
    let shop_url = postgres.url("postgres");
    let client = shop::connect(&shop_url).await?;
    shop::create_tables(&client).await?;

    eprintln!("postrider init, postrider run");
    let mut relay = Relay::new(shop_url.clone(), nats.url(), folder.path())?;
    relay.init().await?;
    create_witness(&client).await?;
    relay.start()?;
    wait_until_streaming(&client, &mut relay).await?;

    let nats_client = async_nats::connect(nats.url()).await.map_err(|error| nats_unwell(&error))?;
    let stream = jetstream::new(nats_client.clone()).get_stream(STREAM).await;
    let stream = stream.map_err(|error| nats_unwell(&error))?;
    let (observed, observations) = mpsc::unbounded_channel();
    let mut consumer =
        tokio::spawn(consumer::consume(stream.clone(), nats_client.new_inbox(), observed.clone()));
    let published = watch_published(stream.clone(), Some(relay.http_port()));

    let duration = Duration::from_secs(args.seconds);
    eprintln!(
        "the shop sells at {} events/s for {} s; one transaction in ten is rolled back",
        args.rate, args.seconds
    );
    let mut scene = Scene {
        tally: Tally::new().map_err(|error| broken(error.to_string()))?,
        view: View::begin(duration),
        observations,
        published,
        relay,
        stream,
    };
    let selling = shop::sell(&shop_url, args.rate, duration, stopped, &observed);
    let sold_for = tokio::select! {
        ended = &mut consumer => return Err(consumer_failed(ended)),
        sold_for = scene.while_selling(selling) => sold_for?,
    };
    tokio::select! {
        ended = &mut consumer => return Err(consumer_failed(ended)),
        settled = scene.settle() => settled?,
    }
    consumer.abort();
    let commit_order = read_witness(&client).await?;
    let verdict = scene.tally.judge(&commit_order).map_err(broken)?;
    let published = last_sequence(&scene.stream).await?;
    Ok(Summary { tally: scene.tally, published, sold_for, verdict })
}

/// What goes on while the shop sells and until all is consumed.
struct Scene {
    tally: Tally,
    view: View,
    observations: mpsc::UnboundedReceiver<Observation>,
    published: watch::Receiver<u64>,
    relay: Relay,
    stream: Stream,
}

impl Scene {
    async fn while_selling(
        &mut self,
        selling: impl Future<Output = Result<Duration, Failure>>,
    ) -> Result<Duration, Failure> {
        let mut selling = std::pin::pin!(selling);
        loop {
            tokio::select! {
                sold_for = &mut selling => return sold_for,
                turned = self.turn() => turned?,
            }
        }
    }

    /// Waits until the consumer has all that was committed, stops the relay, and waits until the
    /// consumer has read to the end of the stream.
    async fn settle(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        while self.tally.consumed_events() < self.tally.committed_events && !self.is_silent(begun) {
            self.turn().await?;
        }
        self.relay.stop().await?;
        let (begun, end) = (Instant::now(), last_sequence(&self.stream).await?);
        while self.tally.sequence < end && !self.is_silent(begun) {
            self.turn().await?;
        }
        // Once more, for a terminal that shall keep the end.
        self.view.show(&self.tally, end);
        self.view.end();
        Ok(())
    }

    /// Takes what was observed within one interval of the view, then draws it.
    ///
    /// # Cancel safety
    /// What was taken from the channel is in the tally before the next await.
    async fn turn(&mut self) -> Result<(), Failure> {
        let drawing = tokio::time::sleep(view::INTERVAL);
        let mut drawing = std::pin::pin!(drawing);
        loop {
            tokio::select! {
                () = &mut drawing => break,
                Some(observation) = self.observations.recv() => self.tally.observe(observation),
            }
        }
        if self.relay.look_after()? {
            self.view.say("the relay was killed; it is started again");
            // Its own count begins anew.
            self.published = watch_published(self.stream.clone(), None);
        }
        let published = *self.published.borrow();
        self.view.show(&self.tally, published);
        Ok(())
    }

    fn is_silent(&self, since: Instant) -> bool {
        self.tally.consumed_at.map_or(since, |at| at.max(since)).elapsed() > SILENCE_MAX
    }
}

/// Keeps asking how much was published: the relay, or without an answer the stream.
fn watch_published(stream: Stream, status_port: Option<u16>) -> watch::Receiver<u64> {
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        while !sender.is_closed() {
            let told = match status_port {
                Some(port) => relay::published_total(port).await,
                None => None,
            };
            let published = match told {
                Some(published) => Some(published),
                None => last_sequence(&stream).await.ok(),
            };
            if let Some(published) = published {
                sender.send_replace(published);
            }
            tokio::time::sleep(PUBLISHED_INTERVAL).await;
        }
    });
    receiver
}

async fn last_sequence(stream: &Stream) -> Result<u64, Failure> {
    Ok(stream.get_info().await.map_err(|error| nats_unwell(&error))?.state.last_sequence)
}

async fn create_witness(client: &Client) -> Result<(), Failure> {
    let sql = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
    client.execute(sql, &[&WITNESS]).await.map_err(|error| postgres_unwell(&error))?;
    Ok(())
}

/// The transactions that wrote to the outbox, in commit order.
async fn read_witness(client: &Client) -> Result<Vec<String>, Failure> {
    // 67 is `C`, Commit. What lies between its rows is of one transaction.
    let sql = "SELECT xid::text FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, \
        'proto_version', '1', 'publication_names', 'postrider') WITH ORDINALITY AS change (lsn, xid, data, n) \
        WHERE get_byte(data, 0) = 67 ORDER BY n";
    let rows = client.query(sql, &[&WITNESS]).await.map_err(|error| postgres_unwell(&error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Until the relay holds its slot.
async fn wait_until_streaming(client: &Client, relay: &mut Relay) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE active AND slot_name <> $1";
    loop {
        let row = client.query_one(sql, &[&WITNESS]).await.map_err(|error| postgres_unwell(&error))?;
        if row.get::<_, i64>(0) > 0 {
            return Ok(());
        }
        relay.look_after()?;
        if Instant::now() >= deadline {
            relay.stop().await?;
            return Err(broken(format!("the relay does not stream after {READY_TIMEOUT:?}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn consumer_failed(ended: Result<Result<(), Failure>, tokio::task::JoinError>) -> Failure {
    match ended {
        Ok(Err(failure)) => failure,
        Ok(Ok(())) => broken("the consumer ended"),
        Err(error) => broken(format!("the consumer: {error}")),
    }
}

fn postgres_unwell(error: &tokio_postgres::Error) -> Failure {
    broken(format!("the demo's Postgres: {error}"))
}

fn nats_unwell(error: &dyn std::error::Error) -> Failure {
    broken(format!("the demo's nats-server: {error}"))
}
