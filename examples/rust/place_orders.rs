//! Places the orders of standard input, one a line: `<item> <quantity> [note]`

use anyhow::Context as _;
use serde_json::json;
use std::io::BufRead as _;
use tokio_postgres::{Client, NoTls};

async fn place(db: &mut Client, item: &str, quantity: i32, note: &str) -> anyhow::Result<()> {
    let transaction = db.transaction().await?; // the order and its event, or neither
    let order = "INSERT INTO orders (item, quantity, note) VALUES ($1, $2, $3) RETURNING id";
    let order_id: i64 = transaction.query_one(order, &[&item, &quantity, &note]).await?.get(0);
    let payload = json!({"order_id": order_id, "item": item, "quantity": quantity, "note": note});
    // The key is the item: orders for one item wait for one another anyway, in the order in which they
    // were placed.
    let event = "INSERT INTO outbox (event_type, key, payload) VALUES ('order_placed', $1, $2::text::jsonb)";
    transaction.execute(event, &[&item, &payload.to_string()]).await?;
    Ok(transaction.commit().await?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL")?;
    let (mut db, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.splitn(3, ' ');
        let (item, quantity) = (words.next().context("no item")?, words.next().context("no quantity")?);
        place(&mut db, item, quantity.parse()?, words.next().unwrap_or_default()).await?;
    }
    Ok(())
}
