-- Removes what `postrider init` made in Postgres for the slot `postrider`; the outbox table and its rows
-- stay. `postrider remove` does the same, for the names that you use.
--
-- Stop the relay first: a slot in use cannot be dropped. Events that are committed and not published
-- yet are then only in the outbox table.
--
--     psql -d shop -f sql/remove.sql
--     nats stream rm OUTBOX          # the stream with its messages, if no one needs them
SELECT pg_drop_replication_slot(slot_name)
FROM pg_replication_slots
WHERE slot_name = 'postrider' AND plugin = 'pgoutput' AND database = current_database();

DELETE FROM postrider.pipeline WHERE slot = 'postrider';
DELETE FROM postrider.older_row WHERE slot = 'postrider';

-- Unless another pipeline uses it, or it has other tables.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM postrider.pipeline p JOIN pg_publication b ON b.oid = p.publication_oid
                   WHERE b.pubname = 'postrider')
       AND (SELECT count(*) FROM pg_publication_tables WHERE pubname = 'postrider') <= 1 THEN
        DROP PUBLICATION IF EXISTS postrider;
    END IF;
END $$;

-- Unless another pipeline uses it, or a dead letter is open in it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM postrider.pipeline)
       AND NOT EXISTS (SELECT FROM postrider.dead_letter WHERE resolved_at IS NULL) THEN
        DROP TABLE postrider.pipeline, postrider.dead_letter, postrider.older_row;
        DROP SCHEMA postrider;
    END IF;
END $$;

-- The role of sql/privileges.sql, where nothing else uses it:
-- DROP ROLE postrider;
