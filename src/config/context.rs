//! A context of the NATS CLI (`nats context save`): what it says fills in what nothing else says.

use super::access::{IDENTITIES, is_explicit};
use super::load::{Environment, Origin, Value};
use crate::error::{Code, Failure};
use std::path::{Path, PathBuf};

/// Its fields and the keys that they fill.
const FIELDS: [(&str, &str); 15] = [
    ("url", "nats.url"),
    ("creds", "nats.creds"),
    ("nkey", "nats.nkey"),
    ("user_jwt", "nats.jwt"),
    ("user_seed", "nats.seed"),
    ("user", "nats.user"),
    ("password", "nats.password"),
    ("token", "nats.token"),
    ("ca", "nats.ca"),
    ("cert", "nats.cert"),
    ("key", "nats.key"),
    ("tls_first", "nats.tls_first"),
    ("jetstream_domain", "nats.domain"),
    ("jetstream_api_prefix", "nats.js_prefix"),
    ("inbox_prefix", "nats.inbox_prefix"),
];

/// Files may be named from the home folder on.
const PATHS: [&str; 5] = ["nats.creds", "nats.nkey", "nats.ca", "nats.cert", "nats.key"];

/// Fills `values` from the context that they name, if they name one.
pub(super) fn fill(values: &mut [Value], env: &Environment, problems: &mut Vec<Failure>) {
    let Some(context) = values.iter().find(|value| value.key.name == "nats.context") else { return };
    let Some(name) = context.text.clone() else { return };
    let origin = context.origin.clone();
    let mut fail = |message: String| {
        let remedy = "nats context ls shows those that there are; nats context save makes one";
        problems.push(Failure::new(
            Code::InvalidValue,
            format!("nats.context = `{}` ({origin}): {message}", name.escape_debug()),
            remedy,
        ));
    };
    if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
        return fail("a context's name is no path".to_owned());
    }
    let Some(path) = path(&name, env) else {
        return fail("neither XDG_CONFIG_HOME nor HOME is set".to_owned());
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => return fail(format!("{} cannot be read: {error}", path.display())),
    };
    let fields: serde_json::Map<String, serde_json::Value> = match serde_json::from_str(&text) {
        Ok(fields) => fields,
        // Its text may hold a password.
        Err(error) => return fail(format!("{}:{} is not JSON", path.display(), error.line())),
    };
    if let Some(serde_json::Value::String(nsc)) = fields.get("nsc")
        && !nsc.is_empty()
    {
        return fail(
            "it takes its credentials from nsc: nsc generate creds writes them to a file".to_owned(),
        );
    }
    let is_known = values.iter().any(|value| {
        IDENTITIES.concat().contains(&value.key.name) && value.text.is_some() && is_explicit(value)
    });
    for (field, name) in FIELDS {
        let text = match fields.get(field) {
            Some(serde_json::Value::String(text)) if !text.is_empty() => text.clone(),
            Some(serde_json::Value::Bool(true)) => "true".to_owned(),
            _ => continue,
        };
        if is_known && IDENTITIES.concat().contains(&name) {
            continue;
        }
        if let Some(value) = values.iter_mut().find(|value| value.key.name == name && !is_explicit(value)) {
            value.text = Some(if PATHS.contains(&name) { at_home(&text, env) } else { text });
            value.origin = Origin::Context(path.clone());
        }
    }
}

fn path(name: &str, env: &Environment) -> Option<PathBuf> {
    let folder = match env.get("XDG_CONFIG_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env.get("HOME")?).join(".config"),
    };
    Some(folder.join("nats/context").join(format!("{name}.json")))
}

fn at_home(path: &str, env: &Environment) -> String {
    match (path.strip_prefix("~/"), env.get("HOME")) {
        (Some(rest), Some(home)) => format!("{home}/{rest}"),
        _ => path.to_owned(),
    }
}
