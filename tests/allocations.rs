//! What an event costs in allocations, from the frame that brings it to the answer that settles it.
//!
//! The relay runs in the test's own thread, whose allocations are counted, between a real Postgres and
//! a real nats-server; so does a bare publisher of equal messages. What both do once is left out: the
//! count of a small backlog is taken from that of a large one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

use allocation_counter::{AllocationInfo, measure};
use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use postrider::config::Access;
use postrider::config::{Config, Environment, Flags, Loaded};
use postrider::demo::servers::{NatsServer, PostgresPrograms, PostgresServer, nats_program};
use postrider::nats::answer::{Answer, parse};
use postrider::nats::connect::connect;
use postrider::ops::http::Pulse;
use postrider::ops::status::{Board, Status};
use postrider::relay::{self, Pace};
use std::future::Future;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio_postgres::NoTls;

const SMALL: u32 = 2_000;
const LARGE: u32 = 12_000;

/// The relay's default window.
const WINDOW: usize = 2_048;

const DEADLINE: Duration = Duration::from_secs(90);

/// What the relay makes: a row's columns, the list of its headers, its subject, and a share of the buffers
/// that it reads into.
const RELAY_MAX: f64 = 8.0;

#[test]
fn an_event_costs_far_fewer_allocations_than_async_nats_makes_to_publish_it() {
    for size in [1, 100] {
        let (small, large) = (Backlog::new(SMALL, size), Backlog::new(LARGE, size));
        let per_event = |large: AllocationInfo, small: AllocationInfo| {
            f64::from(u32::try_from(large.count_total - small.count_total).unwrap())
                / f64::from(LARGE - SMALL)
        };
        let relay = per_event(large.relay(), small.relay());
        let bare = per_event(large.bare(), small.bare());
        println!("transactions of {size}: {relay:.2} allocations an event, {bare:.2} of a bare publisher");
        assert!(relay <= RELAY_MAX, "transactions of {size}: {relay:.2}, bare {bare:.2}");
        // Both counts are real: a header map of seven has sixteen.
        assert!(bare > 16.0, "{bare:.2}");
    }
}

/// Servers with rows in the outbox that nobody has relayed.
struct Backlog {
    postgres: PostgresServer,
    nats: NatsServer,
    rows: u32,
}

impl Backlog {
    fn new(rows: u32, size: u32) -> Backlog {
        block_on(async {
            let postgres = PostgresServer::start(&PostgresPrograms::find(None).unwrap(), &[]).await.unwrap();
            let nats = NatsServer::start(&nats_program(None).unwrap(), "").await.unwrap();
            let (sql, connection) = tokio_postgres::connect(&postgres.url("postgres"), NoTls).await.unwrap();
            tokio::spawn(connection);
            let table = "CREATE TABLE outbox (id SERIAL PRIMARY KEY, event_type VARCHAR(50), payload JSONB, \
                created_at TIMESTAMP DEFAULT NOW(), processed BOOLEAN DEFAULT FALSE)";
            sql.batch_execute(table).await.unwrap();
            let backlog = Backlog { postgres, nats, rows };
            backlog.init();
            let transactions = rows / size;
            let fill = format!(
                "DO $$ BEGIN FOR t IN 1..{transactions} LOOP \
                     INSERT INTO outbox (event_type, payload) \
                     SELECT 'order_created', jsonb_build_object('order', i, 'note', repeat('x', 150)) \
                     FROM generate_series(1, {size}) i; COMMIT; \
                 END LOOP; END $$"
            );
            sql.batch_execute(&fill).await.unwrap();
            backlog
        })
    }

    fn environment(&self) -> [(&str, String); 3] {
        [
            ("DATABASE_URL", self.postgres.url("postgres")),
            ("NATS_URL", self.nats.url()),
            ("POSTRIDER_HTTP_LISTEN", "off".to_owned()),
        ]
    }

    fn init(&self) {
        let init = Command::new(env!("CARGO_BIN_EXE_postrider"))
            .env_clear()
            .envs(self.environment())
            .current_dir("/")
            .arg("init")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    }

    /// Relays all of it.
    fn relay(&self) -> AllocationInfo {
        let config: Config =
            Loaded::from(&Flags::default(), &Environment::of(self.environment())).config.unwrap();
        let board = Board::new(Status::default());
        measure(|| {
            block_on(async {
                let (stop, stopped) = watch::channel(false);
                let (seen, rows) = (board.clone(), u64::from(self.rows));
                let stopping = tokio::spawn(async move {
                    while seen.read().published_total.is_none_or(|published| published < rows) {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    stop.send(true).unwrap();
                });
                let (pulse, pace) = (Pulse::default(), Pace::default());
                let relaying = relay::run(&config, &board, &pulse, &pace, stopped);
                tokio::time::timeout(DEADLINE, relaying).await.unwrap().unwrap();
                stopping.await.unwrap();
            });
        })
    }

    /// Publishes by async-nats alone what the relay has published.
    fn bare(&self) -> AllocationInfo {
        let messages = self.messages();
        assert_eq!(messages.len(), self.rows as usize);
        measure(|| {
            block_on(async {
                let client = connect(&Access::at(&self.nats.url())).await.unwrap().client;
                let jetstream = async_nats::jetstream::new(client.clone());
                // Made anew, so that the chain of expected sequences fits again.
                let config = jetstream.get_stream("OUTBOX").await.unwrap().cached_info().config.clone();
                jetstream.delete_stream("OUTBOX").await.unwrap();
                jetstream.create_stream(config).await.unwrap();
                let inbox = client.new_inbox();
                let mut answers = client.subscribe(format!("{inbox}.*")).await.unwrap();
                let mut awaited = 0;
                for (number, message) in messages.iter().enumerate() {
                    if awaited == WINDOW {
                        stored(&answers.next().await.unwrap().payload);
                        awaited -= 1;
                    }
                    let mut headers = HeaderMap::new();
                    for (name, value) in &message.headers {
                        headers.insert(name.clone(), HeaderValue::from(value.as_str()));
                    }
                    let reply = Subject::from(format!("{inbox}.{number}"));
                    let subject = message.subject.clone();
                    let payload = message.payload.clone();
                    client.publish_with_reply_and_headers(subject, reply, headers, payload).await.unwrap();
                    awaited += 1;
                }
                while awaited > 0 {
                    stored(&answers.next().await.unwrap().payload);
                    awaited -= 1;
                }
            });
        })
    }

    /// What the stream holds.
    fn messages(&self) -> Vec<Message> {
        block_on(async {
            let jetstream =
                async_nats::jetstream::new(connect(&Access::at(&self.nats.url())).await.unwrap().client);
            let stream = jetstream.get_stream("OUTBOX").await.unwrap();
            let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
            let mut stored = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
            let mut messages = Vec::new();
            while messages.len() < self.rows as usize {
                let message = stored.next().await.unwrap().unwrap().message;
                let headers = message.headers.unwrap();
                let headers = headers.iter().map(|(name, values)| (name.clone(), values[0].to_string()));
                messages.push(Message {
                    subject: message.subject,
                    headers: headers.collect(),
                    payload: message.payload,
                });
            }
            messages
        })
    }
}

struct Message {
    subject: Subject,
    headers: Vec<(HeaderName, String)>,
    payload: Bytes,
}

fn stored(answer: &[u8]) {
    let answer = parse(answer);
    assert!(matches!(answer, Answer::Stored(_)), "{answer:?}");
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
