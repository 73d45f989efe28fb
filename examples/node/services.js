// What each service does with an event. An effect that others want to know of is a row of the outbox itself.

async function reserve(db, { order_id, item, quantity }) {
  // Looked at and taken by one statement: two orders never take the same piece.
  const { rowCount } = await db.query(
    "UPDATE stock SET quantity = quantity - $2 WHERE item = $1 AND quantity >= $2",
    [item, quantity],
  );
  await db.query("INSERT INTO outbox (event_type, key, payload) VALUES ($1, $2, $3)", [
    rowCount ? "order_reserved" : "order_refused",
    item,
    { order_id, item, quantity },
  ]);
}

async function ship(db, { order_id, quantity }) {
  await db.query("INSERT INTO shipments (order_id, quantity) VALUES ($1, $2)", [order_id, quantity]);
  await db.query("UPDATE orders SET status = 'shipped' WHERE id = $1", [order_id]);
}

async function refuse(db, { order_id }) {
  await db.query("UPDATE orders SET status = 'refused' WHERE id = $1", [order_id]);
}

export const SERVICES = {
  inventory: { eventType: "order_placed", effect: reserve },
  shipping: { eventType: "order_reserved", effect: ship },
  orders: { eventType: "order_refused", effect: refuse },
};
