//! The names that others script against, written down here once more: whoever renames one must change this
//! list too.

use crate::samples;
use crate::support::Pipeline;
use serde_json::Value;
use std::collections::BTreeSet;

/// Metric and label.
const METRICS: [(&str, &str); 25] = [
    ("events_published_total", ""),
    ("events_dead_lettered_total", "reason"),
    ("retries_total", "reason"),
    ("reconnects_total", "peer"),
    ("commit_to_ack_seconds_bucket", "le"),
    ("commit_to_ack_seconds_sum", ""),
    ("commit_to_ack_seconds_count", ""),
    ("publish_to_ack_seconds_bucket", "le"),
    ("publish_to_ack_seconds_sum", ""),
    ("publish_to_ack_seconds_count", ""),
    ("in_flight_messages", ""),
    ("in_flight_bytes", ""),
    ("replication_lag_bytes", ""),
    ("replication_lag_seconds", ""),
    ("oldest_unpublished_age_seconds", ""),
    ("confirmed_lsn_bytes", ""),
    ("held_back_bytes", ""),
    ("slot_retained_wal_bytes", ""),
    ("slot_safe_wal_bytes", ""),
    ("slot_wal_status", "status"),
    ("dead_letter_messages", ""),
    ("outbox_table_bytes", ""),
    ("outbox_dead_tuples", ""),
    ("state", "state"),
    ("role", "role"),
];

/// What only a running relay knows.
const LIVE: [&str; 6] = [
    "lag_seconds",
    "published_total",
    "dead_lettered_total",
    "in_flight_messages",
    "in_flight_bytes",
    "last_error",
];

/// What Postgres and the configuration tell too.
const KEPT: [&str; 16] = [
    "role",
    "state",
    "reason",
    "slot",
    "stream",
    "system_id",
    "timeline",
    "position",
    "settled_lsn",
    "confirmed_lsn",
    "hold_back_seconds",
    "lag_bytes",
    "latency_seconds",
    "retained_wal_bytes",
    "wal_status",
    "dead_letters",
];

const ROLES: [&str; 4] = ["leader", "standby", "waiting", "halted"];
const STATES: [&str; 8] = ["discover", "sync", "probe", "stream", "drain", "rewind", "halt", "waiting"];

/// The values of `label` of this metric.
fn values<'a>(served: impl Iterator<Item = &'a &'a str>, name: &str, label: &str) -> BTreeSet<&'a str> {
    let begin = format!("postrider_{name}{{{label}=\"");
    served.filter_map(|series| series.strip_prefix(begin.as_str())?.strip_suffix("\"}")).collect()
}

fn keys(status: &Value) {
    for key in LIVE.iter().chain(&KEPT).chain(&["safe_wal_bytes"]) {
        assert!(status.get(key).is_some(), "{key} is not in {status}");
    }
    let latency = status["latency_seconds"].as_object().unwrap();
    assert!(latency.keys().eq(["p50", "p99"]), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_status_have_the_names_of_the_contract_with_and_without_a_relay() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order', '{}')").await;
    relay.published(1).await;
    let (_, text) = relay.get("/metrics").await.unwrap();
    let served = samples(&text);
    for (name, label) in METRICS {
        let there = match label {
            "" => served.contains_key(format!("postrider_{name}").as_str()),
            label => !values(served.keys(), name, label).is_empty(),
        };
        assert!(there, "{name} {label} is not in {text}");
    }
    assert!(text.contains("\npostrider_build_info{"), "{text}");
    assert_eq!(values(served.keys(), "role", "role"), ROLES.into());
    assert_eq!(values(served.keys(), "state", "state"), STATES.into());
    assert_eq!(values(served.keys(), "reconnects_total", "peer"), ["nats", "postgres"].into());
    let statuses = ["reserved", "extended", "unreserved", "lost"];
    assert_eq!(values(served.keys(), "slot_wal_status", "status"), statuses.into());
    keys(&relay.status().await.unwrap());
    // What went wrong last is in an object of its own.
    pipeline.nats.kill();
    relay.is("role", "waiting").await;
    let error = relay.status().await.unwrap()["last_error"].clone();
    for key in ["code", "message", "remedy", "at"] {
        assert!(error[key].is_string(), "{key} is not in {error}");
    }
    pipeline.nats.start_again().await.unwrap();
    relay.streams().await;
    assert_eq!(relay.terminate().await, Some(0));
    pipeline.set("POSTRIDER_HTTP_LISTEN", "off");
    let without = pipeline.postrider(&["status", "--json"]).await.stdout;
    let status: Value = serde_json::from_str(&without).unwrap();
    keys(&status);
    for key in LIVE {
        assert!(status[key].is_null(), "{key}: {status}");
    }
    for key in KEPT {
        assert!(!status[key].is_null(), "{key}: {status}");
    }
}
