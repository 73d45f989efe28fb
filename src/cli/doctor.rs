//! `postrider doctor`

use super::{Ended, block_on, load, print};
use crate::config::Flags;
use crate::doctor::{self, Level, Report};
use crate::error::{Code, Failure};
use std::fmt::Write as _;
use std::time::Duration;

/// Look at the whole chain and say what is wrong, and what mends it. Stores and changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider doctor
  postrider doctor --canary               # one event from end to end, while a relay runs
  postrider doctor --json | jq '.findings[] | .code, .sql[]'

Exit status 6 when anything is worse than advice.")]
pub(super) struct Args {
    /// Insert one row, wait for its message, and delete the row.
    #[arg(long)]
    canary: bool,
    /// How long the canary may take.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    canary_timeout: Duration,
    /// A transaction that has been writing for so long is worth a warning.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    old_transaction: Duration,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args) -> Ended {
    let config = load(&args.flags)?;
    let mut report = Report::default();
    block_on(async {
        report = doctor::examine(&config, args.old_transaction).await;
        if args.canary {
            doctor::canary::fly(&config, args.canary_timeout, &mut report).await;
        }
        Ok(())
    })?;
    print(&report, args.json, human)?;
    if !report.is_alarming() {
        return Ok(());
    }
    let count = |level: Level| report.findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    let what = format!("errors: {errors}, warnings: {warnings}");
    Err(vec![Failure::new(Code::ProblemsFound, what, "")])
}

/// Bad news first and whole, good news in a line each.
fn human(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let level = match finding.level {
            Level::Error => "ERROR  ",
            Level::Warning => "WARNING",
            Level::Advice => "advice ",
        };
        let _ = writeln!(text, "{level} {}: {}", finding.code, finding.message);
        let _ = writeln!(text, "        {}", finding.remedy);
        for statement in &finding.sql {
            let _ = writeln!(text, "        sql: {statement}");
        }
        for command in &finding.command {
            let _ = writeln!(text, "        run: {command}");
        }
    }
    if !report.findings.is_empty() {
        text.push('\n');
    }
    for line in &report.sound {
        let _ = writeln!(text, "ok       {line}");
    }
    for line in &report.forecasts {
        let _ = writeln!(text, "forecast {line}");
    }
    if !report.findings.is_empty() {
        let _ = writeln!(text, "\npostrider explain <code> tells more.");
    }
    text
}
