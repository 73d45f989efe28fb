//! The rules of NATS subjects, checked here because no one else does.
//!
//! The server stores a publish to `e.*` under that literal subject, answers `a..b` as if there were
//! no stream, and closes the connection at a space; async-nats lets wildcards through.

/// Below the server's limit of 4 KiB for a whole control line, with the reply subject beside it.
pub const SUBJECT_BYTES_MAX: usize = 1024;

/// Whether `filter`, which may hold the wildcards `*` and `>`, matches the literal `subject`.
#[must_use]
pub fn matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in filter.split('.') {
        match (wanted, tokens.next()) {
            (">", found) => return found.is_some(),
            (_, None) => return false,
            ("*", Some(_)) => {}
            (wanted, Some(found)) if wanted == found => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// What is wrong with `value` as one token of a subject.
pub(super) fn token_fault(value: &str) -> Option<&'static str> {
    if value.is_empty() {
        return Some("is empty");
    }
    // One branch a byte for nearly every value there is.
    if value.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'.' | b'*' | b'>')) {
        return None;
    }
    value.chars().find_map(|char| match char {
        '.' => Some("holds a dot"),
        _ => char_fault(char),
    })
}

/// What is wrong with `value` as one or more tokens with dots between them.
pub(super) fn tokens_fault(value: &str) -> Option<&'static str> {
    if value.is_empty() {
        return Some("is empty");
    }
    value.split('.').find_map(|token| match token {
        "" => Some("begins or ends with a dot or holds two in a row"),
        token => token_fault(token),
    })
}

/// What is wrong with `char` in any subject.
pub(super) fn char_fault(char: char) -> Option<&'static str> {
    match char {
        '*' | '>' => Some("holds a wildcard"),
        // Not only ASCII's: async-nats splits what the server sends it at any Unicode white space,
        // so a consumer in Rust would lose its connection over such a subject.
        char if char.is_whitespace() => Some("holds white space"),
        char if char.is_control() => Some("holds a control character"),
        _ => None,
    }
}

/// What is wrong with a subject whose tokens are all valid.
pub(super) fn whole_fault(subject: &str) -> Option<&'static str> {
    if subject.len() > SUBJECT_BYTES_MAX {
        Some("is longer than 1024 bytes")
    } else if subject.starts_with('$') {
        Some("begins with `$`, which NATS keeps to itself")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_matches_token_by_token() {
        for (filter, subject, expected) in [
            ("outbox.created", "outbox.created", true),
            ("outbox.created", "outbox.deleted", false),
            ("outbox.created", "outbox", false),
            ("outbox", "outbox.created", false),
            ("outbox.*", "outbox.created", true),
            ("outbox.*", "outbox.created.v1", false),
            ("*.created", "outbox.created", true),
            ("outbox.>", "outbox.created", true),
            ("outbox.>", "outbox.created.v1", true),
            ("outbox.>", "outbox", false),
            (">", "outbox", true),
            ("out*", "outbox", false),
        ] {
            assert_eq!(matches(filter, subject), expected, "{filter} {subject}");
        }
    }

    #[test]
    fn a_token_holds_any_text_but_what_separates_or_matches() {
        for value in ["a", "order-created", "Ж", "a/b:c", "{}", "a$"] {
            assert_eq!(token_fault(value), None, "{value:?}");
        }
        for value in ["", "a b", "a.b", "a*", ">", "a\r", "a\n", "\0", "\u{7f}", "\u{85}", "a\u{3000}b"] {
            assert!(token_fault(value).is_some(), "{value:?}");
        }
    }

    #[test]
    fn tokens_hold_dots_but_no_empty_token() {
        for value in ["a", "a.b", "a.b.c"] {
            assert_eq!(tokens_fault(value), None, "{value:?}");
        }
        for value in ["", ".", ".a", "a.", "a..b", "a.*", "a. b"] {
            assert!(tokens_fault(value).is_some(), "{value:?}");
        }
    }

    #[test]
    fn a_subject_is_at_most_1024_bytes() {
        assert_eq!(whole_fault(&"a".repeat(1024)), None);
        assert!(whole_fault(&"a".repeat(1025)).is_some());
    }

    #[test]
    fn subjects_of_the_system_are_refused() {
        assert!(whole_fault("$JS.API.STREAM.PURGE.OUTBOX").is_some());
        assert_eq!(whole_fault("outbox.$JS"), None);
    }
}
