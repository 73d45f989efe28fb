//! How a stream with other writers comes to hold the events too: it sources them from the relay's own
//! stream, which keeps their order (ADR-8 and the manual, "Source and Mirror Streams").

use super::stream::Stream;
use crate::error::{Code, Failure};
use serde_json::{Value, json};

/// The first server that takes the expected sequence off what it sources, and changes subjects on their
/// way. One before it refuses each event as out of place, for ever.
const SINCE: (i64, i64, i64) = (2, 10, 16);

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sourced {
    /// It sources from now on.
    Now,
    /// It did already.
    Already,
}

/// Lets `into` source what `from` holds on `subjects`, under `renamed` if that is given.
///
/// # Errors
/// PR0304 when `into` does not exist; PR0305 when it sources the stream otherwise, is a mirror, or the
/// server cannot change subjects.
pub async fn source(
    into: &Stream,
    from: &Stream,
    subjects: &str,
    renamed: Option<&str>,
) -> Result<Sourced, Failure> {
    let (major, minor, patch) = SINCE;
    if !into.is_server_compatible(major, minor, patch) {
        return Err(Failure::new(
            Code::StreamUnfit,
            "this nats-server cannot source a stream with expected sequences",
            "upgrade it to 2.10.16 or later",
        ));
    }
    let mut config = into.raw_config().await.map_err(|failure| match failure.code {
        Code::StreamMissing => {
            let remedy = format!(
                "make it first, with the subjects of its other writers: nats stream add {}",
                into.name()
            );
            Failure::new(failure.code, failure.message, remedy)
        }
        _ => failure,
    })?;
    let unfit = |what: String, remedy: &str| {
        Err(Failure::new(Code::StreamUnfit, format!("stream `{}` {what}", into.name()), remedy))
    };
    let Some(fields) = config.as_object_mut() else {
        return unfit("has no configuration".to_owned(), "report it");
    };
    if fields.get("mirror").is_some_and(|mirror| !mirror.is_null()) {
        return unfit(
            "is a mirror: it holds one stream's messages and no others".to_owned(),
            "choose another stream",
        );
    }
    let mut wanted = json!({ "name": from.name() });
    if let Some(renamed) = renamed {
        wanted["subject_transforms"] = json!([{ "src": subjects, "dest": renamed }]);
    }
    let sources = fields.entry("sources").or_insert(Value::Null);
    if sources.is_null() {
        *sources = json!([]);
    }
    let Some(sources) = sources.as_array_mut() else {
        return unfit("has odd sources".to_owned(), "report it");
    };
    if let Some(known) = sources.iter().find(|source| source["name"] == from.name()) {
        let transforms =
            |source: &Value| source.get("subject_transforms").filter(|one| !one.is_null()).cloned();
        let filter = known["filter_subject"].as_str().unwrap_or_default();
        if transforms(known) == transforms(&wanted) && filter.is_empty() {
            return Ok(Sourced::Already);
        }
        let remedy = "leave it so, or take that source out first: nats stream edit";
        return unfit(format!("sources `{}` already, under other subjects", from.name()), remedy);
    }
    sources.push(wanted);
    into.update(&config).await?;
    Ok(Sourced::Now)
}
