//! Payloads that only those who have a key can read: AES-256-GCM (NIST SP 800-38D).
//!
//! ```text
//!  body   nonce (12 bytes) ‖ ciphertext (as long as the payload) ‖ tag (16 bytes)
//!  AAD    the event id: a body put under another event's headers does not open
//! ```
//!
//! The nonce is not drawn but derived, so that an event that is sent again is the same to the byte: the
//! first 96 bits of HMAC-SHA-256 over event id, position and payload, each behind its length (64 bits,
//! big endian). Its key is HKDF-Expand of the AES key under a fixed label, so that no key serves two
//! algorithms. Two events differ in their position, so their nonces are as good as drawn at random,
//! which bounds a key as it does there: 2^32 events. An equal nonce means an equal event.
//!
//! A NULL payload has nothing to hide and stays empty. Dead letters keep the plain payload: they live in
//! the database that the outbox lives in.

use super::{Event, Poison, Reason, headers};
use crate::postgres::text::Text;
use async_nats::HeaderName;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, hmac};
use std::fmt;

/// The header that says that the body is encrypted, and how.
pub static ENCRYPTION: HeaderName = HeaderName::from_static("Postrider-Encryption");
/// The header that names the key.
pub static KEY_ID: HeaderName = HeaderName::from_static("Postrider-Key-Id");
/// What [`ENCRYPTION`] says.
pub const ALGORITHM: &str = "A256GCM";

/// A key has so many bytes.
pub const KEY_BYTES: usize = 32;

/// A new layout or another way to derive nonces takes a new label.
const NONCE_LABEL: &[u8] = b"postrider A256GCM nonce 1";

const TAG_BYTES: usize = 16;

/// A key with its name.
pub struct Key {
    id: Text,
    cipher: LessSafeKey,
    nonces: hmac::Key,
}

impl Key {
    /// The key `id`; none where the cipher does not take the secret.
    #[must_use]
    pub fn new(id: Text, secret: &[u8; KEY_BYTES]) -> Option<Key> {
        let cipher = UnboundKey::new(&AES_256_GCM, secret).ok()?;
        let derived = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret);
        let nonces = hmac::Key::from(derived.expand(&[NONCE_LABEL], hmac::HMAC_SHA256).ok()?);
        Some(Key { id, cipher: LessSafeKey::new(cipher), nonces })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The event at `position` with its payload encrypted.
    ///
    /// # Errors
    /// The payload is longer than the cipher takes.
    pub fn seal(&self, mut event: Event, position: &str) -> Result<Event, Poison> {
        if event.headers.iter().any(|(name, _)| *name == headers::NULL) {
            return Ok(event);
        }
        let nonce = self.nonce(&event, position);
        let mut body = Vec::with_capacity(NONCE_LEN + event.payload.len() + TAG_BYTES);
        body.extend_from_slice(&nonce);
        body.extend_from_slice(&event.payload);
        let (_, text) = body.split_at_mut(NONCE_LEN);
        let (nonce, aad) = (Nonce::assume_unique_for_key(nonce), Aad::from(additional(&event.id)));
        let Ok(tag) = self.cipher.seal_in_place_separate_tag(nonce, aad, text) else {
            let what = format!("event {:?}: the payload cannot be encrypted", event.id);
            return Err(Poison::new(Reason::Encrypt, what));
        };
        body.extend_from_slice(tag.as_ref());
        event.payload = body.into();
        event.headers.push((ENCRYPTION.clone(), Text::from_static(ALGORITHM)));
        event.headers.push((KEY_ID.clone(), self.id.clone()));
        Ok(event)
    }

