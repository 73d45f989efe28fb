//! `postrider verify`

use super::{Ended, block_on, load, print, printable};
use crate::config::Flags;
use crate::error::{Code, Failure};
use crate::postgres::timestamp::Timestamp;
use crate::reconcile::{NAMED_MAX, Progress, Report, Scope, Stray, verify};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

/// Compare table and stream: each row stored once, in order, and nothing else there. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider verify
  postrider verify --since 2h             # rows that were created in the last two hours
  postrider verify --json | jq '.missing_ids'

A relay may run meanwhile. Rows that were committed before the slot existed count as missing; so does a row
whose message was deleted. Rows that are marked as processed (in `processed`, else `processed_at`, or the column of
care.mark_column) are counted apart where the stream lacks them. An id that was inserted twice is stored twice, and
counts as doubled. Exit status 6 when table and stream differ.")]
pub(super) struct Args {
    /// Only rows that were created then or later: a duration before now, or a time like 2026-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// Count rows that are marked as processed like the others: what the stream lacks of them is missing.
    #[arg(long)]
    processed: bool,
    /// How long to wait for a running relay to settle what is committed.
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags,
}

/// On a bar: drawn where stderr is a terminal, and only there.
pub(super) fn show(bar: &ProgressBar, progress: Progress) {
    let (done, of, doing) = match progress {
        Progress::Read(done, of) => (done, of, "messages read"),
        Progress::Published(done, of) => (done, of, "rows published"),
    };
    bar.set_length(of);
    bar.set_position(done);
    bar.set_message(doing);
}

pub(super) fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

pub(super) fn since(text: &str) -> Result<Timestamp, String> {
    let ago = humantime::parse_duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago));
    let time = match ago {
        Some(time) => time,
        None => humantime::parse_rfc3339_weak(text)
            .map_err(|_| "neither a duration like 2h nor a time like 2026-01-31T00:00:00Z".to_owned())?,
    };
    Ok(Timestamp::from_system_time(time))
}

pub(super) fn run(args: &Args) -> Ended {
    let config = load(&args.flags)?;
    let mut report = Report::default();
    block_on(async {
        let bar = bar();
        let scope = Scope { since: args.since, processed: args.processed, patience: args.wait };
        report = verify(&config, scope, |progress| show(&bar, progress)).await?;
        bar.finish_and_clear();
        Ok(())
    })?;
    print(&report, args.json, human)?;
    if report.agrees() {
        return Ok(());
    }
    let what = format!(
        "table and stream differ: {} missing, {} doubled, {} misordered, {} foreign{}",
        report.missing,
        report.doubled,
        report.misordered,
        report.foreign,
        if report.undecided { ", some rows not settled in time" } else { "" }
    );
    let remedy = match () {
        () if report.missing > 0 && args.processed => {
            "stop the relay, then postrider recover --processed publishes what is missing; it shows what it would \
             do, and asks"
        }
        () if report.missing > 0 => {
            "stop the relay, then postrider recover publishes what is missing; it shows what it would do, and asks"
        }
        () if report.undecided => {
            "postrider status says why the relay lags; then verify again, or with --wait 10m"
        }
        () if report.foreign > 0 => {
            "find who else writes into the stream, and stop it; postrider explain PR0307"
        }
        () => {
            "consumers that are idempotent by Postrider-Event-Id are not affected; please report how it came about"
        }
    };
    Err(vec![Failure::new(Code::Differs, what, remedy)])
}

/// Bad news by name, then the counts.
fn human(report: &Report) -> String {
    let mut text = String::new();
    named(&mut text, "MISSING   ", report.missing, report.missing_ids.iter().map(|id| format!("event {id}")));
    named(&mut text, "DOUBLED   ", report.doubled, report.doubled_ids.iter().map(|id| format!("event {id}")));
    let stray = |stray: &Stray| format!("message {}, {}", stray.seq, stray.what);
    named(&mut text, "MISORDERED", report.misordered, report.misordered_messages.iter().map(stray));
    named(&mut text, "FOREIGN   ", report.foreign, report.foreign_messages.iter().map(stray));
    let _ = writeln!(text, "rows       {}", report.rows);
    let marked = format!(
        "   marked in {}, not in the stream: published by someone else? --processed counts them as missing",
        marks(&report.mark_columns)
    );
    for (name, count, meaning) in [
        ("stored    ", report.stored, ""),
        ("lettered  ", report.lettered, "   dead letters, open or dropped"),
        ("processed ", report.processed, marked.as_str()),
        (
            "pending   ",
            report.pending,
            if report.undecided { "   not settled in time" } else { "   still in the slot" },
        ),
    ] {
        if count > 0 || name.starts_with("stored") {
            let _ = writeln!(text, "{name} {count}{meaning}");
        }
    }
    if report.agrees() {
        text.push_str("ok         table and stream agree\n");
    }
    text
}

/// Columns, for a sentence.
pub(super) fn marks(columns: &[String]) -> String {
    let quoted: Vec<_> = columns.iter().map(|name| format!("`{}`", printable(name))).collect();
    quoted.join(" or ")
}

fn named(text: &mut String, kind: &str, count: u64, named: impl Iterator<Item = String>) {
    for what in named {
        let _ = writeln!(text, "{kind} {}", printable(&what));
    }
    if count > NAMED_MAX as u64 {
        let _ = writeln!(text, "{kind} … {count} in all");
    }
}
