-- A slot cannot be made in a transaction that has written.
DO $setup$ BEGIN
    EXECUTE 'CREATE PUBLICATION rival_publication FOR TABLE outbox WITH (publish = ''insert'')';
    COMMIT;
    PERFORM pg_create_logical_replication_slot('rival_slot', 'pgoutput');
END $setup$;
