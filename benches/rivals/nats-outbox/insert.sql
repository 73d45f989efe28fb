INSERT INTO outbox_events (event_id, subject, headers, payload, status, retry_count, aggregate_id, aggregate_type)
SELECT e.id, 'outbox.order_created', jsonb_build_object('Nats-Msg-Id', e.id::text), $2::text::jsonb, 'pending', 0, ($1::int)::text, 'order'
FROM (SELECT gen_random_uuid() AS id) e
