//! A small shop, as any application would write it: an order and its events in one transaction.
//!
//! Open loop: orders come when they are due, whether or not the former ones are through. One
//! transaction in ten changes its mind and is rolled back, after its events were written.

use super::proof::EventId;
use super::servers::broken;
use super::tally::Observation;
use crate::error::Failure;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_postgres::{Client, NoTls, Statement};

/// The article's table, with nothing added, and the shop's own.
const TABLES: &str = "
    CREATE TABLE orders (id SERIAL PRIMARY KEY, customer TEXT NOT NULL, cents INT NOT NULL, placed_at TIMESTAMP DEFAULT NOW());
    CREATE TABLE outbox (id SERIAL PRIMARY KEY, event_type VARCHAR(50), payload JSONB, created_at TIMESTAMP DEFAULT NOW(), processed BOOLEAN DEFAULT FALSE);";
const INSERT_ORDER: &str = "INSERT INTO orders (customer, cents) VALUES ($1, $2) RETURNING id";
const INSERT_EVENT: &str = "INSERT INTO outbox (event_type, payload) \
    VALUES ($1, jsonb_build_object('order', $2::int, 'customer', $3::text, 'cents', $4::int)) \
    RETURNING id, pg_current_xact_id()::xid::text";

/// Timers of the runtime tick in milliseconds; all that is due is sent at each.
const TICK: Duration = Duration::from_millis(1);
/// What one writer gets through easily, transaction by transaction.
const RATE_PER_WRITER: u32 = 250;
const WRITERS: std::ops::RangeInclusive<u32> = 4..=16;
/// One in so many transactions is rolled back.
const ROLL_BACK_ONE_IN: u8 = 10;
/// One in so many orders is paid at once: a transaction with two events.
const PAID_ONE_IN: u8 = 5;
const CUSTOMERS: &[&str] = &["Ada", "Grace", "Edsger", "Barbara", "Tony", "Zoë"];

/// A transaction that ended.
#[derive(Debug)]
pub(super) struct Sale {
    /// As the log of Postgres names it.
    pub(super) xid: String,
    /// Its events, in the order in which they were written.
    pub(super) events: Vec<EventId>,
    pub(super) committed: bool,
    /// When COMMIT returned.
    pub(super) at: Instant,
}

/// One transaction to be.
#[derive(Debug, Clone, Copy)]
struct Order {
    paid: bool,
    roll_back: bool,
}

pub(super) async fn connect(url: &str) -> Result<Client, Failure> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(|error| unwell(&error))?;
    tokio::spawn(connection);
    Ok(client)
}

pub(super) async fn create_tables(client: &Client) -> Result<(), Failure> {
    client.batch_execute(TABLES).await.map_err(|error| unwell(&error))
}

/// Sells at `rate` events a second for `duration`, or until `stop`; returns how long it did, when
/// every transaction has ended.
pub(super) async fn sell(
    url: &str,
    rate: u32,
    duration: Duration,
    mut stop: watch::Receiver<bool>,
    observed: &mpsc::UnboundedSender<Observation>,
) -> Result<Duration, Failure> {
    let mut counters = Vec::new();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..(rate / RATE_PER_WRITER).clamp(*WRITERS.start(), *WRITERS.end()) {
        let client = connect(url).await?;
        let (counter, orders) = mpsc::unbounded_channel();
        writers.spawn(write(client, orders, observed.clone()));
        counters.push(counter);
    }
    let begun = Instant::now();
    let mut counters = counters.into_iter().cycle();
    let (mut sent, mut tick) = (0.0, tokio::time::interval(TICK));
    while begun.elapsed() < duration {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.wait_for(|stop| *stop) => break,
            Some(ended) = writers.join_next() => {
                ended.map_err(|error| broken(error.to_string()))??;
                break; // never in order: they wait for more orders
            }
        }
        let due = begun.elapsed().as_secs_f64() * f64::from(rate);
        while sent < due {
            let order = Order {
                paid: fastrand::u8(0..PAID_ONE_IN) == 0,
                roll_back: fastrand::u8(0..ROLL_BACK_ONE_IN) == 0,
            };
            // What is rolled back comes on top: the rate is that of committed events.
            sent += if order.roll_back { 0.0 } else { 1.0 + f64::from(u8::from(order.paid)) };
            if let Some(counter) = counters.next() {
                let _ = counter.send(order); // a writer that has failed is noticed above
            }
        }
    }
    drop(counters);
    while let Some(ended) = writers.join_next().await {
        ended.map_err(|error| broken(error.to_string()))??;
    }
    Ok(begun.elapsed())
}

async fn write(
    mut client: Client,
    mut orders: mpsc::UnboundedReceiver<Order>,
    observed: mpsc::UnboundedSender<Observation>,
) -> Result<(), Failure> {
    let insert_order = client.prepare(INSERT_ORDER).await.map_err(|error| unwell(&error))?;
    let insert_event = client.prepare(INSERT_EVENT).await.map_err(|error| unwell(&error))?;
    while let Some(order) = orders.recv().await {
        let sale = place(&mut client, &insert_order, &insert_event, order).await;
        let _ = observed.send(Observation::Sold(sale.map_err(|error| unwell(&error))?));
    }
    Ok(())
}

/// The outbox pattern: what happened and the events that tell of it are one transaction.
async fn place(
    client: &mut Client,
    insert_order: &Statement,
    insert_event: &Statement,
    order: Order,
) -> Result<Sale, tokio_postgres::Error> {
    let customer = CUSTOMERS[fastrand::usize(0..CUSTOMERS.len())];
    let cents = fastrand::i32(100..100_000);
    let transaction = client.transaction().await?;
    let id: i32 = transaction.query_one(insert_order, &[&customer, &cents]).await?.get(0);
    let mut sale = Sale { xid: String::new(), events: Vec::new(), committed: false, at: Instant::now() };
    for event_type in ["order_placed", "order_paid"].into_iter().take(1 + usize::from(order.paid)) {
        let row = transaction.query_one(insert_event, &[&event_type, &id, &customer, &cents]).await?;
        sale.events.push(EventId::from(row.get::<_, i32>(0)));
        sale.xid = row.get(1);
    }
    match order.roll_back {
        true => transaction.rollback().await?,
        false => transaction.commit().await?,
    }
    Ok(Sale { committed: !order.roll_back, at: Instant::now(), ..sale })
}

fn unwell(error: &tokio_postgres::Error) -> Failure {
    broken(format!("the shop's Postgres: {error}"))
}
