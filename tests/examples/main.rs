//! The shop of `examples/`, in each language, between real servers: its programs as they are, killed at any
//! moment.
//!
//! An order's fate depends on those before it of the same item alone, so one comparison holds everything:
//! each must end as if all had been handled one by one, in the order of the stream.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that fails fails its test"
)]

mod java;
mod language;
mod mishaps;
mod shop;
#[path = "../e2e/support.rs"]
#[allow(dead_code, reason = "this test needs a part of it")]
mod support;

use crate::language::Language;
use crate::shop::{Shop, bucket};
use crate::support::{eventually, within};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;
use tempfile::NamedTempFile;

const ITEMS: [&str; 10] = ["tea", "cup", "pot", "tin", "jar", "mug", "urn", "jug", "box", "bag"];

/// Two consumers and two writers; while they are at it, a consumer is killed so many times.
async fn sells(language: Language, orders: usize, stock: usize, kills: usize) {
    assert_eq!(stock % ITEMS.len(), 0);
    let each = i32::try_from(stock / ITEMS.len()).unwrap();
    let shop = Shop::open(language, &ITEMS.map(|item| (item, each)), None).await;
    let mut consumers = [shop.consumer(), shop.consumer()];
    let half = |_| shop.writer(ITEMS.iter().cycle().take(orders / 2).map(|item| format!("{item} 1")));
    let mut writers = [0, 1].map(half);
    for kill in 1..=kills {
        // Somewhere in this part of the way, at whatever either is about.
        shop.decides(orders * kill / (kills + 2) + fastrand::usize(0..orders / (kills + 2))).await;
        let consumer = fastrand::choice(&mut consumers).unwrap();
        consumer.kill();
        *consumer = shop.consumer();
    }
    for writer in &mut writers {
        writer.succeeds().await;
    }
    assert_eq!(shop.sold_exactly(orders).await, stock);
    assert_eq!(shop.pipeline.ask("SELECT sum(quantity) FROM stock").await, "0");
    for consumer in &mut consumers {
        consumer.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_of_python_sells_exactly_its_stock_though_consumers_are_killed() {
    sells(Language::Python, 2000, 1500, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_of_node_sells_exactly_its_stock_though_consumers_are_killed() {
    sells(Language::Node, 400, 300, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_of_rust_sells_exactly_its_stock_though_consumers_are_killed() {
    sells(Language::Rust, 400, 300, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_of_go_sells_exactly_its_stock_though_consumers_are_killed() {
    sells(Language::Go, 400, 300, 4).await;
}

/// The consumer waits for a locked row while NATS is frozen; then it commits, and its acknowledgement goes
/// nowhere: it is killed, and NATS with all that came to it meanwhile.
async fn dies_between_effect_and_acknowledgement(language: Language) {
    let mut shop = Shop::open(language, &[("tea", 5)], None).await;
    let mut consumer = shop.consumer();
    let durable = format!("inventory-{}", bucket("tea"));
    let lock = shop.pipeline.sql().await;
    lock.batch_execute("BEGIN; SELECT FROM stock WHERE item = 'tea' FOR UPDATE").await.unwrap();
    shop.place(["tea 2".to_owned()]).await;
    eventually("the effect waits for the lock", async || {
        let waiting = "pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE stock%'";
        (shop.count(waiting).await > 0).then_some(())
    })
    .await;
    shop.pipeline.nats.freeze();
    lock.batch_execute("COMMIT").await.unwrap();
    eventually("the effect is committed", async || {
        (shop.count("inbox WHERE consumer = 'inventory'").await == 1).then_some(())
    })
    .await;
    consumer.kill();
    shop.pipeline.nats.kill();
    shop.pipeline.nats.start_again().await.unwrap();
    let known = shop.durable(&durable).await;
    assert_eq!(known.num_pending + known.num_ack_pending as u64, 1, "{language:?}: it is acknowledged");
    let _consumer = shop.consumer();
    assert_eq!(shop.sold_exactly(1).await, 1, "{language:?}");
    eventually("it is acknowledged", async || {
        let known = shop.durable(&durable).await;
        (known.num_pending + known.num_ack_pending as u64 == 0).then_some(())
    })
    .await;
    assert_eq!(shop.pipeline.ask("SELECT quantity FROM stock").await, "3", "{language:?}");
    assert_eq!(shop.count("outbox WHERE event_type = 'order_reserved'").await, 1, "{language:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_effect_whose_acknowledgement_was_lost_is_not_had_again_in_any_language() {
    join_all(Language::ALL.map(dies_between_effect_and_acknowledgement)).await;
}

/// The row of one item is locked: its bucket stands still, the others go on. Then one consumer of two is
/// killed.
async fn keeps_order(language: Language) {
    const ORDERS: usize = 160;
    let shop = Shop::open(language, &ITEMS.map(|item| (item, 20)), None).await;
    let locked = bucket(ITEMS[0]);
    let others: Vec<_> = ITEMS.into_iter().filter(|item| bucket(item) != locked).collect();
    let buckets: BTreeSet<_> = ITEMS.into_iter().map(bucket).collect();
    assert!(buckets.len() > 2 && others.len() < ITEMS.len() - 1, "other items would test more");
    let lock = shop.pipeline.sql().await;
    lock.batch_execute(&format!("BEGIN; SELECT FROM stock WHERE item = '{}' FOR UPDATE", ITEMS[0]))
        .await
        .unwrap();
    let mut consumers = [shop.consumer(), shop.consumer()];
    let orders = |_| {
        let orders = ITEMS.iter().cycle().take(ORDERS / 2);
        shop.writer(orders.map(|item| format!("{item} {}", fastrand::u8(1..4))).collect::<Vec<_>>())
    };
    for writer in &mut [0, 1].map(orders) {
        writer.succeeds().await;
    }
    let others = format!("orders WHERE item IN ('{}')", others.join("', '"));
    eventually(&format!("{language:?}: the other buckets go on"), async || {
        (shop.count(&format!("{others} AND status = 'placed'")).await == 0).then_some(())
    })
    .await;
    let stands_still = format!("orders WHERE item = '{}' AND status <> 'placed'", ITEMS[0]);
    assert_eq!(shop.count(&stands_still).await, 0, "{language:?}");
    fastrand::choice(&mut consumers).unwrap().kill();
    lock.batch_execute("COMMIT").await.unwrap();
    let shipped = shop.sold_exactly(ORDERS).await;
    assert!(shipped < ORDERS, "{language:?}: none was refused, so none came too late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_of_each_language_keep_order_per_key_in_parallel() {
    for language in Language::ALL {
        keeps_order(language).await;
    }
}

/// The key files of relay and consumers: the same keys, of which the relay uses its first. To a consumer the first
/// is no better than the others.
fn key_files() -> [NamedTempFile; 2] {
    let line = |id: &str, byte: u8| format!("{id} {}\n", STANDARD.encode([byte; 32]));
    let (new, old) = (line("new", 2), line("old", 1));
    [format!("# in use\n{new}\n{old}"), format!("# in use\n{old}\n{new}")].map(|lines| {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines).unwrap();
        file
    })
}

/// Larger than a message may be.
fn long_note() -> String {
    "with love, ".repeat(150_000)
}

async fn opens_encrypted(language: Language) {
    let keys = key_files();
    let shop = Shop::open(language, &[("tea", 3)], Some(&keys)).await;
    let _consumer = shop.consumer();
    shop.place(["tea 1 für Ännchen".to_owned(), format!("tea 1 {}", long_note()), "tea 2".to_owned()]).await;
    assert_eq!(shop.sold_exactly(3).await, 2, "{language:?}");
    for message in shop.pipeline.messages().await {
        assert_eq!(message.header("Postrider-Encryption"), Some("A256GCM"));
        assert_eq!(message.header("Postrider-Key-Id"), Some("new"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_of_each_language_open_encrypted_events() {
    join_all(Language::ALL.map(opens_encrypted)).await;
}

/// First with an object that is not the one that was published.
async fn resolves_claim_checks(language: Language) {
    let shop = Shop::open(language, &[("tea", 3)], None).await;
    shop.place([format!("tea 2 {}", long_note())]).await;
    let messages = shop.pipeline.exactly(1).await;
    let object = messages[0].header("Postrider-Object").unwrap();
    let store = shop.pipeline.jetstream().await.get_object_store("OUTBOX_PAYLOADS").await.unwrap();
    let mut content = Vec::new();
    let mut stored = store.get(object).await.unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut stored, &mut content).await.unwrap();
    let forged = String::from_utf8(content.clone()).unwrap().replace("\"quantity\": 2", "\"quantity\": 3");
    assert_ne!(forged.as_bytes(), content);
    store.put(object, &mut forged.as_bytes()).await.unwrap();

    let consumer = shop.consumer();
    within(Duration::from_secs(60), &format!("{language:?} finds the digest wrong"), async || {
        consumer.log().contains("its digest is SHA-256=").then_some(())
    })
    .await;
    assert_eq!(shop.count("inbox").await, 0, "{language:?}: it believes any object");
    store.put(object, &mut content.as_slice()).await.unwrap();
    assert_eq!(shop.sold_exactly(1).await, 1, "{language:?}");
    assert_eq!(shop.pipeline.ask("SELECT length(note) FROM orders").await, long_note().len().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_of_each_language_resolve_claim_checks() {
    join_all(Language::ALL.map(resolves_claim_checks)).await;
}
