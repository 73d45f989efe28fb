//! Gathers the text of every key from flags, environment and file, and remembers where each came from.
//!
//! Nothing here stops at the first problem: all are collected, so that one run shows them all.
//! The process's environment is read in one place, [`Environment::of_process`].

use super::flags::Flags;
use super::keys::{self, KEYS, Key, Kind};
use crate::error::{Code, Failure};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

const CONFIG_VARIABLE: &str = "POSTRIDER_CONFIG";

/// What surrounds the process: its variables, and where a configuration file may lie.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    files: Vec<PathBuf>,
}

impl Environment {
    /// The process's own.
    #[must_use]
    pub fn of_process() -> Environment {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        Environment {
            variables: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
            files: vec!["postrider.toml".into(), "/etc/postrider/postrider.toml".into()],
        }
    }

    /// These variables and no file but the one that they or the flags name.
    pub fn of<N: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (N, V)>) -> Environment {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Environment { variables, files: Vec::new() }
    }

    /// The same, with configuration files to look for.
    #[must_use]
    pub fn with_files(mut self, files: impl IntoIterator<Item = PathBuf>) -> Environment {
        self.files = files.into_iter().collect();
        self
    }

    /// A variable; one that is empty counts as unset.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// Its variables may hold passwords.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment ({} variables)", self.variables.len())
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag, without its dashes.
    Flag(String),
    /// An environment variable.
    Variable(String),
    /// The file that a variable names.
    SecretFile(String, PathBuf),
    /// A line of the configuration file.
    File(PathBuf, usize),
    /// The file of a context of the NATS CLI.
    Context(PathBuf),
    /// Nobody set it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "--{name}"),
            Origin::Variable(name) => f.write_str(name),
            Origin::SecretFile(name, path) => write!(f, "{name} ({})", path.display()),
            Origin::File(path, line) => write!(f, "{}:{line}", path.display()),
            Origin::Context(path) => write!(f, "{}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// The text of one key.
#[derive(Clone)]
pub struct Value {
    /// Which key.
    pub key: &'static Key,
    /// Its text; none when nobody set it and it has no default. May be a secret.
    pub text: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.key.name, self.origin)
    }
}

/// One value a key, in the table's order, and all that is wrong so far.
pub(super) fn gather(flags: &Flags, env: &Environment) -> (Vec<Value>, Vec<Failure>) {
    let mut problems = Vec::new();
    unknown_variables(env, &mut problems);
    let mut file = match find_file(flags, env) {
        Ok(Some((path, text))) => read_file(&path, &text, &mut problems),
        Ok(None) => BTreeMap::new(),
        Err(failure) => {
            problems.push(failure);
            BTreeMap::new()
        }
    };
    let values = KEYS
        .iter()
        .map(|key| {
            let found = flags
                .get(key)
                .map(|text| (text.to_owned(), Origin::Flag(key.flag())))
                .or_else(|| from_environment(key, env, &mut problems))
                .or_else(|| file.remove(key.name));
            let (text, origin) = match found {
                Some((text, origin)) => (Some(text), origin),
                None => (key.default.map(str::to_owned), Origin::Default),
            };
            Value { key, text, origin }
        })
        .collect();
    (values, problems)
}

fn from_environment(key: &Key, env: &Environment, problems: &mut Vec<Failure>) -> Option<(String, Origin)> {
    key.envs().find_map(|name| {
        let file_name = format!("{name}_FILE");
        let file = if key.secret { env.get(&file_name) } else { None };
        match (env.get(&name), file) {
            (None, None) => None,
            (Some(text), None) => Some((text.to_owned(), Origin::Variable(name))),
            (None, Some(path)) => match secret_file(Path::new(path)) {
                Ok(text) => Some((text, Origin::SecretFile(file_name, path.into()))),
                Err(error) => {
                    let message = format!("{file_name} names {path}, which cannot be read: {error}");
                    problems.push(Failure::new(
                        Code::InvalidValue,
                        message,
                        format!("mend {file_name}, or set {name}"),
                    ));
                    None
                }
            },
            (Some(text), Some(_)) => {
                let message = format!("{name} and {file_name} are both set");
                problems.push(Failure::new(
                    Code::InvalidValue,
                    message,
                    format!("unset {name} or {file_name}"),
                ));
                Some((text.to_owned(), Origin::Variable(name)))
            }
        }
    })
}

/// What a file holds, without the end of its last line.
pub(super) fn secret_file(path: &Path) -> io::Result<String> {
    let text = fs::read_to_string(path)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn unknown_variables(env: &Environment, problems: &mut Vec<Failure>) {
    let mut known = vec![CONFIG_VARIABLE.to_owned()];
    for key in KEYS {
        known.push(key.env());
        if key.secret {
            known.push(format!("{}_FILE", key.env()));
        }
    }
    for name in env.variables.keys().filter(|name| name.starts_with("POSTRIDER_")) {
        let Some(value) = env.get(name) else { continue };
        if known.contains(name) || is_service_link(name, value) {
            continue;
        }
        let message = format!("the environment variable {} is not known", name.escape_default());
        problems.push(Failure::new(Code::UnknownKey, message, did_you_mean(keys::nearest(name, &known))));
    }
}

/// Kubernetes puts variables for each Service into every container of its namespace, and a Service
/// called `postrider` must not keep the relay from starting.
fn is_service_link(name: &str, value: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.contains("_PORT")
            && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme)))
        || ["_TCP_", "_UDP_", "_SCTP_"].iter().any(|protocol| {
            name.split_once(protocol).is_some_and(|(port, what)| {
                port.contains("_PORT_") && matches!(what, "PROTO" | "PORT" | "ADDR")
            })
        })
}

