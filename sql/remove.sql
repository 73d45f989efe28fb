-- Removes what `postrider init` made in Postgres; the outbox table and its rows stay.
--
-- Stop the relay first: a slot in use cannot be dropped. Events that are committed and not published
-- yet are then only in the outbox table.
--
--     psql -d shop -f sql/remove.sql
--     nats stream rm OUTBOX          # the stream with its messages, if no one needs them
SELECT pg_drop_replication_slot(slot_name)
FROM pg_replication_slots
WHERE slot_name = 'postrider';

DROP PUBLICATION IF EXISTS postrider;

DROP SCHEMA IF EXISTS postrider CASCADE;

-- The role of sql/privileges.sql, where nothing else uses it:
-- DROP ROLE postrider;
