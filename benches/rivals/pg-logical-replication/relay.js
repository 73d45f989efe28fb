'use strict';
// Streams the outbox by pgoutput and publishes in order with up to WINDOW messages in flight.
// A transaction's LSN goes back to Postgres after the PubAcks of all its rows and of all before it.
//
// RIVAL_MODE=default is what both libraries offer: publish() of the JetStream client, a request for
// each row, and flowControl of the replication client, a promise for each WAL message.
// RIVAL_MODE=tuned (also when unset) publishes plainly with all PubAcks on one subscription, and
// pauses the socket of the replication client when the window is full.

const name = 'pg-logical-replication';
const SLOT = 'rival_slot';
const PUBLICATION = 'rival_publication';
const WINDOW = 1000;
const ACKNOWLEDGE_EVERY_MS = 100;
const TUNED = process.env.RIVAL_MODE !== 'default';

function fail(code, error) {
  console.error(`${name}: ${String(error?.message || error?.code || error).split('\n')[0]}`);
  process.exit(code);
}

let pg, replication, nats, jetstream;
try {
  pg = require('pg');
  replication = require('pg-logical-replication');
  nats = require('@nats-io/transport-node');
  jetstream = require('@nats-io/jetstream');
} catch (error) {
  fail(3, error);
}

// The payload is forwarded as the text that Postgres sends: parsing it would be work for nothing.
const JSONB = 3802;
pg.types.setTypeParser(JSONB, (text) => text);

function oneBefore(lsn) {
  const [high, low] = lsn.split('/').map((half) => BigInt(`0x${half}`));
  const before = (high << 32n) + low - 1n;
  return `${(before >> 32n).toString(16)}/${(before & 0xffffffffn).toString(16)}`;
}

async function main() {
  const { DATABASE_URL, NATS_URL, STREAM } = process.env;
  let nc, js;
  let published; // LSN up to which all is published
  let acknowledged;
  try {
    const client = new pg.Client({ connectionString: DATABASE_URL });
    await client.connect();
    const slot = await client.query(
      "SELECT confirmed_flush_lsn - 1 AS lsn FROM pg_replication_slots WHERE slot_name = $1",
      [SLOT],
    );
    await client.end();
    if (slot.rowCount === 0) throw new Error(`slot ${SLOT} is missing, run setup.sql`);
    published = acknowledged = slot.rows[0].lsn;
    nc = await nats.connect({ servers: NATS_URL, reconnect: false });
    await (await jetstream.jetstreamManager(nc)).streams.info(STREAM);
    js = jetstream.jetstream(nc);
  } catch (error) {
    fail(3, error);
  }

  // Without `timeoutSeconds: 0` the library would acknowledge what it received, published or not.
  const service = new replication.LogicalReplicationService(
    { connectionString: DATABASE_URL },
    { acknowledge: { auto: false, timeoutSeconds: 0 }, flowControl: { enabled: !TUNED } },
  );
  const plugin = new replication.PgoutputPlugin({ protoVersion: 1, publicationNames: [PUBLICATION] });

  const transactions = []; // those with rows in flight, oldest first
  let current = null;
  let inFlight = 0;
  let room = null; // called when the full window has a place again
  let stopping = false;

  const settle = () => {
    while (transactions.length > 0 && transactions[0].lsn !== null && transactions[0].pending === 0) {
      published = transactions.shift().lsn;
    }
  };
  const acknowledge = async () => {
    if (published === acknowledged) return;
    acknowledged = published;
    // The library adds one. The start of the commit record, plus one, is past this commit and
    // not past the next, as the record's end plus one could be.
    await service.acknowledge(published);
  };
  const stop = async (code, error) => {
    if (stopping) return;
    stopping = true;
    clearInterval(timer);
    await acknowledge().catch(() => {});
    await service.destroy().catch(() => {});
    await nc.close().catch(() => {});
    if (error) fail(code, error);
    process.exit(code);
  };
  const timer = setInterval(() => acknowledge().catch((error) => stop(1, error)), ACKNOWLEDGE_EVERY_MS);

  const done = (transaction) => {
    transaction.pending -= 1;
    inFlight -= 1;
    if (transaction.pending === 0) settle();
    if (room !== null && inFlight < WINDOW) {
      room();
      room = null;
    }
  };
  const publishByClient = (transaction, row) => {
    js.publish(`outbox.${row.event_type}`, row.payload).then(
      () => done(transaction),
      (error) => stop(1, error),
    );
  };
  const awaited = new Map(); // the transactions of messages in flight, by the end of their reply subject
  const inbox = nats.createInbox();
  let number = 0;
  const publishPlainly = (transaction, row) => {
    number += 1;
    awaited.set(String(number), transaction);
    nc.publish(`outbox.${row.event_type}`, row.payload, { reply: `${inbox}.${number}` });
  };
  if (TUNED) {
    nc.subscribe(`${inbox}.*`, {
      callback: (error, answer) => {
        const text = error ? '' : answer.string();
        if (error || !text.includes('"seq"') || text.includes('"error"')) {
          stop(1, error || `no PubAck: ${text || 'no responders'}`);
          return;
        }
        const key = answer.subject.slice(inbox.length + 1);
        const transaction = awaited.get(key);
        if (!awaited.delete(key)) return;
        done(transaction);
      },
    });
    // Plain publishes have no time-out of their own: none may stay the oldest for a whole round.
    let before;
    setInterval(() => {
      const oldest = awaited.keys().next().value;
      if (oldest !== undefined && oldest === before) stop(1, 'no PubAck in time');
      before = oldest;
    }, 5000).unref();
  }

  service.on('data', (_lsn, message) => {
    switch (message.tag) {
      case 'begin':
        current = { pending: 0, lsn: null };
        transactions.push(current);
        return;
      case 'insert':
        current.pending += 1;
        inFlight += 1;
        (TUNED ? publishPlainly : publishByClient)(current, message.new);
        if (inFlight < WINDOW || room !== null) return;
        if (!TUNED) return new Promise((resolve) => (room = resolve));
        const socket = service._connection.stream;
        socket.pause();
        room = () => socket.resume();
        return;
      case 'commit':
        current.lsn = message.commitLsn;
        settle();
    }
  });
  service.on('heartbeat', (lsn, _time, shouldRespond) => {
    // With flowControl a heartbeat may overtake rows, so only the other mode may go by its LSN.
    if (TUNED && transactions.length === 0) published = oneBefore(lsn);
    if (shouldRespond) service.acknowledge(published).catch((error) => stop(1, error));
  });
  service.on('start', () => console.log('ready'));
  service.on('error', (error) => stop(1, error));
  process.on('SIGTERM', () => stop(0));
  service.subscribe(plugin, SLOT).catch((error) => stop(1, error));
}

main();
