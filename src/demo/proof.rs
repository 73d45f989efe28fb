//! Compares what was consumed with what Postgres committed. Pure.

use std::collections::{HashMap, HashSet};

/// The id of an outbox row.
pub(super) type EventId = i64;

/// What differs between the two; all zero when the promise was kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Committed, never consumed.
    pub(super) lost: usize,
    /// Consumed more than once; each further time counts.
    pub(super) doubled: usize,
    /// Consumed behind an event that was committed later.
    pub(super) misordered: usize,
    /// Consumed though no committed transaction wrote it.
    pub(super) never_committed: usize,
}

impl Verdict {
    /// Whether each committed event was consumed once, in commit order, and no other was.
    pub(super) fn holds(&self) -> bool {
        *self == Verdict::default()
    }
}

/// `committed` is in commit order; what was consumed without an id of ours is `None`.
pub(super) fn judge(committed: &[EventId], consumed: &[Option<EventId>]) -> Verdict {
    let rank: HashMap<EventId, usize> = committed.iter().enumerate().map(|(rank, id)| (*id, rank)).collect();
    let mut seen = HashSet::new();
    let mut furthest = 0;
    let mut verdict = Verdict::default();
    for id in consumed {
        let Some((id, rank)) = id.and_then(|id| Some((id, *rank.get(&id)?))) else {
            verdict.never_committed += 1;
            continue;
        };
        if !seen.insert(id) {
            verdict.doubled += 1;
        } else if rank < furthest {
            verdict.misordered += 1;
        } else {
            furthest = rank;
        }
    }
    verdict.lost = rank.len() - seen.len();
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn consumed(ids: &[EventId]) -> Vec<Option<EventId>> {
        ids.iter().copied().map(Some).collect()
    }

    #[test]
    fn once_and_in_commit_order_holds_though_ids_are_not_ascending() {
        assert!(judge(&[4, 1, 3], &consumed(&[4, 1, 3])).holds());
        assert!(judge(&[], &[]).holds());
    }

    #[test]
    fn each_fault_is_counted_as_what_it_is() {
        let fault = |ids: &[EventId]| judge(&[1, 2, 3, 4], &consumed(ids));
        let none = Verdict::default();
        assert_eq!(fault(&[1, 2, 4]), Verdict { lost: 1, ..none });
        assert_eq!(fault(&[]), Verdict { lost: 4, ..none });
        assert_eq!(fault(&[1, 2, 2, 3, 4, 1]), Verdict { doubled: 2, ..none });
        assert_eq!(fault(&[1, 3, 2, 4]), Verdict { misordered: 1, ..none });
        assert_eq!(fault(&[1, 2, 9, 3, 4]), Verdict { never_committed: 1, ..none });
    }

    #[test]
    fn a_message_without_an_id_of_ours_is_not_passed_over() {
        assert_eq!(judge(&[1], &[Some(1), None]), Verdict { never_committed: 1, ..Verdict::default() });
    }

    proptest! {
        #[test]
        fn only_the_committed_sequence_itself_holds(
            committed in proptest::collection::hash_set(0..20i64, 0..8),
            other in proptest::collection::vec(0..20i64, 0..8),
        ) {
            let committed: Vec<_> = committed.into_iter().collect();
            prop_assert_eq!(judge(&committed, &consumed(&other)).holds(), committed == other);
            prop_assert!(judge(&committed, &consumed(&committed)).holds());
        }
    }
}
