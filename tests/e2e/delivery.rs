//! Every committed row once, in commit order, whatever is killed meanwhile.

use crate::support::{ARTICLE, Load, Pipeline, Relay};
use std::time::Duration;

/// About 7,000 rows a second with four writers.
const STEADY: &[i32] = &[1, 10, 1, 100, 1, 1, 500];
const STEADY_PAUSE: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_row_of_the_plain_article_table_arrives_as_postgres_prints_it() {
    let pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute(
            r#"INSERT INTO outbox (event_type, payload)
               VALUES ('order_placed', '{"z": 1.10, "a":"ü\u0041\n", "list":[1, 2]}')"#,
        )
        .await;
    let message = pipeline.exactly(1).await.remove(0);
    assert_eq!(message.subject, "outbox.order_placed");
    assert_eq!(
        message.plain_headers(),
        ["Content-Type: application/json", "Postrider-Event-Id: 1", "Postrider-Event-Type: order_placed"]
    );
    assert_eq!(message.payload, pipeline.ask("SELECT payload FROM outbox").await);

    let system = pipeline.ask("SELECT system_identifier FROM pg_control_system()").await;
    let position: Vec<_> = message.header("Postrider-Position").unwrap().split('/').collect();
    let [of_system, timeline, slot, lsn, index] = position[..] else { panic!("{position:?}") };
    assert_eq!((of_system, timeline, slot, index), (system.as_str(), "1", "postrider", "0"));
    assert!(lsn.len() == 16 && lsn.bytes().all(|digit| b"0123456789ABCDEF".contains(&digit)), "{lsn}");
    let time = message.header("Postrider-Commit-Time").unwrap();
    assert_eq!((time.len(), &time[10..11], &time[19..20], &time[26..]), (27, "T", ".", "Z"), "{time}");
    let age = pipeline.ask(&format!("extract(epoch FROM now() - '{time}')::float8 BETWEEN 0 AND 90")).await;
    assert_eq!(age, "true", "{time}");
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_rolled_back_row_is_never_published() {
    let pipeline = Pipeline::article().await;
    let _relay = pipeline.run().await;
    let insert = "INSERT INTO outbox (event_type, payload) VALUES";
    pipeline
        .execute(&format!(
            "BEGIN; {insert} ('whole', '1'); ROLLBACK;
             BEGIN; {insert} ('before', '2'); SAVEPOINT s; {insert} ('within', '3'); ROLLBACK TO s;
             {insert} ('after', '4'); COMMIT"
        ))
        .await;
    let subjects: Vec<_> = pipeline.exactly(2).await.into_iter().map(|message| message.subject).collect();
    assert_eq!(subjects, ["outbox.before", "outbox.after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_many_writers_are_stored_once_in_commit_order() {
    let pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut relay = pipeline.run().await;
    let mut large = Load::rounds(&pipeline, 2, &[1, 100_000], 1);
    let mut small = Load::rounds(&pipeline, 5, &[1, 10, 1, 1000, 1, 10, 1], 8);
    small.done().await;
    large.done().await;
    assert!(pipeline.committed().await.len() >= 120_000);
    pipeline.proves(&mut relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_killed_at_any_moment_goes_on_where_the_stream_ends() {
    let pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut load = Load::endless(&pipeline, 4, STEADY, STEADY_PAUSE);
    let relay = killed_again_and_again(&pipeline, 10, false).await;
    load.finish().await;
    let mut relay = relay;
    pipeline.proves(&mut relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_stream_gets_nothing_again_after_a_kill() {
    let pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    let mut load = Load::endless(&pipeline, 3, STEADY, STEADY_PAUSE);
    let mut relay = killed_again_and_again(&pipeline, 4, true).await;
    load.finish().await;
    pipeline.proves(&mut relay).await;

    // All of it settled, purged, and the relay new: nothing comes.
    pipeline.stream().await.purge().await.unwrap();
    let before = pipeline.last_seq().await;
    relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('last', '{}')").await;
    pipeline.stored(before + 1).await;
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.last"]);
}

/// Restarts the relay `times` times, each killed some time after it began or after it streams.
async fn killed_again_and_again(pipeline: &Pipeline, times: u32, purge: bool) -> Relay {
    for round in 0..times {
        let mut relay = pipeline.spawn(&["run"]);
        if round % 3 != 2 {
            relay.streams().await;
            // A moment, not a wait: any will do.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..1500))).await;
        } else {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(20..400))).await;
        }
        relay.kill();
        if purge {
            pipeline.stream().await.purge().await.unwrap();
        }
    }
    pipeline.run().await
}