fn did_you_mean<S: fmt::Display>(name: Option<S>) -> String {
    name.map_or_else(
        || "remove it; `postrider config` prints all keys".to_owned(),
        |name| format!("did you mean `{name}`? `postrider config` prints all keys"),
    )
}

/// The configuration file: the one that is named, else the first that exists.
fn find_file(flags: &Flags, env: &Environment) -> Result<Option<(PathBuf, String)>, Failure> {
    let named = flags.config.clone().or_else(|| env.get(CONFIG_VARIABLE).map(PathBuf::from));
    let Some(path) = named.or_else(|| env.files.iter().find(|path| path.exists()).cloned()) else {
        return Ok(None);
    };
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) => {
            let message = format!("the configuration file {} cannot be read: {error}", path.display());
            let remedy = "give a readable file with --config, or none: DATABASE_URL and NATS_URL suffice";
            Err(Failure::new(Code::ConfigFile, message, remedy))
        }
    }
}

type FileValues = BTreeMap<&'static str, (String, Origin)>;

/// Walks the file against the table of keys.
fn read_file(path: &Path, text: &str, problems: &mut Vec<Failure>) -> FileValues {
    let line = |at: usize| text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
    let shown = path.display();
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            // The error's own rendering quotes the line, which may hold a password.
            let at = error.span().map_or(1, |span| line(span.start));
            let message = format!("{shown}:{at} is not TOML: {}", error.message());
            problems.push(Failure::new(Code::ConfigFile, message, "strings are quoted: stream = \"OUTBOX\""));
            return FileValues::new();
        }
    };

    let mut values = FileValues::new();
    let mut take = |name: &str, at: usize, value: &DeValue<'_>| {
        let Some(key) = keys::find(name) else {
            let message = format!("{shown}:{}: `{}` is not a key", line(at), name.escape_default());
            return problems.push(Failure::new(Code::UnknownKey, message, did_you_mean(nearest_key(name))));
        };
        match text_of(key, value) {
            Ok(text) => _ = values.insert(key.name, (text, Origin::File(path.to_owned(), line(at)))),
            Err(expected) => {
                let message = format!("{shown}:{}: `{name}` is {}", line(at), a(value.type_str()));
                problems.push(Failure::new(Code::InvalidValue, message, expected));
            }
        }
    };
    for (name, value) in table.get_ref() {
        let at = name.span().start;
        let name: &str = name.get_ref();
        match value.get_ref() {
            DeValue::Table(section) if keys::sections().any(|known| known == name) => {
                for (key, value) in section {
                    take(&format!("{name}.{}", key.get_ref()), key.span().start, value.get_ref());
                }
            }
            value => take(name, at, value),
        }
    }
    values
}

/// The key of that name in another section, else the one that is spelled most alike.
fn nearest_key(name: &str) -> Option<String> {
    let leaf = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    if let Some(section) = keys::nearest(name, keys::sections()) {
        return Some(format!("[{section}]"));
    }
    let names = || KEYS.iter().map(|key| key.name);
    let same = names().find(|known| leaf(known) == leaf(name));
    same.or_else(|| keys::nearest(name, names())).map(str::to_owned)
}

fn a(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// A TOML value as the text that a variable or a flag would hold.
fn text_of(key: &Key, value: &DeValue<'_>) -> Result<String, String> {
    let leaf = key.name.rsplit('.').next().unwrap_or_default();
    let example = match key.kind {
        Kind::Text(_) | Kind::Choice(_) => {
            format!("expected a string: {leaf} = \"{}\"", key.default.unwrap_or("…"))
        }
        Kind::Duration => format!("expected a string with a unit: {leaf} = \"250ms\", \"5s\" or \"2m\""),
        Kind::Size => format!("expected a string or an integer: {leaf} = \"8MiB\" or 8388608"),
        Kind::Integer => format!("expected an integer: {leaf} = {}", key.default.unwrap_or("1")),
        Kind::Boolean => format!("expected true or false, without quotes: {leaf} = true"),
    };
    match (key.kind, value) {
        (Kind::Text(_) | Kind::Choice(_) | Kind::Duration | Kind::Size, DeValue::String(text)) => {
            Ok(text.to_string())
        }
        (Kind::Size | Kind::Integer, DeValue::Integer(number)) => {
            let number = i128::from_str_radix(number.as_str(), number.radix()).map_err(|_| example)?;
            Ok(number.to_string())
        }
        (Kind::Boolean, DeValue::Boolean(value)) => Ok(value.to_string()),
        _ => Err(example),
    }
}
