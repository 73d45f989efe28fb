//! `docs/table.md`, "Sharding": two pipelines on one table, each with a row filter. What a person pastes is
//! taken from there.

use crate::support::{Pipeline, Servers, connect, eventually, position};
use std::collections::HashMap;
use tokio::task::JoinSet;

const TABLE: &str = include_str!("../../docs/table.md");

/// The page's block of this language that holds `word`.
fn pasted(language: &str, word: &str) -> &'static str {
    let begin = format!("```{language}\n");
    let blocks = TABLE.split(&begin).skip(1).filter_map(|rest| rest.split("```").next());
    let mut found = blocks.filter(|block| block.contains(word));
    found.next().unwrap_or_else(|| panic!("docs/table.md has no block with {word}"))
}

/// What `postrider-<shard>.toml` says, as variables.
fn point_at(pipeline: &mut Pipeline, shard: usize) {
    let file = pasted("toml", "postrider_0");
    for (section, key) in
        [("postgres", "slot"), ("postgres", "publication"), ("outbox", "subject"), ("nats", "stream")]
    {
        let line = file.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
        let value = line.unwrap().trim_matches('"').replace('0', &shard.to_string());
        pipeline.set(&format!("POSTRIDER_{}_{}", section.to_uppercase(), key.to_uppercase()), &value);
    }
}

/// Writes for keys of its own, so that it knows each key's order: (key, number).
async fn write(url: String, writer: u32) {
    const KEYS: u32 = 5;
    let mut client = connect(&url).await.unwrap();
    for n in 0..200 {
        let transaction = client.transaction().await.unwrap();
        for key in 0..KEYS {
            let insert = "INSERT INTO outbox (event_type, key, payload) VALUES ('order', $1, jsonb_build_object('n', $2::int))";
            transaction.execute(insert, &[&format!("writer {writer}, key {key}"), &n]).await.unwrap();
        }
        if n % 5 == 3 {
            // Tried again with the same number: only one of them is committed.
            transaction.rollback().await.unwrap();
        } else {
            transaction.commit().await.unwrap();
        }
    }
}

async fn each_event_once_and_in_order_per_key(postgres: u32) {
    let mut pipeline = Pipeline::on(Servers { postgres: Some(postgres), ..Servers::default() }).await;
    pipeline
        .execute(
            "CREATE TABLE outbox (id bigserial PRIMARY KEY, event_type text NOT NULL, key text NOT NULL, \
             payload jsonb, created_at timestamptz DEFAULT now(), processed boolean DEFAULT false)",
        )
        .await;
    pipeline.execute(pasted("sql", "CREATE PUBLICATION postrider_0")).await;
    pipeline.set("POSTRIDER_OUTBOX_KEY", "key");
    let mut relays = Vec::new();
    for shard in 0..2 {
        point_at(&mut pipeline, shard);
        let init = pipeline.postrider(&["init"]).await;
        assert_eq!(init.code, Some(0), "{}", init.stderr);
        assert!(init.stdout.contains(&format!("publication postrider_{shard} exists")), "{}", init.stdout);
        relays.push(pipeline.run().await);
    }
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        writers.spawn(write(pipeline.postgres.url("postgres"), writer));
    }
    // One is killed and started again meanwhile.
    relays[1].published(100).await;
    relays[1].kill();
    relays[1] = pipeline.run().await;
    writers.join_all().await;

    let committed: usize = pipeline.ask("SELECT count(*) FROM outbox").await.parse().unwrap();
    assert_eq!(committed, 4 * 5 * 160);
    let shards = eventually("all events are stored", async || {
        let shards = [pipeline.messages_of("OUTBOX_0").await, pipeline.messages_of("OUTBOX_1").await];
        (shards[0].len() + shards[1].len() >= committed).then_some(shards)
    })
    .await;
    assert_eq!(shards[0].len() + shards[1].len(), committed);
    let mut homes = HashMap::new();
    let mut ids = HashMap::new();
    for (shard, messages) in shards.iter().enumerate() {
        assert!(!messages.is_empty(), "shard {shard} has its share");
        let (mut last, mut before) = (HashMap::new(), None);
        for message in messages {
            assert_eq!(message.subject, format!("shard{shard}.order"));
            let key = message.header("Postrider-Key").unwrap().to_owned();
            assert_eq!(*homes.entry(key.clone()).or_insert(shard), shard, "{key} has one home");
            assert_eq!(ids.insert(message.id().to_owned(), ()), None, "event {} twice", message.id());
            let payload: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
            let n = payload["n"].as_i64().unwrap();
            assert!(last.insert(key.clone(), n).is_none_or(|last| last < n), "{key}, {n}");
            assert!(before < Some(position(message)));
            before = Some(position(message));
        }
    }
    assert_eq!(homes.len(), 20);
    for (shard, relay) in relays.iter_mut().enumerate() {
        assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
        point_at(&mut pipeline, shard);
        let verify = pipeline.postrider(&["verify", "--json"]).await;
        assert_eq!(verify.code, Some(0), "{}{}", verify.stdout, verify.stderr);
        let report: serde_json::Value = serde_json::from_str(&verify.stdout).unwrap();
        assert_eq!(report["rows"], shards[shard].len(), "{report}");
        let doctor = pipeline.postrider(&["doctor", "--json"]).await;
        assert!(doctor.stdout.contains("PR0611"), "{}{}", doctor.stdout, doctor.stderr);
    }
}

#[tokio::test]
async fn two_shards_by_row_filter_have_each_event_once_and_in_order_per_key_on_15() {
    each_event_once_and_in_order_per_key(15).await;
}

#[tokio::test]
async fn two_shards_by_row_filter_have_each_event_once_and_in_order_per_key_on_18() {
    each_event_once_and_in_order_per_key(18).await;
}

#[tokio::test]
async fn the_filters_that_the_page_names_are_taken_and_a_null_key_is_in_no_shard() {
    let pipeline = Pipeline::start().await;
    pipeline
        .execute(
            "CREATE TABLE outbox (id serial PRIMARY KEY, key text, u uuid, event_type text, payload jsonb)",
        )
        .await;
    let taken = TABLE.split("These are taken: ").nth(1).and_then(|rest| rest.split(". ").next()).unwrap();
    let taken: Vec<_> = taken.split('`').skip(1).step_by(2).collect();
    assert!(taken.len() >= 3, "{taken:?}");
    for filter in taken {
        let filter = filter.replace("= k", "= 1");
        pipeline.execute(&format!("CREATE PUBLICATION p FOR TABLE outbox WHERE ({filter})")).await;
        pipeline.execute("DROP PUBLICATION p").await;
    }
    let sql = pipeline.sql().await;
    for refused in ["now() > '2000-01-01'", "u::text > 'a'", "key = current_user"] {
        let create = format!("CREATE PUBLICATION p FOR TABLE outbox WHERE ({refused})");
        assert!(sql.batch_execute(&create).await.is_err(), "{refused}");
    }
    pipeline.execute(pasted("sql", "CREATE PUBLICATION postrider_0")).await;
    pipeline.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await;
    pipeline.execute("INSERT INTO outbox (event_type) VALUES ('lost')").await;
    let inserts = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL, 'proto_version', '1', \
         'publication_names', 'postrider_0,postrider_1') WHERE get_byte(data, 0) = ascii('I')";
    assert_eq!(pipeline.ask(inserts).await, "0");
}
