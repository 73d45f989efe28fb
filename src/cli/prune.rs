//! `postrider prune`

use super::{Ended, block_on, load, print, printable};
use crate::care::{Pruned, Scope, prune};
use crate::config::Flags;
use indicatif::{ProgressBar, ProgressDrawTarget};
use std::fmt::Write as _;
use std::time::Duration;

/// The relay writes its row within a minute on an idle server, and looks at the publication every ten seconds.
const PATIENCE_BEYOND_HOLD_BACK: Duration = Duration::from_secs(90);

/// Clean the outbox up once: mark, delete, archive and drop what care.* says and is proved to be stored.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider prune --dry-run                             # how many rows care.* would touch now
  postrider prune --care-delete-after 7d                # as a cron job, in place of the relay's own clean-up
  postrider prune --care-delete-after 7d --care-archive-table public.outbox_archive --json

A row is touched once its event is stored in the stream and the slot is confirmed past it: so long after the
commit as the hold-back is. Beside a running relay that is awaited; without one the slot is looked into, and
the stream must still have what was confirmed. Rows with an open dead letter stay, and so do rows that never
came through the slot.")]
pub(super) struct Args {
    /// Change nothing, and say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for a running relay to confirm; default: the hold-back and 90 s.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args) -> Ended {
    let config = load(&args.flags)?;
    let patience =
        args.wait.unwrap_or_else(|| config.delivery.hold_back(&config.nats) + PATIENCE_BEYOND_HOLD_BACK);
    let mut pruned = Pruned::default();
    block_on(async {
        // Drawn where stderr is a terminal, and only there.
        let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let scope = Scope { dry: args.dry_run, patience };
        pruned = prune(&config, scope, |waiting| {
            spinner.set_message(waiting.to_owned());
            spinner.tick();
        })
        .await?;
        spinner.finish_and_clear();
        Ok(())
    })?;
    print(&pruned, args.json, human)
}

fn human(pruned: &Pruned) -> String {
    let mut text = String::new();
    for (name, rows) in
        [("marked", pruned.marked), ("deleted", pruned.deleted), ("archived", pruned.archived)]
    {
        if rows > 0 {
            let _ = writeln!(text, "{name:<11} {rows} rows");
        }
    }
    for partition in &pruned.dropped {
        let _ = writeln!(text, "dropped     {}", printable(partition));
    }
    if pruned.waiting > 0 {
        let _ = writeln!(text, "waiting     {} rows are due, their events not confirmed yet", pruned.waiting);
    }
    if pruned.staying > 0 {
        let _ = writeln!(
            text,
            "staying     {} rows: their dead letters are open, or they never came through the slot",
            pruned.staying
        );
    }
    for partition in &pruned.kept {
        let _ = writeln!(
            text,
            "kept        {}: rows of it are not proved, or it is in use",
            printable(partition)
        );
    }
    if text.is_empty() {
        text.push_str("nothing is due\n");
    }
    if pruned.dry_run {
        text.push_str("dry run     nothing was changed\n");
    }
    text
}
