INSERT INTO rival_outbox (id, aggregate_type, aggregate_id, message_type, payload)
SELECT gen_random_uuid(), 'order', ($1::int)::text, 'order_created', $2::text::jsonb
