// Reads events, and has the effect of each once: consume.js [inventory] [shipping] [orders]
//
// Start as many as you like. BUCKETS says which buckets this one reads.

import { AckPolicy, JetStreamApiCodes, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, nanos } from "@nats-io/transport-node";
import pg from "pg";
import { payload, readKeys } from "./envelope.js";
import { SERVICES } from "./services.js";

const STREAM = "OUTBOX";
const BUCKETS = (process.env.BUCKETS ?? "0,1,2,3").split(","); // of bucket(4) in postrider.toml
const ACK_WAIT = 1000 * Number(process.env.ACK_WAIT ?? 30); // longer than an effect takes
const RETRY_DELAY = 5_000;

const names = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(SERVICES);
const unknown = names.find((name) => !Object.hasOwn(SERVICES, name));
if (unknown !== undefined) {
  throw new Error(`no service is called ${unknown}`);
}
const keys = readKeys(process.env.KEY_FILE);
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: names.length * BUCKETS.length });
pool.on("error", (error) => console.error("an idle connection to Postgres ended:", error.message));
const nats = await connect({
  servers: process.env.NATS_URL,
  maxReconnectAttempts: -1,
  waitOnFirstConnect: true,
});
const manager = await jetstreamManager(nats);

async function handle(name, eventId, order) {
  const db = await pool.connect();
  const lost = (error) => console.error("a connection to Postgres ended:", error.message);
  db.on("error", lost); // between two queries nobody else hears of it
  try {
    await db.query("BEGIN"); // the id and the effect, or neither
    const { rowCount } = await db.query(
      "INSERT INTO inbox (consumer, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
      [name, eventId],
    );
    if (rowCount) { // else it was done before, and only its acknowledgement got lost
      await SERVICES[name].effect(db, order);
    }
    await db.query("COMMIT");
    db.off("error", lost);
    db.release();
  } catch (error) {
    db.release(true); // closed, which rolls back
    throw error;
  }
}

async function work(name, bucket) {
  const durable = `${name}-${bucket}`;
  try {
    await manager.consumers.info(STREAM, durable); // one that exists stays as it is
  } catch (error) {
    if (error.code !== JetStreamApiCodes.ConsumerNotFound) {
      throw error;
    }
    await manager.consumers.add(STREAM, {
      durable_name: durable,
      filter_subject: `outbox.${SERVICES[name].eventType}.${bucket}`,
      ack_policy: AckPolicy.Explicit,
      ack_wait: nanos(ACK_WAIT),
      // One at a time, whoever reads: a message that comes again comes before its successors.
      max_ack_pending: 1,
    });
  }
  const consumer = await jetstream(nats).consumers.get(STREAM, durable);
  const messages = await consumer.consume({ max_messages: 1, expires: 10_000 });
  stopping.push(() => messages.close());
  for await (const message of messages) {
    try {
      const eventId = message.headers?.get("Postrider-Event-Id");
      if (!eventId) {
        throw new Error("no Postrider-Event-Id");
      }
      const order = JSON.parse(await payload(nats, keys, message));
      await handle(name, eventId, order);
      message.ack(); // after the commit, never before it
    } catch (error) {
      // The bucket waits for it: to go on without it would break the order of its key.
      console.error(`${durable}: message ${message.seq}:`, error);
      message.nak(RETRY_DELAY);
    }
  }
}

const stopping = [];
for (const signal of ["SIGTERM", "SIGINT"]) {
  // What is under way is finished and acknowledged.
  process.once(signal, () => stopping.forEach((stop) => stop()));
}
await Promise.all(names.flatMap((name) => BUCKETS.map((bucket) => work(name, bucket))));
await nats.drain();
await pool.end();
