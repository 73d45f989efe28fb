//! A text that is a position prints as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider::delivery::position::Position;

fuzz_target!(|text: &str| {
    if let Ok(position) = text.parse::<Position>() {
        assert_eq!(position.to_string(), text);
    }
});
