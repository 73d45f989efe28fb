-- An outbox table as Debezium's outbox event router has it, for the preset `debezium`:
-- subject outbox.event.<aggregatetype>, key aggregateid, event type `type`.
--
-- Further columns do not matter. These are sent when they are named: created_at
-- (outbox.created_at), headers (outbox.headers), traceparent (outbox.traceparent).
CREATE TABLE public.outbox (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    aggregatetype  varchar(255) NOT NULL,
    aggregateid    varchar(255) NOT NULL,
    type           varchar(255) NOT NULL,
    payload        jsonb
) WITH (
    -- Rows come and go: vacuum by count, not by a share of the table, and without pauses.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    -- Giving back the file's end takes an ACCESS EXCLUSIVE lock, which would stop the writers.
    vacuum_truncate = off
);

-- The primary key is the only index: the relay reads the log, not the table.
--
-- Applications written for Debezium often insert the row and delete it in the same transaction.
-- That works: the event is in the log. But the row is then not there to publish from if the slot is
-- ever lost.
