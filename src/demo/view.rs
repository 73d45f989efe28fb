//! How it goes, while it goes: a few lines that stay in place on a terminal, else a line a second.
//! All of it on stderr: stdout is for the summary.

use super::tally::Tally;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often the view is drawn on a terminal.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// How often a line is written elsewhere.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct View {
    bar: Option<ProgressBar>,
    begun: Instant,
    lines: u32,
}

impl View {
    pub(super) fn begin(duration: Duration) -> View {
        let bar = std::io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(20);
            let length = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            let style = ProgressStyle::with_template("{bar:46} {prefix}\n{msg}");
            ProgressBar::with_draw_target(Some(length), target)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        View { bar, begun: Instant::now(), lines: 0 }
    }

    /// Draws what is known now.
    pub(super) fn show(&mut self, tally: &Tally, published: u64) {
        let elapsed = self.begun.elapsed();
        let (committed, consumed) = (tally.committed_events, tally.consumed_events());
        let lag = committed.saturating_sub(consumed);
        let (p50, p99) = (tally.latency_ms(0.5), tally.latency_ms(0.99));
        if let Some(bar) = &self.bar {
            bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
            bar.set_prefix(format!("{:.1} s", elapsed.as_secs_f64()));
            bar.set_message(format!(
                "committed  {committed:>9}   rolled back {:>8}\npublished  {published:>9}\n\
                 consumed   {consumed:>9}   lag {lag:>16}\nlatency    p50 {p50:>5.1} ms   p99 {p99:>10.1} ms",
                tally.rolled_back_events
            ));
        } else if elapsed >= LINE_INTERVAL * (self.lines + 1) {
            self.lines += 1;
            self.say(&format!(
                "{:>4} s  committed {committed}  rolled back {}  published {published}  consumed {consumed}  \
                 lag {lag}  p50 {p50:.1} ms  p99 {p99:.1} ms",
                elapsed.as_secs(),
                tally.rolled_back_events
            ));
        }
    }

    /// A line that stays.
    pub(super) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Leaves the last state where it is.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
