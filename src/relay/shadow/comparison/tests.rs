use super::*;
use crate::outbox::Poison;
use crate::postgres::lsn::Lsn;
use crate::postgres::text::Text;

const SECOND: i64 = 1_000_000;

fn comparison() -> Comparison {
    Comparison::new(Duration::from_secs(60)).unwrap()
}

/// The transaction that committed in this second.
fn at(second: i64) -> Moment {
    Moment { commit_lsn: Lsn(second.unsigned_abs()), committed: Timestamp(second * SECOND) }
}

fn insert(comparison: &mut Comparison, id: &str, second: i64) {
    let inserted = Inserted { id: Some(Text::from(id)), moment: at(second), marked: false, poison: None };
    comparison.inserted(inserted, Timestamp(second * SECOND + 500));
}

/// The verdict once the log is read up to this second.
fn judged(comparison: &mut Comparison, second: i64) -> Report {
    comparison.has_read_to(at(second).committed);
    comparison.judge()
}

fn counts(report: &Report) -> [u64; 5] {
    [report.seen, report.compared, report.pending, report.missing, report.extra]
}

#[test]
fn a_row_that_both_have_is_compared_with_both_latencies() {
    let mut comparison = comparison();
    insert(&mut comparison, "a", 10);
    comparison.processed("a", at(12));
    let report = judged(&mut comparison, 12);
    assert_eq!(counts(&report), [1, 1, 0, 0, 0]);
    let (relay, poller) = (report.latency_ms.postrider.p50.unwrap(), report.latency_ms.poller.p50.unwrap());
    assert!((relay - 0.5).abs() < 0.01 && (poller - 2000.0).abs() < 2.0, "{relay}, {poller}");
    assert!(report.agrees());
}

#[test]
fn what_waited_for_the_shadow_says_nothing_of_the_relays_latency() {
    let mut comparison = comparison();
    comparison.begins(at(10).committed);
    let waited = Inserted { id: Some(Text::from("a")), moment: at(2), marked: false, poison: None };
    comparison.inserted(waited, at(10).committed);
    insert(&mut comparison, "b", 10);
    comparison.processed("a", at(11));
    let latencies = judged(&mut comparison, 11).latency_ms;
    assert!(latencies.postrider.max.unwrap() < 1.0, "{latencies:?}");
    assert!((latencies.poller.max.unwrap() - 9000.0).abs() < 9.0, "{latencies:?}");
}

#[test]
fn a_row_that_waits_is_pending_as_long_as_the_poller_works_off_what_is_before_it() {
    let mut comparison = comparison();
    for second in 0..300 {
        insert(&mut comparison, &second.to_string(), second);
    }
    // Two minutes late, and in order.
    for second in 0..180 {
        comparison.processed(&second.to_string(), at(second + 120));
    }
    let report = judged(&mut comparison, 300);
    assert_eq!(counts(&report), [300, 180, 120, 0, 0]);
    assert_eq!(report.oldest_pending_seconds, Some(120.0));
}

#[test]
fn a_row_that_the_poller_has_gone_past_is_missing_also_while_it_goes_on() {
    let mut comparison = comparison();
    for second in [0, 30, 59, 60] {
        insert(&mut comparison, &second.to_string(), second);
    }
    comparison.processed("59", at(61));
    assert_eq!(counts(&judged(&mut comparison, 62)), [4, 1, 3, 0, 0]);
    comparison.processed("60", at(62));
    let report = judged(&mut comparison, 62);
    assert_eq!(counts(&report), [4, 2, 1, 1, 0]);
    assert_eq!(report.missing_ids, ["0"]);
    // It may come to it later all the same.
    comparison.processed("0", at(70));
    assert_eq!(counts(&judged(&mut comparison, 70)), [4, 3, 1, 0, 0]);
}

#[test]
fn rows_are_missing_once_the_poller_has_stood_still_for_the_grace() {
    let mut comparison = comparison();
    insert(&mut comparison, "a", 0);
    assert_eq!(counts(&judged(&mut comparison, 59)), [1, 0, 1, 0, 0]);
    assert_eq!(counts(&judged(&mut comparison, 60)), [1, 0, 0, 1, 0]);
    // Earlier rows keep it busy.
    comparison.there_before("old", false);
    comparison.processed("old", at(50));
    assert_eq!(counts(&judged(&mut comparison, 60)), [1, 0, 1, 0, 0]);
}

