//! Which positions lie in a server's own past.
//!
//! An LSN means nothing without system and timeline: after a fail-over to a standby that lagged,
//! the new timeline reuses LSNs that the old one had given to other transactions. The history file
//! (`TIMELINE_HISTORY`) says where each older timeline ended in this server's past.

use super::position::Position;
use crate::postgres::lsn::Lsn;

/// A server's timelines, oldest first, and where each of the older ones ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The cluster.
    pub system_id: u64,
    /// The server's own timeline.
    pub timeline: u32,
    /// Older timelines and the LSN at which each was left (exclusive).
    switches: Vec<(u32, Lsn)>,
}

/// A history file that does not read as one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line `{0}` of the timeline history does not parse")]
pub struct ParseHistoryError(String);

impl History {
    /// A server that has never been promoted.
    #[must_use]
    pub fn first(system_id: u64, timeline: u32) -> History {
        History { system_id, timeline, switches: Vec::new() }
    }

    /// Of a server whose history file, if it has one, is this.
    ///
    /// # Errors
    /// A line that does not read.
    pub fn of(system_id: u64, timeline: u32, file: Option<&str>) -> Result<History, ParseHistoryError> {
        match file {
            Some(file) => History::parse(system_id, timeline, file),
            None => Ok(History::first(system_id, timeline)),
        }
    }

    /// Reads a history file: `<timeline>\t<switch point>\t<reason>` a line, `#` begins a comment.
    ///
    /// # Errors
    /// A line that is none of these.
    pub fn parse(system_id: u64, timeline: u32, file: &str) -> Result<History, ParseHistoryError> {
        let mut switches = Vec::new();
        for line in file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            let switch = words
                .next()
                .zip(words.next())
                .and_then(|(timeline, lsn)| Some((timeline.parse::<u32>().ok()?, lsn.parse::<Lsn>().ok()?)));
            switches.push(switch.ok_or_else(|| ParseHistoryError(line.to_owned()))?);
        }
        Ok(History { system_id, timeline, switches })
    }

    /// Whether the transaction at `position` is one of this server's own past.
    #[must_use]
    pub fn contains(&self, position: &Position) -> bool {
        if position.system_id != self.system_id {
            return false;
        }
        if position.timeline == self.timeline {
            return true;
        }
        self.switches
            .iter()
            .find(|(timeline, _)| *timeline == position.timeline)
            .is_some_and(|(_, end)| position.place.commit_lsn < *end)
    }

    /// The timeline on which the transaction committed that begins its commit record at `lsn`: the same
    /// whichever server of this history sends it.
    #[must_use]
    pub fn timeline_of(&self, lsn: Lsn) -> u32 {
        let older = self.switches.iter().find(|(_, end)| lsn < *end);
        older.map_or(self.timeline, |(timeline, _)| *timeline)
    }

    /// Where this server's own timeline begins; 0/0 for the first one.
    #[must_use]
    pub fn own_start(&self) -> Lsn {
        self.switches.last().map_or(Lsn::ZERO, |(_, lsn)| *lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::super::position::Place;
    use super::*;

    fn at(timeline: u32, lsn: u64) -> Position {
        let place = Place { commit_lsn: Lsn(lsn), index: 0 };
        Position { system_id: 7, timeline, slot: "s".into(), place }
    }

    #[test]
    fn a_transaction_is_of_the_timeline_on_which_it_committed() {
        let history = History::parse(7, 3, "1\t0/100\tx\n2\t0/200\tx\n").unwrap();
        let timelines = [0xFF, 0x100, 0x1FF, 0x200].map(|lsn| history.timeline_of(Lsn(lsn)));
        assert_eq!(timelines, [1, 2, 2, 3]);
    }

    #[test]
    fn an_older_timeline_counts_up_to_where_it_was_left() {
        let file = "1\t0/3000\tno recovery target specified\n\n2\t0/5000\tbefore x\n";
        let history = History::parse(7, 3, file).unwrap();
        assert!(history.contains(&at(1, 0x2FFF)) && !history.contains(&at(1, 0x3000)));
        assert!(history.contains(&at(2, 0x4FFF)) && !history.contains(&at(2, 0x5000)));
        assert!(history.contains(&at(3, 0x9000)));
        assert!(!history.contains(&at(4, 1)), "a newer timeline is not its past");
        assert_eq!(history.own_start(), Lsn(0x5000));
    }

    #[test]
    fn another_cluster_is_never_its_past() {
        let history = History::first(8, 1);
        assert!(!history.contains(&at(1, 1)));
    }

    #[test]
    fn a_history_that_does_not_parse_is_an_error() {
        assert!(History::parse(7, 2, "1 x").is_err());
        assert!(History::parse(7, 2, "one 0/1").is_err());
    }
}
