-- What to watch. Run it in the database of the outbox, on the primary:
--
--     psql -d shop -f sql/monitor.sql
--
-- It needs pg_monitor (without it the columns of other roles' sessions are null) and, for the
-- relay's own tables, USAGE on the schema postrider and SELECT on both.
-- Names are the defaults: slot `postrider`, schema `postrider`, table `public.outbox`.

-- 1. The slot. Alarm: no row; wal_status other than `reserved` or `extended`; `active` false for
--    longer than a restart takes; safe_wal below what your database writes in an hour (null: no
--    max_slot_wal_keep_size, and a relay that stands still can fill the disk).
--    unconfirmed holds, in normal operation, what was written within the hold-back.
SELECT slot_name, active, active_pid, wal_status,
       pg_size_pretty(safe_wal_size)                                AS safe_wal,
       pg_size_pretty(pg_current_wal_lsn() - restart_lsn)           AS retained_wal,
       pg_size_pretty(pg_current_wal_lsn() - confirmed_flush_lsn)   AS unconfirmed,
       age(catalog_xmin)                                            AS catalog_xmin_age
FROM pg_replication_slots
WHERE slot_name = 'postrider';

-- 2. The relay's connection. unsent grows: the relay or NATS is slower than the writers.
SELECT r.pid, r.usename, r.client_addr, r.state, now() - r.backend_start AS connected_for,
       pg_size_pretty(pg_current_wal_lsn() - r.sent_lsn)  AS unsent,
       r.reply_time
FROM pg_stat_replication r
JOIN pg_replication_slots s ON s.active_pid = r.pid
WHERE s.slot_name = 'postrider';

-- 3. The checkpoint row. unsettled is WAL whose events are not known to be stored; it is near 0
--    when all is well. On an idle database updated_at stands still, which is no fault.
SELECT slot, stream, phase, seq, position,
       pg_size_pretty(pg_current_wal_lsn() - settled_lsn)  AS unsettled,
       now() - updated_at                                  AS since_update
FROM postrider.pipeline
WHERE slot = 'postrider';

-- 4. Dead letters that are open: events that are not published and wait for a person
--    (postrider dlq list). Alarm: any. oldest says since when.
SELECT reason, count(*) AS letters, min(created_at) AS oldest, max(created_at) AS newest, max(error) AS example
FROM postrider.dead_letter
WHERE slot = 'postrider' AND resolved_at IS NULL
GROUP BY reason
ORDER BY letters DESC;

-- 5. Transactions that are writing, oldest first. WAL since the oldest of them is retained whatever
--    the relay confirms. Alarm: older than some minutes.
SELECT pid, usename, application_name, state, now() - xact_start AS age, left(query, 60) AS query
FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
ORDER BY xact_start
LIMIT 10;

-- 6. Prepared transactions do the same, and outlive their sessions and restarts.
SELECT gid, owner, database, now() - prepared AS age
FROM pg_prepared_xacts
ORDER BY prepared
LIMIT 10;

-- 7. The outbox table. size tells whether clean-up works (care.*, without which nothing deletes rows),
--    dead_rows whether autovacuum follows.
SELECT pg_size_pretty(pg_total_relation_size(c.oid))  AS size,
       c.reltuples::bigint                            AS rows_estimate,
       s.n_dead_tup                                   AS dead_rows,
       s.last_autovacuum
FROM pg_class c
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE c.oid = to_regclass('public.outbox');

-- 8. Settings. wal_level must be logical. max_slot_wal_keep_size = -1 puts no limit to the WAL that
--    a slot retains. synchronous_standby_names must be empty or name only real standbys: with `*`
--    every commit of the server would wait for the relay.
SELECT name, setting, unit
FROM pg_settings
WHERE name IN ('wal_level', 'max_slot_wal_keep_size', 'idle_replication_slot_timeout', 'max_wal_senders',
               'max_replication_slots', 'wal_sender_timeout', 'synchronous_standby_names')
ORDER BY name;
