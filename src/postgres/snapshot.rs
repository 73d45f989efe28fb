//! Which transactions others can see: `pg_current_snapshot()` (manual, "Transaction ID and Snapshot
//! Information Functions").
//!
//! A walsender sends a transaction when its commit is flushed; others see it a moment later, or much
//! later where the commit waits for a synchronous standby.

use std::str::FromStr;

/// A snapshot, printed as `xmin:xmax:xid,xid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The first transaction id that had not been assigned; 64 bits, epoch included.
    xmax: u64,
    /// Those before it that were still under way.
    running: Vec<u64>,
}

/// The text is not a snapshot as Postgres prints it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a snapshot")]
pub struct ParseSnapshotError(String);

impl Snapshot {
    /// Whether it shows what the committed transaction `xid` wrote. The id is of 32 bits, as pgoutput has it:
    /// of the ids that end so it is the one next to the snapshot.
    #[must_use]
    pub fn shows(&self, xid: u32) -> bool {
        const IDS: u64 = 1 << 32;
        // How far xmax is ahead of it, round the circle.
        let behind = (self.xmax % IDS + IDS - u64::from(xid)) % IDS;
        let past = behind > 0 && behind < IDS / 2;
        past && !self.running.contains(&self.xmax.saturating_sub(behind))
    }
}

impl FromStr for Snapshot {
    type Err = ParseSnapshotError;

    fn from_str(text: &str) -> Result<Snapshot, ParseSnapshotError> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let (_, xmax, running) = (parts.next()?, parts.next()?, parts.next()?);
            let running = running.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok());
            Some(Snapshot { xmax: xmax.parse().ok()?, running: running.collect::<Option<_>>()? })
        };
        parse().ok_or_else(|| ParseSnapshotError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_or_not_begun_is_not_shown() {
        let snapshot: Snapshot = "740:745:740,743".parse().unwrap();
        let shown: Vec<_> = (738..748).filter(|xid| snapshot.shows(*xid)).collect();
        assert_eq!(shown, [738, 739, 741, 742, 744]);
    }

    #[test]
    fn ids_are_told_apart_over_the_end_of_their_32_bits() {
        let snapshot: Snapshot = "4294967294:4294967298:4294967294,4294967297".parse().unwrap();
        let shown = [u32::MAX - 1, u32::MAX, 0, 1, 2, 3].map(|xid| snapshot.shows(xid));
        assert_eq!(shown, [false, true, true, false, false, false]);
    }

    #[test]
    fn a_text_that_is_none_is_an_error() {
        for text in ["", "1", "1:2", "a:b:", "1:2:x", "1:-2:"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
        assert!("7:7:".parse::<Snapshot>().unwrap().shows(6));
    }
}
