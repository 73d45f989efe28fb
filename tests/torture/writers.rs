//! Six shops: about a thousand rows a second, a fifth of the transactions rolled back in whole or
//! in part.

use crate::support::connect;
use fastrand::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_postgres::Client;

const WRITERS: u64 = 6;
/// One event in so many has a type that makes no subject.
const POISON_ONE_IN: u32 = 200;
/// With 25 rows a transaction and four of five committed, this makes a thousand rows a second.
const PAUSE_MILLIS_MAX: u64 = 230;
const INSERT: &str = "INSERT INTO outbox (event_type, payload) \
     SELECT * FROM unnest($1::text[], $2::text[]::jsonb[])";

pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    set: JoinSet<()>,
}

impl Writers {
    pub(crate) fn start(url: &str, seed: u64) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let mut set = JoinSet::new();
        for writer in 0..WRITERS {
            let rng = Rng::with_seed(seed ^ (writer + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            set.spawn(write(url.to_owned(), rng, Arc::clone(&stop)));
        }
        Writers { stop, set }
    }

    /// Lets each end its transaction.
    pub(crate) async fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(writer) = self.set.join_next().await {
            writer.unwrap();
        }
    }
}

async fn write(url: String, mut rng: Rng, stop: Arc<AtomicBool>) {
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        let transaction = Transaction::draw(&mut rng);
        if client.is_none() {
            client = connect(&url).await.ok();
        }
        if let Some(connected) = &client
            && transaction.execute(connected).await.is_err()
        {
            // Postgres is away. Whether the commit took place, the log tells.
            client = None;
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(..PAUSE_MILLIS_MAX))).await;
    }
}

enum End {
    Commit,
    /// Its commit need not be on disk: a crash may undo it.
    CommitLater,
    RollBack,
    /// What comes behind the savepoint is rolled back, before as many rows again.
    RollBackToSavepoint,
}

struct Transaction {
    first: Rows,
    second: Rows,
    end: End,
}

struct Rows {
    types: Vec<String>,
    payloads: Vec<String>,
}

impl Transaction {
    fn draw(rng: &mut Rng) -> Transaction {
        let rows = rng.usize(1..=50);
        let first = rng.usize(..=rows);
        let end = match rng.u32(..100) {
            0..10 => End::RollBack,
            10..20 => End::RollBackToSavepoint,
            20..30 => End::CommitLater,
            _ => End::Commit,
        };
        Transaction { first: Rows::draw(rng, first), second: Rows::draw(rng, rows - first), end }
    }

    async fn execute(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let begin = match self.end {
            End::CommitLater => "BEGIN; SET LOCAL synchronous_commit = off",
            _ => "BEGIN",
        };
        client.batch_execute(begin).await?;
        self.first.insert(client).await?;
        if let End::RollBackToSavepoint = self.end {
            client.batch_execute("SAVEPOINT s").await?;
            self.second.insert(client).await?;
            client.batch_execute("ROLLBACK TO s").await?;
        }
        self.second.insert(client).await?;
        client.batch_execute(if let End::RollBack = self.end { "ROLLBACK" } else { "COMMIT" }).await
    }
}

impl Rows {
    fn draw(rng: &mut Rng, rows: usize) -> Rows {
        let types = (0..rows).map(|_| event_type(rng)).collect();
        let payloads = (0..rows).map(|_| {
            let length = match rng.u32(..1000) {
                0 => rng.usize(..200_000),
                1..20 => rng.usize(..8000),
                _ => rng.usize(..400),
            };
            let text: String = std::iter::repeat_with(|| rng.alphanumeric()).take(length).collect();
            format!("{{\"order\": {}, \"text\": \"{text}\"}}", rng.u32(..))
        });
        Rows { types, payloads: payloads.collect() }
    }

    async fn insert(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        if !self.types.is_empty() {
            client.execute(INSERT, &[&self.types, &self.payloads]).await?;
        }
        Ok(())
    }
}

fn event_type(rng: &mut Rng) -> String {
    match rng.u32(..POISON_ONE_IN) {
        0 => "order.placed".to_owned(),
        _ => format!("order_{}", rng.u32(..3)),
    }
}
