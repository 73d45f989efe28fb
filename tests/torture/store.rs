//! What a power loss makes of a nats-server's store: its end is gone.
//!
//! No more may be gone than was written within the hold-back, so each way goes by a mark that was
//! taken a moment earlier, and that must be young still when it is used.

use postrider::demo::servers::NatsServer;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Below the hold-back by this. The relay looks at the stream before it confirms, so that less
/// would do.
const MARGIN: Duration = Duration::from_secs(6);

/// How often the server syncs, and what follows from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sync(pub(crate) Duration);

impl Sync {
    /// The relay's own.
    pub(crate) fn hold_back(self) -> Duration {
        2 * self.0 + Duration::from_secs(10)
    }

    fn age_max(self) -> Duration {
        self.hold_back() - MARGIN
    }

    /// How long a power loss may wait for events to lose: the servers' start counts too.
    pub(crate) fn wait_max(self) -> Duration {
        self.age_max().mul_f64(0.8)
    }
}

/// The whole store as it was.
pub(crate) struct Copy {
    taken: Instant,
    folder: TempDir,
}

impl Copy {
    /// Of a server that does not run.
    pub(crate) fn take(nats: &NatsServer) -> Copy {
        let store = nats.store_dir();
        let folder = tempfile::tempdir_in(store.parent().unwrap()).unwrap();
        let mut done = blocks(&store);
        done.pop();
        copy(&store, &folder.path().join("store"), &done);
        Copy { taken: Instant::now(), folder }
    }

    /// Puts it back below a server that does not run, unless it has become too old.
    pub(crate) fn put_back(self, nats: &NatsServer, sync: Sync) -> String {
        let age = self.taken.elapsed();
        if age > sync.age_max() {
            return format!("the copy is {age:.1?} old, it is not put back");
        }
        let store = nats.store_dir();
        fs::remove_dir_all(&store).unwrap();
        fs::rename(self.folder.path().join("store"), &store).unwrap();
        format!("put back as it was {age:.1?} ago")
    }
}

/// `done` are files that do not change any more: the stream's blocks before the newest. They are
/// linked.
fn copy(from: &Path, to: &Path, done: &[PathBuf]) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() {
            copy(&from, &to, done);
        } else if done.contains(&from) {
            fs::hard_link(&from, &to).unwrap();
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// How far the store was written.
pub(crate) struct Mark {
    taken: Instant,
    block: PathBuf,
    length: u64,
}

/// What becomes of the bytes behind the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    Gone,
    Zeros,
}

impl Mark {
    pub(crate) fn take(nats: &NatsServer) -> Option<Mark> {
        let block = blocks(&nats.store_dir()).pop()?;
        let length = fs::metadata(&block).ok()?.len();
        Some(Mark { taken: Instant::now(), block, length })
    }

    /// Cuts the newest block of a server that does not run, `share` of the way back to the mark.
    pub(crate) fn cut(
        self,
        nats: &NatsServer,
        sync: Sync,
        share: f64,
        tail: Tail,
        without_index: bool,
    ) -> String {
        let age = self.taken.elapsed();
        if age > sync.age_max() {
            return format!("the mark is {age:.1?} old, nothing is cut");
        }
        let newest = blocks(&nats.store_dir()).pop().unwrap();
        let floor = if newest == self.block { self.length } else { 0 };
        let length = fs::metadata(&newest).unwrap().len();
        let cut = share_of(length.saturating_sub(floor), share);
        let mut file = File::options().write(true).open(&newest).unwrap();
        file.set_len(length - cut).unwrap();
        if tail == Tail::Zeros {
            file.seek(SeekFrom::End(0)).unwrap();
            std::io::copy(&mut std::io::Read::take(std::io::repeat(0), cut), &mut file).unwrap();
            file.flush().unwrap();
        }
        let index = newest.with_file_name("index.db");
        let index = if without_index && fs::remove_file(index).is_ok() { ", index.db is gone" } else { "" };
        format!("{cut} of {length} bytes of the newest block, written in {age:.1?}: {tail:?}{index}")
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a file's length"
)]
fn share_of(length: u64, share: f64) -> u64 {
    (length as f64 * share) as u64
}

/// The outbox stream's message blocks, the newest last.
fn blocks(store: &Path) -> Vec<PathBuf> {
    let folder = store.join("jetstream/$G/streams/OUTBOX/msgs");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut blocks: Vec<_> = entries.map(|entry| entry.path()).filter(|path| is_block(path)).collect();
    blocks.sort_by_key(|path| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok()));
    blocks
}

fn is_block(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "blk")
}
