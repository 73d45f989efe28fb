-- An outbox table in the form of most articles, for the preset `article`. The plain table
--
--     CREATE TABLE outbox (id SERIAL PRIMARY KEY, event_type VARCHAR(50), payload JSONB,
--         created_at TIMESTAMP DEFAULT NOW(), processed BOOLEAN DEFAULT FALSE);
--
-- works as it is. This one is better: an id that does not run out, and no null where an event needs
-- a value (the relay stands still at a row without id or event_type).
--
-- `processed` tells the preset. care.mark sets it; init --backfill and recover pass over rows that have it set.
CREATE TABLE public.outbox (
    id          bigserial PRIMARY KEY,
    event_type  varchar(255) NOT NULL,
    payload     jsonb,
    created_at  timestamptz NOT NULL DEFAULT now(),
    processed   boolean NOT NULL DEFAULT false
) WITH (
    -- Rows come and go: vacuum by count, not by a share of the table, and without pauses.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    -- Giving back the file's end takes an ACCESS EXCLUSIVE lock, which would stop the writers.
    vacuum_truncate = off
);

-- The primary key is the only index: the relay reads the log, not the table. Every further index
-- only makes the application's inserts slower. care.delete_after deletes rows whose events are stored.
-- Never TRUNCATE: it locks out the writers, and takes the rows that a lost slot would need.
