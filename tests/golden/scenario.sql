-- What record.py lets a fresh Postgres do: everything a table-shaped outbox can meet, and what the
-- other messages of the protocol need. Three slots watch it:
--   outbox      insert-only publication, partitions as their root
--   everything  all operations, partitions as themselves
--   binary      the outbox publication again, created late, read with binary values
\set ON_ERROR_STOP on
\set VERBOSITY terse
SET TimeZone = 'UTC';
SET client_min_messages = warning;

CREATE TABLE outbox (id SERIAL PRIMARY KEY, event_type VARCHAR(50), payload JSONB, created_at TIMESTAMP DEFAULT NOW(), processed BOOLEAN DEFAULT FALSE);

CREATE SCHEMA "Sales & Co";
CREATE DOMAIN event_name AS text CHECK (value <> '');
CREATE DOMAIN "Sales & Co".cents AS int4;
CREATE TYPE "Sales & Co"."Kind" AS ENUM ('order', 'größe', 'it''s');
CREATE TABLE "Sales & Co"."Out""box" (
    "Event Id" uuid PRIMARY KEY,
    "größe" event_name,
    "kind" "Sales & Co"."Kind",
    price "Sales & Co".cents,
    as_json json,
    as_text text,
    as_bytes bytea,
    padded char(5),
    amount numeric(20, 4),
    big bigint,
    ratio float8,
    at timestamptz,
    day date,
    span interval,
    tags text[],
    names name
);

