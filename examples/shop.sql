-- The tables of the shop. Its services share one database here, to keep the example short; services with
-- databases of their own have an inbox, an outbox and a relay each.

CREATE TABLE stock (
    item      text PRIMARY KEY,
    quantity  integer NOT NULL CHECK (quantity >= 0)
);

CREATE TABLE orders (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item      text NOT NULL,
    quantity  integer NOT NULL CHECK (quantity > 0),
    note      text NOT NULL DEFAULT '',
    status    text NOT NULL DEFAULT 'placed'    -- then shipped or refused
);

CREATE TABLE shipments (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id  bigint NOT NULL REFERENCES orders,
    quantity  integer NOT NULL
);

-- The outbox of the article, with a key: events of one key are read in their order.
CREATE TABLE outbox (
    id          bigserial PRIMARY KEY,
    event_type  varchar(255) NOT NULL,
    key         text NOT NULL,
    payload     jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    processed   boolean NOT NULL DEFAULT false
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

-- What each consumer has done. A row is written in the transaction of the effect, so that an event that is
-- delivered again has none. Delete rows that are older than the stream keeps messages and than the outbox keeps
-- rows, from which `postrider recover` may publish once more.
CREATE TABLE inbox (
    consumer  text NOT NULL,
    event_id  text NOT NULL,
    seen_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, event_id)
);
