//! Every parameter that libpq knows, its variable, and what this version does with it.
//!
//! Invariant: a parameter is ignored only when ignoring it cannot weaken security.

use super::TargetError;

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

const CERTIFICATES: &str = "the server's certificate is not verified and no client certificate is \
                            sent; sslmode=require encrypts without them";
const SERVICE: &str = "put the service's settings into the connection string or the PG* variables";
const OAUTH: &str = "log in with a password or without one";

const fn parameter(name: &'static str, variable: &'static str, rule: Rule) -> Parameter {
    Parameter { name, variable: if variable.is_empty() { None } else { Some(variable) }, rule }
}

#[rustfmt::skip]
static PARAMETERS: &[Parameter] = &[
    parameter("host", "PGHOST", Used),
    parameter("hostaddr", "PGHOSTADDR", Used),
    parameter("port", "PGPORT", Used),
    parameter("user", "PGUSER", Used),
    parameter("password", "PGPASSWORD", Used),
    parameter("dbname", "PGDATABASE", Used),
    parameter("options", "PGOPTIONS", Used),
    parameter("application_name", "PGAPPNAME", Used),
    parameter("connect_timeout", "PGCONNECT_TIMEOUT", Used),
    parameter("sslmode", "PGSSLMODE", Word {
        accepted: &["disable", "prefer", "require"],
        unsupported: &["allow", "verify-ca", "verify-full"],
        remedy: "use disable, prefer or require (which encrypts but does not verify the server's certificate)",
    }),
    parameter("target_session_attrs", "PGTARGETSESSIONATTRS", Word {
        accepted: &["any", "read-write"],
        unsupported: &["read-only", "primary", "standby", "prefer-standby"],
        remedy: "use read-write or any",
    }),

    parameter("sslrootcert", "PGSSLROOTCERT", Unsupported(CERTIFICATES)),
    parameter("sslcert", "PGSSLCERT", Unsupported(CERTIFICATES)),
    parameter("sslkey", "PGSSLKEY", Unsupported(CERTIFICATES)),
    parameter("sslpassword", "", Unsupported(CERTIFICATES)),
    parameter("sslcrl", "PGSSLCRL", Unsupported(CERTIFICATES)),
    parameter("sslcrldir", "PGSSLCRLDIR", Unsupported(CERTIFICATES)),
    parameter("sslkeylogfile", "", Unsupported("leave it out")),
    parameter("passfile", "", Unsupported("set PGPASSFILE")),
    parameter("service", "PGSERVICE", Unsupported(SERVICE)),
    parameter("servicefile", "", Unsupported(SERVICE)),
    parameter("require_auth", "PGREQUIREAUTH", Unsupported("the server alone chooses how to log in; set it in pg_hba.conf")),
    parameter("requirepeer", "PGREQUIREPEER", Unsupported("protect the socket by its directory's permissions")),
    parameter("scram_client_key", "", Unsupported("use a password")),
    parameter("scram_server_key", "", Unsupported("use a password")),
    parameter("oauth_issuer", "", Unsupported(OAUTH)),
    parameter("oauth_client_id", "", Unsupported(OAUTH)),
    parameter("oauth_client_secret", "", Unsupported(OAUTH)),
    parameter("oauth_scope", "", Unsupported(OAUTH)),
    parameter("replication", "", Unsupported("postrider opens its replication connection itself; leave it out")),

    parameter("channel_binding", "PGCHANNELBINDING", Word {
        accepted: &["prefer", "disable"], unsupported: &["require"], remedy: "use prefer or disable",
    }),
    parameter("gssencmode", "PGGSSENCMODE", Word {
        accepted: &["disable", "prefer"], unsupported: &["require"], remedy: "use disable, and sslmode=require to encrypt",
    }),
    parameter("sslnegotiation", "PGSSLNEGOTIATION", Word {
        accepted: &["postgres"], unsupported: &["direct"], remedy: "use postgres",
    }),
    parameter("sslcertmode", "PGSSLCERTMODE", Word {
        accepted: &["disable", "allow"], unsupported: &["require"], remedy: CERTIFICATES,
    }),
    parameter("sslsni", "PGSSLSNI", Word {
        accepted: &["1"], unsupported: &["0"], remedy: "the server's name is sent when TLS is used",
    }),
    parameter("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Word {
        accepted: &["", "TLSv1", "TLSv1.1", "TLSv1.2"], unsupported: &["TLSv1.3"], remedy: "TLS 1.2 or later is used, as the server chooses",
    }),
    parameter("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Word {
        accepted: &["", "TLSv1.3"], unsupported: &["TLSv1", "TLSv1.1", "TLSv1.2"], remedy: "TLS 1.2 or later is used, as the server chooses",
    }),
    parameter("min_protocol_version", "PGMINPROTOCOLVERSION", Word {
        accepted: &["", "3.0"], unsupported: &["3.2", "latest"], remedy: "protocol 3.0 is used",
    }),
    parameter("load_balance_hosts", "PGLOADBALANCEHOSTS", Word {
        accepted: &["disable"], unsupported: &["random"], remedy: "hosts are tried in the order given",
    }),
    parameter("client_encoding", "", Word {
        accepted: &["UTF8", "utf8", "UTF-8", "utf-8", "auto"], unsupported: &[], remedy: "",
    }),

    parameter("fallback_application_name", "", Ignored),
    parameter("keepalives", "", Ignored),
    parameter("keepalives_idle", "", Ignored),
    parameter("keepalives_interval", "", Ignored),
    parameter("keepalives_count", "", Ignored),
    parameter("tcp_user_timeout", "", Ignored),
    parameter("sslcompression", "", Ignored),
    parameter("max_protocol_version", "", Ignored),
    // GSSAPI is never used, so how it would be used does not matter.
    parameter("krbsrvname", "", Ignored),
    parameter("gsslib", "", Ignored),
    parameter("gssdelegation", "", Ignored),
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

    /// Takes from the environment what the connection string left out.
    pub(super) fn fill(&mut self, env: &dyn Fn(&str) -> Option<String>) {
        let has = |name: &str| self.given.iter().any(|(given, _)| given.name == name);
        let names_host = has("host") || has("hostaddr");
        for parameter in PARAMETERS {
            let (name, Some(variable)) = (parameter.name, parameter.variable) else { continue };
            if (names_host && matches!(name, "host" | "hostaddr"))
                || self.given.iter().any(|(given, _)| given.name == name)
            {
                continue;
            }
            if let Some(text) = env(variable).filter(|text| !text.is_empty()) {
                self.given.push((parameter, Value { part: variable, text }));
            }
        }
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
