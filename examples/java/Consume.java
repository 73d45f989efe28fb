// NOT CHECKED by the tests: its client, io.nats:jnats, is in no registry that they reach. Written against 2.26.3.

import io.nats.client.Connection;
import io.nats.client.ConsumerContext;
import io.nats.client.Message;
import io.nats.client.Nats;
import io.nats.client.Options;
import io.nats.client.api.AckPolicy;
import io.nats.client.api.ConsumerConfiguration;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.sql.DriverManager;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import javax.crypto.spec.SecretKeySpec;

/**
 * Reads events, and has the effect of each once: {@code Consume [inventory] [shipping] [orders]}
 *
 * <p>Start as many as you like. BUCKETS says which buckets this one reads.
 */
public final class Consume {
    private static final String STREAM = "OUTBOX";
    private static final Duration RETRY_DELAY = Duration.ofSeconds(5);
    // Seconds; longer than an effect takes.
    private static final String ACK_WAIT = System.getenv().getOrDefault("ACK_WAIT", "30");
    private static final Map<String, String> EVENT_TYPES =
        Map.of("inventory", "order_placed", "shipping", "order_reserved", "orders", "order_refused");
    private static final Pattern DIGEST = Pattern.compile("\"digest\":\"([^\"]*)\"");

    private static volatile boolean stopping;

    public static void main(String[] names) throws Exception {
        for (String name : names) {
            if (!EVENT_TYPES.containsKey(name)) {
                throw new IllegalArgumentException("no service is called " + name);
            }
        }
        var buckets = System.getenv().getOrDefault("BUCKETS", "0,1,2,3").split(",");
        var keys = Envelope.readKeys(System.getenv("KEY_FILE"));
        var options = new Options.Builder().server(System.getenv("NATS_URL")).maxReconnects(-1).build();
        Connection nats = Nats.connectReconnectOnConnect(options);
        List<Thread> workers = new ArrayList<>();
        for (String name : names.length > 0 ? List.of(names) : EVENT_TYPES.keySet()) {
            for (String bucket : buckets) {
                var worker = new Thread(() -> work(nats, keys, name, bucket));
                workers.add(worker);
                worker.start();
            }
        }
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stopping = true; // what is under way is finished and acknowledged
            try {
                for (Thread worker : workers) {
                    worker.join();
                }
                nats.drain(RETRY_DELAY).get();
            } catch (Exception error) {
                System.err.println(error);
            }
        }));
    }

    private static void work(Connection nats, Map<String, SecretKeySpec> keys, String name, String bucket) {
        while (!stopping) {
            try (var db = DriverManager.getConnection(System.getenv("JDBC_DATABASE_URL"))) {
                ConsumerContext consumer = consumer(nats, name, bucket);
                while (!stopping) {
                    Message message = consumer.next(Duration.ofSeconds(2));
                    if (message == null) {
                        continue;
                    }
                    try {
                        String eventId = message.getHeaders().getFirst("Postrider-Event-Id");
                        Inbox.handle(db, name, eventId, payload(nats, keys, message));
                        message.ack(); // after the commit, never before it
                    } catch (Exception error) {
                        // The bucket waits for it: to go on without it would break the order of its key.
                        message.nakWithDelay(RETRY_DELAY);
                        throw error;
                    }
                }
            } catch (Exception error) {
                System.err.println(name + "-" + bucket + " begins again: " + error);
                pause();
            }
        }
    }

    private static ConsumerContext consumer(Connection nats, String name, String bucket) throws Exception {
        var configuration = ConsumerConfiguration.builder()
            .durable(name + "-" + bucket)
            .filterSubject("outbox." + EVENT_TYPES.get(name) + "." + bucket)
            .ackPolicy(AckPolicy.Explicit)
            .ackWait(Duration.ofSeconds(Long.parseLong(ACK_WAIT)))
            // One at a time, whoever reads: a message that comes again comes before its successors.
            .maxAckPending(1)
            .build();
        return nats.getStreamContext(STREAM).createOrUpdateConsumer(configuration);
    }

    private static byte[] payload(Connection nats, Map<String, SecretKeySpec> keys, Message message) throws Exception {
        var headers = message.getHeaders();
        byte[] body = message.getData();
        String object = headers.getFirst("Postrider-Object");
        if (object != null) {
            // {"bucket": …, "object": …, "digest": …, "size": …}; the bucket is that of the stream.
            var digest = DIGEST.matcher(new String(body, StandardCharsets.UTF_8));
            if (!digest.find()) {
                throw new IllegalStateException("no digest of object " + object);
            }
            var content = new ByteArrayOutputStream();
            nats.objectStore(STREAM + "_PAYLOADS").get(object, content);
            body = Envelope.verified(content.toByteArray(), digest.group(1));
        }
        String algorithm = headers.getFirst("Postrider-Encryption");
        if (algorithm != null) {
            String keyId = headers.getFirst("Postrider-Key-Id");
            body = Envelope.decrypt(keys, algorithm, keyId, headers.getFirst("Postrider-Event-Id"), body);
        }
        return body;
    }

    private static void pause() {
        try {
            Thread.sleep(RETRY_DELAY.toMillis());
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
        }
    }
}
