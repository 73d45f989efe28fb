//! `postrider explain`: the error catalogue, for people.

use super::Ended;
use crate::config::keys::nearest;
use crate::error::{Code, Disposition, Failure};
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write;

/// Say what an error code means and what to do about it.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  postrider explain PR0403\n  postrider explain            # all codes")]
pub(super) struct Args {
    /// The code, like PR0403; without it all codes are listed.
    code: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Explains one code, or lists all.
///
/// # Errors
/// The code does not exist, or `out` cannot be written.
pub(super) fn run(args: &Args, out: &mut dyn Write) -> Ended {
    let text = match &args.code {
        Some(text) => {
            let code = text.trim().parse().map_err(|_| vec![unknown(text)])?;
            if args.json { format!("{:#}\n", as_json(code)) } else { explained(code) }
        }
        None if args.json => {
            let codes: Vec<_> = Code::all().iter().map(|code| as_json(*code)).collect();
            format!("{:#}\n", json!({ "codes": codes }))
        }
        None => list(),
    };
    out.write_all(text.as_bytes())
        .map_err(|error| vec![Failure::new(Code::Unexpected, format!("write the explanation: {error}"), "")])
}

fn unknown(text: &str) -> Failure {
    let message = format!("there is no code `{}`", text.escape_debug());
    let codes = Code::all().iter().map(|code| code.as_str());
    let remedy = match nearest(text, codes) {
        Some(code) => format!("did you mean {code}? postrider explain {code}"),
        None => "postrider explain".to_owned(),
    };
    Failure::new(Code::InvalidValue, message, remedy)
}

fn list() -> String {
    let mut text = String::from("code    exit  meaning\n");
    for code in Code::all() {
        let _ = writeln!(text, "{code}  {:<4}  {}", code.exit() as u8, code.title());
    }
    text
}

fn explained(code: Code) -> String {
    format!(
        "{code}: {}\n\n{}\n\n{} Exit status {}.\n",
        code.title(),
        code.explain(),
        what_the_relay_does(code.disposition()),
        code.exit() as u8
    )
}

fn what_the_relay_does(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::Retry => "The relay waits and tries again by itself; a command gives up.",
        Disposition::Poison => {
            "The event becomes a dead letter, and those behind it go on; where the settings or too many of them in \
             a row ask for it, the relay halts at it instead."
        }
        Disposition::Operator => {
            "At the start the relay exits; later it stays, is not ready, and goes on once this is mended."
        }
        Disposition::Halt => "The process ends: going on would not be safe.",
    }
}

fn as_json(code: Code) -> serde_json::Value {
    json!({
        "code": code.as_str(),
        "title": code.title(),
        "explanation": code.explain(),
        "exit": code.exit() as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(code: Option<&str>, json: bool) -> Result<String, Vec<Failure>> {
        let mut out = Vec::new();
        run(&Args { code: code.map(str::to_owned), json }, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn without_a_code_every_code_is_listed() {
        let text = explain(None, false).unwrap();
        assert_eq!(text.lines().count(), Code::all().len() + 1);
        assert!(text.contains("PR0403  5     the slot is lost\n"), "{text}");
    }

    #[test]
    fn a_code_is_explained_in_any_case() {
        let text = explain(Some("pr0403"), false).unwrap();
        assert!(text.starts_with("PR0403: the slot is lost\n"), "{text}");
        assert!(text.ends_with("Exit status 5.\n"), "{text}");
    }

    #[test]
    fn an_unknown_code_is_a_usage_error_that_names_the_nearest() {
        let failure = explain(Some("PR403"), false).unwrap_err().remove(0);
        assert_eq!(failure.code.exit() as u8, 2);
        assert!(failure.remedy.contains("PR0403"), "{failure}");
    }

    #[test]
    fn the_json_list_holds_every_code() {
        let list: serde_json::Value = serde_json::from_str(&explain(None, true).unwrap()).unwrap();
        assert_eq!(list["codes"].as_array().unwrap().len(), Code::all().len());
    }
}
