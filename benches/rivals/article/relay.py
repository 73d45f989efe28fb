"""The outbox poller as articles show it: read a batch, publish row by row, mark, commit, sleep."""

import asyncio
import json
import os
import signal
import sys

try:
    import nats
    import psycopg2
except ImportError as error:
    print(f"article: {error}", file=sys.stderr)
    sys.exit(3)

BATCH = 100
PAUSE = 2.0


async def relay_batch(db, js):
    with db.cursor() as cursor:
        cursor.execute(
            "SELECT id, event_type, payload FROM outbox WHERE processed = false ORDER BY id LIMIT %s",
            (BATCH,),
        )
        for row_id, event_type, payload in cursor.fetchall():
            await js.publish(f"outbox.{event_type}", json.dumps(payload).encode())
            cursor.execute("UPDATE outbox SET processed = true WHERE id = %s", (row_id,))
    db.commit()


async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        db = psycopg2.connect(os.environ["DATABASE_URL"])
        with db.cursor() as cursor:
            cursor.execute("SELECT 1 FROM outbox LIMIT 1")
        db.commit()
        nc = await nats.connect(os.environ["NATS_URL"], allow_reconnect=False)
        js = nc.jetstream()
        await js.stream_info(os.environ["STREAM"])
    except Exception as error:
        print(f"article: {type(error).__name__}: {error}".strip().splitlines()[0], file=sys.stderr)
        sys.exit(3)

    print("ready", flush=True)
    while not stop.is_set():
        await relay_batch(db, js)
        try:
            await asyncio.wait_for(stop.wait(), PAUSE)
        except asyncio.TimeoutError:
            pass
    await nc.close()
    db.close()


asyncio.run(main())
