import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;

/** Places the orders of standard input, one a line: {@code <item> <quantity> [note]} */
public final class PlaceOrders {
    public static void main(String[] arguments) throws Exception {
        var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        try (Connection db = DriverManager.getConnection(System.getenv("JDBC_DATABASE_URL"))) {
            db.setAutoCommit(false);
            for (String line; (line = lines.readLine()) != null; ) {
                String[] words = line.split(" ", 3);
                place(db, words[0], Integer.parseInt(words[1]), words.length > 2 ? words[2] : "");
            }
        }
    }

    /** The order and its event, or neither: a failure ends the connection, and with it the transaction. */
    static void place(Connection db, String item, int quantity, String note) throws SQLException {
        long orderId;
        String order = "INSERT INTO orders (item, quantity, note) VALUES (?, ?, ?) RETURNING id";
        try (var statement = db.prepareStatement(order)) {
            statement.setString(1, item);
            statement.setInt(2, quantity);
            statement.setString(3, note);
            try (var rows = statement.executeQuery()) {
                rows.next();
                orderId = rows.getLong(1);
            }
        }
        // The key is the item: orders for one item wait for one another anyway, in the order in which they
        // were placed.
        String event = "INSERT INTO outbox (event_type, key, payload) VALUES ('order_placed', ?,"
            + " jsonb_build_object('order_id', ?::bigint, 'item', ?::text, 'quantity', ?::integer, 'note', ?::text))";
        try (var statement = db.prepareStatement(event)) {
            statement.setString(1, item);
            statement.setLong(2, orderId);
            statement.setString(3, item);
            statement.setInt(4, quantity);
            statement.setString(5, note);
            statement.executeUpdate();
        }
        db.commit();
    }
}
