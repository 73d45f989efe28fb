use super::*;
use crate::delivery::history::History;
use crate::outbox::{ColumnInfo, Kind, Mapping, Reason, Settings};
use crate::postgres::pgoutput::{Begin, Commit, Delete, Insert, RelationColumn, ReplicaIdentity, Update};
use bytes::Bytes;

const OUTBOX: u32 = 7;

const COLUMNS: [&str; 5] = ["id", "event_type", "payload", "created_at", "processed"];

fn observer(mark: Option<&str>) -> Observer {
    let columns = COLUMNS.map(|name| ColumnInfo { name, kind: Kind::Other });
    let resolved = Mapping::new(&Settings::default()).unwrap().resolve(&columns).unwrap();
    let intake = Intake::new(History::first(1, 1), "s".into(), OUTBOX, resolved, None);
    let marks = mark.map(str::to_owned).into_iter().collect();
    let mut observer = Observer::new(intake, OUTBOX, "id".into(), marks, Limits::without_server(false));
    observer.take(relation(&COLUMNS, "id")).unwrap();
    let begin = Begin { final_lsn: Lsn(5), commit_time: Timestamp(50), xid: 1 };
    observer.take(Message::Begin(begin)).unwrap();
    observer
}

fn relation(columns: &[&str], key: &str) -> Message {
    let column = |name: &&str| RelationColumn {
        flags: u8::from(*name == key),
        name: Text::from(*name),
        type_oid: 25,
        type_modifier: -1,
    };
    Message::Relation(Relation {
        oid: OUTBOX,
        namespace: "public".into(),
        name: "outbox".into(),
        replica_identity: ReplicaIdentity::Default,
        columns: columns.iter().map(column).collect(),
    })
}

fn row(id: &str, event_type: &str, processed: Option<&str>) -> Tuple {
    let text = |text: &str| Column::Text(Bytes::copy_from_slice(text.as_bytes()));
    [text(id), text(event_type), text("{}"), Column::Null, processed.map_or(Column::Null, text)]
        .into_iter()
        .collect()
}

fn insert(processed: Option<&str>) -> Message {
    Message::Insert(Insert { relation_oid: OUTBOX, tuple: row("1", "order", processed) })
}

fn update(processed: Option<&str>) -> Message {
    Message::Update(Update { relation_oid: OUTBOX, old: None, new: row("1", "order", processed) })
}

fn delete() -> Message {
    Message::Delete(Delete { relation_oid: OUTBOX, old: OldTuple::Key(row("1", "", None)) })
}

fn processed(observer: &mut Observer, message: Message) -> Option<(String, Moment)> {
    match observer.take(message).unwrap() {
        Observed::Processed(id, by) => Some((id.to_string(), by)),
        _ => None,
    }
}

#[test]
fn a_boolean_counts_when_it_is_true_and_a_time_when_it_is_there() {
    for (value, marked) in [(None, false), (Some("f"), false), (Some("t"), true), (Some("2026-11-30"), true)]
    {
        let mut observer = observer(Some("processed"));
        let Observed::Inserted(inserted) = observer.take(insert(value)).unwrap() else { panic!("an insert") };
        assert_eq!(inserted.marked, marked, "{value:?}");
        let by = Moment { commit_lsn: Lsn(5), committed: Timestamp(50) };
        assert_eq!(
            processed(&mut observer, update(value)),
            marked.then(|| ("1".to_owned(), by)),
            "{value:?}"
        );
    }
}

#[test]
fn a_delete_counts_where_it_says_the_id() {
    let mut observer = observer(None);
    assert!(processed(&mut observer, delete()).is_some());
    assert!(processed(&mut observer, update(Some("t"))).is_none(), "nothing is said to be a mark");
    let refused = observer.take(relation(&COLUMNS, "created_at")).unwrap_err();
    assert!(refused.remedy.contains("REPLICA IDENTITY"), "{refused:?}");
    let mut observer = self::observer(Some("processed"));
    observer.take(relation(&COLUMNS, "created_at")).unwrap();
    assert!(processed(&mut observer, delete()).is_none());
}

#[test]
fn columns_are_found_again_where_they_move_and_missed_where_they_go() {
    let mut observer = observer(Some("processed"));
    observer.take(relation(&["processed", "event_type", "payload", "created_at", "id"], "id")).unwrap();
    let new = row("t", "order", Some("9"));
    let moved = Message::Update(Update { relation_oid: OUTBOX, old: None, new });
    assert_eq!(processed(&mut observer, moved).map(|(id, _)| id).as_deref(), Some("9"));
    let lost = observer.take(relation(&COLUMNS[..4], "id")).unwrap_err();
    assert_eq!(lost.code, Code::MarkUnclear);
}

#[test]
fn an_event_is_judged_as_the_relay_would() {
    let mut observer = observer(None);
    let mut reason = |event_type: &str, payload: usize| {
        let tuple = row("1", event_type, None);
        let large = Column::Text(Bytes::from(vec![b'x'; payload]));
        let tuple =
            tuple.iter().enumerate().map(|(at, column)| if at == 2 { large.clone() } else { column.clone() });
        let insert = Insert { relation_oid: OUTBOX, tuple: tuple.collect() };
        let Observed::Inserted(inserted) = observer.take(Message::Insert(insert)).unwrap() else {
            panic!("an insert")
        };
        inserted.poison.map(|poison| poison.reason)
    };
    assert_eq!(reason("order", 10), None);
    assert_eq!(reason("order.placed", 10), Some(Reason::BadSubject));
    assert_eq!(reason("order", 1 << 20), Some(Reason::Oversize));
}

#[test]
fn a_commit_says_where_it_ends_and_other_tables_are_not_looked_at() {
    let mut observer = observer(Some("processed"));
    assert!(observer.in_transaction());
    let other = Message::Delete(Delete { relation_oid: 8, old: OldTuple::Key(row("1", "", None)) });
    assert!(matches!(observer.take(other).unwrap(), Observed::Nothing));
    let commit = Commit { flags: 0, commit_lsn: Lsn(5), end_lsn: Lsn(6), commit_time: Timestamp(50) };
    assert!(matches!(observer.take(Message::Commit(commit)).unwrap(), Observed::Committed(Lsn(6))));
    assert!(!observer.in_transaction());
}
