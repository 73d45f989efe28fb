"""From a message to its payload: fetched from the object store, and decrypted, where its headers say so."""

import asyncio
import json
from base64 import b64decode, urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nats.aio.msg import Msg
from nats.js import JetStreamContext

NONCE_BYTES = 12
OBJECT_TIMEOUT = 30  # an object of which a part is missing does not end by itself

Keys = dict[str, AESGCM]


def read_keys(path: str | None) -> Keys:
    """The relay's key file, where payloads are encrypted: `<key id> <base64>` a line."""
    lines = Path(path).read_text().splitlines() if path else []
    words = (line.split() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return {key_id: AESGCM(b64decode(secret)) for key_id, secret in words}


async def payload(js: JetStreamContext, keys: Keys, message: Msg) -> bytes:
    body = message.data
    if "Postrider-Object" in message.headers:
        body = await claim(js, json.loads(body))
    if "Postrider-Encryption" in message.headers:
        body = decrypt(keys, message.headers, body)
    return body


async def claim(js: JetStreamContext, reference: dict) -> bytes:
    store = await js.object_store(reference["bucket"])
    stored = await asyncio.wait_for(store.get(reference["object"]), OBJECT_TIMEOUT)
    # The client compares the object with the store's word; the message's word is what was published.
    digest = "SHA-256=" + urlsafe_b64encode(sha256(stored.data).digest()).decode()
    if digest != reference["digest"]:
        raise ValueError(f"object {reference['object']}: its digest is {digest}, not {reference['digest']}")
    return stored.data


def decrypt(keys: Keys, headers: dict[str, str], body: bytes) -> bytes:
    if headers["Postrider-Encryption"] != "A256GCM":
        raise ValueError(f"unknown encryption {headers['Postrider-Encryption']}")
    key = keys.get(headers["Postrider-Key-Id"])
    if key is None:
        raise ValueError(f"KEY_FILE has no key {headers['Postrider-Key-Id']}")
    # The event id is authenticated too: a body under another event's headers does not open.
    event_id = headers["Postrider-Event-Id"].encode()
    return key.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], event_id)
