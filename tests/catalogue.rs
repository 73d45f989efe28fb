//! Every code of the catalogue is provoked by a test, or stands here with the reason why none can.

use postrider::error::Code;
use postrider::outbox::Reason;
use std::path::{Path, PathBuf};

/// Codes that no test can bring about in reasonable time, or at all.
const NOT_PROVOKED: [(Code, &str); 7] = [
    (Code::ServerUnproved, "all servers of the tests are on this machine; the rule is tested by value"),
    (Code::Unexpected, "what nobody foresaw"),
    (Code::NotEncrypted, "AES-GCM takes 64 GiB, a row's payload 1 GiB"),
    (Code::DemoFailed, "the demo's own judgement that it lost or doubled something"),
    (Code::Stalled, "the loop stands still: a fault of ours"),
    (
        Code::PostgresVersion,
        "no package of Postgres 13 that can be had today decodes as it must for the rest",
    ),
    (Code::NatsVersion, "no package of a nats-server before 2.9 can be had"),
];

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The text of all tests: of `tests/`, and of what stands behind `#[cfg(test)]` in `src/`.
fn tests() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    let mut files = Vec::new();
    rust_files(&root.join("tests"), &mut files);
    for file in files.iter().filter(|file| !file.ends_with("tests/catalogue.rs")) {
        text += &std::fs::read_to_string(file).unwrap_or_default();
    }
    files.clear();
    rust_files(&root.join("src"), &mut files);
    for file in &files {
        let source = std::fs::read_to_string(file).unwrap_or_default();
        let whole =
            file.ends_with("tests.rs") || file.components().any(|part| part.as_os_str() == "simulation");
        text +=
            if whole { &source } else { source.split_once("#[cfg(test)]").map_or("", |(_, tests)| tests) };
    }
    // What a comment mentions is provoked by nothing.
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

#[test]
fn each_code_is_provoked_or_said_to_be_beyond_a_test() {
    let tests = tests();
    let of_letters = |code: &Code| {
        let named = |reason: &Reason| {
            tests.contains(&format!("\"{}\"", reason.as_str()))
                || tests.contains(&format!("Reason::{reason:?}"))
        };
        Reason::ALL.iter().any(|reason| reason.code() == *code && named(reason))
    };
    let provoked = |code: &Code| {
        tests.contains(code.as_str()) || tests.contains(&format!("Code::{code:?}")) || of_letters(code)
    };
    let excused = |code: &Code| NOT_PROVOKED.iter().any(|(excused, _)| excused == code);
    let missing: Vec<_> = Code::all().iter().filter(|code| !provoked(code) && !excused(code)).collect();
    assert!(missing.is_empty(), "no test brings about {missing:?}");
    let needless: Vec<_> = NOT_PROVOKED.iter().map(|(code, _)| code).filter(|code| provoked(code)).collect();
    assert!(needless.is_empty(), "a test brings about {needless:?}");
}
