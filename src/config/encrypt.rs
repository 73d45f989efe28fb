//! `[encrypt]`: where the keys are, and reading them.

use crate::error::{Code, Failure};
use crate::outbox::{Keys, seal};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tracing::warn;

/// Ten thousand keys; what is longer is another file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How payloads are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encrypt {
    /// The file with the keys; none: payloads are published as they are.
    pub key_file: Option<PathBuf>,
}

impl Encrypt {
    /// The key in use; none where payloads are published as they are.
    ///
    /// # Errors
    /// PR0109 with all that is wrong with the file.
    pub fn key(&self) -> Result<Option<seal::Key>, Failure> {
        let Some(path) = &self.key_file else { return Ok(None) };
        let keys = read_keys(path)?;
        // Not refused: Kubernetes and Docker mount secrets so by default, where there are no others.
        if std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0) {
            warn!(file = %path.display(), remedy = "chmod o-r", "every user of this machine can read the keys");
        }
        Ok(Some(keys.into_first()))
    }
}

/// Reads a file of keys.
///
/// # Errors
/// PR0109 with all that is wrong with it, and nothing of what it holds.
pub fn read_keys(path: &Path) -> Result<Keys, Failure> {
    let failure = |what: String| {
        Failure::new(
            Code::KeyFile,
            format!("the key file {}: {what}", path.display()),
            "it has a line `<key id> <base64 of 32 bytes>` for each key, the one in use first. A new one:",
        )
        .command("echo \"$(date +%Y-%m) $(openssl rand -base64 32)\"")
    };
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text));
    read.map_err(|error| failure(error.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failure("it is larger than 1 MiB".to_owned()));
    }
    let text = std::str::from_utf8(&text).map_err(|_| failure("it is no text".to_owned()))?;
    Keys::parse(text).map_err(|faults| {
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        failure(faults.join("; "))
    })
}
