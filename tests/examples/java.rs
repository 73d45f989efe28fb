//! The example in Java without its client of NATS: this test reads the stream in its place, and hands each
//! message to its database side.

use crate::language::Language;
use crate::shop::{Program, Shop};
use crate::support::{Message, eventually};
use crate::{key_files, long_note};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::io::Write;
use tokio::io::AsyncReadExt;

/// A line for `Deliver.java`.
async fn line(shop: &Shop, message: &Message) -> String {
    let service = match message.header("Postrider-Event-Type").unwrap() {
        "order_placed" => "inventory",
        "order_reserved" => "shipping",
        "order_refused" => "orders",
        other => panic!("an event of type {other}"),
    };
    let (mut body, mut digest) = (message.payload.to_vec(), "-".to_owned());
    if let Some(object) = message.header("Postrider-Object") {
        let reference: serde_json::Value = serde_json::from_slice(&body).unwrap();
        reference["digest"].as_str().unwrap().clone_into(&mut digest);
        let store = shop.pipeline.jetstream().await.get_object_store("OUTBOX_PAYLOADS").await.unwrap();
        body.clear();
        store.get(object).await.unwrap().read_to_end(&mut body).await.unwrap();
    }
    let header = |name| message.header(name).unwrap_or("-");
    let (encryption, key) = (header("Postrider-Encryption"), header("Postrider-Key-Id"));
    format!("{service} {} {encryption} {key} {digest} {}\n", message.id(), STANDARD.encode(body))
}

/// Hands these lines over; the answers.
async fn deliver(program: &mut Program, answered: &mut usize, lines: &[String]) -> Vec<String> {
    program.child.stdin.as_mut().unwrap().write_all(lines.concat().as_bytes()).unwrap();
    let due = *answered + lines.len();
    eventually("it answers", async || (program.log().lines().count() >= due).then_some(())).await;
    let answers = program.log().lines().skip(*answered).map(str::to_owned).collect();
    *answered = due;
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_of_java_sells_exactly_its_stock_though_each_event_is_delivered_twice() {
    const ORDERS: usize = 101;
    let keys = key_files();
    let shop = Shop::open(Language::Java, &[("tea", 60), ("cup", 15)], Some(&keys)).await;
    let few = (0..50).flat_map(|_| ["tea 1 für Ännchen", "cup 1"]).map(str::to_owned);
    shop.place(std::iter::once(format!("tea 12 {}", long_note())).chain(few)).await;
    let mut deliver_java = shop.consumer();
    let (mut answered, mut seen) = (0, 0);
    while shop.count("orders WHERE status = 'placed'").await > 0 {
        shop.pipeline.stored(seen as u64 + 1).await;
        let messages = shop.pipeline.messages().await;
        let mut lines = Vec::new();
        for message in &messages[seen..] {
            let line = line(&shop, message).await;
            lines.extend([line.clone(), line]);
        }
        for answers in deliver(&mut deliver_java, &mut answered, &lines).await.chunks(2) {
            assert_eq!(answers, ["new", "known"]);
        }
        seen = messages.len();
    }
    assert_eq!(shop.sold_exactly(ORDERS).await, 1 + 48 + 15);

    let first = line(&shop, &shop.pipeline.messages().await[0]).await;
    let words: Vec<_> = first.trim().split(' ').collect();
    let body = STANDARD.encode("another object");
    let forged = format!("inventory 4711 {} {} {} {body}\n", words[2], words[3], words[4]);
    let moved = format!("inventory 4711 {} {} {} {}\n", words[2], words[3], words[4], words[5]);
    let answers = deliver(&mut deliver_java, &mut answered, &[forged, moved]).await;
    assert!(answers[0].contains("its digest is"), "{answers:?}");
    assert!(answers[1].contains("Tag mismatch"), "{answers:?}");
    assert_eq!(shop.count("inbox WHERE event_id = '4711'").await, 0);

    // An effect that fails in the program leaves nothing for the next commit.
    let unknown = first.replacen("inventory", "billing", 1);
    let answers = deliver(&mut deliver_java, &mut answered, &[unknown, first]).await;
    assert!(answers[0].contains("no service is called billing") && answers[1] == "known", "{answers:?}");
    assert_eq!(shop.count("inbox WHERE consumer = 'billing'").await, 0);
}
