//! The alert rules and the dashboard against promtool and against what is really served.

use crate::support::Pipeline;
use crate::{file, promtool};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const RULES: &str = "deploy/prometheus/alerts.yml";
const TESTS: &str = "deploy/prometheus/alerts.test.yml";
const DASHBOARD: &str = "deploy/grafana/postrider.json";

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    annotations: Annotations,
}

#[derive(Deserialize)]
struct Annotations {
    summary: String,
    description: String,
    runbook: String,
}

#[derive(Deserialize)]
struct Tests {
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    promql_expr_test: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    expr: String,
    exp_samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    labels: String,
}

fn read<T: for<'a> Deserialize<'a>>(path: &str) -> T {
    serde_saphyr::from_str(&std::fs::read_to_string(file(path)).unwrap()).unwrap()
}

fn rules() -> Vec<Rule> {
    read::<Rules>(RULES).groups.into_iter().flat_map(|group| group.rules).collect()
}

#[test]
fn promtool_takes_the_rules_and_each_fires_and_clears_by_its_condition() {
    taken(&["check", "rules", RULES]);
    taken(&["test", "rules", TESTS]);
    let asked: Vec<_> =
        read::<Tests>(TESTS).tests.into_iter().flat_map(|test| test.promql_expr_test).collect();
    for Rule { alert, .. } in rules() {
        let of_rule: Vec<_> =
            asked.iter().filter(|asked| asked.expr == format!("ALERTS{{alertname=\"{alert}\"}}")).collect();
        let fires =
            |asked: &&Asked| asked.exp_samples.iter().any(|sample| sample.labels.contains("\"firing\""));
        let fired = of_rule.iter().position(fires);
        let fired = fired.unwrap_or_else(|| panic!("no unit test has {alert} fire"));
        assert!(of_rule[fired..].iter().any(|asked| asked.exp_samples.is_empty()), "none has {alert} clear");
    }
}

/// What promtool says of these arguments, all of which it takes.
fn taken(arguments: &[&str]) -> String {
    let run = promtool(arguments, "");
    let said = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "promtool {arguments:?}:\n{said}");
    said.into_owned()
}

#[test]
fn promtool_takes_the_example_of_a_scrape() {
    taken(&["check", "config", "deploy/prometheus/prometheus.yml"]);
}

/// What Kubernetes' discovery says of a running pod of the manifest: a label `a.b/c` as `a_b_c`.
fn discovered(manifest: &[Value]) -> serde_json::Map<String, Value> {
    let pod = &manifest.iter().find(|object| object["kind"] == "Deployment").unwrap()["spec"]["template"];
    let labels = pod["metadata"]["labels"].as_object().unwrap().iter().map(|(label, value)| {
        let label = label.replace(|char: char| !char.is_ascii_alphanumeric(), "_");
        (format!("pod_label_{label}"), value.clone())
    });
    let others = [
        ("pod_container_port_name", pod["spec"]["containers"][0]["ports"][0]["name"].clone()),
        ("pod_phase", "Running".into()),
        ("pod_name", "postrider-7d4b".into()),
    ];
    let all = labels.chain(others.map(|(name, value)| (name.to_owned(), value)));
    all.map(|(name, value)| (format!("__meta_kubernetes_{name}"), value)).collect()
}

