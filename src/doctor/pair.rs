//! Whether both sides belong together, and what will become of them.

use super::Report;
use super::nats::Broker;
use super::postgres::Base;
use crate::config::{Config, SyncInterval};
use crate::delivery::history::History;
use crate::delivery::opening::{self, Server, Stored};
use crate::error::{Code, Failure};
use crate::ops::advice::LOSS_WARNED;
use crate::ops::forecast::{self, Outlook};
use crate::postgres::lsn::Lsn;
use crate::postgres::preflight as facts;
use crate::postgres::timestamp::Timestamp;
use crate::state::survey;
use bytesize::ByteSize;
use std::time::Duration;

/// Clocks that are further apart make latencies and ages wrong.
const SKEW_MAX: Duration = Duration::from_secs(2);

/// What a walsender decodes of WAL that is mostly other tables', bytes a second: a careful figure.
const DECODE_RATE: f64 = 50e6;

/// Looks at what needs both.
pub(super) async fn examine(
    config: &Config,
    base: Option<&Base>,
    broker: Option<&Broker>,
    report: &mut Report,
) {
    if let Some(base) = base {
        clock("Postgres", facts::now(&base.sql).await.ok(), report);
        forecasts(config, base, report).await;
    }
    if let Some(broker) = broker {
        clock("NATS", broker.stream.look().await.ok().and_then(|look| look.now), report);
    }
    if let (Some(base), Some(broker)) = (base, broker) {
        belongs(config, base, broker, report).await;
    }
    syncing(config, report);
}

/// The rules by which a session begins, as far as they can be told from outside.
async fn belongs(config: &Config, base: &Base, broker: &Broker, report: &mut Report) {
    let (Some(row), Some(slot), Some(system), Some(look)) =
        (&base.row, &base.slot, &base.system, &broker.look)
    else {
        return;
    };
    if row.stream != config.nats.stream {
        report.error(Failure::new(
            Code::CheckpointUnfit,
            format!(
                "the checkpoint row is of stream `{}`, nats.stream is `{}`",
                row.stream, config.nats.stream
            ),
            "correct nats.stream; or go on with this one: postrider recover publishes there what it lacks",
        ));
        return;
    }
    let history = match system.history.as_deref() {
        Some(file) => match History::parse(system.id, system.timeline, file) {
            Ok(history) => history,
            Err(error) => {
                report.error(Failure::new(Code::Unexpected, error.to_string(), "report it"));
                return;
            }
        },
        None => History::first(system.id, system.timeline),
    };
    let server = Server {
        slot: config.postgres.slot.clone(),
        history,
        confirmed: slot.confirmed.unwrap_or(Lsn::ZERO),
        start: Lsn::ZERO,
        wal_end: slot.wal_end,
    };
    match opening::judge(row, &server, look.end) {
        Err(failure) | Ok(Some(failure)) => return report.error(failure),
        Ok(None) => {}
    }
    // A relay that runs writes meanwhile, and judges them itself.
    if slot.active_pid.is_none() && look.end.last_seq > row.passed_seq.max(row.seq) {
        let what = match report.told(broker.stream.message(look.end.last_seq).await) {
            Some(Stored::Foreign(subject)) => Some(format!("it stands on `{subject}` and has no position")),
            Some(Stored::Event(event))
                if event.position.system_id != server.history.system_id
                    || event.position.slot != server.slot =>
            {
                Some(format!("its position is {}", event.position))
            }
            Some(Stored::Event(_) | Stored::Gone) | None => None,
        };
        if let Some(what) = what {
            return report.error(opening::foreign(&row.stream, look.end.last_seq, &what));
        }
    }
    report.sound("slot, checkpoint row and stream belong together".to_owned());
}

fn clock(whose: &str, now: Option<Timestamp>, report: &mut Report) {
    let Some(now) = now else { return };
    let ours = Timestamp::now();
    let apart = now.to_unix_micros() - ours.to_unix_micros();
    if Duration::from_micros(apart.unsigned_abs()) > SKEW_MAX {
        #[expect(clippy::cast_precision_loss, reason = "seconds to be shown")]
        let seconds = apart as f64 / 1e6;
        let ahead = if seconds > 0.0 { "ahead of" } else { "behind" };
        report.warning(
            Failure::new(
                Code::ClockSkew,
                format!("the clock of {whose} is {:.1} s {ahead} this machine's", seconds.abs()),
                "let both keep time by NTP (timedatectl set-ntp true); order and delivery do not depend on it, ages and latencies do",
            )
            .command("timedatectl set-ntp true"),
        );
    }
}

