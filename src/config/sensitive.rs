//! Text that is not for showing, and that may be replaced while the relay runs.

use super::load::{Origin, Value, secret_file};
use crate::postgres::target::Secret;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A secret with its origin. What came from a file is read again whenever it is asked for, so that
/// rotating it takes no restart.
#[derive(Clone)]
pub struct Sensitive {
    /// What was read last.
    text: Arc<Mutex<Secret>>,
    file: Option<PathBuf>,
}

impl Sensitive {
    pub(super) fn new(text: &str, origin: &Origin) -> Sensitive {
        let file = match origin {
            Origin::SecretFile(_, path) => Some(path.clone()),
            _ => None,
        };
        Sensitive { text: Arc::new(Mutex::new(Secret::new(text))), file }
    }

    /// The value's, if it is set.
    pub(super) fn of(value: &Value) -> Option<Sensitive> {
        Some(Sensitive::new(value.text.as_deref()?, &value.origin))
    }

    /// What it is now. While its file is being replaced, and so is missing or empty, what was read last
    /// goes on.
    #[must_use]
    pub fn current(&self) -> Secret {
        let read = self.file.as_ref().and_then(|path| secret_file(path).ok());
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = read.filter(|read| !read.trim().is_empty()) {
            *text = Secret::new(read);
        }
        text.clone()
    }
}

impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
