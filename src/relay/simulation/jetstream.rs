//! A model of one JetStream stream, and of the network before it.
//!
//! The stream is a value: what it answers to a publish is checked against a real nats-server by the
//! same random histories (`real`). The network loses, delays and reorders, and hands over late what a
//! broken connection had still under way.

use super::World;
use crate::delivery::opening::{Stored, StreamEnd};
use crate::delivery::position::{Identity, Place};
use crate::error::{Code, Failure};
use crate::nats::answer::Answer;
use crate::nats::connect::Link;
use crate::nats::envelope::Stamp;
use crate::nats::stream::Look;
use crate::outbox::Event;
use crate::postgres::timestamp::Timestamp;
use crate::relay::sides;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// A publish that is not answered, or a request, is given up by then.
const REQUEST_MAX: Duration = Duration::from_secs(3);

/// A message of the stream.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) event: Option<Identity>,
    pub(super) stored_at: Instant,
    /// Purged or expired: its sequence stays taken.
    pub(super) gone: bool,
}

/// The stream: what was ever stored and not lost, by sequence.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) messages: BTreeMap<u64, Message>,
    pub(super) last_seq: u64,
    /// Larger messages are refused; 0: none.
    pub(super) max_msg_size: usize,
    /// The size is looked at before the sequence: so from 2.14 on, not up to 2.12.
    pub(super) size_first: bool,
}

impl Model {
    /// What the server answers to a publish of `size` bytes that expects `last` (nats-server,
    /// `processJetStreamMsg`; ADR-22).
    pub(super) fn publish(&mut self, event: Option<Identity>, size: usize, last: Option<u64>) -> Answer {
        let refused = |err_code, description: String| Answer::Refused { code: 400, err_code, description };
        let large = self.max_msg_size > 0 && size > self.max_msg_size;
        let misplaced = last.is_some_and(|last| last != self.last_seq);
        if large && (self.size_first || !misplaced) {
            return refused(10_054, "message size exceeds maximum allowed".to_owned());
        }
        if misplaced {
            return refused(10_071, format!("wrong last sequence: {}", self.last_seq));
        }
        self.last_seq += 1;
        self.messages.insert(self.last_seq, Message { event, stored_at: Instant::now(), gone: false });
        Answer::Stored(self.last_seq)
    }

    /// Removes all but the newest `keep`.
    pub(super) fn purge(&mut self, keep: u64) {
        let up_to = self.last_seq.saturating_sub(keep);
        self.messages.range_mut(..=up_to).for_each(|(_, message)| message.gone = true);
    }

    /// Loses everything behind `last_seq`, as a power failure does.
    pub(super) fn truncate(&mut self, last_seq: u64) {
        self.messages.split_off(&(last_seq + 1));
        self.last_seq = self.last_seq.min(last_seq);
    }

    pub(super) fn get(&self, seq: u64) -> Option<&Message> {
        self.messages.get(&seq).filter(|message| !message.gone)
    }

    fn stored(&self, seq: u64) -> Stored {
        match self.get(seq) {
            None => Stored::Gone,
            Some(Message { event: Some(event), .. }) => Stored::Event(Box::new(event.clone())),
            Some(Message { event: None, .. }) => Stored::Foreign("other".to_owned()),
        }
    }
}

/// nats-server and the network before it.
#[derive(Debug)]
pub(super) struct Broker {
    pub(super) stream: Model,
    pub(super) up: bool,
    /// Without a leader until then: no publish and no request is answered.
    pub(super) silent_until: Instant,
    /// Publishes and answers are lost in this share of cases, until then.
    pub(super) lossy: (f64, Instant),
    clients: Vec<watch::Sender<Link>>,
}

impl Broker {
    pub(super) fn new() -> Broker {
        let now = Instant::now();
        Broker {
            stream: Model::default(),
            up: true,
            silent_until: now,
            lossy: (0.0, now),
            clients: Vec::new(),
        }
    }

    /// Every connection breaks.
    pub(super) fn cut(&mut self) {
        self.clients.retain(|client| !client.is_closed());
        for client in &self.clients {
            client.send_modify(|link| {
                link.up = false;
                link.losses += 1;
            });
        }
    }

