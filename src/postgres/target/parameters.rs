//! Every parameter that libpq knows, its variable, and what this version does with it.
//!
//! Invariant: a parameter is ignored only when ignoring it cannot weaken security.

use super::TargetError;
use std::time::Duration;

struct Parameter {
    name: &'static str,
    variable: Option<&'static str>,
    rule: Rule,
}

enum Rule {
    /// Read by `resolve`.
    Used,
    /// Makes no difference here, whatever its value.
    Ignored,
    /// A fixed word. Those under `accepted` are what we do anyway or are read by `resolve`.
    Word { accepted: &'static [&'static str], unsupported: &'static [&'static str], remedy: &'static str },
    /// Cannot be set.
    Unsupported(&'static str),
}
use Rule::{Ignored, Unsupported, Used, Word};

const OAUTH: &str = "log in with a password, a certificate, or without either";

const fn parameter(name: &'static str, variable: &'static str, rule: Rule) -> Parameter {
    Parameter { name, variable: if variable.is_empty() { None } else { Some(variable) }, rule }
}

const TLS_VERSIONS: Rule =
    Word { accepted: &["", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"], unsupported: &[], remedy: "" };

#[rustfmt::skip]
static PARAMETERS: &[Parameter] = &[
    parameter("host", "PGHOST", Used),
    parameter("hostaddr", "PGHOSTADDR", Used),
    parameter("port", "PGPORT", Used),
    parameter("user", "PGUSER", Used),
    parameter("password", "PGPASSWORD", Used),
    parameter("passfile", "PGPASSFILE", Used),
    parameter("dbname", "PGDATABASE", Used),
    parameter("options", "PGOPTIONS", Used),
    parameter("application_name", "PGAPPNAME", Used),
    parameter("fallback_application_name", "", Used),
    parameter("service", "PGSERVICE", Used),
    parameter("servicefile", "PGSERVICEFILE", Used),
    parameter("connect_timeout", "PGCONNECT_TIMEOUT", Used),
    parameter("keepalives", "", Used),
    parameter("keepalives_idle", "", Used),
    parameter("keepalives_interval", "", Used),
    parameter("keepalives_count", "", Used),
    parameter("tcp_user_timeout", "", Used),
    parameter("target_session_attrs", "PGTARGETSESSIONATTRS", Word {
        accepted: &["any", "read-write", "primary"],
        unsupported: &["read-only", "standby", "prefer-standby"],
        remedy: "the relay writes its row: use read-write, primary or any",
    }),
    parameter("load_balance_hosts", "PGLOADBALANCEHOSTS", Word {
        accepted: &["disable", "random"], unsupported: &[], remedy: "",
    }),

    parameter("sslmode", "PGSSLMODE", Word {
        accepted: &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"],
        unsupported: &[],
        remedy: "",
    }),
    parameter("sslnegotiation", "PGSSLNEGOTIATION", Word {
        accepted: &["postgres", "direct"], unsupported: &[], remedy: "",
    }),
    parameter("sslrootcert", "PGSSLROOTCERT", Used),
    parameter("sslcert", "PGSSLCERT", Used),
    parameter("sslkey", "PGSSLKEY", Used),
    parameter("sslcertmode", "PGSSLCERTMODE", Word {
        accepted: &["disable", "allow"], unsupported: &["require"], remedy: "ask for the certificate in the server's pg_hba.conf: clientcert=verify-full",
    }),
    parameter("sslsni", "PGSSLSNI", Word { accepted: &["0", "1"], unsupported: &[], remedy: "" }),
    parameter("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", TLS_VERSIONS),
    parameter("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", TLS_VERSIONS),
    parameter("sslpassword", "", Unsupported("decrypt the key: openssl pkey -in encrypted.key -out client.key; chmod 600 client.key")),
    parameter("sslcrl", "PGSSLCRL", Unsupported("issue server certificates for a short time instead")),
    parameter("sslcrldir", "PGSSLCRLDIR", Unsupported("issue server certificates for a short time instead")),
    parameter("sslkeylogfile", "", Unsupported("leave it out")),

    parameter("channel_binding", "PGCHANNELBINDING", Word {
        accepted: &["disable", "prefer", "require"], unsupported: &[], remedy: "",
    }),
    parameter("require_auth", "PGREQUIREAUTH", Used),
    parameter("requirepeer", "PGREQUIREPEER", Unsupported("protect the socket by its directory's permissions")),
    parameter("gssencmode", "PGGSSENCMODE", Word {
        accepted: &["disable", "prefer"], unsupported: &["require"], remedy: "use disable, and sslmode=verify-full to encrypt",
    }),
    parameter("scram_client_key", "", Unsupported("use a password")),
    parameter("scram_server_key", "", Unsupported("use a password")),
    parameter("oauth_issuer", "", Unsupported(OAUTH)),
    parameter("oauth_client_id", "", Unsupported(OAUTH)),
    parameter("oauth_client_secret", "", Unsupported(OAUTH)),
    parameter("oauth_scope", "", Unsupported(OAUTH)),
    parameter("replication", "", Unsupported("postrider opens its replication connection itself; leave it out")),

    parameter("min_protocol_version", "PGMINPROTOCOLVERSION", Word {
        accepted: &["", "3.0"], unsupported: &["3.2", "latest"], remedy: "protocol 3.0 is used",
    }),
    parameter("client_encoding", "", Word {
        accepted: &["UTF8", "utf8", "UTF-8", "utf-8", "auto"], unsupported: &[], remedy: "",
    }),

    parameter("sslcompression", "", Ignored),
    parameter("max_protocol_version", "PGMAXPROTOCOLVERSION", Ignored),
    // GSSAPI is never used, so how it would be used does not matter.
    parameter("krbsrvname", "PGKRBSRVNAME", Ignored),
    parameter("gsslib", "PGGSSLIB", Ignored),
    parameter("gssdelegation", "PGGSSDELEGATION", Ignored),
];

/// What other drivers call them.
const ALIASES: [(&str, &str); 7] = [
    ("database", "dbname"),
    ("db", "dbname"),
    ("username", "user"),
    ("pass", "password"),
    ("pwd", "password"),
    ("ssl", "sslmode"),
    ("timeout", "connect_timeout"),
];

/// The parameters given so far.
#[derive(Default)]
pub(super) struct Settings {
    given: Vec<(&'static Parameter, Value)>,
    after_password: bool,
}

/// A value and where it came from, as it is called in errors.
pub(super) struct Value {
    pub(super) part: &'static str,
    pub(super) text: String,
}

impl Value {
    /// A number; libpq allows blanks around it.
    pub(super) fn number(&self) -> Result<i32, TargetError> {
        self.text.trim().parse().map_err(|_| TargetError::Invalid {
            part: self.part,
            problem: "must be a whole number".to_owned(),
        })
    }

    /// Whole seconds; none when they are not more than zero, which stands for the default.
    pub(super) fn seconds(&self) -> Result<Option<Duration>, TargetError> {
        let seconds = u64::try_from(self.number()?).ok().filter(|seconds| *seconds > 0);
        Ok(seconds.map(Duration::from_secs))
    }

    /// The entries of a comma-separated list.
    pub(super) fn list(&self) -> Vec<&str> {
        self.text.split(',').collect()
    }
}

impl Settings {
    /// Sets a parameter of the connection string; the last of several wins, as in libpq.
    pub(super) fn set(&mut self, name: &str, text: String) -> Result<(), TargetError> {
        // An unquoted password with a blank or & in it goes on as if it were another parameter.
        let after_password = std::mem::replace(&mut self.after_password, name == "password");
        let Some(parameter) = PARAMETERS.iter().find(|parameter| parameter.name == name) else {
            return Err(if after_password || !is_word(name) {
                TargetError::UnknownUnshown
            } else {
                TargetError::Unknown { name: name.to_owned(), suggestion: nearest(name) }
            });
        };
        self.given.retain(|(given, _)| given.name != name);
        self.given.push((parameter, Value { part: parameter.name, text }));
        Ok(())
    }

    /// Sets what a service's definition gives and the connection string left out; whether the
    /// parameter is known.
    pub(super) fn offer(&mut self, name: &str, text: &str) -> bool {
        let Some(parameter) = PARAMETERS.iter().find(|parameter| parameter.name == name) else {
            return false;
        };
        if !self.has(name) {
            self.given.push((parameter, Value { part: parameter.name, text: text.to_owned() }));
        }
        true
    }

    /// Takes from the environment what was left out until now.
    pub(super) fn fill(&mut self, variable: &dyn Fn(&str) -> Option<String>) {
        for parameter in PARAMETERS {
            let Some(name) = parameter.variable.filter(|_| !self.has(parameter.name)) else { continue };
            if let Some(text) = variable(name) {
                self.given.push((parameter, Value { part: name, text }));
            }
        }
        // Older than PGSSLMODE, and still read where that is not set.
        if !self.has("sslmode") && variable("PGREQUIRESSL").is_some_and(|text| text.starts_with('1')) {
            let sslmode = PARAMETERS.iter().find(|parameter| parameter.name == "sslmode");
            let required =
                |parameter| (parameter, Value { part: "PGREQUIRESSL", text: "require".to_owned() });
            self.given.extend(sslmode.map(required));
        }
    }

    fn has(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| given.name == name)
    }

    /// Refuses what this version would have to ignore and must not.
    pub(super) fn check(&self) -> Result<(), TargetError> {
        for (parameter, value) in &self.given {
            let text = value.text.as_str();
            if text.contains('\0') {
                let problem = "contains a zero byte".to_owned();
                return Err(TargetError::Invalid { part: value.part, problem });
            }
            match &parameter.rule {
                Used | Ignored => {}
                Word { accepted, .. } if accepted.contains(&text) => {}
                Word { unsupported, remedy, .. } if unsupported.contains(&text) => {
                    let part = format!("{}={text}", value.part);
                    return Err(TargetError::Unsupported { part, remedy });
                }
                Word { accepted, .. } => {
                    let possible: Vec<_> = accepted.iter().filter(|word| !word.is_empty()).copied().collect();
                    let problem = format!("must be one of: {}", possible.join(", "));
                    return Err(TargetError::Invalid { part: value.part, problem });
                }
                // An empty value turns it off, also in libpq.
                Unsupported(_) if text.is_empty() => {}
                Unsupported(remedy) => {
                    let part = value.part.to_owned();
                    return Err(TargetError::Unsupported { part, remedy });
                }
            }
        }
        Ok(())
    }

    /// A parameter that was given and is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let (_, value) = self.given.iter().find(|(given, _)| given.name == name)?;
        Some(value).filter(|value| !value.text.is_empty())
    }
}

/// Whether it can be a parameter's name, and so is fit to be shown.
fn is_word(name: &str) -> bool {
    const NAME_MAX: usize = 40;
    (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

fn nearest(name: &str) -> Option<&'static str> {
    const EDITS_MAX: usize = 2;
    let lower = name.to_ascii_lowercase();
    if let Some((_, known)) = ALIASES.iter().find(|(alias, _)| *alias == lower) {
        return Some(known);
    }
    PARAMETERS
        .iter()
        .map(|parameter| (strsim::damerau_levenshtein(&lower, parameter.name), parameter.name))
        .filter(|(edits, known)| *edits <= EDITS_MAX && *edits < known.len() / 2)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, known)| known)
}