CREATE TABLE parted (id bigint NOT NULL, region text NOT NULL, payload jsonb, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parted_eu PARTITION OF parted FOR VALUES IN ('eu');
CREATE TABLE parted_us PARTITION OF parted FOR VALUES IN ('us');

CREATE TABLE changing (id int PRIMARY KEY, payload text);
CREATE TABLE no_columns ();

CREATE PUBLICATION outbox FOR TABLE outbox, "Sales & Co"."Out""box", parted, changing, no_columns
    WITH (publish = 'insert', publish_via_partition_root = true);
CREATE PUBLICATION everything FOR ALL TABLES;

SELECT pg_create_logical_replication_slot('outbox', 'pgoutput');
SELECT pg_create_logical_replication_slot('everything', 'pgoutput');

-- The plain table: defaults, nulls, empty strings, what jsonb makes of its text.
INSERT INTO outbox (event_type, payload) VALUES ('order.created', '{"b": 1.50, "a": [true, null, "x"], "b": 1.5}');
INSERT INTO outbox (event_type, payload, created_at, processed) VALUES (NULL, NULL, NULL, NULL);
INSERT INTO outbox (event_type, payload, created_at) VALUES ('', '""', 'infinity'), ('größe ✓', '{"ü": "\u0001\\"}', '2026-11-23 22:20:01.5');

-- Every other kind of value.
INSERT INTO "Sales & Co"."Out""box" VALUES
    ('018f6b1e-7c3a-7000-8000-000000000001', 'order', 'größe', 1999, E'{"b": 1.50,\n "a":1, "a":2}', E'tab\tnew\nline "quoted" \\', '\x00ff80'::bytea, 'ab', 1234567890.1200, -9223372036854775808, 'NaN', 'infinity', '-infinity', '1 year 2 mons 3 days 04:05:06.789', ARRAY['a', NULL, 'b"c'], 'x'),
    ('018f6b1e-7c3a-7000-8000-000000000002', 'it', 'it''s', -1, '""', '', '', '', 'NaN', 9223372036854775807, '-Infinity', '-infinity', 'infinity', '-1 sec', '{}', ''),
    ('018f6b1e-7c3a-7000-8000-000000000003', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('018f6b1e-7c3a-7000-8000-000000000004', '✓', 'order', 0, 'null', '€', '\xc3', 'ü', 0, 0, 1e-300, '2026-11-23 22:20:01.123456+00', '0044-03-15 BC', '0', '{{1,2},{3,4}}', 'ü');

COPY outbox (event_type, payload) FROM stdin;
copied	{"n": 1}
copied	{"n": 2}
\N	\N
\.

-- What is rolled back is never sent.
BEGIN;
INSERT INTO outbox (event_type) VALUES ('kept.before');
SAVEPOINT a;
INSERT INTO outbox (event_type) VALUES ('rolled back to the savepoint');
ROLLBACK TO a;
INSERT INTO outbox (event_type) VALUES ('kept.after');
COMMIT;
BEGIN;
INSERT INTO outbox (event_type) VALUES ('rolled back');
ROLLBACK;

-- A transaction without published rows: 14 sends its Begin and Commit, later versions do not.
CREATE TABLE other (id int PRIMARY KEY);

-- The table changes between the rows of one transaction.
BEGIN;
INSERT INTO changing VALUES (1, 'before');
ALTER TABLE changing ADD COLUMN added text DEFAULT 'default';
INSERT INTO changing VALUES (2, 'after add', 'x');
ALTER TABLE changing DROP COLUMN payload;
INSERT INTO changing VALUES (3, 'after drop');
ALTER TABLE changing RENAME COLUMN added TO "Renamed";
INSERT INTO changing VALUES (4, 'after rename');
ALTER TABLE changing ALTER COLUMN id TYPE bigint;
INSERT INTO changing VALUES (5, 'after type');
ALTER TABLE changing RENAME TO changed;
INSERT INTO changed VALUES (6, 'after table rename');
COMMIT;
INSERT INTO no_columns DEFAULT VALUES;

INSERT INTO parted VALUES (1, 'eu', '{}'), (2, 'us', NULL);
CREATE TABLE parted_asia PARTITION OF parted FOR VALUES IN ('asia');
INSERT INTO parted_asia VALUES (3, 'asia', '[]');
UPDATE parted SET region = 'us' WHERE id = 1;

-- A large value, and updates that leave it where it is.
CREATE TABLE large (id int PRIMARY KEY, payload text, seen int);
ALTER TABLE large ALTER COLUMN payload SET STORAGE EXTERNAL;
INSERT INTO large SELECT 1, repeat('0123456789', 2000), 0;
UPDATE large SET seen = 1;
UPDATE large SET id = 2;
DELETE FROM large;

-- Every replica identity.
UPDATE outbox SET processed = true WHERE event_type = 'order.created';
UPDATE outbox SET id = 1000 WHERE event_type = 'order.created';
DELETE FROM outbox WHERE id = 1000;
ALTER TABLE outbox REPLICA IDENTITY FULL;
UPDATE outbox SET processed = true WHERE event_type = 'copied';
DELETE FROM outbox WHERE event_type IS NULL;
ALTER TABLE other REPLICA IDENTITY NOTHING;
INSERT INTO other VALUES (1);
CREATE TABLE indexed (id int PRIMARY KEY, code text NOT NULL UNIQUE);
ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_code_key;
INSERT INTO indexed VALUES (1, 'a');
UPDATE indexed SET code = 'b';
DELETE FROM indexed;
TRUNCATE outbox;
TRUNCATE other, indexed RESTART IDENTITY CASCADE;

-- Messages: the second does not wait for its transaction, the third does and goes with it.
SELECT pg_logical_emit_message(true, 'outbox', '{"a": 1}');
BEGIN;
SELECT pg_logical_emit_message(false, 'at once', 'ü');
SELECT pg_logical_emit_message(true, 'rolled back', 'x');
ROLLBACK;
BEGIN;
INSERT INTO outbox (event_type) VALUES ('with messages');
SELECT pg_logical_emit_message(true, '', '\x00ff'::bytea);
SELECT pg_logical_emit_message(true, 'empty', '');
COMMIT;

-- A transaction that was replicated to this server.
SELECT pg_replication_origin_create('upstream ü');
SELECT pg_replication_origin_session_setup('upstream ü');
BEGIN;
SELECT pg_replication_origin_xact_setup('16/B374D848', '2026-11-23 22:20:01.123456+00');
INSERT INTO outbox (event_type) VALUES ('from upstream');
COMMIT;
SELECT pg_replication_origin_session_reset();

SELECT pg_create_logical_replication_slot('binary', 'pgoutput');
INSERT INTO outbox (event_type, payload, created_at) VALUES ('order.created', '{"a": 1}', '2026-11-23 22:20:01.5');
INSERT INTO "Sales & Co"."Out""box" VALUES
    ('018f6b1e-7c3a-7000-8000-000000000005', 'order', 'größe', 1999, '{}', 'text', '\x00ff80', 'ab', 1234567890.12, -1, 'NaN', 'infinity', '2026-11-23', '1 day', ARRAY['a', NULL], 'x');
CREATE TABLE acl (id int PRIMARY KEY, owner aclitem);
ALTER PUBLICATION outbox ADD TABLE acl;
INSERT INTO acl VALUES (1, 'postgres=r/postgres');