    /// The payload of the event's body; none where the key, the event id or the body is another than when
    /// it was sealed.
    #[must_use]
    pub fn open(&self, event_id: &str, body: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = body.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let aad = Aad::from(additional(event_id));
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.cipher.open_in_place(nonce, aad, &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }

    fn nonce(&self, event: &Event, position: &str) -> [u8; NONCE_LEN] {
        let mut hash = hmac::Context::with_key(&self.nonces);
        for part in [event.id.as_bytes(), position.as_bytes(), event.payload.as_ref()] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let hash = hash.sign();
        hash.as_ref().first_chunk().copied().unwrap_or_default()
    }
}

/// Readers of headers get a value without the white space around it.
fn additional(event_id: &str) -> &[u8] {
    event_id.trim().as_bytes()
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn key(id: &'static str, byte: u8) -> Key {
        Key::new(Text::from_static(id), &[byte; KEY_BYTES]).unwrap()
    }

    fn event(id: &str, payload: &[u8]) -> Event {
        Event {
            id: Text::from(id.to_owned()),
            subject: Text::from_static("outbox.a"),
            headers: vec![(headers::EVENT_ID.clone(), Text::from(id.to_owned()))],
            payload: Bytes::copy_from_slice(payload),
        }
    }

    fn sealed(id: &str, position: &str, payload: &[u8]) -> Bytes {
        key("k", 7).seal(event(id, payload), position).unwrap().payload
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_to_the_payload(
            id in "\\PC{0,40}", position in "\\PC{0,40}", payload: Vec<u8>,
        ) {
            let body = sealed(&id, &position, &payload);
            prop_assert_eq!(body.len(), payload.len() + 28);
            prop_assert_eq!(key("k", 7).open(&id, &body), Some(payload));
        }

        #[test]
        fn the_same_event_gives_the_same_bytes_and_another_another_nonce(
            id in "[a-z]{1,9}", position in "[a-z]{1,9}", payload: Vec<u8>,
        ) {
            let body = sealed(&id, &position, &payload);
            prop_assert_eq!(&body, &sealed(&id, &position, &payload));
            let nonce = |body: &Bytes| body.slice(..NONCE_LEN);
            let longer = [payload.as_slice(), b"x"].concat();
            // The second moves a letter from one part to the next.
            let moved = (&id[..id.len() - 1], format!("{}{position}", &id[id.len() - 1..]));
            for other in [
                sealed(&id, &format!("{position}/"), &payload),
                sealed(moved.0, &moved.1, &payload),
                sealed(&id, &position, &longer),
            ] {
                prop_assert_ne!(nonce(&body), nonce(&other));
            }
        }

        #[test]
        fn no_flipped_bit_opens(payload: Vec<u8>, bit: prop::sample::Index) {
            let mut body = sealed("7", "p", &payload).to_vec();
            let bit = bit.index(body.len() * 8);
            body[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(key("k", 7).open("7", &body), None);
        }

        #[test]
        fn no_part_of_a_body_opens(payload: Vec<u8>, end: prop::sample::Index) {
            let body = sealed("7", "p", &payload);
            prop_assert_eq!(key("k", 7).open("7", &body[..end.index(body.len())]), None);
        }

        #[test]
        fn another_event_id_or_key_does_not_open(id in "[a-z]{1,9}", other in "[a-z]{1,9}") {
            let body = sealed(&id, "p", b"{}");
            prop_assume!(id != other);
            prop_assert_eq!(key("k", 7).open(&other, &body), None);
            prop_assert_eq!(key("k", 8).open(&id, &body), None);
        }
    }

    /// Consumers of older releases must open what newer ones seal, and what is sent again over an upgrade
    /// must be what was sent.
    #[test]
    fn the_bytes_do_not_change_from_release_to_release() {
        let body = sealed("7", "7/1/postrider/00000000000000AB/0", b"{\"total\": 1}");
        let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0650a75b2cbffd12ac1fcfa269ee3c210c52a1cb34025dc30b09e7047486a9b22c72e82a0de26d3d");
    }

    #[test]
    fn a_null_payload_stays_empty_and_names_no_key() {
        let mut null = event("7", b"");
        null.headers.push((headers::NULL.clone(), Text::from_static("true")));
        assert_eq!(key("k", 7).seal(null.clone(), "p").unwrap(), null);
    }

    #[test]
    fn white_space_around_an_id_which_readers_trim_does_not_keep_it_from_opening() {
        let body = sealed("01J  ", "p", b"{}");
        assert_eq!(key("k", 7).open("01J", &body).as_deref(), Some(&b"{}"[..]));
    }

    #[test]
    fn a_key_shows_its_name_alone() {
        assert_eq!(format!("{:?}", key("2026-11", 7)), "Key(2026-11)");
    }
}
