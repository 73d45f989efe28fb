//! What each service does with an event. An effect that others want to know of is a row of the outbox itself.

use serde::Deserialize;
use tokio_postgres::{Error, Transaction};

/// The payload; what nobody here reads is left out.
#[derive(Deserialize)]
pub(crate) struct Order {
    order_id: i64,
    item: String,
    quantity: i32,
}

#[derive(Clone, Copy)]
pub(crate) enum Service {
    Inventory,
    Shipping,
    Orders,
}

impl Service {
    pub(crate) const ALL: [Service; 3] = [Service::Inventory, Service::Shipping, Service::Orders];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Service::Inventory => "inventory",
            Service::Shipping => "shipping",
            Service::Orders => "orders",
        }
    }

    pub(crate) fn event_type(self) -> &'static str {
        match self {
            Service::Inventory => "order_placed",
            Service::Shipping => "order_reserved",
            Service::Orders => "order_refused",
        }
    }

    pub(crate) async fn effect(self, db: &Transaction<'_>, order: &Order) -> Result<(), Error> {
        match self {
            Service::Inventory => reserve(db, order).await,
            Service::Shipping => ship(db, order).await,
            Service::Orders => refuse(db, order).await,
        }
    }
}

async fn reserve(db: &Transaction<'_>, order: &Order) -> Result<(), Error> {
    // Looked at and taken by one statement: two orders never take the same piece.
    let take = "UPDATE stock SET quantity = quantity - $2 WHERE item = $1 AND quantity >= $2";
    let taken = db.execute(take, &[&order.item, &order.quantity]).await?;
    let event_type = if taken > 0 { "order_reserved" } else { "order_refused" };
    let event = "INSERT INTO outbox (event_type, key, payload) VALUES ($1, $2, \
         jsonb_build_object('order_id', $3::bigint, 'item', $2::text, 'quantity', $4::integer))";
    db.execute(event, &[&event_type, &order.item, &order.order_id, &order.quantity]).await?;
    Ok(())
}

async fn ship(db: &Transaction<'_>, order: &Order) -> Result<(), Error> {
    let shipment = "INSERT INTO shipments (order_id, quantity) VALUES ($1, $2)";
    db.execute(shipment, &[&order.order_id, &order.quantity]).await?;
    db.execute("UPDATE orders SET status = 'shipped' WHERE id = $1", &[&order.order_id]).await?;
    Ok(())
}

async fn refuse(db: &Transaction<'_>, order: &Order) -> Result<(), Error> {
    db.execute("UPDATE orders SET status = 'refused' WHERE id = $1", &[&order.order_id]).await?;
    Ok(())
}
