import io.debezium.embedded.Connect;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.RecordChangeEvent;
import io.debezium.engine.format.ChangeEventFormat;
import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.Socket;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.source.SourceRecord;

/**
 * Debezium's engine with the Postgres connector. A batch is published in order without awaiting an
 * answer in between; it is committed when JetStream has acknowledged all of it.
 *
 * <p>RIVAL_MODE=default keeps the settings of engine and connector. RIVAL_MODE=tuned (also when unset)
 * polls the queue every millisecond and takes larger batches from a larger queue. Both read the
 * connector's records as they are, without a converter to JSON, and no transform runs.
 */
public final class Relay {
    private static final boolean TUNED = !"default".equals(System.getenv("RIVAL_MODE"));

    public static void main(String[] args) throws Exception {
        URI database = URI.create(System.getenv("DATABASE_URL"));
        Publisher publisher = new Publisher(URI.create(System.getenv("NATS_URL")));
        Path offsets = Files.createTempFile("debezium-offsets", "");

        Properties settings = new Properties();
        settings.setProperty("name", "rival");
        settings.setProperty("connector.class", "io.debezium.connector.postgresql.PostgresConnector");
        settings.setProperty("offset.storage", "org.apache.kafka.connect.storage.FileOffsetBackingStore");
        settings.setProperty("offset.storage.file.filename", offsets.toString());
        String[] user = database.getUserInfo() == null ? new String[] {"postgres"} : database.getUserInfo().split(":", 2);
        settings.setProperty("database.hostname", database.getHost());
        settings.setProperty("database.port", String.valueOf(database.getPort()));
        settings.setProperty("database.user", user[0]);
        settings.setProperty("database.password", user.length > 1 ? user[1] : "");
        settings.setProperty("database.dbname", database.getPath().substring(1));
        settings.setProperty("topic.prefix", "rival");
        settings.setProperty("table.include.list", "public.outbox");
        settings.setProperty("plugin.name", "pgoutput");
        settings.setProperty("slot.name", "rival_slot");
        settings.setProperty("publication.name", "rival_publication");
        settings.setProperty("publication.autocreate.mode", "disabled");
        settings.setProperty("snapshot.mode", "no_data");
        settings.setProperty("tombstones.on.delete", "false");
        if (TUNED) {
            settings.setProperty("poll.interval.ms", "1");
            settings.setProperty("max.batch.size", "8192");
            settings.setProperty("max.queue.size", "32768");
        }

        DebeziumEngine<RecordChangeEvent<SourceRecord>> engine =
            DebeziumEngine.create(ChangeEventFormat.of(Connect.class))
                .using(settings)
                .using(new DebeziumEngine.ConnectorCallback() {
                    @Override
                    public void pollingStarted() {
                        System.out.println("ready");
                    }
                })
                .using((success, message, error) -> {
                    if (!success) {
                        System.err.println("debezium: " + message);
                        Runtime.getRuntime().halt(1);
                    }
                })
                .notifying((records, committer) -> handle(publisher, records, committer))
                .build();
        ExecutorService executor = Executors.newSingleThreadExecutor();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                engine.close();
                executor.awaitTermination(10, TimeUnit.SECONDS);
                Files.deleteIfExists(offsets);
            } catch (IOException | InterruptedException error) {
                System.err.println("debezium: " + error);
            }
            // A JVM that a signal ends would exit with 143.
            Runtime.getRuntime().halt(0);
        }));
        executor.execute(engine);
        executor.shutdown();
    }

    private static void handle(
        Publisher publisher,
        List<RecordChangeEvent<SourceRecord>> records,
        DebeziumEngine.RecordCommitter<RecordChangeEvent<SourceRecord>> committer
    ) throws InterruptedException {
        try {
            int published = 0;
            for (RecordChangeEvent<SourceRecord> event : records) {
                if (event.record().value() instanceof Struct value && value.schema().field("after") != null) {
                    Struct row = value.getStruct("after");
                    publisher.publish("outbox." + row.getString("event_type"), row.getString("payload"));
                    published++;
                }
            }
            publisher.awaitAcks(published);
            for (RecordChangeEvent<SourceRecord> event : records) {
                committer.markProcessed(event);
            }
            committer.markBatchFinished();
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
    }

    /** As much of a NATS client as it takes to publish and to count PubAcks: the jars have none. */
    private static final class Publisher {
        private final OutputStream output;
        private final Semaphore acks = new Semaphore(0);
        private volatile String failure;

        Publisher(URI server) throws IOException {
            Socket socket = new Socket(server.getHost(), server.getPort());
            socket.setTcpNoDelay(true);
            output = new BufferedOutputStream(socket.getOutputStream(), 1 << 16);
            write("CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n"
                + "SUB acks 1\r\n");
            output.flush();
            Thread reader = new Thread(() -> read(socket));
            reader.setDaemon(true);
            reader.start();
        }

        synchronized void publish(String subject, String payload) throws IOException {
            byte[] body = payload.getBytes(StandardCharsets.UTF_8);
            write("PUB " + subject + " acks " + body.length + "\r\n");
            output.write(body);
            write("\r\n");
        }

        void awaitAcks(int count) throws IOException, InterruptedException {
            synchronized (this) {
                output.flush();
            }
            if (!acks.tryAcquire(count, 30, TimeUnit.SECONDS) || failure != null) {
                throw new IOException(failure == null ? "no PubAck in time" : failure);
            }
        }

        private void write(String text) throws IOException {
            output.write(text.getBytes(StandardCharsets.UTF_8));
        }

        private void read(Socket socket) {
            try (DataInputStream input = new DataInputStream(new BufferedInputStream(socket.getInputStream(), 1 << 16))) {
                for (String line = line(input); line != null; line = line(input)) {
                    if (line.startsWith("PING")) {
                        synchronized (this) {
                            write("PONG\r\n");
                            output.flush();
                        }
                    } else if (line.startsWith("MSG ") || line.startsWith("HMSG ")) {
                        byte[] body = new byte[Integer.parseInt(line.substring(line.lastIndexOf(' ') + 1))];
                        input.readFully(body);
                        line(input);
                        String answer = new String(body, StandardCharsets.UTF_8);
                        if (!answer.contains("\"seq\"") || answer.contains("\"error\"")) {
                            failure = "no PubAck: " + answer;
                        }
                        acks.release();
                    } else if (line.startsWith("-ERR")) {
                        failure = line;
                    }
                }
            } catch (IOException error) {
                failure = error.toString();
            }
        }

        private static String line(InputStream input) throws IOException {
            StringBuilder line = new StringBuilder();
            for (int next = input.read(); next != '\n'; next = input.read()) {
                if (next < 0) {
                    return null;
                }
                if (next != '\r') {
                    line.append((char) next);
                }
            }
            return line.toString();
        }
    }
}
