//! The file of keys: `<key id> <base64 of 32 bytes>` a line, blank lines and comments besides.
//!
//! The first key is in use; the others open what was encrypted before they were replaced. Nothing of a
//! line that is wrong is ever shown: a key may stand where its id belongs.

use super::headers::steers_jetstream;
use super::seal::{KEY_BYTES, Key};
use crate::postgres::text::Text;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;

/// Shorter than a key in base64 without its padding, so that no key passes for an id.
const ID_MAX: usize = 32;

/// The keys of a file; there is at least one.
#[derive(Debug)]
pub struct Keys {
    first: Key,
    others: Vec<Key>,
}

/// What is wrong with one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, without a word of the line.
    pub what: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl Keys {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// All that is wrong, by line.
    pub fn parse(text: &str) -> Result<Keys, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut secrets: Vec<(&str, [u8; KEY_BYTES])> = Vec::new();
        let mut keys = Vec::new();
        let mut line = 0;
        for (number, text) in text.lines().enumerate() {
            line = number + 1;
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let read = parse_line(text).and_then(|(id, secret)| {
                if secrets.iter().any(|(known, _)| *known == id) {
                    return Err("its key id stands on a line above already");
                }
                if secrets.iter().any(|(_, known)| *known == secret) {
                    return Err("its key stands on a line above already, under another id");
                }
                secrets.push((id, secret));
                Key::new(Text::from(id.to_owned()), &secret).ok_or("the cipher does not take the key")
            });
            match read {
                Ok(key) => keys.push(key),
                Err(what) => faults.push(Fault { line, what }),
            }
        }
        let mut keys = keys.into_iter();
        match keys.next() {
            Some(first) if faults.is_empty() => Ok(Keys { first, others: keys.collect() }),
            None if faults.is_empty() => {
                Err(vec![Fault { line: line.max(1), what: "it ends without a key" }])
            }
            _ => Err(faults),
        }
    }

    /// The key that is in use.
    #[must_use]
    pub fn into_first(self) -> Key {
        self.first
    }

    /// The key of that id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&Key> {
        self.all().find(|key| key.id() == id)
    }

    /// The ids, that of the key in use first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.all().map(Key::id)
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

fn parse_line(text: &str) -> Result<(&str, [u8; KEY_BYTES]), &'static str> {
    let mut words = text.split_whitespace();
    let (Some(id), Some(secret), None) = (words.next(), words.next(), words.next()) else {
        return Err("expected two words: a key id and the base64 of 32 bytes");
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if id.len() > ID_MAX || !id.bytes().all(plain) || steers_jetstream(id) {
        return Err("the key id is not 1 to 32 letters, digits, `-`, `_`, `.` and `:`");
    }
    let secret = STANDARD.decode(secret).map_err(|_| "the key is not base64")?;
    let secret = secret.try_into().map_err(|_| "the key is not 32 bytes")?;
    Ok((id, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, byte: u8) -> String {
        format!("{id} {}\n", STANDARD.encode([byte; KEY_BYTES]))
    }

    fn faults(text: &str) -> Vec<(usize, &'static str)> {
        Keys::parse(text).unwrap_err().into_iter().map(|fault| (fault.line, fault.what)).collect()
    }

    #[test]
    fn the_first_key_is_in_use_and_all_are_found() {
        let text =
            format!("# of 2026\n\n  {}\t{}# retired\r\n{}", line("new", 1), line("old", 2), line("older", 3));
        let keys = Keys::parse(&text).unwrap();
        assert_eq!(keys.ids().collect::<Vec<_>>(), ["new", "old", "older"]);
        assert_eq!(keys.find("older").map(Key::id), Some("older"));
        assert!(keys.find("oldest").is_none());
        assert_eq!(keys.into_first().id(), "new");
    }

    #[test]
    fn every_fault_is_told_with_its_line_and_nothing_of_what_stands_there() {
        let secret = STANDARD.encode([9; KEY_BYTES]);
        let bare = secret.trim_end_matches('=');
        let text = format!(
            "{}{secret}\n{bare} {secret}\nwords {secret} # the key\nhex {}\nshort AAAA\n{}same {}\nNats-Msg-Id {secret}\n",
            line("good", 1),
            "09".repeat(KEY_BYTES),
            line("good", 2),
            STANDARD.encode([1; KEY_BYTES]),
        );
        let told = faults(&text);
        let lines = |part: &str| -> Vec<_> {
            told.iter().filter(|(_, what)| what.contains(part)).map(|(line, _)| *line).collect()
        };
        assert_eq!(lines("two words"), [2, 4]);
        assert_eq!(lines("the key id is not"), [3, 9]);
        assert_eq!(lines("not 32 bytes"), [5, 6]);
        assert_eq!(lines("key id stands"), [7]);
        assert_eq!(lines("under another id"), [8]);
        assert_eq!(told.len(), 8, "{told:?}");
    }

    #[test]
    fn a_file_without_a_key_is_a_fault() {
        assert_eq!(faults(""), [(1, "it ends without a key")]);
        assert_eq!(faults("# none\n\n"), [(2, "it ends without a key")]);
    }
}
