//! `/metrics`: one table of names, from which the answer and the README's list are drawn.
//!
//! Written by hand in both text formats: prometheus-client speaks OpenMetrics alone, which `promtool
//! check metrics` and older scrapers do not read, prometheus the older one alone, and both want to own
//! the numbers. Here the loop owns them, and a scrape reads a copy.
//!
//! Every series is there from the first scrape on. What is not known is `NaN`, which no alert takes for
//! a number; no limit is `+Inf`.

use super::counters::{Counters, Histogram, Peer, Retry};
use super::forecast::Outlook;
use super::status::{Role, State, Status};
use crate::outbox::Reason;
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;
use std::fmt::Write;

/// What each name begins with.
pub const PREFIX: &str = "postrider_";

/// Names that begin so are every process's, and take no prefix.
const OF_EVERY_PROCESS: &str = "process_";

/// `wal_status` of `pg_replication_slots`.
pub const WAL_STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// One line of the table.
pub struct Metric {
    /// Behind the prefix, where it has one: see [`Metric::whole_name`].
    pub name: &'static str,
    /// What a value may do.
    pub kind: Kind,
    /// The label, where it has one.
    pub label: Option<&'static str>,
    /// What it is, without a full stop.
    pub help: &'static str,
    read: fn(&Status, &Counters) -> Values,
}

/// What a value may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rises, and begins anew with the process.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts by upper bound.
    Histogram,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

enum Values {
    One(f64),
    /// By the label's value.
    Each(Vec<(&'static str, f64)>),
    Times(Histogram),
}

/// The text format of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's own.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The one that an `Accept` header asks for.
    #[must_use]
    pub fn accepted(accept: Option<&str>) -> Format {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Format::OpenMetrics,
            _ => Format::Prometheus,
        }
    }

