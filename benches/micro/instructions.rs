//! Instructions of each piece, counted by callgrind and held against those that are committed.
//!
//! The count of few repetitions is taken from that of many, so that what a process does once is left
//! out. Compilers and libraries move it by some percent, a row that is parsed twice by more than
//! [`TOLERANCE`].

use crate::piece::Piece;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// How many times what is committed a piece may take.
const TOLERANCE: f64 = 1.3;

const FEW: u64 = 1_000;
const MANY: u64 = 6_000;

/// Counts, and compares.
pub(crate) fn compare() -> Result<()> {
    let committed = std::fs::read_to_string(file()).with_context(|| file().display().to_string())?;
    let committed: BTreeMap<&str, u64> = committed
        .lines()
        .map(|line| {
            let (name, count) = line.split_once(' ').context("a line is `<piece> <instructions>`")?;
            Ok((name, count.trim().parse()?))
        })
        .collect::<Result<_>>()
        .with_context(|| file().display().to_string())?;
    let mut slower = Vec::new();
    for piece in &Piece::ALL {
        let count = count(piece)?;
        let name = piece.name;
        let before =
            *committed.get(name).with_context(|| format!("{name} is not in {}", file().display()))?;
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let ratio = count as f64 / before as f64;
        println!("{name:<34} {count:>6} instructions, {ratio:.2} of what is committed");
        if ratio > TOLERANCE {
            slower.push(name);
        }
    }
    ensure!(
        slower.is_empty(),
        "more than {TOLERANCE} times what is committed: {}. If that is what you want: make instructions ACCEPT=1",
        slower.join(", ")
    );
    Ok(())
}

/// Counts, and writes what is to be committed.
pub(crate) fn accept() -> Result<()> {
    let mut text = String::new();
    for piece in &Piece::ALL {
        text.push_str(&format!("{:<34} {}\n", piece.name, count(piece)?));
    }
    print!("{text}");
    std::fs::write(file(), text).with_context(|| file().display().to_string())
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/micro/instructions.txt")
}

fn count(piece: &Piece) -> Result<u64> {
    let of = |times: u64| -> Result<u64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe()?)
            .args(["repeat", piece.name, &times.to_string()])
            .output()
            .context("valgrind does not start: install it, e.g. apt-get install valgrind")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "valgrind: {}\n{said}", output.status);
        // ==4711== Collected : 12345678
        let Some(count) = said.lines().find_map(|line| line.split_once("Collected : ")) else {
            bail!("callgrind says no count:\n{said}")
        };
        Ok(count.1.trim().parse()?)
    };
    Ok((of(MANY)? - of(FEW)?) / (MANY - FEW))
}
