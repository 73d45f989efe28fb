//! Any bytes are a message or an error; what is a message is none without its last byte.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use postrider::postgres::pgoutput::Message;

fuzz_target!(|bytes: &[u8]| {
    let body = Bytes::copy_from_slice(bytes);
    if Message::decode(body.clone()).is_ok() {
        for end in 0..body.len().min(300) {
            assert!(Message::decode(body.slice(..end)).is_err(), "a prefix of {end} bytes");
        }
        assert!(Message::decode(body.slice(..body.len() - 1)).is_err(), "all but the last byte");
    }
});
