//! What an operator sees: metrics in a real Prometheus, alerts that fire and clear, the page in a real
//! browser. scripts/operations.sh installs both; without them these tests fail.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that fails fails its test"
)]

mod browser;
mod contract;
mod http;
mod metrics;
mod page;
mod prometheus;
#[path = "../torture/proxy.rs"]
#[allow(dead_code, reason = "these tests need a part of it")]
mod proxy;
mod rules;
mod status;
#[path = "../e2e/support.rs"]
#[allow(dead_code, reason = "these tests need a part of it")]
mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use support::file;

/// A program that scripts/operations.sh installs.
fn program(name: &str) -> PathBuf {
    let found = support::find_program(name);
    found.unwrap_or_else(|| panic!("{name} is not installed: scripts/operations.sh installs it"))
}

/// Runs promtool with this on its standard input.
fn promtool(arguments: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut promtool = Command::new(program("promtool"));
    promtool.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::piped());
    let mut child = promtool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Samples of a text answer, by name and labels as they stand there.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
}