    /// The clients are connected again.
    pub(super) fn heal(&mut self) {
        if self.up {
            self.clients.iter().for_each(|client| client.send_modify(|link| link.up = true));
        }
    }

    fn answers(&self) -> bool {
        self.up && Instant::now() >= self.silent_until
    }
}

/// A publish on the wire.
struct Wire {
    epoch: u64,
    seq: u64,
    event: Identity,
    size: usize,
}

/// A client's publishing half.
pub(super) struct Publisher {
    epoch: u64,
    awaited: u64,
    unanswered: u64,
    wire: mpsc::UnboundedSender<Wire>,
    inbox: mpsc::UnboundedReceiver<(u64, u64, Answer)>,
}

/// A client's asking half.
#[derive(Clone)]
pub(super) struct Stream {
    world: Rc<World>,
    link: watch::Receiver<Link>,
}

/// Connects a client.
pub(super) async fn connect(world: &Rc<World>) -> Result<sides::Broker<Stream, Publisher>, Failure> {
    sleep(world.latency()).await;
    if !world.broker.borrow().up {
        return Err(Failure::new(Code::NatsUnreachable, "connection refused", ""));
    }
    let (changed, link) = watch::channel(Link::new());
    world.broker.borrow_mut().clients.push(changed);
    let (wire, sent) = mpsc::unbounded_channel();
    let (answers, inbox) = mpsc::unbounded_channel();
    tokio::task::spawn_local(carry(Rc::clone(world), link.clone(), sent, answers));
    Ok(sides::Broker {
        stream: Stream { world: Rc::clone(world), link: link.clone() },
        publisher: Publisher { epoch: 0, awaited: 0, unanswered: 0, wire, inbox },
        link,
        version: "model".to_owned(),
        msg_id_is_safe: true,
    })
}

/// Carries one client's publishes to the server, in order, and the answers back, in any order.
async fn carry(
    world: Rc<World>,
    mut link: watch::Receiver<Link>,
    mut sent: mpsc::UnboundedReceiver<Wire>,
    answers: mpsc::UnboundedSender<(u64, u64, Answer)>,
) {
    let client = Rc::new(());
    while let Some(first) = sent.recv().await {
        let mut batch = vec![first];
        while let Ok(next) = sent.try_recv() {
            batch.push(next);
        }
        let losses = link.borrow().losses;
        sleep(world.latency()).await;
        // The client sends its queue again once it is connected, but not what was written already.
        if link.wait_for(|link| link.up).await.is_err() {
            return;
        }
        let broken = link.borrow().losses > losses;
        let lost_from = if broken { world.below(batch.len() + 1) } else { batch.len() };
        for (at, Wire { epoch, seq, event, size }) in batch.into_iter().enumerate() {
            let mut broker = world.broker.borrow_mut();
            let (share, until) = broker.lossy;
            let lossy = if Instant::now() < until { share } else { 0.0 };
            if at >= lost_from || world.chance(lossy) || !broker.up {
                if world.chance(0.3) {
                    late(&world, Rc::downgrade(&client), event, size, seq - 1);
                }
                continue;
            }
            if sent.is_closed() && sent.is_empty() && world.chance(0.5) {
                // The client was dropped: what it had under way may be stored or not.
                continue;
            }
            let answer = if broker.answers() {
                broker.stream.publish(Some(event), size, Some(seq - 1))
            } else if world.chance(0.5) {
                Answer::NoResponders
            } else {
                continue;
            };
            drop(broker);
            if world.chance(lossy) {
                continue;
            }
            let (answers, delay) = (answers.clone(), world.answer_delay());
            let mut link = link.clone();
            let losses = link.borrow().losses;
            tokio::task::spawn_local(async move {
                sleep(delay).await;
                if link.borrow_and_update().losses == losses {
                    let _ = answers.send((epoch, seq, answer));
                }
            });
        }
    }
}

/// A publish that was long under way, in a server that was slow or in its cluster: it may arrive
/// behind what was sent later, as long as its client is there.
fn late(world: &Rc<World>, client: Weak<()>, event: Identity, size: usize, last: u64) {
    let (world, delay) = (Rc::clone(world), world.millis(5..4000));
    tokio::task::spawn_local(async move {
        sleep(delay).await;
        let mut broker = world.broker.borrow_mut();
        if client.upgrade().is_some() && broker.answers() {
            broker.stream.publish(Some(event), size, Some(last));
        }
    });
}

