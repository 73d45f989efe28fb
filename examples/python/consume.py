"""Reads events, and has the effect of each once: consume.py [inventory] [shipping] [orders]

Start as many as you like. BUCKETS says which buckets this one reads.
"""

import asyncio
import json
import logging
import os
import signal
import sys

import nats
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from envelope import payload, read_keys
from services import SERVICES, Service
from tables import database_url, inbox

STREAM = "OUTBOX"
BUCKETS = os.environ.get("BUCKETS", "0,1,2,3").split(",")  # of bucket(4) in postrider.toml
ACK_WAIT = float(os.environ.get("ACK_WAIT", "30"))  # seconds; longer than an effect takes
FETCH_TIMEOUT = 5  # a request that a restart of NATS has lost is made again after it
RETRY_DELAY = 5

keys = read_keys(os.environ.get("KEY_FILE"))
log = logging.getLogger("shop")


async def handle(engine: AsyncEngine, service: Service, event_id: str, order: dict) -> None:
    async with engine.begin() as transaction:  # the id and the effect, or neither
        new = await transaction.scalar(
            insert(inbox)
            .values(consumer=service.name, event_id=event_id)
            .on_conflict_do_nothing()
            .returning(inbox.c.event_id)  # SQLAlchemy keeps no rowcount of an insert
        )
        if new is not None:  # else it was done before, and only its acknowledgement got lost
            await service.effect(transaction, order)


async def work(js: JetStreamContext, engine: AsyncEngine, service: Service, bucket: str) -> None:
    durable = f"{service.name}-{bucket}"
    messages = await js.pull_subscribe(
        f"outbox.{service.event_type}.{bucket}",
        durable=durable,
        stream=STREAM,
        # One at a time, whoever reads: a message that comes again comes before its successors.
        config=ConsumerConfig(ack_wait=ACK_WAIT, max_ack_pending=1),
    )
    while True:
        try:
            [message] = await messages.fetch(1, timeout=FETCH_TIMEOUT)
        except nats.errors.TimeoutError:
            continue
        except nats.errors.Error:
            log.exception("%s: cannot fetch", durable)
            await asyncio.sleep(RETRY_DELAY)
            continue
        try:
            event_id = message.headers["Postrider-Event-Id"]
            order = json.loads(await payload(js, keys, message))
            await handle(engine, service, event_id, order)
            await message.ack()  # after the commit, never before it
        except asyncio.CancelledError:
            await message.nak()  # whoever else reads this bucket takes over at once
            raise
        except Exception:
            # The bucket waits for it: to go on without it would break the order of its key.
            log.exception("%s: message %s", durable, message.metadata.sequence.stream)
            await message.nak(delay=RETRY_DELAY)


async def main() -> None:
    services = [SERVICES[name] for name in sys.argv[1:] or SERVICES]
    engine = create_async_engine(database_url(), pool_size=len(services) * len(BUCKETS), pool_pre_ping=True)
    client = await nats.connect(os.environ["NATS_URL"], max_reconnect_attempts=-1)
    js = client.jetstream()
    workers = asyncio.gather(
        *(work(js, engine, service, bucket) for service in services for bucket in BUCKETS)
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # A transaction that is cancelled is rolled back, and its message comes again.
        asyncio.get_running_loop().add_signal_handler(number, workers.cancel)
    try:
        await workers
    except asyncio.CancelledError:
        log.info("stopped")
    finally:
        if client.is_connected:
            await client.flush()  # drain() may wait 30 seconds for what a fetch passed over
        await client.close()
        await engine.dispose()


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
asyncio.run(main())
