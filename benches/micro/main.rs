//! The pieces of an event's way through the relay, each alone: how long it takes, and how many
//! instructions.
//!
//! * `cargo bench --bench micro` measures times, by criterion.
//! * `make instructions` counts instructions, by callgrind: the same on a busy machine as on a quiet
//!   one, so that CI can hold them against `instructions.txt` beside this file.
//!
//! | file | what |
//! | --- | --- |
//! | [`piece`] | the pieces, and what they work on |
//! | [`instructions`] | the count, and the comparison |

mod instructions;
mod piece;

use anyhow::{Result, bail};
use criterion::Criterion;
use piece::{Material, Piece};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["instructions"] => instructions::compare(),
        ["instructions", "--accept"] => instructions::accept(),
        // What callgrind looks at.
        ["repeat", name, times] => {
            let Some(piece) = Piece::ALL.iter().find(|piece| piece.name == *name) else {
                bail!("no piece is called {name}");
            };
            let mut material = Material::new();
            for _ in 0..times.parse::<u32>()? {
                (piece.work)(&mut material);
            }
            Ok(())
        }
        _ => {
            let mut criterion = Criterion::default().configure_from_args();
            let mut material = Material::new();
            for piece in Piece::ALL {
                criterion.bench_function(piece.name, |bencher| bencher.iter(|| (piece.work)(&mut material)));
            }
            criterion.final_summary();
            Ok(())
        }
    }
}
