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

-- The checkpoint row: read and updated, never inserted or deleted by `run`.
GRANT USAGE ON SCHEMA postrider TO postrider;
GRANT SELECT, UPDATE ON postrider.pipeline TO postrider;

-- Only where CONNECT was taken from PUBLIC:
-- GRANT CONNECT ON DATABASE shop TO postrider;

-- Not needed: SELECT on the outbox, CREATE anywhere, pg_monitor, superuser.

-- What `postrider init` needs more, once:
--   * to own the outbox table, or superuser: CREATE PUBLICATION asks for that
--   * CREATE on the database: for the schema and the publication, also when they exist
--   * CREATE on the schema postrider, and INSERT on postrider.pipeline, where another role made them
--   * REPLICATION, for the slot
--   * with --create-table: CREATE on the schema of the table
-- So let the table's owner, or an administrator, run init, and the role above run the relay.

-- pg_hba.conf must let the role in by the name of the database; the keyword `replication` does not
-- match logical replication:
--   hostssl  shop  postrider  10.0.0.0/8  scram-sha-256
