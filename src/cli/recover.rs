//! `postrider recover`

use super::{Ended, block_on, confirmed, load, print, printable, verify};
use crate::config::{Config, Flags};
use crate::nats::connect;
use crate::postgres::timestamp::Timestamp;
use crate::reconcile::{Asked, Mended, Phase, Survey, mend};
use crate::state::older;
use postgres_protocol::escape::escape_literal;
use serde::Serialize;

/// Publish the rows that the stream lacks, and let the relay go on: after a lost slot, a restore, a move.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider recover --dry-run             # what is missing, and what would be done
  postrider recover                       # asks, publishes, and leaves the rest to postrider run
  postrider recover --adopt --yes         # the database was moved to another cluster
  postrider recover --accept              # go on behind a message that someone else wrote
  postrider recover --since 2h            # the stream keeps messages for a day only

Rows are compared with the stream by their ids; those that a dead letter has, and those that the slot is about
to send, are none that the stream lacks. A sound slot is never dropped. It may be killed, and run again.
No relay may stream meanwhile. Rows that were deleted from the table cannot be recovered.")]
pub(super) struct Args {
    /// Show what is missing and what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// The database was moved, or its checkpoint row is gone: take the messages of this slot's name for ours.
    #[arg(long)]
    adopt: bool,
    /// Pass over the messages of others that are in the stream by now.
    #[arg(long)]
    accept: bool,
    /// Only rows that were created then or later: a duration before now, or a time like 2026-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = verify::since)]
    since: Option<Timestamp>,
    /// Also rows that are marked as processed: by the column `processed`, else `processed_at`, or care.mark_column.
    #[arg(long)]
    processed: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    survey: Option<Survey>,
    #[serde(flatten)]
    mended: Option<Mended>,
}

pub(super) fn run(args: &Args) -> Ended {
    let config = load(&args.flags)?;
    let asked = Asked {
        phase: Phase::Recover,
        since: args.since,
        processed: args.processed,
        accept: args.accept,
        adopt: args.adopt,
    };
    let mut report = Report { survey: None, mended: None };
    block_on(async {
        let nats = connect::connect(&config.nats.access).await?;
        let bar = verify::bar();
        let shown = bar.clone();
        let seen = &mut report.survey;
        let consent = |survey: &Survey| {
            shown.suspend(|| {
                *seen = Some(survey.clone());
                if !args.json {
                    print!("{}", human(survey, args));
                }
                let nothing = survey.is_sound() && !(args.accept && survey.foreign > 0);
                if nothing || args.dry_run {
                    return Ok(false);
                }
                Ok(args.yes || confirmed("Go on?", "postrider recover --yes")?)
            })
        };
        report.mended = mend(&config, asked, &nats, consent, |progress| verify::show(&bar, progress)).await?;
        bar.finish_and_clear();
        Ok(())
    })?;
    print(&report, args.json, |report| {
        report.mended.as_ref().map_or_else(String::new, |mended| done(mended, &config))
    })
}

fn human(survey: &Survey, args: &Args) -> String {
    let mut lines = vec![format!("missing     {} rows, which will be published", survey.missing)];
    if survey.new_stream {
        lines.push("stream      does not exist: it is made".to_owned());
    }
    lines.push(match &survey.new_slot {
        Some(why) => format!("slot        is made anew: {why}"),
        None => "slot        stays, and goes on behind them".to_owned(),
    });
    lines.extend(survey.outdated.iter().map(|what| format!("row         is written anew: {what}")));
    for stray in &survey.foreign_messages {
        lines.push(format!("foreign     message {}, {}", stray.seq, printable(&stray.what)));
    }
    match (survey.foreign, args.accept) {
        (0, _) => {}
        (count, true) => lines.push(format!("foreign     {count} messages are passed over from now on")),
        (count, false) => lines.push(format!("foreign     {count} messages stay foreign without --accept")),
    }
    if survey.is_sound() && !(args.accept && survey.foreign > 0) {
        lines = vec!["ok          nothing is missing, and the relay can go on".to_owned()];
        lines.extend((survey.foreign > 0).then(|| {
            format!("foreign     {} messages of others: --accept passes over them", survey.foreign)
        }));
    }
    lines.extend(marked(survey));
    lines.join("\n") + "\n"
}

/// The rows that nothing but their mark keeps out.
pub(super) fn marked(survey: &Survey) -> Option<String> {
    (survey.marked > 0).then(|| {
        format!(
            "marked      {} rows that the stream lacks stay out: {} says that someone else has published them. \
             Is it not so, --processed",
            survey.marked,
            verify::marks(&survey.mark_columns)
        )
    })
}

fn done(mended: &Mended, config: &Config) -> String {
    let mut text = format!("published   {}\n", mended.published);
    if mended.lettered > 0 {
        text.push_str(&format!("lettered    {}: postrider dlq list\n", mended.lettered));
    }
    if mended.left_out > 0 {
        text.push_str(&format!(
            "left out    {} rows, which are not in the stream: clean-up leaves them alone. Are they known to be published,\n\
             \x20           DELETE FROM {} WHERE slot = {}; lets it have them\n",
            mended.left_out,
            older::table(&config.postgres.schema),
            escape_literal(&config.postgres.slot)
        ));
    }
    text.push_str(&format!(
        "ready       postrider run goes on at {}, behind message {}\n",
        mended.slot_lsn, mended.last_seq
    ));
    text
}