impl sides::Publisher for Publisher {
    fn max_payload(&self) -> usize {
        1 << 20
    }

    fn next_epoch(&mut self) {
        self.epoch += 1;
        self.unanswered += std::mem::take(&mut self.awaited);
    }

    fn awaited(&self) -> u64 {
        self.awaited
    }

    fn unanswered(&self) -> u64 {
        self.unanswered
    }

    fn send(&mut self, seq: u64, event: &Event, stamp: Stamp<'_>) {
        let event_id = event.id.to_string();
        let identity = Identity {
            position: format!("{}{:016X}/{}", stamp.origin, stamp.place.commit_lsn.0, stamp.place.index)
                .parse()
                .unwrap(),
            commit_time: stamp.commit_time,
            event_id,
        };
        // The model's stream refuses what is larger than this one kind of event.
        let size = if event.subject.ends_with(super::REFUSED) { usize::MAX } else { event.payload.len() };
        self.awaited += 1;
        let _ = self.wire.send(Wire { epoch: self.epoch, seq, event: identity, size });
    }

    async fn answer(&mut self) -> (u64, Answer) {
        while let Some(answer) = self.inbox.recv().await {
            if let Some(answer) = self.take(answer) {
                return answer;
            }
        }
        std::future::pending().await
    }

    fn answered(&mut self) -> Option<(u64, Answer)> {
        loop {
            let answer = self.inbox.try_recv().ok()?;
            if let Some(answer) = self.take(answer) {
                return Some(answer);
            }
        }
    }
}

impl Publisher {
    fn take(&mut self, (epoch, seq, answer): (u64, u64, Answer)) -> Option<(u64, Answer)> {
        if epoch == self.epoch {
            self.awaited -= 1;
            Some((seq, answer))
        } else {
            self.unanswered -= 1;
            None
        }
    }
}

impl Stream {
    /// Waits as long as a request takes, or is given up.
    async fn ask<T>(&self, answer: impl FnOnce(&Model) -> T) -> Result<T, Failure> {
        let given_up = Instant::now() + REQUEST_MAX;
        sleep(self.world.latency()).await;
        if self.link.borrow().up && self.world.broker.borrow().answers() {
            return Ok(answer(&self.world.broker.borrow().stream));
        }
        sleep_until(given_up).await;
        Err(Failure::new(Code::NatsSession, "JetStream does not answer", ""))
    }
}

impl sides::Stream for Stream {
    fn name(&self) -> &str {
        "OUTBOX"
    }

    async fn look(&self) -> Result<Look, Failure> {
        let world = &self.world;
        self.ask(|stream| Look {
            first_seq: 1,
            config: serde_json::from_str(r#"{"subjects": ["outbox.>"]}"#).unwrap(),
            end: StreamEnd { last_seq: stream.last_seq, created: Timestamp(5) },
            bytes: 0,
            consumers: 0,
            cluster: None,
            messages: stream.messages.len() as u64,
            last_at: stream.messages.get(&stream.last_seq).map(|last| world.moment(last.stored_at)),
            now: Some(world.moment(Instant::now())),
        })
        .await
    }

    async fn message(&self, seq: u64) -> Result<Stored, Failure> {
        self.ask(|stream| stream.stored(seq)).await
    }

    async fn messages(&self, first: u64, last: u64) -> Result<Vec<(u64, Stored)>, Failure> {
        let mut found = Vec::new();
        for chunk in (first..=last).collect::<Vec<_>>().chunks(50) {
            found.extend(
                self.ask(|stream| chunk.iter().map(|seq| (*seq, stream.stored(*seq))).collect::<Vec<_>>())
                    .await?,
            );
        }
        Ok(found)
    }

    async fn has_object_store(&self) -> Result<bool, Failure> {
        Ok(false)
    }

    async fn claim_check(&self, event: Event, _: Place) -> Result<Event, Failure> {
        Ok(event)
    }
}
