//! Finds the password in `.pgpass`: lines of `host:port:database:user:password`, first match wins.
//!
//! Invariant: a file that others may read is not used, as in libpq.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tracing::warn;

use super::{Address, Host, Secret};

/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// Gives each host the password that the file has for it.
pub(super) fn fill(
    path: &Path,
    hosts: &mut [Host],
    socket_directories: &[&Path],
    database: &str,
    user: &str,
) {
    let Some(text) = read(path) else { return };
    for host in hosts {
        let name = match &host.address {
            Address::Unix(path) if socket_directories.contains(&path.as_path()) => "localhost".to_owned(),
            Address::Unix(path) => path.display().to_string(),
            Address::Tcp(_) => host.name().to_owned(),
        };
        host.password = lookup(&text, [&name, &host.port.to_string(), database, user]).map(Secret);
    }
}

fn read(path: &Path) -> Option<String> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                warn!(path = %path.display(), %error, "password file ignored");
            }
            return None;
        }
    };
    if !metadata.is_file() {
        warn!(path = %path.display(), "password file ignored: not a plain file");
        return None;
    }
    if metadata.permissions().mode() & OTHERS != 0 {
        warn!(path = %path.display(), "password file ignored: group or others have access, chmod it to 0600");
        return None;
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) => {
            warn!(path = %path.display(), %error, "password file ignored");
            None
        }
    }
}

fn lookup(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| matching(line, wanted))
        .filter(|password| !password.is_empty())
}

/// The password of a line whose four fields match.
fn matching(line: &str, wanted: [&str; 4]) -> Option<String> {
    let mut rest = line;
    for wanted in wanted {
        let (field, after) = split_field(rest)?;
        if field != "*" && unescape(field) != wanted {
            return None;
        }
        rest = after;
    }
    Some(unescape(rest))
}

/// Up to the next colon that has no backslash before it.
fn split_field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    let end = text.find(|char| {
        let ends = char == ':' && !escaped;
        escaped = char == '\\' && !escaped;
        ends
    })?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        plain.push(if char == '\\' { chars.next().unwrap_or(char) } else { char });
    }
    plain
}
