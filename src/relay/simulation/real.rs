//! The model of the stream beside a real nats-server: the same random history, the same answers.

use super::jetstream::Model;
use crate::config::Access;
use crate::delivery::opening::Stored;
use crate::demo::servers::{NatsServer, nats_program};
use crate::nats::answer::{Answer, parse};
use crate::nats::connect;
use crate::nats::stream::Stream;
use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_LAST_SEQUENCE;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const MAX_MSG_SIZE: usize = 1000;
const HISTORIES: usize = 12;

#[derive(Debug, Clone)]
enum Step {
    /// Expecting the last sequence plus so much; none: expecting nothing.
    Publish {
        off: Option<i64>,
        large: bool,
    },
    /// All but the newest so many.
    Purge(u64),
    Get(u64),
    /// Stopped or killed, and up again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (Just(Some(0)), prop::bool::weighted(0.1)).prop_map(|(off, large)| Step::Publish { off, large }),
        4 => ((-3i64..4).prop_map(Some), prop::bool::weighted(0.2)).prop_map(|(off, large)| Step::Publish { off, large }),
        1 => prop::bool::ANY.prop_map(|large| Step::Publish { off: None, large }),
        1 => (0u64..4).prop_map(Step::Purge),
        4 => (0u64..12).prop_map(Step::Get),
        1 => Just(Step::Restart),
    ]
}

/// What a publish comes to, without words that differ from version to version.
fn plain(answer: Answer) -> Answer {
    match answer {
        Answer::Refused { code, err_code: 10_054, .. } => {
            Answer::Refused { code, err_code: 10_054, description: String::new() }
        }
        other => other,
    }
}

async fn publish(client: &async_nats::Client, expected: Option<u64>, size: usize) -> Answer {
    let mut headers = HeaderMap::new();
    if let Some(expected) = expected {
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, expected.to_string().as_str());
    }
    let payload = vec![b'x'; size].into();
    let answer = client.request_with_headers("outbox.event", headers, payload).await.unwrap();
    parse(&answer.payload)
}

async fn compare(version: Option<&str>, size_first: bool) {
    let mut server = NatsServer::start(&nats_program(version).unwrap(), "").await.unwrap();
    let mut runner = TestRunner::deterministic();
    for history in 0..HISTORIES {
        let steps = prop::collection::vec(step(), 1..80).new_tree(&mut runner).unwrap().current();
        let mut nats = connect::connect(&Access::at(&server.url())).await.unwrap();
        let name = format!("MODEL_{history}");
        let jetstream = async_nats::jetstream::new(nats.client.clone());
        let config = async_nats::jetstream::stream::Config {
            name: name.clone(),
            subjects: vec!["outbox.>".to_owned()],
            max_message_size: i32::try_from(MAX_MSG_SIZE).unwrap(),
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();
        let mut stream = Stream::named(&nats, &name).await.unwrap();
        let mut model = Model { max_msg_size: MAX_MSG_SIZE, size_first, ..Model::default() };
        for (at, step) in steps.iter().enumerate() {
            let told = format!("history {history}, step {at} of {steps:?}");
            match step {
                Step::Publish { off, large } => {
                    let expected = off.map(|off| model.last_seq.saturating_add_signed(off));
                    let size = if *large { MAX_MSG_SIZE + 1 } else { 10 };
                    let answer = plain(publish(&nats.client, expected, size).await);
                    assert_eq!(answer, plain(model.publish(None, size, expected)), "{told}");
                }
                Step::Purge(keep) => {
                    let real = jetstream.get_stream(&name).await.unwrap();
                    real.purge().keep(*keep).await.unwrap();
                    model.purge(*keep);
                }
                Step::Get(back) => {
                    let seq = model.last_seq.saturating_sub(*back).max(1);
                    let there = stream.message(seq).await.unwrap() != Stored::Gone;
                    assert_eq!(there, model.get(seq).is_some(), "message {seq}, {told}");
                }
                Step::Restart => {
                    // Killed, 2.10 forgets that it has purged.
                    if steps[..at].iter().any(|step| matches!(step, Step::Purge(_))) {
                        server.stop().await.unwrap();
                    } else {
                        server.kill();
                    }
                    server.start_again().await.unwrap();
                    nats = connect::connect(&Access::at(&server.url())).await.unwrap();
                    stream = Stream::named(&nats, &name).await.unwrap();
                }
            }
            assert_eq!(stream.look().await.unwrap().end.last_seq, model.last_seq, "{told}");
        }
        jetstream.delete_stream(&name).await.unwrap();
    }
}

#[tokio::test]
async fn the_model_of_the_stream_answers_as_nats_server_2_15_does() {
    compare(None, true).await;
}

#[tokio::test]
async fn the_model_of_the_stream_answers_as_nats_server_2_12_does() {
    compare(Some("2.12"), false).await;
}

#[tokio::test]
async fn the_model_of_the_stream_answers_as_nats_server_2_10_does() {
    compare(Some("2.10"), false).await;
}