#[test]
fn the_pods_of_the_manifest_are_scraped_as_the_job_and_the_slot_that_the_rules_ask_for() {
    let manifest = std::fs::read_to_string(file("deploy/kubernetes/postrider.yaml")).unwrap();
    let manifest: Vec<Value> =
        manifest.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect();
    // Debian builds promtool without Kubernetes' discovery: what that would find is written out.
    let targets = json!([{"targets": ["10.0.0.7:9464"], "labels": discovered(&manifest)}]);
    let text = std::fs::read_to_string(file("deploy/prometheus/kubernetes.yml")).unwrap();
    let discovery = "kubernetes_sd_configs:\n      - role: pod\n";
    assert!(text.contains(discovery), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("kubernetes.yml");
    std::fs::write(&config, text.replace(discovery, &format!("static_configs: {targets}\n"))).unwrap();
    std::fs::copy(file(RULES), folder.path().join("alerts.yml")).unwrap();
    let config = config.to_str().unwrap();

    taken(&["check", "config", config]);
    let found: Value =
        serde_json::from_str(&taken(&["check", "service-discovery", config, "postrider"])).unwrap();
    let label =
        |name: &str| found[0]["labels"][name].as_str().unwrap_or_else(|| panic!("no {name}: {found}"));
    assert!(rules().iter().any(|rule| rule.expr.contains(&format!("{{job=\"{}\"}}", label("job")))));
    let relay =
        manifest.iter().find(|object| object["kind"] == "ConfigMap").unwrap()["data"]["postrider.toml"]
            .clone();
    assert!(relay.as_str().unwrap().contains(&format!("slot = \"{}\"", label("slot"))), "{relay}");
}

#[test]
fn each_alert_says_what_is_so_and_which_commands_mend_it() {
    for rule in rules() {
        let Annotations { summary, description, runbook } = &rule.annotations;
        assert!(!summary.is_empty() && description.len() > 40, "{}", rule.alert);
        assert!(runbook.contains("1. ") && runbook.contains('`'), "{}: {runbook}", rule.alert);
    }
}

#[test]
fn no_runbook_touches_the_slots_of_others() {
    for rule in rules() {
        for line in rule.annotations.runbook.lines().filter(|line| line.contains("FROM pg_replication_slots"))
        {
            assert!(line.contains("WHERE slot_name = '{{ $labels.slot }}'"), "{}: {line}", rule.alert);
        }
    }
}

/// `(metric, [(label, value)])` of each selector of a query; a value is empty where it is no plain one.
fn selectors(query: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(at) = rest.find("postrider_") {
        rest = &rest[at..];
        let end =
            rest.find(|char: char| !(char.is_ascii_alphanumeric() || char == '_')).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        rest = behind;
        let inner =
            behind.strip_prefix('{').and_then(|behind| behind.split_once('}')).map_or("", |(inner, _)| inner);
        let labels = inner.split(',').filter_map(|label| {
            let (name, value) = label.split_once('=')?;
            let plain = value.trim_matches('"');
            let plain =
                if name.ends_with('!') || value.starts_with('~') || value.contains('$') { "" } else { plain };
            Some((name.trim_end_matches('!').trim().to_owned(), plain.to_owned()))
        });
        found.push((name.to_owned(), labels.collect()));
    }
    found
}

/// The queries of the dashboard's panels.
pub(crate) fn dashboard() -> Vec<String> {
    let dashboard = std::fs::read_to_string(file(DASHBOARD)).unwrap();
    let mut found = Vec::new();
    queries(&serde_json::from_str(&dashboard).unwrap(), &mut found);
    assert!(found.len() > 20, "{found:#?}");
    found
}

/// Of a part of it.
fn queries(dashboard: &Value, found: &mut Vec<String>) {
    match dashboard {
        Value::Object(parts) => {
            for (name, part) in parts {
                match part {
                    Value::String(query) if name == "expr" => {
                        found.push(query.clone());
                    }
                    part => queries(part, found),
                }
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| queries(part, found)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_and_label_of_rules_and_dashboard_is_served() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    let (_, served) = relay.get("/metrics").await.unwrap();
    assert_eq!(relay.terminate().await, Some(0));
    let mut asked: Vec<_> = rules().into_iter().map(|rule| rule.expr).collect();
    asked.extend(dashboard());
    let mut names = BTreeSet::new();
    for (metric, labels) in asked.iter().flat_map(|query| selectors(query)) {
        let sample = |line: &&str| {
            line.strip_prefix(metric.as_str())
                .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        };
        let samples: Vec<_> = served.lines().filter(sample).collect();
        assert!(!samples.is_empty(), "{metric} is not served");
        for (label, value) in labels {
            // Those that the scrape gives.
            if ["slot", "job", "instance"].contains(&label.as_str()) {
                continue;
            }
            let label = if value.is_empty() { format!("{label}=\"") } else { format!("{label}=\"{value}\"") };
            assert!(
                samples.iter().any(|line| line.contains(&label)),
                "{metric} has no {label}: {samples:#?}"
            );
        }
        names.insert(metric);
    }
    assert!(names.len() > 15, "{names:?}");
}
