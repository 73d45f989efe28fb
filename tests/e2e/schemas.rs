//! Payloads that are held against JSON Schemas.

use crate::refusals::refused;
use crate::support::{Pipeline, eventually};
use tempfile::TempDir;

const ORDER: &str = r#"{"type": "object", "properties": {"items": {"items": {"$ref": "item.json"}}}}"#;

fn write(folder: &TempDir, name: &str, text: &str) {
    std::fs::write(folder.path().join(name), text).unwrap();
}

/// With a folder of schemas of `order` and `item`.
async fn with_schemas() -> (Pipeline, TempDir) {
    let mut pipeline = Pipeline::article().await;
    let folder = TempDir::new().unwrap();
    write(&folder, "order.json", ORDER);
    write(&folder, "item.json", r#"{"properties": {"qty": {"minimum": 1}}}"#);
    pipeline.set("POSTRIDER_VALIDATE_SCHEMAS", folder.path().to_str().unwrap());
    (pipeline, folder)
}

#[tokio::test]
async fn a_payload_that_breaks_its_schema_is_a_letter_and_replayed_once_when_the_schema_is_mended() {
    let (pipeline, folder) = with_schemas().await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute(
            r#"INSERT INTO outbox (event_type, payload) VALUES ('order', '{"items": [{"qty": 0}]}'),
               ('order', NULL), ('order', '{"items": [{"qty": 1}]}'), ('free', '{"items": 1}')"#,
        )
        .await;
    pipeline.stored(2).await;
    let letters = "SELECT string_agg(reason || ' ' || code || ' ' || error, '|' ORDER BY id) FROM postrider.dead_letter";
    let error = "event \"1\": /items/0/qty: the value is less than the minimum of 1";
    let null = "event \"2\": the whole: the value is not of type \"object\"";
    assert_eq!(pipeline.ask(letters).await, format!("schema PR0513 {error}|schema PR0513 {null}"));
    assert_eq!(relay.terminate().await, Some(0));

    write(&folder, "item.json", r#"{"properties": {"qty": {"minimum": 0}}}"#);
    let mut relay = pipeline.run().await;
    let replayed = pipeline.postrider(&["dlq", "replay", "1"]).await;
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    let messages = pipeline.exactly(3).await;
    assert_eq!(messages.iter().map(|message| message.id()).collect::<Vec<_>>(), ["3", "4", "1"]);
    let again = pipeline.postrider(&["dlq", "replay", "1"]).await;
    refused(&again, (2, "PR0108", "dlq list"));
    assert_eq!(relay.terminate().await, Some(0));
    assert_eq!(pipeline.last_seq().await, 3);
}

#[tokio::test]
async fn a_schema_that_came_later_letters_nothing_that_is_stored() {
    let (mut pipeline, folder) = with_schemas().await;
    // Nothing is confirmed, so everything comes again.
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "10m");
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('free', '1')").await;
    pipeline.stored(1).await;
    relay.kill();
    write(&folder, "free.json", "false");
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('free', '2'), ('order', '{}')").await;
    pipeline.stored(2).await;
    assert_eq!(pipeline.ask("SELECT string_agg(event_id, ' ') FROM postrider.dead_letter").await, "2");
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.free", "outbox.order"]);
}

#[tokio::test]
async fn a_broken_folder_of_schemas_halts_the_relay_with_all_its_faults_and_letters_nothing() {
    let (mut pipeline, folder) = with_schemas().await;
    write(&folder, "text.json", "{");
    write(&folder, "type.json", r#"{"type": "strng"}"#);
    write(&folder, "remote.json", r#"{"$ref": "http://127.0.0.1:1/a.json"}"#);
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order', '{}')").await;
    let ended = pipeline.postrider(&["run"]).await;
    refused(&ended, (2, "PR0114", "mend"));
    for name in ["text.json", "type.json", "remote.json"] {
        assert!(ended.stderr.contains(&format!("{name} is no JSON")), "{name}: {}", ended.stderr);
    }
    let doctor = pipeline.postrider(&["doctor"]).await;
    assert!(doctor.stdout.contains("PR0114"), "{doctor:?}");
    pipeline.set("POSTRIDER_VALIDATE_SCHEMAS", "/nowhere");
    refused(&pipeline.postrider(&["run"]).await, (2, "PR0114", "mend"));
    pipeline.set("POSTRIDER_VALIDATE_SCHEMAS", "off");
    let mut relay = pipeline.run().await;
    eventually("the event is stored", async || (pipeline.last_seq().await == 1).then_some(())).await;
    assert_eq!(pipeline.ask("SELECT count(*) FROM postrider.dead_letter").await, "0");
    assert_eq!(relay.terminate().await, Some(0));
}
