//! deploy/kubernetes, without Kubernetes: its schemas, and what the container is started with on local servers.

use crate::support::{Pipeline, Relay, eventually};
use crate::{done, file};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const FILE: &str = include_str!("../../deploy/kubernetes/postrider.yaml");

/// The oldest and the newest that kubernetes-validate has schemas of.
const VERSIONS: [&str; 2] = ["1.25", "1.37"];

/// The object of this kind.
fn object(kind: &str) -> Value {
    let mut documents = FILE.split("\n---\n").map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
    documents.find(|document| document["kind"] == kind).unwrap()
}

fn container() -> Value {
    object("Deployment")["spec"]["template"]["spec"]["containers"][0].clone()
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

/// What kubelet would make of the container for these servers.
struct Pod {
    environment: BTreeMap<String, String>,
    _folder: TempDir,
}

impl Pod {
    fn of(pipeline: &Pipeline) -> Pod {
        let folder = tempfile::tempdir().unwrap();
        let mounted =
            |path: &str| folder.path().join(path.strip_prefix('/').unwrap()).to_str().unwrap().to_owned();
        let write = |path: &Path, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let mut environment = BTreeMap::new();
        for Variable { name, value } in serde_json::from_value::<Vec<_>>(container()["env"].clone()).unwrap()
        {
            let value = match name.as_str() {
                "POSTRIDER_HTTP_LISTEN" => {
                    assert_eq!(value, "0.0.0.0:9464");
                    assert_eq!(container()["ports"][0]["containerPort"], 9464);
                    "127.0.0.1:0".to_owned()
                }
                _ if value.starts_with('/') => mounted(&value),
                _ => value,
            };
            environment.insert(name, value);
        }
        let config = object("ConfigMap")["data"]["postrider.toml"].as_str().unwrap().to_owned();
        write(Path::new(&environment["POSTRIDER_CONFIG"]), &config);
        for (variable, url) in
            ["DATABASE_URL", "NATS_URL"].map(|name| (format!("{name}_FILE"), &pipeline.environment()[name]))
        {
            write(Path::new(&environment[&variable]), url);
        }
        Pod { environment, _folder: folder }
    }

    fn run(&self) -> Relay {
        let arguments: Vec<String> = serde_json::from_value(container()["args"].clone()).unwrap();
        Relay::spawn(&self.environment, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

async fn passes(relay: &Relay, probe: &str) {
    let path = container()[probe]["httpGet"]["path"].as_str().unwrap().to_owned();
    eventually(probe, async || (relay.get(&path).await?.0 == 200).then_some(())).await;
}

#[test]
fn kubernetes_schemas_take_the_manifest() {
    let validate = file(".packaging/python/bin/kubernetes-validate");
    assert!(validate.is_file(), "kubernetes-validate is not installed: scripts/packaging.sh installs it");
    for version in VERSIONS {
        let mut validate = Command::new(&validate);
        done(
            validate
                .args(["--strict", "--kubernetes-version", version])
                .arg(file("deploy/kubernetes/postrider.yaml")),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pods_of_the_manifest_pass_their_probes_and_the_second_goes_on_where_the_first_drains() {
    let pipeline = Pipeline::article().await;
    let (one, other) = (Pod::of(&pipeline), Pod::of(&pipeline));
    let mut leader = one.run();
    leader.is("role", "leader").await;
    let mut standby = other.run();
    standby.is("role", "standby").await;
    for relay in [&leader, &standby] {
        passes(relay, "livenessProbe").await;
        passes(relay, "readinessProbe").await;
    }
    assert_eq!(leader.terminate().await, Some(0));
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order', '{}')").await;
    pipeline.stored(1).await;
    passes(&standby, "readinessProbe").await;
    assert_eq!(standby.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_variable_and_key_of_the_manifest_is_one_that_postrider_reads() {
    let pod = Pod::of(&Pipeline::start().await);
    let shown = Relay::spawn(&pod.environment, &["config"]).ended().await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    for variable in pod.environment.keys().filter(|variable| *variable != "POSTRIDER_CONFIG") {
        assert!(shown.stdout.contains(variable.as_str()), "{variable} is read by nobody: {}", shown.stdout);
    }
    let keys = object("ConfigMap")["data"]["postrider.toml"].as_str().unwrap().matches(" = ").count();
    assert_eq!(shown.stdout.matches(&pod.environment["POSTRIDER_CONFIG"]).count(), keys);
}

#[test]
fn the_grace_period_of_the_manifest_and_of_the_units_is_the_same() {
    let seconds =
        object("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].to_string();
    for unit in crate::units::UNITS {
        assert_eq!(crate::units::setting(unit, "TimeoutStopSec"), format!("{seconds}s"));
    }
}

#[test]
fn the_image_of_the_manifest_is_of_this_version() {
    let image = container()["image"].as_str().unwrap().to_owned();
    let (repository, tag) = image.rsplit_once(':').unwrap();
    assert_eq!(tag, env!("CARGO_PKG_VERSION"));
    assert_eq!(
        FILE.matches(&image).count(),
        FILE.matches(repository).count(),
        "the comment names another one"
    );
}
