// Places the orders of standard input, one a line: <item> <quantity> [note]

import { createInterface } from "node:readline";
import pg from "pg";

const db = new pg.Client(process.env.DATABASE_URL);

async function place(item, quantity, note) {
  await db.query("BEGIN"); // the order and its event, or neither
  const { rows } = await db.query(
    "INSERT INTO orders (item, quantity, note) VALUES ($1, $2, $3) RETURNING id",
    [item, quantity, note],
  );
  await db.query("INSERT INTO outbox (event_type, key, payload) VALUES ('order_placed', $1, $2)", [
    // Orders for one item wait for one another anyway: in the order in which they were placed.
    item,
    { order_id: Number(rows[0].id), item, quantity, note },
  ]);
  await db.query("COMMIT");
}

await db.connect();
for await (const line of createInterface({ input: process.stdin })) {
  const [item, quantity, ...note] = line.split(" ");
  // A failure ends the program, and with its connection the transaction.
  await place(item, Number(quantity), note.join(" "));
}
await db.end();
