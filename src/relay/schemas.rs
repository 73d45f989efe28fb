//! The folder of schemas, read once: what [`Schemas`] makes of its files.
//!
//! Only files directly in it whose names end in `.json` count; links are followed, as a mounted
//! ConfigMap needs.

use crate::config::Config;
use crate::error::{Code, Failure};
use crate::outbox::{Mapping, Schemas};
use std::path::Path;
use std::sync::Arc;

/// The mapping of `config`, with the schemas that its folder holds.
///
/// # Errors
/// What [`Mapping::new`] refuses; PR0114 with all faults of the folder.
pub fn mapping(config: &Config) -> Result<Mapping, Failure> {
    let mapping = Mapping::new(&config.outbox.settings(&config.nats))?;
    match read(config)? {
        Some(schemas) => Ok(mapping.validated(Arc::new(schemas))),
        None => Ok(mapping),
    }
}

/// None where none are configured.
fn read(config: &Config) -> Result<Option<Schemas>, Failure> {
    let Some(folder) = &config.validate.schemas else { return Ok(None) };
    let (files, mut faults) = files(folder);
    let schemas = Schemas::compile(files).map_err(|more| faults.extend(more));
    match schemas {
        Ok(schemas) if faults.is_empty() => Ok(Some(schemas)),
        _ => Err(Failure::new(
            Code::SchemasUnusable,
            format!("validate.schemas = `{}` cannot be used: {}", folder.display(), faults.join("; ")),
            "mend or remove what is named; no event is published or made a dead letter until then",
        )),
    }
}

/// Names with contents, and what cannot be read.
fn files(folder: &Path) -> (Vec<(String, Vec<u8>)>, Vec<String>) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return (Vec::new(), vec![format!("the folder cannot be read: {error}")]),
    };
    let (mut files, mut faults) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                faults.push(format!("the folder cannot be read: {error}"));
                continue;
            }
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".json") || entry.path().is_dir() {
            continue;
        }
        match std::fs::read(entry.path()) {
            Ok(content) => files.push((name, content)),
            Err(error) => faults.push(format!("{name} cannot be read: {error}")),
        }
    }
    (files, faults)
}
