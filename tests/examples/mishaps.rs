//! What goes wrong beside a consumer, and what one event or one setting that is wrong must not stop.

use crate::language::Language;
use crate::shop::{Shop, bucket};
use crate::support::{eventually, within};
use futures_util::future::join_all;
use rustix::process::Signal;
use std::time::Duration;

/// Messages that no relay wrote, without any header: their bucket waits for a person, the others go on.
async fn survives_what_is_no_event(language: Language) {
    let shop = Shop::open(language, &[("tea", 9), ("cup", 9)], None).await;
    assert_ne!(bucket("tea"), bucket("cup"));
    shop.place(["tea 1", "cup 1"].map(str::to_owned)).await;
    shop.pipeline.stored(2).await;
    let subject = format!("outbox.order_placed.{}", bucket("tea"));
    let body = r#"{"order_id": 1, "item": "tea", "quantity": 2, "note": ""}"#;
    for _ in 0..2 {
        let jetstream = shop.pipeline.jetstream().await;
        jetstream.publish(subject.clone(), body.into()).await.unwrap().await.unwrap();
    }
    let durable = format!("inventory-{}", bucket("tea"));
    let mut consumer = shop.consumer();
    for starts in 1..=2 {
        within(
            Duration::from_secs(60),
            &format!("{language:?}: it comes again, start {starts}"),
            async || {
                assert!(consumer.is_running(), "{language:?} ended: {}", consumer.log());
                let known = shop.try_durable(&durable).await?;
                // The order, and the other message twice a start.
                (known.delivered.consumer_sequence > 2 * starts).then_some(())
            },
        )
        .await;
        consumer.kill();
        consumer = shop.consumer();
    }
    assert_eq!(shop.durable(&durable).await.num_pending, 1, "{language:?} went on in its bucket");
    assert_eq!(shop.count("inbox WHERE consumer = 'inventory'").await, 2, "{language:?}");
    assert_eq!(shop.pipeline.ask("SELECT sum(quantity) FROM stock").await, "16", "{language:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_event_stops_its_bucket_alone_in_any_language() {
    join_all(Language::ALL.map(survives_what_is_no_event)).await;
}

async fn begins_with_another_ack_wait(language: Language) {
    let mut shop = Shop::open(language, &[("tea", 9)], None).await;
    let mut consumer = shop.consumer();
    shop.place(["tea 1".to_owned()]).await;
    shop.sold_exactly(1).await;
    consumer.kill();
    shop.set("ACK_WAIT", "2");
    let _consumer = shop.consumer();
    shop.place(["tea 1".to_owned()]).await;
    shop.sold_exactly(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_begins_with_another_ack_wait_than_its_durable_has_in_any_language() {
    join_all(Language::ALL.map(begins_with_another_ack_wait)).await;
}

/// Postgres ends the connection while the consumer, frozen, has a transaction open and no query under way.
async fn outlives_its_connection(language: Language) {
    let shop = Shop::open(language, &[("tea", 5)], None).await;
    let mut consumer = shop.consumer();
    let lock = shop.pipeline.sql().await;
    lock.batch_execute("BEGIN; SELECT FROM stock WHERE item = 'tea' FOR UPDATE").await.unwrap();
    shop.place(["tea 2".to_owned()]).await;
    let effect = "FROM pg_stat_activity WHERE query LIKE 'UPDATE stock%'";
    eventually("the effect waits for the lock", async || {
        let waits = format!("SELECT count(*) {effect} AND wait_event_type = 'Lock'");
        (shop.pipeline.ask(&waits).await == "1").then_some(())
    })
    .await;
    consumer.freeze().await;
    lock.batch_execute("COMMIT").await.unwrap();
    eventually("the transaction is idle", async || {
        let idle = format!("SELECT count(*) {effect} AND state = 'idle in transaction'");
        (shop.pipeline.ask(&idle).await == "1").then_some(())
    })
    .await;
    shop.pipeline.execute(&format!("SELECT pg_terminate_backend(pid, 10000) {effect}")).await;
    consumer.signal(Signal::CONT);
    assert_eq!(shop.sold_exactly(1).await, 1, "{language:?}");
    consumer.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ends_between_two_queries_costs_a_repetition_in_any_language() {
    join_all(Language::ALL.map(outlives_its_connection)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_does_not_exist_is_refused_in_any_language_also_beside_one_that_does() {
    for language in Language::ALL {
        let shop = Shop::open(language, &[], None).await;
        let mut consumer = shop.consumer_of(&["inventory", "billing"]);
        within(Duration::from_secs(60), &format!("{language:?} refuses it"), async || {
            consumer.ended().map(|status| assert!(!status.success(), "{language:?}: {status}"))
        })
        .await;
        assert!(consumer.log().contains("billing"), "{language:?}: {}", consumer.log());
    }
}
