//! Completions and manual pages, which the program writes itself.

use crate::program;
use std::path::PathBuf;
use std::process::{Command, Output};

/// What the README documents; more may exist, hidden.
const COMMANDS: [&str; 14] = [
    "init", "run", "status", "doctor", "dlq", "verify", "recover", "prune", "tail", "remove", "demo",
    "explain", "config", "decrypt",
];

fn postrider(arguments: &[&str]) -> Output {
    let ended = Command::new(env!("CARGO_BIN_EXE_postrider")).args(arguments).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    ended
}

/// What bash offers behind `postrider` and these words, the last of them begun.
fn completed(words: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("postrider");
    std::fs::write(&script, postrider(&["completions", "bash"]).stdout).unwrap();
    let complete = r#"
        set -euo pipefail
        source "$1"; shift
        COMP_WORDS=(postrider "$@"); COMP_CWORD=$#
        function_of() { complete -p postrider | sed 's/.*-F \([^ ]*\).*/\1/'; }
        "$(function_of)" postrider "${@: -1}" "${COMP_WORDS[COMP_CWORD - 1]}" || true
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let bash = Command::new(program("bash"))
        .args(["--norc", "-c", complete, "bash"])
        .arg(&script)
        .args(words)
        .output();
    let bash = bash.unwrap();
    assert!(bash.status.success() && bash.stderr.is_empty(), "{}", String::from_utf8_lossy(&bash.stderr));
    String::from_utf8(bash.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_their_commands_and_their_flags() {
    let all = completed(&[""]);
    for command in COMMANDS {
        assert!(all.iter().any(|word| word == command), "{command} is not in {all:?}");
    }
    assert_eq!(completed(&["stat"]), ["status"]);
    assert_eq!(completed(&["dlq", "rep"]), ["replay"]);
    assert_eq!(completed(&["status", "--che"]), ["--check"]);
    assert_eq!(completed(&["run", "--nats-str"]), ["--nats-stream"]);
}

#[test]
fn each_command_has_a_manual_page_in_which_neither_man_nor_mandoc_finds_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    postrider(&["man", folder.path().to_str().unwrap()]);
    for command in COMMANDS {
        let page = std::fs::read_to_string(folder.path().join(format!("postrider-{command}.1"))).unwrap();
        assert!(page.contains("Example:"), "postrider-{command}.1 shows no example");
    }
    let pages: Vec<PathBuf> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(pages.contains(&folder.path().join("postrider.1")));
    let mut lint = Command::new(program("mandoc"));
    let lint = lint.args(["-T", "lint", "-W", "warning"]).args(&pages).output().unwrap();
    // The pages have no date, so that the same source gives the same pages; an empty line is one break too many.
    let harmless = ["cannot parse date", "skipping paragraph macro: br"];
    let lint = String::from_utf8(lint.stdout).unwrap();
    let faults: Vec<_> =
        lint.lines().filter(|fault| !harmless.iter().any(|text| fault.contains(text))).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    for page in pages {
        let shown =
            Command::new(program("man")).args(["--warnings", "--local-file"]).arg(&page).output().unwrap();
        let faults = String::from_utf8_lossy(&shown.stderr).into_owned();
        assert!(shown.status.success() && faults.is_empty() && !shown.stdout.is_empty(), "{faults}");
    }
}
