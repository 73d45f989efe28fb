import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.SQLException;

/** What each service does with an event, and that it does it once. */
final class Inbox {
    /** Has the event's effect, unless it was had before; whether it was new. */
    static boolean handle(Connection db, String service, String eventId, byte[] payload) throws SQLException {
        db.setAutoCommit(false); // the id and the effect, or neither
        try {
            boolean isNew = update(db,
                "INSERT INTO inbox (consumer, event_id) VALUES (?, ?) ON CONFLICT DO NOTHING", service, eventId) > 0;
            if (isNew) { // else it was done before, and only its acknowledgement got lost
                effect(db, service, new String(payload, StandardCharsets.UTF_8));
            }
            db.commit();
            return isNew;
        } catch (SQLException | RuntimeException error) {
            db.rollback();
            throw error;
        }
    }

    /** Postgres reads the JSON, which the JDK does not. */
    private static void effect(Connection db, String service, String order) throws SQLException {
        switch (service) {
            case "inventory" -> {
                // Looked at and taken by one statement: two orders never take the same piece.
                int taken = update(db, "UPDATE stock SET quantity = stock.quantity - o.quantity"
                    + " FROM jsonb_to_record(?::jsonb) o (item text, quantity integer)"
                    + " WHERE stock.item = o.item AND stock.quantity >= o.quantity", order);
                // An effect that others want to know of is a row of the outbox itself.
                update(db, "INSERT INTO outbox (event_type, key, payload)"
                    + " SELECT ?, o->>'item', o - 'note' FROM (SELECT ?::jsonb) j (o)",
                    taken > 0 ? "order_reserved" : "order_refused", order);
            }
            case "shipping" -> {
                update(db, "INSERT INTO shipments (order_id, quantity) SELECT order_id, quantity"
                    + " FROM jsonb_to_record(?::jsonb) o (order_id bigint, quantity integer)", order);
                status(db, "shipped", order);
            }
            case "orders" -> status(db, "refused", order);
            default -> throw new IllegalArgumentException("no service is called " + service);
        }
    }

    private static void status(Connection db, String status, String order) throws SQLException {
        update(db, "UPDATE orders SET status = ? WHERE id = (?::jsonb->>'order_id')::bigint", status, order);
    }

    private static int update(Connection db, String sql, String... values) throws SQLException {
        try (var statement = db.prepareStatement(sql)) {
            for (int index = 0; index < values.length; index++) {
                statement.setString(index + 1, values[index]);
            }
            return statement.executeUpdate();
        }
    }
}