    /// The answer's `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

const fn counter(
    name: &'static str,
    label: Option<&'static str>,
    help: &'static str,
    read: fn(&Status, &Counters) -> Values,
) -> Metric {
    Metric { name, kind: Kind::Counter, label, help, read }
}

const fn gauge(name: &'static str, help: &'static str, read: fn(&Status, &Counters) -> Values) -> Metric {
    Metric { name, kind: Kind::Gauge, label: None, help, read }
}

const fn one_of(
    name: &'static str,
    label: &'static str,
    help: &'static str,
    read: fn(&Status, &Counters) -> Values,
) -> Metric {
    Metric { name, kind: Kind::Gauge, label: Some(label), help, read }
}

const fn times(name: &'static str, help: &'static str, read: fn(&Status, &Counters) -> Values) -> Metric {
    Metric { name, kind: Kind::Histogram, label: None, help, read }
}

/// The table.
pub const METRICS: &[Metric] = &[
    counter(
        "events_published_total",
        None,
        "Events that this process published and JetStream stored",
        |_, counters| Values::One(counters.published as f64),
    ),
    counter(
        "events_dead_lettered_total",
        Some("reason"),
        "Events that this process put into the dead-letter table",
        |_, counters| by(&Reason::ALL, Reason::as_str, |reason| counters.dead_lettered(reason)),
    ),
    counter(
        "retries_total",
        Some("reason"),
        "How often publishing was broken off and begun again, or could not begin",
        |_, counters| by(&Retry::ALL, Retry::as_str, |reason| counters.retries(reason)),
    ),
    counter("reconnects_total", Some("peer"), "Connections that were made anew", |_, counters| {
        by(&Peer::ALL, Peer::as_str, |peer| counters.reconnects(peer))
    }),
    times(
        "commit_to_ack_seconds",
        "From an event's commit, by Postgres's clock, to its being stored, by this machine's",
        |_, counters| Values::Times(counters.commit_to_ack),
    ),
    times(
        "publish_to_ack_seconds",
        "From sending an event to its being stored, with all before it",
        |_, counters| Values::Times(counters.publish_to_ack),
    ),
    gauge("in_flight_messages", "Events taken from Postgres and not stored yet", |status, _| {
        Values::One(status.in_flight_messages.unwrap_or(0) as f64)
    }),
    gauge("in_flight_bytes", "Their bytes", |status, _| {
        Values::One(status.in_flight_bytes.unwrap_or(0) as f64)
    }),
    gauge(
        "replication_lag_bytes",
        "WAL from the last LSN before which every event is stored to its end, that of other tables included",
        |status, _| known(status.lag_bytes),
    ),
    gauge(
        "replication_lag_seconds",
        "Age of the oldest event that is taken and not stored; NaN while no session streams",
        |status, _| Values::One(status.lag_seconds.unwrap_or(f64::NAN)),
    ),
    gauge(
        "oldest_unpublished_age_seconds",
        "Age of the oldest committed event that may not be stored: of what was read; while nothing can be read, or \
         the walsender is behind by more than 20 s, since the relay last had everything. NaN on a standby",
        |status, _| Values::One(status.oldest_unpublished_age_seconds.unwrap_or(f64::NAN)),
    ),
    gauge("confirmed_lsn_bytes", "The LSN confirmed to Postgres, as a number", |status, _| {
        let lsn = status.confirmed_lsn.as_deref().and_then(|text| text.parse::<Lsn>().ok());
        known(lsn.map(|lsn| lsn.0))
    }),
    gauge(
        "held_back_bytes",
        "WAL whose events are stored and not confirmed yet: the hold-back",
        |status, _| known(status.held_back_bytes),
    ),
    gauge("slot_retained_wal_bytes", "WAL that Postgres keeps for the slot", |status, _| {
        known(status.retained_wal_bytes)
    }),
    gauge(
        "slot_safe_wal_bytes",
        "WAL that can still be written until the slot may be lost; +Inf without a limit (max_slot_wal_keep_size)",
        |status, _| {
            let unlimited = status.wal_status.is_some();
            let otherwise = if unlimited { f64::INFINITY } else { f64::NAN };
            Values::One(status.safe_wal_bytes.map_or(otherwise, |bytes| bytes as f64))
        },
    ),
    gauge("wal_bytes_per_second", "WAL that the server writes, lately", |status, _| {
        Values::One(status.wal_bytes_per_second.unwrap_or(f64::NAN))
    }),
    gauge(
        "slot_seconds_to_loss",
        "At that rate, until the slot may be lost; +Inf while it follows, and without a limit",
        |status, _| {
            Values::One(match status.outlook {
                Outlook::Lost(after) => after.as_secs_f64(),
                Outlook::Follows | Outlook::FillsDisk => f64::INFINITY,
                Outlook::Unknown => f64::NAN,
            })
        },
    ),
    one_of("slot_wal_status", "status", "1 for Postgres's word for the slot's WAL", |status, _| {
        let is = |word: &&str| status.wal_status.as_deref() == Some(word);
        Values::Each(WAL_STATUSES.iter().map(|word| (*word, f64::from(u8::from(is(word))))).collect())
    }),
    gauge("dead_letter_messages", "Open dead letters in the table", |status, _| known(status.dead_letters)),
    gauge("outbox_table_bytes", "Size of the outbox with its indexes, TOAST and partitions", |status, _| {
        known(status.outbox_table_bytes)
    }),
    gauge("outbox_dead_tuples", "Dead rows of the outbox, as Postgres estimates them", |status, _| {
        known(status.outbox_dead_tuples)
    }),
    one_of("state", "state", "1 for the state that the relay is in", |status, _| {
        by(&State::ALL, State::as_str, |state| u64::from(state == status.state))
    }),
    one_of("role", "role", "1 for what the relay is to its slot", |status, _| {
        by(&Role::ALL, Role::as_str, |role| u64::from(role == status.role))
    }),
    one_of("build_info", "version", "1, for the version that runs", |_, _| {
        Values::Each(vec![(env!("CARGO_PKG_VERSION"), 1.0)])
    }),
    gauge("process_start_time_seconds", "When the process was started, since 1970", |status, _| {
        let at = status.started_at.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
        Values::One(at.map_or(f64::NAN, |at| at.to_unix_micros() as f64 / 1e6))
    }),
];

fn by<T: Copy>(all: &[T], name: fn(T) -> &'static str, value: impl Fn(T) -> u64) -> Values {
    Values::Each(all.iter().map(|one| (name(*one), value(*one) as f64)).collect())
}

fn known(value: Option<u64>) -> Values {
    Values::One(value.map_or(f64::NAN, |value| value as f64))
}

/// The answer to a scrape.
#[must_use]
pub fn text(format: Format, status: &Status, counters: &Counters) -> String {
    let mut text = String::with_capacity(16 * 1024);
    for metric in METRICS {
        metric.write(&mut text, format, (metric.read)(status, counters));
    }
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

impl Metric {
    /// As it is served.
    #[must_use]
    pub fn whole_name(&self) -> String {
        match self.name.starts_with(OF_EVERY_PROCESS) {
            true => self.name.to_owned(),
            false => format!("{PREFIX}{}", self.name),
        }
    }

    fn write(&self, text: &mut String, format: Format, values: Values) {
        let name = self.whole_name();
        // In OpenMetrics `_total` belongs to the sample, not to the family.
        let family = match (format, name.strip_suffix("_total")) {
            (Format::OpenMetrics, Some(family)) => family,
            _ => &name,
        };
        let _ = writeln!(text, "# HELP {family} {}", self.help);
        let _ = writeln!(text, "# TYPE {family} {}", self.kind.as_str());
        if let (Format::OpenMetrics, Some(unit)) = (format, self.unit()) {
            let _ = writeln!(text, "# UNIT {family} {unit}");
        }
        match values {
            Values::One(value) => sample(text, &name, "", value),
            Values::Each(values) => {
                for (label, value) in values {
                    let label = format!("{{{}=\"{label}\"}}", self.label.unwrap_or("label"));
                    sample(text, &name, &label, value);
                }
            }
            Values::Times(histogram) => {
                for (micros, count) in histogram.cumulative() {
                    let label = format!("{{le=\"{:?}\"}}", micros as f64 / 1e6);
                    sample(text, &format!("{name}_bucket"), &label, count as f64);
                }
                let count = histogram.count() as f64;
                sample(text, &format!("{name}_bucket"), "{le=\"+Inf\"}", count);
                sample(text, &format!("{name}_sum"), "", histogram.sum_micros() as f64 / 1e6);
                sample(text, &format!("{name}_count"), "", count);
            }
        }
    }

    /// What its name ends with, where that is a unit.
    fn unit(&self) -> Option<&'static str> {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.ends_with(unit))
    }
}

fn sample(text: &mut String, name: &str, labels: &str, value: f64) {
    let _ = match value {
        value if value == f64::INFINITY => writeln!(text, "{name}{labels} +Inf"),
        value => writeln!(text, "{name}{labels} {value}"),
    };
}

/// The README's table.
#[must_use]
pub fn markdown() -> String {
    let mut table = String::from("| metric | | |\n| --- | --- | --- |\n");
    for metric in METRICS {
        let label = metric.label.map_or(String::new(), |label| format!("{{{label}}}"));
        let (name, kind, help) = (metric.whole_name(), metric.kind.as_str(), metric.help);
        let _ = writeln!(table, "| `{name}{label}` | {kind} | {help} |");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn of(status: &Status, counters: &Counters) -> String {
        text(Format::Prometheus, status, counters)
    }

    #[test]
    fn every_value_of_a_closed_set_is_there_before_anything_happens() {
        let text = of(&Status::default(), &Counters::default());
        for reason in Reason::ALL {
            let line = format!("postrider_events_dead_lettered_total{{reason=\"{reason}\"}} 0\n");
            assert!(text.contains(&line), "{line}");
        }
        for word in WAL_STATUSES {
            assert!(text.contains(&format!("postrider_slot_wal_status{{status=\"{word}\"}} 0\n")), "{word}");
        }
        for line in [
            "postrider_retries_total{reason=\"nats_silent\"} 0\n",
            "postrider_reconnects_total{peer=\"postgres\"} 0\n",
            "postrider_state{state=\"waiting\"} 1\n",
            "postrider_state{state=\"stream\"} 0\n",
            "postrider_role{role=\"leader\"} 0\n",
            "postrider_commit_to_ack_seconds_bucket{le=\"+Inf\"} 0\n",
            "postrider_in_flight_messages 0\n",
            "postrider_dead_letter_messages NaN\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn what_is_not_known_is_no_number_and_no_limit_is_infinite() {
        let mut status = Status::default();
        let text = of(&status, &Counters::default());
        assert!(text.contains("postrider_slot_safe_wal_bytes NaN\n"), "{text}");
        assert!(text.contains("postrider_replication_lag_bytes NaN\n"), "{text}");
        status.wal_status = Some("extended".to_owned());
        let text = of(&status, &Counters::default());
        assert!(text.contains("postrider_slot_safe_wal_bytes +Inf\n"), "{text}");
        assert!(text.contains("postrider_slot_wal_status{status=\"extended\"} 1\n"), "{text}");
        for (outlook, seconds) in [
            (Outlook::Unknown, "NaN"),
            (Outlook::Follows, "+Inf"),
            (Outlook::FillsDisk, "+Inf"),
            (Outlook::Lost(std::time::Duration::from_secs(90)), "90"),
        ] {
            status.outlook = outlook;
            let text = of(&status, &Counters::default());
            assert!(text.contains(&format!("postrider_slot_seconds_to_loss {seconds}\n")), "{text}");
        }
        status.safe_wal_bytes = Some(-5);
        status.confirmed_lsn = Some("1/10".to_owned());
        let text = of(&status, &Counters::default());
        assert!(text.contains("postrider_slot_safe_wal_bytes -5\n"), "{text}");
        assert!(text.contains("postrider_confirmed_lsn_bytes 4294967312\n"), "{text}");
    }

    #[test]
    fn a_histogram_adds_up() {
        let mut counters = Counters::default();
        counters.stored(1_500, 700);
        counters.stored(400_000_000, 300);
        let text = of(&Status::default(), &counters);
        for line in [
            "postrider_commit_to_ack_seconds_bucket{le=\"0.001\"} 0\n",
            "postrider_commit_to_ack_seconds_bucket{le=\"0.0025\"} 1\n",
            "postrider_commit_to_ack_seconds_bucket{le=\"1.0\"} 1\n",
            "postrider_commit_to_ack_seconds_bucket{le=\"+Inf\"} 2\n",
            "postrider_commit_to_ack_seconds_sum 400.0015\n",
            "postrider_commit_to_ack_seconds_count 2\n",
            "postrider_publish_to_ack_seconds_bucket{le=\"0.0005\"} 1\n",
            "postrider_events_published_total 2\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn openmetrics_is_written_where_it_is_asked_for() {
        let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        let format = Format::accepted(Some(accept));
        assert_eq!(format, Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("text/plain")), Format::Prometheus);
        assert_eq!(Format::accepted(None), Format::Prometheus);
        let text = text(format, &Status::default(), &Counters::default());
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        assert!(
            text.contains("# TYPE postrider_events_published counter\npostrider_events_published_total 0\n")
        );
        assert!(text.contains("# UNIT postrider_commit_to_ack_seconds seconds\n"), "{text}");
    }

    #[test]
    fn names_are_unique_and_keep_the_conventions() {
        let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(!metric.help.ends_with('.') && !metric.help.contains('\n'), "{}", metric.name);
        }
    }
}
