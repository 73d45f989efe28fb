"""The package's own PollingRelay, with settings from the environment.

RIVAL_MODE=default keeps the package's settings: 100 rows a batch, one second between idle polls.
RIVAL_MODE=tuned (also when unset) takes the largest batch that it allows, polls every 10 ms when
idle and runs on uvloop.
"""

import asyncio
import logging
import os
import signal
import sys

try:
    import nats
    import uvloop
    from nats_outbox.core.models import OutboxEvent
    from nats_outbox.publishers.nats_publisher import NatsPublisher
    from nats_outbox.relay.polling import PollingRelay
    from nats_outbox.settings import OutboxSettings
    from sqlalchemy import select
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
except ImportError as error:
    print(f"nats-outbox: {error}", file=sys.stderr)
    sys.exit(3)

TUNED = os.environ.get("RIVAL_MODE") != "default"


def settings():
    url = "postgresql+asyncpg://" + os.environ["DATABASE_URL"].split("://", 1)[1]
    tuned = {"batch_size": 1000, "polling_interval": 0.01} if TUNED else {}
    return OutboxSettings(_env_file=None, database_url=url, nats_url=os.environ["NATS_URL"], **tuned)


async def main():
    try:
        config = settings()
        engine = create_async_engine(config.database_url, pool_pre_ping=not TUNED)
        sessions = async_sessionmaker(engine, expire_on_commit=False)
        async with sessions() as session:
            await session.execute(select(OutboxEvent.id).limit(1))
        nc = await nats.connect(config.nats_url)
        await nc.jetstream().stream_info(os.environ["STREAM"])
        publisher = await NatsPublisher.from_nats_client(nc)
    except Exception as error:
        print(f"nats-outbox: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        sys.exit(3)

    relay = PollingRelay(sessions, publisher, config)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(relay.stop()))
    print("ready", flush=True)
    await relay.start()
    await nc.close()
    await engine.dispose()


logging.basicConfig(level=logging.WARNING)
if TUNED:
    uvloop.install()
asyncio.run(main())
