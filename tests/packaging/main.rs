//! What Postrider is installed with: systemd's units and what the process tells systemd, the Debian package,
//! Kubernetes' manifest, completions and manual pages.
//! scripts/packaging.sh installs what these tests run; without it they fail.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that fails fails its test"
)]

mod deb;
mod kubernetes;
mod notify;
mod shell;
#[path = "../e2e/support.rs"]
#[allow(dead_code, reason = "these tests need a part of it")]
mod support;
mod units;

use std::path::PathBuf;
use std::process::{Command, Output};
use support::file;

/// A program that scripts/packaging.sh installs.
fn program(name: &str) -> PathBuf {
    let found = support::find_program(name);
    found.unwrap_or_else(|| panic!("{name} is not installed: scripts/packaging.sh installs it"))
}

/// What a program said, when it has ended well.
fn done(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&stderr));
    said
}
