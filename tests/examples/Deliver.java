import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.sql.Connection;
import java.sql.DriverManager;
import java.util.Base64;

/**
 * Stands where Consume.java stands, which cannot be compiled here: a test hands it each message in a line,
 * {@code <service> <event id> <encryption> <key id> <digest of the object> <base64 of body or object>}, with
 * {@code -} for what is not there, and gets an answer in a line.
 */
public final class Deliver {
    public static void main(String[] arguments) throws Exception {
        var keys = Envelope.readKeys(System.getenv("KEY_FILE"));
        var lines = new BufferedReader(new InputStreamReader(System.in));
        try (Connection db = DriverManager.getConnection(System.getenv("JDBC_DATABASE_URL"))) {
            for (String line; (line = lines.readLine()) != null; ) {
                String[] words = line.split(" ");
                byte[] body = Base64.getDecoder().decode(words[5]);
                try {
                    if (!words[4].equals("-")) {
                        body = Envelope.verified(body, words[4]);
                    }
                    if (!words[2].equals("-")) {
                        body = Envelope.decrypt(keys, words[2], words[3], words[1], body);
                    }
                    System.out.println(Inbox.handle(db, words[0], words[1], body) ? "new" : "known");
                } catch (java.security.GeneralSecurityException | IllegalArgumentException error) {
                    System.out.println(error.getMessage());
                }
            }
        }
    }
}
