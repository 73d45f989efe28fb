"""Places the orders of standard input, one a line: <item> <quantity> [note]"""

import sys

from sqlalchemy import create_engine

from tables import database_url, orders, outbox

engine = create_engine(database_url())


def place(item: str, quantity: int, note: str) -> None:
    with engine.begin() as transaction:  # the order and its event, or neither
        order_id = transaction.execute(
            orders.insert().values(item=item, quantity=quantity, note=note).returning(orders.c.id)
        ).scalar_one()
        transaction.execute(
            outbox.insert().values(
                event_type="order_placed",
                # Orders for one item wait for one another anyway: in the order in which they were placed.
                key=item,
                payload={"order_id": order_id, "item": item, "quantity": quantity, "note": note},
            )
        )


for line in sys.stdin:
    item, quantity, *note = line.rstrip("\n").split(" ", 2)
    place(item, int(quantity), *note or [""])