#[test]
fn a_log_that_is_read_late_makes_no_row_missing() {
    let mut comparison = comparison();
    insert(&mut comparison, "a", 0);
    // By now an hour has passed; what the poller did meanwhile is not read yet.
    assert_eq!(counts(&comparison.judge()), [1, 0, 1, 0, 0]);
    comparison.processed("a", at(20));
    assert_eq!(counts(&judged(&mut comparison, 3600)), [1, 1, 0, 0, 0]);
}

#[test]
fn what_is_done_to_rows_that_were_processed_before_is_no_work_of_the_poller() {
    let mut comparison = comparison();
    insert(&mut comparison, "a", 0);
    comparison.processed("a", at(1));
    insert(&mut comparison, "b", 0);
    comparison.there_before("old", true);
    comparison.processed("old", at(50));
    comparison.processed("a", at(55));
    let report = judged(&mut comparison, 61);
    assert_eq!((counts(&report), report.earlier), ([2, 1, 0, 1, 0], 0));
}

#[test]
fn a_row_that_its_own_transaction_has_processed_is_missing() {
    let mut comparison = comparison();
    insert(&mut comparison, "deleted", 5);
    comparison.processed("deleted", at(5));
    let id = Some(Text::from("marked"));
    comparison.inserted(Inserted { id, moment: at(6), marked: true, poison: None }, at(6).committed);
    let report = judged(&mut comparison, 7);
    assert_eq!(
        (counts(&report), report.missing_ids),
        ([2, 0, 0, 2, 0], vec!["deleted".into(), "marked".into()])
    );
}

#[test]
fn rows_from_before_and_rows_that_are_touched_again_are_not_extra() {
    let mut comparison = comparison();
    comparison.there_before("old", false);
    insert(&mut comparison, "new", 1);
    for id in ["old", "new", "old", "new"] {
        comparison.processed(id, at(3));
    }
    let report = judged(&mut comparison, 4);
    assert_eq!((counts(&report), report.earlier), ([1, 1, 0, 0, 0], 1));
    comparison.processed("alien", at(4));
    comparison.processed("alien", at(5));
    let report = judged(&mut comparison, 5);
    assert_eq!((report.extra, &report.extra_ids[..]), (1, &["alien".to_owned()][..]));
    assert!(!report.agrees());
}

#[test]
fn an_event_that_would_be_a_letter_is_told_by_its_reason_and_still_compared() {
    let mut comparison = comparison();
    for (id, message) in [("1", "first"), ("2", "second")] {
        let poison = Some(Poison::new(Reason::BadSubject, message));
        let inserted = Inserted { id: Some(Text::from(id)), moment: at(1), marked: false, poison };
        comparison.inserted(inserted, at(1).committed);
        comparison.processed(id, at(2));
    }
    let report = judged(&mut comparison, 2);
    assert_eq!((report.would_be_dead_letters, report.compared), (2, 2));
    assert_eq!(report.dead_letters, BTreeMap::from([("bad_subject", 2)]));
    assert_eq!((&report.dead_letter_examples[..], report.agrees()), (&["first".to_owned()][..], false));
}

#[test]
fn what_cannot_be_remembered_is_counted_and_nothing_is_called_extra_for_it() {
    let room = Room { under_way_bytes: ENTRY_BYTES, known: 3 };
    let mut comparison = Comparison::within(Duration::from_secs(60), room).unwrap();
    for id in ["a", "b"] {
        insert(&mut comparison, id, 1);
    }
    for id in ["a", "b"] {
        comparison.processed(id, at(2));
    }
    let report = judged(&mut comparison, 2);
    assert_eq!((counts(&report), report.uncompared, report.extra_judged), ([2, 1, 0, 0, 0], 1, true));
    comparison.there_before("c", false);
    assert!(judged(&mut comparison, 2).extra_judged);
    comparison.there_before("d", true);
    comparison.processed("d", at(3));
    let report = judged(&mut comparison, 3);
    assert_eq!((report.extra, report.extra_judged), (0, false));
    // There is room again for what is under way.
    insert(&mut comparison, "e", 3);
    assert_eq!(judged(&mut comparison, 3).pending, 1);
}

#[test]
fn events_without_an_id_and_ids_that_come_twice_are_not_compared() {
    let mut comparison = comparison();
    let inserted = Inserted { id: None, moment: at(1), marked: false, poison: None };
    comparison.inserted(inserted, at(1).committed);
    insert(&mut comparison, "a", 1);
    insert(&mut comparison, "a", 2);
    comparison.processed("a", at(3));
    let report = judged(&mut comparison, 3);
    assert_eq!((counts(&report), report.uncompared), ([3, 1, 0, 0, 0], 2));
}
