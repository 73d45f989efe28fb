//! `postrider run --shadow`

use super::{Ended, block_on, logging, print, printable};
use crate::config::{Config, Flags};
use crate::error::{Code, Failure};
use crate::relay::shadow::{self, Options, Quantiles, Report};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;
use tracing::info;

/// Where no terminal shows the progress, the log does so every so many seconds.
const LOG_EVERY: u64 = 30;

/// What belongs to the shadow alone.
#[derive(Debug, clap::Args)]
pub(super) struct Shadow {
    /// Publish nothing: see what would be published, and compare with what a poller processes.
    #[arg(long)]
    pub(super) shadow: bool,
    /// With --shadow: print the report as one JSON object.
    #[arg(long, requires = "shadow")]
    json: bool,
    /// With --shadow: end after so many seconds.
    #[arg(long, value_name = "N", requires = "shadow")]
    seconds: Option<u64>,
    /// With --shadow: end once so many events are compared.
    #[arg(long, value_name = "N", requires = "shadow")]
    count: Option<u64>,
    /// With --shadow: an event counts as missing once the poller has gone past it by so much, or has stood still for
    /// so long.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration, requires = "shadow")]
    grace: Duration,
    /// With --shadow: the column that the poller sets; else processed or processed_at, where there is one.
    #[arg(long, value_name = "COLUMN", requires = "shadow")]
    mark_column: Option<String>,
}

pub(super) fn run(args: &Shadow, flags: &Flags) -> Ended {
    let config = Config::load_without_nats(flags)?;
    logging::start(&config.log);
    let options = Options {
        grace: args.grace,
        lasts: args.seconds.map(Duration::from_secs),
        count: args.count,
        mark_column: args.mark_column.clone(),
    };
    let (mut report, mut failures) = (Report::default(), Vec::new());
    block_on(async {
        let mut progress = Progress::begin();
        let ended =
            shadow::watch(&config, &options, super::run::stop_signal(|| {}), |now| progress.show(now)).await;
        progress.end();
        shadow::Ended { report, failures } = ended?;
        Ok(())
    })?;
    print(&report, args.json, human)?;
    if failures.is_empty() && !report.agrees() {
        failures.push(differs(&report));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

fn differs(report: &Report) -> Failure {
    let Report { missing, extra, would_be_dead_letters: letters, marks, .. } = report;
    let what =
        format!("relay and poller differ: {missing} missing, {extra} extra, {letters} would be dead letters");
    let remedy = match () {
        () if *letters > 0 => {
            "mend outbox.subject (types with dots: {event_type:tokens}), the other keys outbox.*, or the writer; \
             postrider explain tells more of each reason's code"
        }
        () if *missing > 0 && marks.is_empty() => {
            "name the column that the poller sets with --mark-column: none is called processed or processed_at; where \
             it deletes its rows instead, look in the table why it leaves these"
        }
        () if *missing > 0 => {
            "the relay would publish these: look in the table why the poller does not (processed is NULL, an error in \
             its loop, rows written as processed); with a poller that rests for longer than a minute: --grace 10m"
        }
        () => "look who changes the ids of rows",
    };
    Failure::new(Code::ShadowDiffers, what, remedy)
}

/// A line that stays in place on a terminal, else one in the log now and then.
struct Progress {
    bar: Option<ProgressBar>,
    calls: u64,
}

impl Progress {
    fn begin() -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg}");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        Progress { bar, calls: 0 }
    }

    fn show(&mut self, report: &Report) {
        self.calls += 1;
        let Report { seen, compared, pending, missing, extra, .. } = report;
        if let Some(bar) = &self.bar {
            let (relay, poller) = (median(report.latency_ms.postrider), median(report.latency_ms.poller));
            bar.set_message(format!(
                "{:>5.0} s  seen {seen}  compared {compared}  pending {pending}  missing {missing}  extra {extra}  \
                 p50 {relay} beside {poller}",
                report.seconds
            ));
        } else if self.calls.is_multiple_of(LOG_EVERY) {
            info!(seen, compared, pending, missing, extra, "watching");
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn median(quantiles: Quantiles) -> String {
    quantiles.p50.map_or_else(|| "-".to_owned(), |p50| format!("{p50:.1} ms"))
}

fn latency(quantiles: Quantiles) -> String {
    let Quantiles { p50: Some(p50), p99: Some(p99), max: Some(max) } = quantiles else {
        return "-".to_owned();
    };
    format!("p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")
}

/// Bad news by name, then the counts.
fn human(report: &Report) -> String {
    let mut text = String::new();
    for id in &report.missing_ids {
        let _ = writeln!(text, "MISSING    event {}", printable(id));
    }
    for id in &report.extra_ids {
        let _ = writeln!(text, "EXTRA      event {}", printable(id));
    }
    for example in &report.dead_letter_examples {
        let _ = writeln!(text, "LETTER     {}", printable(example));
    }
    let _ = match report.marks.is_empty() {
        true => writeln!(text, "marks      none: processed is what is deleted; --mark-column names a column"),
        false => writeln!(text, "marks      {}", report.marks.join(", ")),
    };
    let _ = writeln!(text, "seen       {} events in {:.0} s", report.seen, report.seconds);
    let oldest = report.oldest_pending_seconds.map(|age| format!(", the oldest for {age:.1} s"));
    let reasons: Vec<_> =
        report.dead_letters.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    for (name, count, meaning) in [
        ("compared", report.compared, "processed by the poller too".to_owned()),
        ("pending", report.pending, format!("not processed yet{}", oldest.unwrap_or_default())),
        (
            "missing",
            report.missing,
            "the relay would publish them, the poller does not process them".to_owned(),
        ),
        (
            "extra",
            report.extra,
            "processed by the poller, and nothing that the relay would publish".to_owned(),
        ),
        ("letters", report.would_be_dead_letters, format!("would be dead letters: {}", reasons.join(", "))),
        ("earlier", report.earlier, "from before the shadow, processed meanwhile".to_owned()),
        ("uncompared", report.uncompared, "no id, the id of another, or more than is remembered".to_owned()),
    ] {
        if count > 0 || name == "compared" {
            let _ = writeln!(text, "{name:<10} {count}   {meaning}");
        }
    }
    if !report.extra_judged {
        text.push_str("           more rows than are remembered: extra is not judged any more\n");
    }
    let _ = writeln!(text, "relay      commit to ready to publish: {}", latency(report.latency_ms.postrider));
    let _ = writeln!(text, "poller     commit to commit of its mark: {}", latency(report.latency_ms.poller));
    text.push_str(match (report.agrees(), report.compared) {
        (false, _) => "",
        (true, 0) => "nothing was compared: the poller has processed no row that was written meanwhile\n",
        (true, _) => "ok         no difference\n",
    });
    text
}
