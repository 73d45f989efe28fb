//! Who we are to a NATS server, proved anew at each connection (ADR-14 for JWTs and nkeys).

use crate::config::{Access, Identity};
use crate::postgres::target::Secret;
use async_nats::{Auth, ServerAddr};
use nkeys::KeyPair;
use percent_encoding::percent_decode_str;
use std::path::Path;

/// Why we cannot say who we are.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginError {
    #[error("{path} cannot be read: {source}")]
    Unreadable { path: String, source: std::io::Error },
    #[error("{0} holds no user JWT with its seed")]
    NoCredentials(String),
    #[error("{0} is no seed of a user's nkey")]
    NoSeed(String),
}

/// What is sent to a server that gave us this nonce.
pub(super) fn auth(access: &Access, nonce: &[u8]) -> Result<Auth, LoginError> {
    let mut auth = Auth::new();
    match &access.identity {
        Identity::Url => match of_url(&access.url.current()) {
            Some((user, Some(password))) => (auth.username, auth.password) = (Some(user), Some(password)),
            Some((token, None)) => auth.token = Some(token),
            None => {}
        },
        Identity::Credentials(path) => {
            let shown = path.display().to_string();
            let (jwt, seed) = parts(&read(path)?).ok_or_else(|| LoginError::NoCredentials(shown.clone()))?;
            sign(&mut auth, &seed, nonce, &shown)?;
            auth.jwt = Some(jwt);
        }
        Identity::Nkey(path) => {
            let shown = path.display().to_string();
            let text = read(path)?;
            // A credentials file will do too; a seed alone may have comments around it.
            let words = || text.expose().split_whitespace();
            let seed = words().find(|word| word.starts_with("SU")).unwrap_or_default();
            let key = sign(&mut auth, &Secret::new(seed), nonce, &shown)?;
            auth.nkey = Some(key);
        }
        Identity::Seed { jwt, seed } => {
            let key = sign(&mut auth, &seed.current(), nonce, "nats.seed")?;
            match jwt {
                Some(jwt) => auth.jwt = Some(jwt.current().expose().trim().to_owned()),
                None => auth.nkey = Some(key),
            }
        }
        Identity::User { user, password } => {
            auth.username = Some(user.clone());
            auth.password = password.as_ref().map(|password| password.current().expose().to_owned());
        }
        Identity::Token(token) => auth.token = Some(token.current().expose().to_owned()),
    }
    Ok(auth)
}

/// Who we are, to be shown.
pub(super) fn shown(access: &Access) -> String {
    match &access.identity {
        Identity::Url => match of_url(&access.url.current()) {
            Some((user, Some(_))) => format!("user `{user}` of nats.url"),
            Some((_, None)) => "the bearer of the token of nats.url".to_owned(),
            None => "nobody".to_owned(),
        },
        Identity::Credentials(path) => format!("the user of nats.creds {}", path.display()),
        Identity::Nkey(path) => format!("the user of nats.nkey {}", path.display()),
        Identity::Seed { .. } => "the user of nats.seed".to_owned(),
        Identity::User { user, .. } => format!("user `{user}` of nats.user"),
        Identity::Token(_) => "the bearer of nats.token".to_owned(),
    }
}

fn read(path: &Path) -> Result<Secret, LoginError> {
    let text = std::fs::read_to_string(path);
    text.map(Secret::new)
        .map_err(|source| LoginError::Unreadable { path: path.display().to_string(), source })
}

/// Signs the nonce; the public key.
fn sign(auth: &mut Auth, seed: &Secret, nonce: &[u8], shown: &str) -> Result<String, LoginError> {
    let wrong = |_| LoginError::NoSeed(shown.to_owned());
    let pair = KeyPair::from_seed(seed.expose().trim()).map_err(wrong)?;
    auth.signature = Some(pair.sign(nonce).map_err(wrong)?);
    Ok(pair.public_key())
}

/// JWT and seed of a credentials file: each between two lines of dashes.
fn parts(text: &Secret) -> Option<(String, Secret)> {
    let mut lines = text.expose().lines().map(str::trim);
    let mut part = |mark: &str| {
        lines.find(|line| line.starts_with("---") && line.contains(mark))?;
        lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---")).map(str::to_owned)
    };
    Some((part("BEGIN NATS USER JWT")?, Secret::new(part("BEGIN USER NKEY SEED")?)))
}

/// The first URL's `user:password@` that has any, or a token alone. A cluster knows its users on every
/// server.
fn of_url(url: &Secret) -> Option<(String, Option<String>)> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    url.expose().split(',').find_map(|server| {
        let address: ServerAddr = server.trim().parse().ok()?;
        let user = address.username().filter(|user| !user.is_empty())?;
        Some((decoded(user), address.password().map(decoded)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_credentials_file_has_its_jwt_before_its_seed() {
        let text = "-----BEGIN NATS USER JWT-----\neyJ0.x-_.y\n------END NATS USER JWT------\n\n\
                    * IMPORTANT *\n\n-----BEGIN USER NKEY SEED-----\r\nSUABC\r\n------END USER NKEY SEED------\n";
        let (jwt, seed) = parts(&Secret::new(text)).unwrap();
        assert_eq!((jwt.as_str(), seed.expose()), ("eyJ0.x-_.y", "SUABC"));
        for cut in ["", "SUABC", "-----BEGIN NATS USER JWT-----\n------END NATS USER JWT------\n"] {
            assert!(parts(&Secret::new(cut)).is_none(), "{cut}");
        }
    }

    #[test]
    fn the_first_url_with_a_user_says_who_we_are() {
        let of = |url: &str| of_url(&Secret::new(url));
        assert_eq!(of("nats://a:4222"), None);
        assert_eq!(of("a:4222, nats://u:p%40@b"), Some(("u".into(), Some("p@".into()))));
        assert_eq!(of("nats://t0k3n@b"), Some(("t0k3n".into(), None)));
    }
}
