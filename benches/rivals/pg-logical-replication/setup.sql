-- A slot cannot be made in a transaction that has written.
DO $setup$ BEGIN
    EXECUTE format(
        'CREATE PUBLICATION rival_publication FOR TABLE outbox %s WITH (publish = ''insert'')',
        CASE WHEN current_setting('server_version_num')::int >= 150000 THEN '(event_type, payload)' ELSE '' END
    );
    COMMIT;
    PERFORM pg_create_logical_replication_slot('rival_slot', 'pgoutput');
END $setup$;
