//! What Postgres committed, in the order of commits, as a second slot tells it.
//!
//! The slot is read a piece at a time while the load runs: looked at, noted, then moved on. A crash
//! in between shows a piece once more, and what is not behind the last noted commit is left out.
//! Of a row, only its place and a hash of its subject and payload are kept.

use crate::support::{connect, eventually};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

const PIECE: &str = "SELECT data FROM pg_logical_slot_peek_binary_changes('oracle', NULL, 20000, \
     'proto_version', '1', 'publication_names', 'postrider')";
/// Each look decodes again what was written in the last seconds.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// A committed row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) id: String,
    /// Commit LSN, and the row's number in its transaction.
    pub(crate) position: (u64, u64),
    pub(crate) content: u64,
    /// Its type makes no subject.
    pub(crate) poison: bool,
}

/// What the stream must have of a row besides its place.
pub(crate) fn content(subject: &str, payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (subject, payload).hash(&mut hasher);
    hasher.finish()
}

pub(crate) struct Oracle {
    url: String,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Notes>,
}

#[derive(Default)]
struct Notes {
    rows: Vec<Committed>,
    last_commit: u64,
}

impl Oracle {
    /// From now on, which must be before the first row.
    pub(crate) async fn start(url: &str) -> Oracle {
        let client = connect(url).await.unwrap();
        client
            .batch_execute("SELECT pg_create_logical_replication_slot('oracle', 'pgoutput')")
            .await
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(watch(url.to_owned(), Arc::clone(&stop)));
        Oracle { url: url.to_owned(), stop, task }
    }

    /// All rows, once no one writes any more and Postgres runs.
    pub(crate) async fn finish(self) -> Vec<Committed> {
        self.stop.store(true, Ordering::Relaxed);
        let mut notes = self.task.await.unwrap();
        let client = connect(&self.url).await.unwrap();
        // Flushes commits that were not waited for.
        client.batch_execute("SELECT pg_logical_emit_message(true, 'torture', 'end')").await.unwrap();
        eventually("the oracle has read all", async || {
            let read = look(&client, &mut notes).await.ok()?;
            (read == 0).then_some(())
        })
        .await;
        let mut noted: Vec<i32> = notes.rows.iter().map(|row| row.id.parse().unwrap()).collect();
        noted.sort_unstable();
        let table = client.query("SELECT id FROM outbox ORDER BY id", &[]).await.unwrap();
        let table: Vec<i32> = table.iter().map(|row| row.get(0)).collect();
        assert!(noted == table, "the oracle has {} rows, the table {}", noted.len(), table.len());
        notes.rows
    }
}

async fn watch(url: String, stop: Arc<AtomicBool>) -> Notes {
    let (mut notes, mut client) = (Notes::default(), None);
    while !stop.load(Ordering::Relaxed) {
        if client.is_none() {
            client = connect(&url).await.ok();
        }
        let read = match &client {
            Some(connected) => look(connected, &mut notes).await.inspect_err(|_| client = None),
            None => Ok(0),
        };
        if read.is_ok_and(|read| read > 0) {
            continue;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    notes
}

/// Notes a piece; how many new transactions it had.
async fn look(client: &Client, notes: &mut Notes) -> Result<usize, tokio_postgres::Error> {
    let (mut commit, mut end, mut index, mut new) = (0, 0, 0, 0);
    for row in client.query(PIECE, &[]).await? {
        let data: &[u8] = row.get(0);
        match data[0] {
            b'B' => (commit, index) = (number(&data[1..9]), 0),
            b'I' => {
                if commit > notes.last_commit {
                    notes.rows.push(insert(data, (commit, index)));
                }
                index += 1;
            }
            b'C' => {
                end = number(&data[10..18]);
                new += usize::from(commit > notes.last_commit);
                notes.last_commit = notes.last_commit.max(commit);
            }
            _ => {}
        }
    }
    if end > 0 {
        let end = format!("{:X}/{:X}", end >> 32, end & 0xffff_ffff);
        let on = format!("SELECT pg_replication_slot_advance('oracle', '{end}')");
        client.batch_execute(&on).await?;
    }
    Ok(new)
}

/// `I`, the relation's oid, `N`, the number of columns, and of each `t`, its length, its text.
fn insert(data: &[u8], position: (u64, u64)) -> Committed {
    let mut rest = &data[8..];
    let mut column = || {
        assert_eq!(rest[0], b't', "id, type and payload are never null");
        let (text, further) = rest[5..].split_at(usize::try_from(number(&rest[1..5])).unwrap());
        rest = further;
        text
    };
    let id = String::from_utf8(column().to_vec()).unwrap();
    let kind = String::from_utf8(column().to_vec()).unwrap();
    let content = content(&format!("outbox.{kind}"), column());
    Committed { id, position, content, poison: kind.contains('.') }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
