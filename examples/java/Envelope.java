import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.util.Base64;
import java.util.HashMap;
import java.util.Map;
import javax.crypto.Cipher;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.SecretKeySpec;

/** From a message's body to its payload: what needs no client of NATS. */
final class Envelope {
    private static final int NONCE_BYTES = 12;
    private static final int TAG_BITS = 128;

    /** The relay's key file, where payloads are encrypted: {@code <key id> <base64>} a line. */
    static Map<String, SecretKeySpec> readKeys(String path) throws IOException {
        Map<String, SecretKeySpec> keys = new HashMap<>();
        for (String line : path == null ? new String[0] : Files.readString(Path.of(path)).split("\n")) {
            String[] words = line.strip().split("\\s+");
            if (words.length == 2 && !words[0].startsWith("#")) {
                keys.put(words[0], new SecretKeySpec(Base64.getDecoder().decode(words[1]), "AES"));
            }
        }
        return keys;
    }

    static byte[] decrypt(Map<String, SecretKeySpec> keys, String algorithm, String keyId, String eventId, byte[] body)
            throws GeneralSecurityException {
        if (!algorithm.equals("A256GCM")) {
            throw new GeneralSecurityException("unknown encryption " + algorithm);
        }
        if (!keys.containsKey(keyId)) {
            throw new GeneralSecurityException("KEY_FILE has no key " + keyId);
        }
        var cipher = Cipher.getInstance("AES/GCM/NoPadding");
        cipher.init(Cipher.DECRYPT_MODE, keys.get(keyId), new GCMParameterSpec(TAG_BITS, body, 0, NONCE_BYTES));
        // The event id is authenticated too: a body under another event's headers does not open.
        cipher.updateAAD(eventId.getBytes(StandardCharsets.UTF_8));
        return cipher.doFinal(body, NONCE_BYTES, body.length - NONCE_BYTES);
    }

    /** The object's content, if it is what the message says was published. */
    static byte[] verified(byte[] content, String digest) throws GeneralSecurityException {
        byte[] hash = MessageDigest.getInstance("SHA-256").digest(content);
        String found = "SHA-256=" + Base64.getUrlEncoder().encodeToString(hash);
        if (!found.equals(digest)) {
            throw new GeneralSecurityException("an object: its digest is " + found + ", not " + digest);
        }
        return content;
    }
}
