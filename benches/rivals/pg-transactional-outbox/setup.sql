-- What DatabaseSetup of pg-transactional-outbox 0.5.7 makes, with its indexes. A slot cannot be made
-- in a transaction that has written.
DO $setup$ BEGIN
    EXECUTE $table$
        CREATE TABLE rival_outbox (
            id uuid PRIMARY KEY,
            aggregate_type TEXT NOT NULL,
            aggregate_id TEXT NOT NULL,
            message_type TEXT NOT NULL,
            segment TEXT,
            concurrency TEXT NOT NULL DEFAULT 'sequential' CHECK (concurrency IN ('sequential', 'parallel')),
            payload JSONB NOT NULL,
            metadata JSONB,
            locked_until TIMESTAMPTZ NOT NULL DEFAULT to_timestamp(0),
            created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
            processed_at TIMESTAMPTZ,
            abandoned_at TIMESTAMPTZ,
            started_attempts smallint NOT NULL DEFAULT 0,
            finished_attempts smallint NOT NULL DEFAULT 0
        )
    $table$;
    EXECUTE 'CREATE PUBLICATION rival_publication FOR TABLE rival_outbox WITH (publish = ''insert'')';
    COMMIT;
    PERFORM pg_create_logical_replication_slot('rival_slot', 'pgoutput');
END $setup$;