/// What the NATS machine's loss of power costs.
fn syncing(config: &Config, report: &mut Report) {
    let hold_back = config.delivery.hold_back(&config.nats);
    match config.nats.sync_interval {
        SyncInterval::Always => report.forecast("NATS loses power: nothing that it acknowledged is lost"),
        SyncInterval::Every(interval) if hold_back <= interval => report.warning(Failure::new(
            Code::PowerLoss,
            format!(
                "delivery.hold_back is {}, NATS syncs every {}: a power failure there can lose events for good",
                humantime::format_duration(hold_back),
                humantime::format_duration(interval)
            ),
            "delivery.hold_back = \"auto\"",
        )),
        SyncInterval::Every(interval) => {
            report.forecast(format!(
                "NATS loses power: up to {} of events are published again by themselves",
                humantime::format_duration(interval)
            ));
            if interval > Duration::from_secs(10) {
                report.advice(Failure::new(
                    Code::SyncRarely,
                    format!(
                        "the slot is confirmed {} behind, since NATS syncs every {}: a restart of Postgres or of the relay reads so much again",
                        humantime::format_duration(hold_back),
                        humantime::format_duration(interval)
                    ),
                    "in nats-server's configuration: jetstream { sync_interval: 1s }; then nats.sync_interval = \"1s\"",
                ));
            }
        }
    }
}

/// How long an outage may last, and what a restart costs.
async fn forecasts(config: &Config, base: &Base, report: &mut Report) {
    let Some(slot) = &base.slot else { return };
    // As if nobody read it.
    let Ok(trend) = survey::trend(&base.sql, slot, None).await else { return };
    let shown = |lasts: Duration| humantime::format_duration(Duration::from_secs(lasts.as_secs()));
    let rate = forecast::per_second(trend.rate().unwrap_or(0.0));
    match (trend.outlook(), slot.safe_wal_size.and_then(|safe| u64::try_from(safe).ok())) {
        (Outlook::Lost(lasts), _) if lasts < LOSS_WARNED => report.warning(Failure::new(
            Code::OutageLosesSlot,
            format!("at the present {rate} of WAL the slot is lost after an outage of {}", shown(lasts)),
            "raise max_slot_wal_keep_size as far as the disk allows, or make the outage shorter (a second relay)",
        )),
        (Outlook::Lost(lasts), _) => {
            report.forecast(format!("an outage: {} until the slot is lost, at {rate} of WAL", shown(lasts)));
        }
        (_, Some(safe)) => report.forecast(format!(
            "an outage: {} of WAL until the slot is lost; next to none is being written now",
            ByteSize(safe)
        )),
        (_, None) => {}
    }
    if let Some(again) = slot.retained() {
        #[expect(clippy::cast_precision_loss, reason = "seconds to be shown")]
        let seconds = again as f64 / DECODE_RATE;
        report.forecast(format!(
            "a restart now: {} of WAL are read again, about {seconds:.1} s",
            ByteSize(again)
        ));
    }
    let hold_back = config.delivery.hold_back(&config.nats);
    report.forecast(format!(
        "WAL is retained for {} after its events are stored",
        humantime::format_duration(hold_back)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_apart_are_told_and_which_is_ahead() {
        for (seconds, told) in [(0, None), (1, None), (5, Some("ahead of")), (-5, Some("behind"))] {
            let mut report = Report::default();
            let now = Timestamp::from_unix_micros(Timestamp::now().to_unix_micros() + seconds * 1_000_000);
            clock("NATS", Some(now), &mut report);
            let found = report.findings.first().map(|finding| (finding.code, finding.message.as_str()));
            match told {
                None => assert_eq!(found, None, "{seconds}"),
                Some(side) => {
                    let (code, message) = found.unwrap_or_default();
                    assert!(code == "PR0612" && message.contains(side), "{seconds}: {message}");
                }
            }
        }
    }
}
