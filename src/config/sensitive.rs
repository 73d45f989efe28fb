//! Text that is not for showing, and that may be replaced while the relay runs.

use super::load::{Origin, Value, secret_file};
use crate::postgres::target::Secret;
use std::fmt;
use std::path::PathBuf;

/// A secret with its origin. What came from a file is read again whenever it is asked for, so that
/// rotating it takes no restart.
#[derive(Clone)]
pub struct Sensitive {
    text: Secret,
    file: Option<PathBuf>,
}

impl Sensitive {
    pub(super) fn new(text: &str, origin: &Origin) -> Sensitive {
        let file = match origin {
            Origin::SecretFile(_, path) => Some(path.clone()),
            _ => None,
        };
        Sensitive { text: Secret::new(text), file }
    }

    /// The value's, if it is set.
    pub(super) fn of(value: &Value) -> Option<Sensitive> {
        Some(Sensitive::new(value.text.as_deref()?, &value.origin))
    }

    /// What it is now. While its file is being replaced, what was read at the start goes on.
    #[must_use]
    pub fn current(&self) -> Secret {
        let read = self.file.as_ref().and_then(|path| secret_file(path).ok());
        read.map_or_else(|| self.text.clone(), Secret::new)
    }
}

impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
