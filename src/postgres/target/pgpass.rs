//! Finds the password in `.pgpass`: lines of `host:port:database:user:password`, first match wins.
//!
//! Invariant: a file that others may read is not used, as in libpq.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::{Host, Secret, TargetError};

/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// `PGPASSFILE`, else `~/.pgpass`.
pub(super) fn path(variable: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    variable("PGPASSFILE")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".pgpass")))
}

/// The password of these hosts, known to the file as `names`. A target has one password, so that
/// no host is ever sent the password of another.
pub(super) fn password(
    path: &Path,
    hosts: &[Host],
    names: &[String],
    database: &str,
    user: &str,
) -> Result<Option<Secret>, TargetError> {
    let Some(text) = read(path) else {
        return Ok(None);
    };
    let mut found = hosts
        .iter()
        .zip(names)
        .map(|(host, name)| (host, lookup(&text, [name, &host.port.to_string(), database, user])));
    let Some((_, first)) = found.next() else {
        return Ok(None);
    };
    match found.find(|(_, password)| *password != first) {
        Some((host, _)) => Err(TargetError::PasswordsDiffer(host.to_string())),
        None => Ok(first.map(Secret)),
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
