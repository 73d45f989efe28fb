//! What of a connection string says about how the server may ask for proof of who we are.

use super::TargetError;
use super::parameters::{Settings, Value};

/// What the login must be like (Postgres manual, "Database Connection Control Functions").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// `channel_binding`.
    pub channel_binding: ChannelBinding,
    /// `require_auth`: nothing but these; `None` when the server may choose.
    pub methods: Option<Vec<Method>>,
    /// `require_auth` names `password`: it may be sent to the server also where the network can read it.
    pub cleartext: bool,
}

/// Whether SCRAM proves that the TLS connection ends at the server that knows the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    Prefer,
    /// Always, or fail.
    Require,
}

/// A way to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The password itself.
    Password,
    /// A hash of it.
    Md5,
    /// SCRAM-SHA-256, with or without channel binding.
    ScramSha256,
    /// Not supported; named by `require_auth`.
    Gss,
    /// Not supported; named by `require_auth`.
    Sspi,
    /// Not supported; named by `require_auth`.
    Oauth,
    /// The server asks for nothing, or for a client certificate.
    None,
}

impl Method {
    const ALL: [Method; 7] = [
        Method::Password,
        Method::Md5,
        Method::ScramSha256,
        Method::Gss,
        Method::Sspi,
        Method::Oauth,
        Method::None,
    ];

    /// As `require_auth` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Method::Password => "password",
            Method::Md5 => "md5",
            Method::ScramSha256 => "scram-sha-256",
            Method::Gss => "gss",
            Method::Sspi => "sspi",
            Method::Oauth => "oauth",
            Method::None => "none",
        }
    }
}

impl Login {
    /// Whether the server may ask for it.
    #[must_use]
    pub fn permits(&self, method: Method) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.contains(&method))
    }
}

/// Reads it.
pub(super) fn resolve(settings: &Settings) -> Result<Login, TargetError> {
    let channel_binding = match settings.get("channel_binding").map(|value| value.text.as_str()) {
        Some("disable") => ChannelBinding::Disable,
        Some("require") => ChannelBinding::Require,
        _ => ChannelBinding::Prefer,
    };
    let asked = settings.get("require_auth");
    let cleartext =
        asked.is_some_and(|value| value.list().iter().any(|entry| entry.trim() == Method::Password.name()));
    Ok(Login { channel_binding, methods: asked.map(methods).transpose()?, cleartext })
}

/// A list of methods, or, with a `!` before each, of those that are not wanted.
fn methods(value: &Value) -> Result<Vec<Method>, TargetError> {
    let invalid = |problem: String| TargetError::Invalid { part: value.part, problem };
    let mut named = Vec::new();
    let mut negative = None;
    for entry in value.list() {
        let entry = entry.trim();
        let (not, name) = entry.strip_prefix('!').map_or((false, entry), |name| (true, name));
        if *negative.get_or_insert(not) != not {
            return Err(invalid("mixes methods with and without !".to_owned()));
        }
        let method = Method::ALL.into_iter().find(|method| method.name() == name);
        named.push(method.ok_or_else(|| {
            let known = Method::ALL.map(Method::name);
            invalid(format!("must be a list of: {}; or of these with a ! before each", known.join(", ")))
        })?);
    }
    Ok(match negative {
        Some(true) => Method::ALL.into_iter().filter(|method| !named.contains(method)).collect(),
        _ => named,
    })
}
