'use strict';
// The library's own replication listener, with a handler that publishes a message to JetStream and
// awaits its PubAck. The library marks each message as processed in a transaction of its own.
//
// RIVAL_MODE=default handles one message after the other, which keeps their order.
// RIVAL_MODE=tuned (also when unset) handles up to 100 at a time. The library has no faster form; it
// gives up the order for it.

const name = 'pg-transactional-outbox';
const AT_A_TIME = 100;
const TUNED = process.env.RIVAL_MODE !== 'default';

function fail(code, error) {
  console.error(`${name}: ${String(error?.message || error?.code || error).split('\n')[0]}`);
  process.exit(code);
}

let outbox, nats, jetstream, pg;
try {
  outbox = require('pg-transactional-outbox');
  nats = require('@nats-io/transport-node');
  jetstream = require('@nats-io/jetstream');
  pg = require('pg');
} catch (error) {
  fail(3, error);
}

async function main() {
  const { DATABASE_URL, NATS_URL, STREAM } = process.env;
  const url = new URL(DATABASE_URL);
  const database = {
    host: url.hostname,
    port: Number(url.port || 5432),
    user: decodeURIComponent(url.username),
    password: decodeURIComponent(url.password),
    database: url.pathname.slice(1),
  };
  let nc, js;
  try {
    const client = new pg.Client(database);
    await client.connect();
    await client.query('SELECT 1 FROM rival_outbox LIMIT 1');
    await client.end();
    nc = await nats.connect({ servers: NATS_URL, reconnect: false });
    await (await jetstream.jetstreamManager(nc)).streams.info(STREAM);
    js = jetstream.jetstream(nc);
  } catch (error) {
    fail(3, error);
  }
  const publisher = {
    handle: async (message) => {
      await js.publish(`outbox.${message.messageType}`, JSON.stringify(message.payload));
    },
  };
  const strategies = TUNED
    ? { concurrencyStrategy: outbox.createReplicationSemaphoreConcurrencyController(AT_A_TIME) }
    : {};
  const config = {
    outboxOrInbox: 'outbox',
    dbListenerConfig: database,
    settings: {
      dbSchema: 'public',
      dbTable: 'rival_outbox',
      dbPublication: 'rival_publication',
      dbReplicationSlot: 'rival_slot',
      enableMaxAttemptsProtection: false,
      enablePoisonousMessageProtection: false,
    },
  };
  const [shutdown] = outbox.initializeReplicationMessageListener(
    config,
    publisher,
    outbox.getDisabledLogger(),
    strategies,
  );
  process.on('SIGTERM', async () => {
    await shutdown().catch(() => {});
    await nc.close().catch(() => {});
    process.exit(0);
  });
  console.log('ready');
}

main();
