//! What the relay went through lately, for the page and for whoever asks afterwards.
//!
//! An outage is one attempt after the other, and would push out of the list how it began: until the
//! relay streams or stands by again, what was there before is counted, not listed again.

use super::status::{Role, State};
use crate::postgres::timestamp::Timestamp;
use serde::Serialize;
use std::collections::VecDeque;

/// What fits a screen.
const CHANGES_MAX: usize = 20;

/// The relay became this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// When for the first time, RFC 3339.
    pub at: String,
    /// See [`Role`].
    pub role: Role,
    /// See [`State`].
    pub state: State,
    /// Why, as it was told the last time.
    pub reason: String,
    /// How often in this outage.
    pub times: u64,
    /// When for the last time.
    pub last_at: String,
}

/// The last changes, oldest first.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Changes {
    list: VecDeque<Change>,
    /// Which of them is so now, counted from the newest.
    #[serde(skip)]
    now: usize,
}

impl Changes {
    /// The relay is this.
    pub fn note(&mut self, role: Role, state: State, reason: &str) {
        let is = |change: &Change| {
            change.role == role && change.state == state && is_alike(&change.reason, reason)
        };
        let now = self.list.len().checked_sub(self.now + 1);
        if let Some(present) = now.and_then(|place| self.list.get_mut(place)).filter(|present| is(present)) {
            reason.clone_into(&mut present.reason);
            return;
        }
        let at = Timestamp::now().to_string();
        let mut of_outage = self.list.iter_mut().rev().take_while(|change| !is_sound(change)).enumerate();
        if let Some((place, again)) = of_outage.find(|(_, change)| is(change)) {
            again.times += 1;
            again.last_at = at;
            reason.clone_into(&mut again.reason);
            self.now = place;
            return;
        }
        if self.list.len() == CHANGES_MAX {
            self.list.pop_front();
        }
        let reason = reason.to_owned();
        self.list.push_back(Change { at: at.clone(), role, state, reason, times: 1, last_at: at });
        self.now = 0;
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Change> {
        self.list.iter()
    }
}

fn is_sound(change: &Change) -> bool {
    change.state == State::Stream || change.role == Role::Standby
}

/// Whether two texts differ in their numbers alone: `silent for 15 s` and `silent for 16 s` are one reason.
#[must_use]
pub fn is_alike(one: &str, other: &str) -> bool {
    let words = |text: &'_ str| text.chars().filter(|char| !char.is_ascii_digit()).collect::<String>();
    one == other || words(one) == words(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(changes: &Changes) -> Vec<(&str, u64)> {
        changes.iter().map(|change| (change.reason.as_str(), change.times)).collect()
    }

    #[test]
    fn an_outage_is_counted_and_its_beginning_stays_in_the_list() {
        let mut changes = Changes::default();
        changes.note(Role::Leader, State::Stream, "streaming");
        changes.note(Role::Leader, State::Drain, "down");
        for _ in 0..50 {
            changes.note(Role::Waiting, State::Discover, "looking");
            changes.note(Role::Waiting, State::Waiting, "refused");
        }
        changes.note(Role::Leader, State::Stream, "streaming");
        let outage = [("streaming", 1), ("down", 1), ("looking", 50), ("refused", 50), ("streaming", 1)];
        assert_eq!(shown(&changes), outage);
        changes.note(Role::Leader, State::Drain, "down");
        assert_eq!(shown(&changes).last(), Some(&("down", 1)), "the next outage is another one");
    }

    #[test]
    fn a_reason_that_only_counts_on_is_no_change() {
        let mut changes = Changes::default();
        for seconds in 15..40 {
            changes.note(Role::Leader, State::Stream, &format!("silent for {seconds} s"));
        }
        assert_eq!(shown(&changes), [("silent for 39 s", 1)]);
    }

    #[test]
    fn the_list_is_bounded() {
        let mut changes = Changes::default();
        for number in 0..100 {
            let reason = "x".repeat(number);
            changes.note(Role::Leader, State::Stream, &reason);
        }
        assert_eq!(changes.iter().count(), CHANGES_MAX);
        assert_eq!(shown(&changes).last().map(|(reason, _)| reason.len()), Some(99));
    }
}
