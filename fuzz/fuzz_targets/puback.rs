//! Whatever the server answers: it is taken for stored only where it says so.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider::nats::answer::{Answer, parse};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

fuzz_target!(|payload: &[u8]| {
    if let Answer::Stored(seq) = parse(payload) {
        // Members that are not read may hold what is no UTF-8, and numbers that fit no type.
        let text = String::from_utf8_lossy(payload);
        let said: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&text).expect("a JSON object");
        let member = |name: &str| said.get(name).map_or("null", |value| value.get());
        assert_eq!(member("seq").parse(), Ok(seq), "{text}");
        assert!(seq > 0 && member("error") == "null" && member("duplicate") != "true", "{text}");
    }
});
