//! From a message to its payload: fetched from the object store, and decrypted, where its headers say so.

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::{self, Message};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::Deserialize;
use std::collections::HashMap;
use tokio::io::AsyncReadExt as _;

pub(crate) type Keys = HashMap<String, LessSafeKey>;

/// The relay's key file, where payloads are encrypted: `<key id> <base64>` a line.
pub(crate) fn read_keys(text: &str) -> anyhow::Result<Keys> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let key = |line: &str| {
        let (id, secret) = line.split_once(char::is_whitespace).context("a line is no key id and key")?;
        let secret = STANDARD.decode(secret.trim()).with_context(|| format!("key {id}"))?;
        let key = UnboundKey::new(&AES_256_GCM, &secret).ok().with_context(|| format!("key {id}"))?;
        Ok((id.to_owned(), LessSafeKey::new(key)))
    };
    lines.map(key).collect()
}

pub(crate) async fn payload(
    jetstream: &jetstream::Context,
    keys: &Keys,
    message: &Message,
) -> anyhow::Result<Vec<u8>> {
    let mut body = message.payload.to_vec();
    if header(message, "Postrider-Object").is_some() {
        body = claim(jetstream, serde_json::from_slice(&body)?).await?;
    }
    match header(message, "Postrider-Encryption") {
        None => Ok(body),
        Some("A256GCM") => decrypt(keys, message, body),
        Some(algorithm) => bail!("unknown encryption {algorithm}"),
    }
}

pub(crate) fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    Some(message.headers.as_ref()?.get(name)?.as_str())
}

#[derive(Deserialize)]
struct Reference {
    bucket: String,
    object: String,
    digest: String,
}

async fn claim(jetstream: &jetstream::Context, reference: Reference) -> anyhow::Result<Vec<u8>> {
    let store = jetstream.get_object_store(&reference.bucket).await?;
    let mut content = Vec::new();
    store.get(&reference.object).await?.read_to_end(&mut content).await?;
    // The client compares the object with the store's word; the message's word is what was published.
    let found = format!("SHA-256={}", URL_SAFE.encode(digest(&SHA256, &content)));
    ensure!(
        found == reference.digest,
        "object {}: its digest is {found}, not {}",
        reference.object,
        reference.digest
    );
    Ok(content)
}

fn decrypt(keys: &Keys, message: &Message, body: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let key_id = header(message, "Postrider-Key-Id").context("no Postrider-Key-Id")?;
    let key = keys.get(key_id).with_context(|| format!("KEY_FILE has no key {key_id}"))?;
    let (nonce, sealed) = body.split_first_chunk::<NONCE_LEN>().context("the body is not encrypted")?;
    // The event id is authenticated too: a body under another event's headers does not open.
    let event_id = Aad::from(header(message, "Postrider-Event-Id").context("no Postrider-Event-Id")?);
    let mut sealed = sealed.to_vec();
    let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), event_id, &mut sealed);
    let length = opened.ok().with_context(|| format!("the body does not open with key {key_id}"))?.len();
    sealed.truncate(length);
    Ok(sealed)
}
