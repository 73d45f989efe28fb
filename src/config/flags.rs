//! The command line's share: one option a key, made from the table.

use super::keys::{KEYS, Key, Kind};
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::LazyLock;

const HEADING: &str = "Configuration";
const CONFIG: &str = "config";

/// The options of every command that reads the configuration.
#[derive(Clone, Default)]
pub struct Flags {
    /// `--config FILE`.
    pub config: Option<PathBuf>,
    values: BTreeMap<&'static str, String>,
}

impl Flags {
    pub(super) fn get(&self, key: &Key) -> Option<&str> {
        self.values.get(key.name).map(String::as_str)
    }

    /// No flag but `--config path`.
    pub fn file(path: impl Into<PathBuf>) -> Flags {
        Flags { config: Some(path.into()), values: BTreeMap::new() }
    }

    /// The same flags with one more, as if it had been given.
    #[must_use]
    pub fn with(mut self, key: &'static Key, text: impl Into<String>) -> Flags {
        self.values.insert(key.name, text.into());
        self
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values can be secrets.
        f.debug_struct("Flags").field("config", &self.config).field("given", &self.values.keys()).finish()
    }
}

/// The long option and the word for its value, one pair a key: clap borrows them for ever.
static WORDS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let value = |key: &Key| match key.kind {
        Kind::Text(name) => name.to_owned(),
        Kind::Duration => "DURATION".into(),
        Kind::Size => "SIZE".into(),
        Kind::Integer => "NUMBER".into(),
        Kind::Boolean => "true|false".into(),
        Kind::Choice(choices) => choices.join("|"),
    };
    KEYS.iter().map(|key| (key.flag(), value(key))).collect()
});

// Values are checked later with those of all other sources, so that all problems are reported at once.
fn option((key, (flag, value)): (&'static Key, &'static (String, String))) -> Arg {
    let default = key.default.map_or(String::new(), |default| format!(" [default: {default}]"));
    let shared = key.shared_env.map_or(String::new(), |name| format!(", {name}"));
    let help = format!("{}{default} [env: {}{shared}]", key.doc, key.env());
    let arg = Arg::new(key.name).long(flag.as_str()).value_name(value.as_str());
    let arg = arg.help(help).help_heading(HEADING);
    if key.kind == Kind::Boolean {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        arg
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Configuration file; without it ./postrider.toml, then /etc/postrider/postrider.toml [env: POSTRIDER_CONFIG]")
            .help_heading(HEADING);
        command.arg(config).args(KEYS.iter().zip(WORDS.iter()).map(option))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |key: &'static Key| Some((key.name, matches.get_one::<String>(key.name)?.clone()));
        Ok(Flags {
            config: matches.get_one::<PathBuf>(CONFIG).cloned(),
            values: KEYS.iter().filter_map(given).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let new = Flags::from_arg_matches(matches)?;
        self.config = new.config.or(self.config.take());
        self.values.extend(new.values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::find;

    fn command() -> Command {
        Flags::augment_args(Command::new("postrider"))
    }

    fn flags(line: &[&str]) -> Flags {
        let matches = command().try_get_matches_from([&["postrider"], line].concat()).unwrap();
        Flags::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn the_options_are_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_key_has_an_option_whose_help_names_default_and_variable() {
        let help = command().render_long_help().to_string();
        for key in KEYS {
            assert!(help.contains(&format!("--{}", key.flag())), "{}", key.name);
            assert!(help.contains(&key.env()), "{}", key.name);
        }
        assert!(help.contains("[default: OUTBOX]") && help.contains("DATABASE_URL"), "{help}");
    }

    #[test]
    fn a_given_flag_is_kept_and_an_absent_one_is_not() {
        let flags = flags(&["--nats-stream", "X", "--config=a.toml"]);
        assert_eq!(flags.get(find("nats.stream").unwrap()), Some("X"));
        assert_eq!(flags.get(find("nats.url").unwrap()), None);
        assert_eq!(flags.config, Some("a.toml".into()));
    }

    #[test]
    fn a_boolean_flag_alone_means_true() {
        let key = find("nats.msg_id").unwrap();
        assert_eq!(flags(&["--nats-msg-id"]).get(key), Some("true"));
        assert_eq!(flags(&["--nats-msg-id=false"]).get(key), Some("false"));
    }

    #[test]
    fn debug_shows_no_values() {
        let flags = flags(&["--http-token", "secret"]);
        assert!(!format!("{flags:?}").contains("secret"));
    }
}
