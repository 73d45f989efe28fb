//! The definition of a service: a section of `pg_service.conf` (Postgres manual, "The Connection
//! Service File"). What the connection string gives goes before it, the environment after it.

use super::parameters::Settings;
use super::{Surroundings, TargetError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where Debian's libpq looks when `PGSYSCONFDIR` names no other folder.
const SYSTEM_FOLDER: &str = "/etc/postgresql-common";

/// Adds what the service says, if one is named.
pub(super) fn fill(settings: &mut Settings, surroundings: &Surroundings<'_>) -> Result<(), TargetError> {
    let given = |settings: &Settings, name: &str, variable: &str| {
        settings.get(name).map(|value| value.text.clone()).or_else(|| surroundings.variable(variable))
    };
    let Some(service) = given(settings, "service", "PGSERVICE") else { return Ok(()) };
    let named = given(settings, "servicefile", "PGSERVICEFILE").map(PathBuf::from);
    let system = surroundings.variable("PGSYSCONFDIR").map_or_else(|| SYSTEM_FOLDER.into(), PathBuf::from);

    let own = match &named {
        Some(path) => Some(read(path)?.ok_or_else(|| invalid(path, "does not exist"))?),
        None => match surroundings.home() {
            Some(home) => read(&home.join(".pg_service.conf"))?,
            None => None,
        },
    };
    let own_path = named.unwrap_or_else(|| "~/.pg_service.conf".into());
    if let Some(text) = own
        && define(settings, &service, &text, &own_path)?
    {
        return Ok(());
    }
    let path = system.join("pg_service.conf");
    if let Some(text) = read(&path)?
        && define(settings, &service, &text, &path)?
    {
        return Ok(());
    }
    Err(TargetError::Invalid {
        part: "service",
        problem: format!(
            "`{service}` is defined neither in {} nor in {}",
            own_path.display(),
            path.display()
        ),
    })
}

fn read(path: &Path) -> Result<Option<String>, TargetError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(invalid(path, &format!("cannot be read: {error}"))),
    }
}

/// Reads the section of that name; whether there is one.
fn define(settings: &mut Settings, service: &str, text: &str, path: &Path) -> Result<bool, TargetError> {
    let mut found = false;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            if found {
                return Ok(true);
            }
            found = section.split(']').next() == Some(service);
            continue;
        }
        if !found {
            continue;
        }
        let at = |problem: &str| invalid(path, &format!("line {}: {problem}", number + 1));
        let (name, value) = line.split_once('=').ok_or_else(|| at("is not `parameter=value`"))?;
        if name.starts_with("service") {
            return Err(at("a service cannot name another"));
        }
        if !settings.offer(name, value) {
            return Err(at("libpq has no such parameter"));
        }
    }
    Ok(found)
}

fn invalid(path: &Path, problem: &str) -> TargetError {
    TargetError::Invalid { part: "service file", problem: format!("{} {problem}", path.display()) }
}
