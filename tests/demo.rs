//! `postrider demo`, as a newcomer runs it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

fn demo(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_postrider"))
        .arg("demo")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The last line of stdout, when the demo has ended with 0.
fn summary(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

fn assert_proved(summary: &Value) {
    assert!(summary["committed"].as_u64() > Some(0), "{summary}");
    assert_eq!(summary["consumed"], summary["committed"], "{summary}");
    assert_eq!(summary["published"], summary["committed"], "{summary}");
    for fault in ["lost", "doubled", "misordered", "never_committed"] {
        assert_eq!(summary[fault], 0, "{summary}");
    }
}

/// The relay that this demo runs, once it runs another than `former`.
fn relay_of(demo: &Child, former: Option<Pid>) -> Pid {
    let begun = Instant::now();
    let is_relay = |pid: &str| -> Option<bool> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(parent == demo.id() && command.split(|byte| *byte == 0).nth(1) == Some(b"run"))
    };
    loop {
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().into_string().ok());
        let relay = pids.find(|pid| is_relay(pid) == Some(true));
        let relay = relay.and_then(|pid| Pid::from_raw(pid.parse().unwrap()));
        if let Some(relay) = relay.filter(|relay| Some(*relay) != former) {
            return relay;
        }
        assert!(begun.elapsed() < DEADLINE, "the demo starts no relay");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_demo_proves_that_each_committed_event_is_consumed_once_and_in_order() {
    let summary = summary(&demo(&["--seconds", "3", "--json"]).wait_with_output().unwrap());
    assert_proved(&summary);
    assert!(summary["rolled_back"].as_u64() > Some(0), "{summary}");
    for number in ["p50", "p99", "max"] {
        assert!(summary["latency_ms"][number].as_f64() > Some(0.0), "{summary}");
    }
    assert!(summary["events_per_second"].as_f64() > Some(0.0), "{summary}");
}

#[test]
fn the_proof_holds_though_the_relay_is_killed_meanwhile() {
    let demo = demo(&["--seconds", "4", "--json"]);
    let mut killed = None;
    for _ in 0..3 {
        let relay = relay_of(&demo, killed);
        kill_process(relay, Signal::KILL).unwrap();
        killed = Some(relay);
    }
    assert_proved(&summary(&demo.wait_with_output().unwrap()));
}

#[test]
fn ctrl_c_ends_the_demo_early_with_the_proof() {
    let mut demo = demo(&["--seconds", "3600", "--json"]);
    // A second line of progress: the shop has sold for a while.
    let mut stderr = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
    stderr.find(|line| line.contains(" 2 s  committed")).unwrap();
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    assert_proved(&summary(&demo.wait_with_output().unwrap()));
}

#[test]
fn without_servers_the_demo_names_the_command_that_installs_them() {
    let elsewhere = tempfile::tempdir().unwrap();
    let program = elsewhere.path().join("postrider");
    std::fs::copy(Path::new(env!("CARGO_BIN_EXE_postrider")), &program).unwrap();
    let output = Command::new(&program)
        .arg("demo")
        .current_dir(elsewhere.path())
        .env("PATH", "")
        .env_remove("PG_BIN")
        .env_remove("NATS_SERVER")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("PR0002") && stderr.contains("make demo"), "{stderr}");
}
