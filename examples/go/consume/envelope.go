package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
)

const nonceBytes = 12

// The relay's key file, where payloads are encrypted: `<key id> <base64>` a line.
func readKeys(path string) (map[string]cipher.AEAD, error) {
	keys := map[string]cipher.AEAD{}
	if path == "" {
		return keys, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for number, line := range strings.Split(string(text), "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if len(words) != 2 {
			return nil, fmt.Errorf("%s: line %d is no key id and key", path, number+1)
		}
		secret, err := base64.StdEncoding.DecodeString(words[1])
		if err != nil {
			return nil, fmt.Errorf("%s: key %s is not base64", path, words[0])
		}
		block, err := aes.NewCipher(secret)
		if err != nil {
			return nil, err
		}
		if keys[words[0]], err = cipher.NewGCM(block); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// From a message to its payload: fetched from the object store, and decrypted, where its headers say so.
func payload(js nats.JetStreamContext, keys map[string]cipher.AEAD, message *nats.Msg) ([]byte, error) {
	body := message.Data
	if message.Header.Get("Postrider-Object") != "" {
		var err error
		if body, err = claim(js, body); err != nil {
			return nil, err
		}
	}
	if algorithm := message.Header.Get("Postrider-Encryption"); algorithm == "A256GCM" {
		return decrypt(keys, message.Header, body)
	} else if algorithm != "" {
		return nil, fmt.Errorf("unknown encryption %s", algorithm)
	}
	return body, nil
}

func claim(js nats.JetStreamContext, body []byte) ([]byte, error) {
	var reference struct{ Bucket, Object, Digest string }
	if err := json.Unmarshal(body, &reference); err != nil {
		return nil, err
	}
	store, err := js.ObjectStore(reference.Bucket)
	if err != nil {
		return nil, err
	}
	content, err := store.GetBytes(reference.Object)
	if err != nil {
		return nil, err
	}
	// The client compares the object with the store's word; the message's word is what was published.
	sum := sha256.Sum256(content)
	if digest := "SHA-256=" + base64.URLEncoding.EncodeToString(sum[:]); digest != reference.Digest {
		return nil, fmt.Errorf("object %s: its digest is %s, not %s", reference.Object, digest, reference.Digest)
	}
	return content, nil
}

func decrypt(keys map[string]cipher.AEAD, headers nats.Header, body []byte) ([]byte, error) {
	keyID := headers.Get("Postrider-Key-Id")
	key, known := keys[keyID]
	if !known {
		return nil, fmt.Errorf("KEY_FILE has no key %s", keyID)
	}
	if len(body) < nonceBytes {
		return nil, fmt.Errorf("a body of %d bytes is not encrypted", len(body))
	}
	// The event id is authenticated too: a body under another event's headers does not open.
	eventID := []byte(headers.Get("Postrider-Event-Id"))
	return key.Open(nil, body[:nonceBytes], body[nonceBytes:], eventID)
}
