-- The least that the role of `postrider run` needs. Run it after `postrider init` or sql/init.sql,
-- in the database of the outbox, as the one who ran those:
--
--     psql -d shop -f sql/privileges.sql
--     psql -d shop -c '\password postrider'

-- REPLICATION opens the replication connection. No grant on the outbox table is needed to stream. It
-- is a strong attribute for that very reason: its holder can read the changes of every table.
-- RDS, Aurora: CREATE ROLE postrider LOGIN; GRANT rds_replication TO postrider;
SELECT 'CREATE ROLE postrider LOGIN REPLICATION'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'postrider')
\gexec

-- The checkpoint row: read and updated by `run`, inserted by `init`, deleted by neither.
GRANT USAGE ON SCHEMA postrider TO postrider;
GRANT SELECT, INSERT, UPDATE ON postrider.pipeline TO postrider;

-- Dead letters: inserted by `run`, which also removes resolved ones after delivery.dead_letter_retention.
GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.dead_letter TO postrider;

-- The ids of rows that are older than the slot: listed by `init`, read by table care.
GRANT SELECT, INSERT, DELETE ON postrider.older_row TO postrider;

-- `postrider dlq replay` deletes the outbox row and inserts it again. Let a person's role do that, or:
-- GRANT SELECT, INSERT, DELETE ON public.outbox TO postrider;
-- With SELECT alone the relay also removes dropped letters whose row is gone.

-- Clean-up (care.*); `postrider init --print-sql` prints what your settings need.
-- care.mark: GRANT SELECT, UPDATE (processed) ON public.outbox TO postrider;
-- care.delete_after: GRANT SELECT, DELETE, UPDATE (processed) ON public.outbox TO postrider;
-- care.archive_table: GRANT INSERT, SELECT ON public.outbox_archive TO postrider;
-- care.drop_partitions_after: GRANT the role that owns public.outbox TO postrider;
-- and where the outbox has row-level security: ALTER ROLE postrider BYPASSRLS;

-- Only where CONNECT was taken from PUBLIC:
-- GRANT CONNECT ON DATABASE shop TO postrider;

-- Not needed otherwise: SELECT on the outbox, CREATE anywhere, pg_monitor, superuser.

-- `postrider init` needs no more where sql/init.sql was run before it. To make what is missing itself:
--   * schema and table of checkpoints: CREATE on the database
--   * publication: CREATE on the database, and to own the outbox table (or superuser)
--   * slot: REPLICATION
--   * with --create-table: CREATE on the schema of the table

-- pg_hba.conf must let the role in by the name of the database; the keyword `replication` does not
-- match logical replication:
--   hostssl  shop  postrider  10.0.0.0/8  scram-sha-256
