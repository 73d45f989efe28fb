-- What `postrider init` does in Postgres, for a DBA who runs it by hand.
--
-- `postrider init --print-sql` prints the same for the names of your configuration; this file has
-- the default names. Run it in the database of the outbox, as its superuser or as the owner of the
-- outbox table with CREATE on the database and REPLICATION:
--
--     psql -d shop -f sql/init.sql
--
-- Before it: wal_level = logical, the outbox table (sql/article.sql, sql/debezium.sql or your own).
-- After it:  sql/privileges.sql for the relay's role, then `postrider init` as that role: it finds all
--            of this, makes the stream and writes the checkpoint row.

-- The relay's memory: one row a slot. It says how far the stream has been proved, and lives here so
-- that a restore or a failover of the database takes it along. Updated about once a second under
-- load, so half of each page is left free for updates in place.
CREATE SCHEMA IF NOT EXISTS postrider;

CREATE TABLE IF NOT EXISTS postrider.pipeline (
    slot                text PRIMARY KEY,
    stream              text NOT NULL,
    stream_created      timestamptz NOT NULL,
    system_id           text NOT NULL,
    timeline            bigint NOT NULL,
    publication_oid     oid NOT NULL,
    publication_rel_oid oid NOT NULL,
    table_oid           oid NOT NULL,
    phase               text NOT NULL CHECK (phase IN ('ready', 'backfill', 'recover')),
    session             bigint NOT NULL,
    seq                 bigint NOT NULL,
    position            text,
    commit_time         timestamptz,
    event_id            text,
    passed_seq          bigint NOT NULL,
    settled_lsn         pg_lsn NOT NULL,
    confirmed_seq       bigint NOT NULL,
    older_rows          text CHECK (older_rows IN ('listed', 'unknown')),
    updated_at          timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- Events that cannot be published, each with its reason and its whole row. The relay commits one here
-- before it sends anything behind it.
CREATE TABLE IF NOT EXISTS postrider.dead_letter (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slot        text NOT NULL,
    system_id   text NOT NULL,
    timeline    bigint NOT NULL,
    commit_lsn  pg_lsn NOT NULL,
    index       bigint NOT NULL,
    event_id    text,
    event_type  text,
    key         text,
    subject     text,
    reason      text NOT NULL,
    code        text NOT NULL,
    error       text NOT NULL,
    headers     jsonb,
    payload     bytea,
    row         jsonb,
    created_at  timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolution  text CHECK (resolution IN ('replayed', 'dropped', 'stored')),
    UNIQUE (slot, system_id, commit_lsn, index, timeline),
    CHECK ((resolved_at IS NULL) = (resolution IS NULL))
);
CREATE INDEX IF NOT EXISTS dead_letter_resolved ON postrider.dead_letter (slot, resolved_at);

-- The ids of rows that were in the outbox before the slot was: `init` lists them, since the slot never
-- sent them. Table care (care.*) leaves them alone.
CREATE TABLE IF NOT EXISTS postrider.older_row (
    slot      text NOT NULL,
    event_id  text NOT NULL,
    PRIMARY KEY (slot, event_id)
);

-- Inserts only: marking or deleting outbox rows sends nothing. With publish_via_partition_root the
-- rows of a partitioned outbox come under the name of its root.
CREATE PUBLICATION postrider FOR TABLE public.outbox
    WITH (publish = 'insert', publish_via_partition_root = true);

-- After the publication, never before it: a slot can decode nothing that was written before its
-- publication existed. This waits for every transaction that is writing now. From Postgres 17 on
-- the slot is a failover slot: a standby that synchronizes slots takes it over.
SELECT CASE WHEN current_setting('server_version_num')::int >= 170000
    THEN 'SELECT lsn FROM pg_create_logical_replication_slot(''postrider'', ''pgoutput'', failover => true)'
    ELSE 'SELECT lsn FROM pg_create_logical_replication_slot(''postrider'', ''pgoutput'')'
END
\gexec
