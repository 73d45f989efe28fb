"""What each service does with an event. An effect that others want to know of is a row of the outbox itself."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from tables import orders, outbox, shipments, stock

Order = dict


async def reserve(db: AsyncConnection, order: Order) -> None:
    taken = await db.execute(
        update(stock)
        # Looked at and taken by one statement: two orders never take the same piece.
        .where(stock.c.item == order["item"], stock.c.quantity >= order["quantity"])
        .values(quantity=stock.c.quantity - order["quantity"])
    )
    await db.execute(
        outbox.insert().values(
            event_type="order_reserved" if taken.rowcount else "order_refused",
            key=order["item"],
            payload={name: order[name] for name in ("order_id", "item", "quantity")},
        )
    )


async def ship(db: AsyncConnection, order: Order) -> None:
    await db.execute(shipments.insert().values(order_id=order["order_id"], quantity=order["quantity"]))
    await set_status(db, order, "shipped")


async def refuse(db: AsyncConnection, order: Order) -> None:
    await set_status(db, order, "refused")


async def set_status(db: AsyncConnection, order: Order, status: str) -> None:
    await db.execute(update(orders).where(orders.c.id == order["order_id"]).values(status=status))


@dataclass(frozen=True)
class Service:
    name: str
    event_type: str
    effect: Callable[[AsyncConnection, Order], Awaitable[None]]


SERVICES = {
    service.name: service
    for service in (
        Service("inventory", "order_placed", reserve),
        Service("shipping", "order_reserved", ship),
        Service("orders", "order_refused", refuse),
    )
}
