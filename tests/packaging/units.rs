//! deploy/systemd, as systemd itself judges it. There is no systemd that runs here: what the units say is held
//! against what the program does.

use crate::support::{Pipeline, eventually};
use crate::{file, program};
use postrider::error::Exit;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

/// Of a hundred; systemd calls up to 20 `OK`, and 96 is a unit without a setting.
const EXPOSURE_MAX: u32 = 15;

pub(crate) const UNITS: [&str; 2] = ["postrider.service", "postrider@.service"];

/// A unit's settings, in order: `Name=value`.
pub(crate) fn settings(unit: &str) -> Vec<String> {
    let text = std::fs::read_to_string(file("deploy/systemd").join(unit)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(str::to_owned).collect()
}

pub(crate) fn setting(unit: &str, name: &str) -> String {
    let settings = settings(unit);
    let found = settings.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("{unit} has no {name}")).to_owned()
}

fn systemd_analyze(arguments: &[&str]) -> Output {
    Command::new(program("systemd-analyze")).arg("--no-pager").args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let folder = tempfile::tempdir().unwrap();
    for unit in UNITS {
        // What a package installs is not installed here.
        let text = settings(unit).join("\n").replace("/usr/bin/postrider", env!("CARGO_BIN_EXE_postrider"));
        std::fs::write(folder.path().join(unit), text).unwrap();
    }
    for unit in ["postrider.service", "postrider@shop.service"] {
        let verified = systemd_analyze(&["verify", "--man=no", folder.path().join(unit).to_str().unwrap()]);
        assert!(verified.status.success() && said(&verified).is_empty(), "{unit}: {}", said(&verified));
    }
}

#[test]
fn what_the_units_expose_is_little() {
    for unit in UNITS {
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        let path = file("deploy/systemd").join(unit);
        let judged = systemd_analyze(&["security", "--offline=true", &threshold, path.to_str().unwrap()]);
        assert!(judged.status.success(), "{}", said(&judged));
    }
}

#[test]
fn an_instance_differs_from_the_unit_by_its_name_and_its_files() {
    let [unit, template] = UNITS.map(settings);
    let differ = unit.iter().zip(&template).filter(|(unit, template)| unit != template);
    let named =
        |line: &str| line.replace("%i.env", "postrider.env").replace(" --config /etc/postrider/%i.toml", "");
    for (unit, template) in differ {
        assert_eq!(*unit, named(template).replace("Postrider %i,", "Postrider,"));
    }
    assert_eq!(unit.len(), template.len());
}

#[test]
fn the_units_do_not_start_again_what_only_a_person_can_mend() {
    for unit in UNITS {
        let not_again = setting(unit, "RestartPreventExitStatus");
        let of_a_person = [Exit::Usage, Exit::History, Exit::Poison].map(|exit| (exit as u8).to_string());
        assert_eq!(not_again, of_a_person.join(" "));
    }
}

/// All calls of a set of systemd's, those of the sets in it included.
fn system_calls(set: &str) -> BTreeSet<String> {
    let listed = said(&systemd_analyze(&["syscall-filter", set]));
    let names =
        listed.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    names
        .flat_map(|name| if name.starts_with('@') { system_calls(name) } else { [name.to_owned()].into() })
        .collect()
}

/// What the lines `SystemCallFilter=` let through, as systemd reads them: one after the other.
fn allowed(unit: &str) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    let settings = settings(unit);
    for filter in settings.iter().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (denies, sets) = filter.strip_prefix('~').map_or((false, filter), |sets| (true, sets));
        for set in sets.split_whitespace() {
            match denies {
                true => allowed = &allowed - &system_calls(set),
                false => allowed.extend(system_calls(set)),
            }
        }
    }
    allowed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_from_its_start_to_its_end_makes_no_system_call_that_its_unit_denies() {
    let pipeline = Pipeline::article().await;
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut relay = Command::new(program("strace"));
    // strace is the child's child, so that the signal goes to the relay.
    relay.args(["-D", "-f", "-qq", "-o"]).arg(trace.path()).args([env!("CARGO_BIN_EXE_postrider"), "run"]);
    relay.env_clear().envs(pipeline.environment()).stdin(Stdio::null()).stderr(Stdio::null());
    let mut relay = relay.spawn().unwrap();
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order', '{}')").await;
    pipeline.stored(1).await;
    kill_process(Pid::from_child(&relay), Signal::TERM).unwrap();
    let ended = eventually("the relay ends", async || relay.try_wait().unwrap()).await;
    assert_eq!(ended.code(), Some(0));

    // `1234  openat(…`, after the first call, which strace itself makes.
    let trace = std::fs::read_to_string(trace.path()).unwrap();
    let names = trace.lines().filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('));
    let made: BTreeSet<_> =
        names.map(|(name, _)| name.to_owned()).filter(|name| !name.contains(' ')).collect();
    assert!(made.contains("epoll_wait") && made.contains("clone3"), "{made:?}");
    for unit in UNITS {
        let denied = &made - &allowed(unit);
        assert!(denied.is_empty(), "{unit} denies {denied:?}");
    }
}
