//! The stream beside what was committed.

use crate::oracle::{Committed, content};
use crate::support::{Message, position};
use async_nats::jetstream::{consumer::pull::OrderedConfig, stream::Stream};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// For the next message of a consumer that has some left.
const NEXT_MAX: Duration = Duration::from_secs(90);
/// Examples of each fault that are shown.
const EXAMPLES: usize = 5;

#[derive(Default)]
pub(crate) struct Proof {
    pub(crate) committed: usize,
    pub(crate) stored: usize,
    pub(crate) lettered: usize,
    lost: Findings,
    doubled: Findings,
    misordered: Findings,
    /// Other bytes, subject or position than the row's.
    altered: Findings,
    /// Of no committed row.
    foreign: Findings,
    /// A sequence that is not one behind the message before.
    holes: Findings,
    /// Letters that are no poison row's, or of another reason.
    misfiled: Findings,
}

#[derive(Default)]
struct Findings {
    count: usize,
    examples: Vec<String>,
}

impl Findings {
    fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

impl Proof {
    pub(crate) async fn of(rows: &[Committed], letters: &[Letter], stream: &Stream) -> Proof {
        let mut proof = Proof { committed: rows.len(), lettered: letters.len(), ..Proof::default() };
        let places: HashMap<&str, usize> =
            rows.iter().enumerate().map(|(place, row)| (row.id.as_str(), place)).collect();
        let mut seen = vec![0_u32; rows.len()];
        let (mut last_place, mut last_seq) = (None, 0);
        each_message(stream, |message| {
            proof.stored += 1;
            let seq = message.seq;
            if seq != last_seq + 1 {
                proof.holes.add(|| format!("{seq} after {last_seq}"));
            }
            last_seq = seq;
            let id = message.header("Postrider-Event-Id").unwrap_or_default();
            let Some(&place) = places.get(id) else {
                return proof.foreign.add(|| format!("event {id:?} at {seq}"));
            };
            let row = &rows[place];
            seen[place] += 1;
            if seen[place] > 1 {
                proof.doubled.add(|| format!("event {id} again at {seq}"));
            } else if last_place > Some(place) {
                proof.misordered.add(|| format!("event {id} at {seq}"));
            }
            last_place = last_place.max(Some(place));
            if row.poison {
                proof.misfiled.add(|| format!("poison event {id} is at {seq}"));
            }
            let same = content(&message.subject, &message.payload) == row.content;
            if !same || position(message) != row.position {
                let stands = (&message.subject, position(message));
                proof.altered.add(|| format!("event {id} at {seq}: {stands:?}, committed {row:?}"));
            }
        })
        .await;
        proof.letters(rows, letters, &places);
        for (row, seen) in rows.iter().zip(&seen) {
            if *seen == 0 && !row.poison {
                proof.lost.add(|| format!("{row:?}"));
            }
        }
        proof
    }

    fn letters(&mut self, rows: &[Committed], letters: &[Letter], places: &HashMap<&str, usize>) {
        let mut seen = vec![0_u32; rows.len()];
        for letter in letters {
            let row = places.get(letter.id.as_str()).map(|place| (*place, &rows[*place]));
            match row {
                Some((place, row)) if row.poison && letter.reason == "bad_subject" => {
                    seen[place] += 1;
                    if seen[place] > 1 {
                        self.doubled.add(|| format!("{letter:?}"));
                    } else if letter.position != row.position {
                        self.altered.add(|| format!("{letter:?}, committed {row:?}"));
                    }
                }
                _ => self.misfiled.add(|| format!("{letter:?}")),
            }
        }
        for (row, seen) in rows.iter().zip(&seen) {
            if row.poison && *seen == 0 {
                self.lost.add(|| format!("{row:?}"));
            }
        }
    }

    fn findings(&self) -> [(&'static str, &Findings); 7] {
        [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("misordered", &self.misordered),
            ("altered", &self.altered),
            ("foreign", &self.foreign),
            ("holes", &self.holes),
            ("misfiled", &self.misfiled),
        ]
    }

    pub(crate) fn holds(&self) -> bool {
        self.findings().iter().all(|(_, findings)| findings.count == 0)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "committed {} stored {} dead letters {}", self.committed, self.stored, self.lettered)?;
        for (name, findings) in self.findings() {
            write!(f, " {name} {}", findings.count)?;
        }
        for (name, findings) in self.findings() {
            for example in &findings.examples {
                write!(f, "\n  {name}: {example}")?;
            }
        }
        Ok(())
    }
}

/// A row of `postrider.dead_letter`.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) id: String,
    pub(crate) position: (u64, u64),
    pub(crate) reason: String,
}

/// From sequence 1 on, without holding them all.
async fn each_message(stream: &Stream, mut each: impl FnMut(&Message)) {
    if stream.cached_info().state.messages == 0 {
        return;
    }
    let consumer = stream.create_consumer(OrderedConfig::default()).await.unwrap();
    let mut stored = consumer.messages().await.unwrap();
    loop {
        let next = tokio::time::timeout(NEXT_MAX, stored.next()).await;
        let message = next.unwrap().unwrap().unwrap();
        let (seq, pending, stored_at) = {
            let info = message.info().unwrap();
            (info.stream_sequence, info.pending, info.published.into())
        };
        let (message, _) = message.split();
        each(&Message {
            seq,
            stored_at,
            subject: message.subject.to_string(),
            headers: message.headers.unwrap_or_default(),
            payload: message.payload,
        });
        if pending == 0 {
            return;
        }
    }
}
