"""The tables of ../shop.sql, and where they are."""

import os

from sqlalchemy import URL, BigInteger, Column, Integer, MetaData, Table, Text, make_url
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

stock = Table("stock", metadata, Column("item", Text, primary_key=True), Column("quantity", Integer))

orders = Table(
    "orders",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("item", Text),
    Column("quantity", Integer),
    Column("note", Text),
    Column("status", Text),
)

shipments = Table("shipments", metadata, Column("order_id", BigInteger), Column("quantity", Integer))

outbox = Table("outbox", metadata, Column("event_type", Text), Column("key", Text), Column("payload", JSONB))

inbox = Table(
    "inbox", metadata, Column("consumer", Text, primary_key=True), Column("event_id", Text, primary_key=True)
)


def database_url() -> URL:
    """DATABASE_URL in the form that SQLAlchemy wants: with the name of the driver."""
    return make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
