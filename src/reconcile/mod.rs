//! Table against stream: [`verify`] says where they differ, [`mend`] publishes what is missing.
//!
//! | file | what |
//! | --- | --- |
//! | `verify` | is each committed row stored once and in order, and is nothing else there? |
//! | `mend` | `init --backfill` and `recover`: the steps |
//! | `plan` | what a slot, a stream and a row that do not fit come to; no I/O |
//! | `ids` | the temporary tables in which rows, messages and what the slot holds meet |
//! | `order` | what one message after the other says of the stream; no I/O |
//! | `rows` | rows of the table as the slot would print them |
//! | `publish` | rows into the stream, pipelined |

mod ids;
mod mend;
mod order;
mod plan;
mod publish;
mod rows;
mod verify;

pub use mend::{Asked, Mended, Phase, Survey, mend};
pub use order::Stray;
pub use plan::Way;
pub use verify::{Report, Scope, verify};

/// So many of each kind are named.
pub const NAMED_MAX: usize = 20;

/// What takes long: a part of a whole.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// So many messages of the stream are read, and of how many.
    Read(u64, u64),
    /// So many rows are published, and of how many.
    Published(u64, u64),
}
