//! `postrider config`: every key, its value and where that came from.

use super::Ended;
use crate::config::{Environment, Flags, Loaded};
use crate::error::{Code, Failure};
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write;

/// Show every key, its effective value and where that came from. Secrets are masked.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Example:\n  DATABASE_URL=postgres://app@db/shop NATS_URL=nats://localhost postrider config"
)]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// What every command takes.
    #[command(flatten)]
    flags: Flags,
}

/// Prints the whole table, also when some values are wrong.
///
/// # Errors
/// All problems of the configuration, or `out` cannot be written.
pub(super) fn run(args: &Args, env: &Environment, out: &mut dyn Write) -> Ended {
    let loaded = Loaded::from(&args.flags, env);
    let text = if args.json { as_json(&loaded) } else { table(&loaded) };
    out.write_all(text.as_bytes()).map_err(|error| {
        vec![Failure::new(Code::Unexpected, format!("write the configuration: {error}"), "")]
    })?;
    loaded.config.map(drop)
}

fn table(loaded: &Loaded) -> String {
    let lines: Vec<[String; 3]> = loaded
        .values
        .iter()
        .map(|value| {
            let shown = loaded.shown(value).unwrap_or_else(|| "-".to_owned());
            let shown = shown.replace(char::is_control, "\u{fffd}");
            [value.key.name.to_owned(), shown, value.origin.to_string()]
        })
        .collect();
    let width = |column: fn(&[String; 3]) -> &str| {
        lines.iter().map(|line| column(line).chars().count()).max().unwrap_or_default()
    };
    let (names, values) = (width(|[name, ..]| name), width(|[_, value, _]| value));
    lines.iter().fold(String::new(), |mut text, [name, value, origin]| {
        let _ = writeln!(text, "{name:names$}  {value:values$}  {origin}");
        text
    })
}

fn as_json(loaded: &Loaded) -> String {
    let keys: Vec<_> = loaded
        .values
        .iter()
        .map(|value| {
            json!({
                "key": value.key.name,
                "value": loaded.shown(value),
                "origin": value.origin.to_string(),
                "secret": value.key.secret,
            })
        })
        .collect();
    let problems: Vec<_> = loaded
        .config
        .as_ref()
        .err()
        .into_iter()
        .flatten()
        .map(|problem| {
            json!({
                "code": problem.code.as_str(),
                "message": problem.message,
                "remedy": problem.remedy,
            })
        })
        .collect();
    format!("{:#}\n", json!({ "keys": keys, "problems": problems }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::KEYS;

    fn show(json: bool, variables: &[(&str, &str)]) -> (String, Ended) {
        let mut out = Vec::new();
        let args = Args { json, flags: Flags::default() };
        let result = run(&args, &Environment::of(variables.iter().copied()), &mut out);
        (String::from_utf8(out).unwrap(), result)
    }

    const SERVERS: [(&str, &str); 3] =
        [("DATABASE_URL", "postgres://app:s3cret@db/shop"), ("NATS_URL", "me:s3cret@n"), ("USER", "me")];

    #[test]
    fn every_key_is_shown_with_value_and_origin_and_secrets_are_masked() {
        let (text, result) = show(false, &SERVERS);
        assert!(result.is_ok());
        assert_eq!(text.lines().count(), KEYS.len());
        let line = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(line("postgres.url"), ["postgres.url", "app@db:5432/shop", "DATABASE_URL"]);
        assert_eq!(line("nats.url"), ["nats.url", "me:***@n", "NATS_URL"]);
        assert_eq!(line("nats.stream"), ["nats.stream", "OUTBOX", "default"]);
        assert_eq!(line("http.token"), ["http.token", "-", "default"]);
    }

    #[test]
    fn the_table_is_printed_also_when_there_are_problems() {
        let (text, result) = show(false, &[("DATABASE_URL", "postgres://app:s3cret@db:x")]);
        assert_eq!(text.lines().count(), KEYS.len());
        assert!(!text.contains("s3cret"), "{text}");
        assert_eq!(result.unwrap_err().len(), 2);
    }

    #[test]
    fn json_holds_keys_and_problems() {
        let (text, _) = show(true, &[SERVERS[0], SERVERS[2]]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["keys"].as_array().unwrap().len(), KEYS.len());
        assert_eq!(json["problems"][0]["code"], "PR0103");
        assert!(!text.contains("s3cret"), "{text}");
    }
}
