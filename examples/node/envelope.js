// From a message to its payload: fetched from the object store, and decrypted, where its headers say so.

import { Objm } from "@nats-io/obj";
import { createDecipheriv, createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const OBJECT_TIMEOUT = 30_000; // an object of which a part is missing does not end by itself

// The relay's key file, where payloads are encrypted: `<key id> <base64>` a line.
export function readKeys(path) {
  const lines = path ? readFileSync(path, "utf8").split("\n").map((line) => line.trim()) : [];
  const keys = lines.filter((line) => line && !line.startsWith("#")).map((line) => line.split(/\s+/));
  return new Map(keys.map(([id, secret]) => [id, Buffer.from(secret, "base64")]));
}

export async function payload(connection, keys, message) {
  let body = message.data;
  if (message.headers.has("Postrider-Object")) {
    body = await claim(connection, JSON.parse(Buffer.from(body)));
  }
  if (message.headers.has("Postrider-Encryption")) {
    body = decrypt(keys, message.headers, body);
  }
  return Buffer.from(body);
}

async function claim(connection, { bucket, object, digest }) {
  const store = await new Objm(connection).open(bucket);
  const timeout = new AbortController();
  const body = await Promise.race([
    store.getBlob(object),
    sleep(OBJECT_TIMEOUT, null, { signal: timeout.signal }).catch(() => null),
  ]);
  timeout.abort();
  if (body === null) {
    throw new Error(`object ${object} is not there`);
  }
  // The client believes the store's word; the message's word is what was published.
  const found = `SHA-256=${createHash("sha256").update(body).digest("base64").replaceAll("+", "-").replaceAll("/", "_")}`;
  if (found !== digest) {
    throw new Error(`object ${object}: its digest is ${found}, not ${digest}`);
  }
  return body;
}

function decrypt(keys, headers, body) {
  const algorithm = headers.get("Postrider-Encryption");
  if (algorithm !== "A256GCM") {
    throw new Error(`unknown encryption ${algorithm}`);
  }
  const key = keys.get(headers.get("Postrider-Key-Id"));
  if (key === undefined) {
    throw new Error(`KEY_FILE has no key ${headers.get("Postrider-Key-Id")}`);
  }
  const nonce = body.subarray(0, NONCE_BYTES);
  const decipher = createDecipheriv("aes-256-gcm", key, nonce, { authTagLength: TAG_BYTES });
  // The event id is authenticated too: a body under another event's headers does not open.
  decipher.setAAD(Buffer.from(headers.get("Postrider-Event-Id")));
  decipher.setAuthTag(body.subarray(-TAG_BYTES));
  return Buffer.concat([decipher.update(body.subarray(NONCE_BYTES, -TAG_BYTES)), decipher.final()]);
}
