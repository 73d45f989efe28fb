//! Events that cannot be published: dead letters, and payloads for the object store.

use crate::refusals::{insert, refused};
use crate::support::{ARTICLE, DEADLINE, Load, Pipeline, Servers, eventually, within};
use std::time::Duration;
use tokio::io::AsyncReadExt;

const PAYLOAD: &str = "jsonb_build_object('text', repeat('x', 3000000))";

/// An outbox with headers and a key, of the open-outbox kind.
const OPEN_OUTBOX: &str = "CREATE TABLE outbox (event_id uuid PRIMARY KEY DEFAULT gen_random_uuid(), \
     event_type text, partition_key text, payload jsonb, headers jsonb, available_at timestamptz DEFAULT now(), \
     created_at timestamptz DEFAULT now())";

fn sha256_hex(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One column of all letters in commit order, as text.
async fn letters(pipeline: &Pipeline, column: &str) -> Vec<String> {
    let query = format!("SELECT ({column})::text FROM postrider.dead_letter ORDER BY commit_lsn, index");
    let rows = pipeline.sql().await.query(&query, &[]).await.unwrap();
    rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".to_owned())).collect()
}

async fn lettered(pipeline: &Pipeline, count: usize) {
    eventually("the letters are there", async || {
        (letters(pipeline, "id").await.len() == count).then_some(())
    })
    .await;
}

async fn subjects(pipeline: &Pipeline) -> Vec<String> {
    pipeline.messages().await.into_iter().map(|message| message.subject).collect()
}

#[tokio::test]
async fn each_event_that_cannot_be_published_is_a_letter_with_its_reason_and_the_others_are_in_order() {
    let pipeline = Pipeline::with_table(OPEN_OUTBOX).await;
    let mut relay = pipeline.run().await;
    let poisons = [
        ("'two words', '{}', NULL", "bad_subject"),
        ("'star.*', '{}', NULL", "bad_subject"),
        ("'*', '{}', NULL", "bad_subject"),
        ("'a.b', '{}', NULL", "bad_subject"),
        ("'', '{}', NULL", "bad_subject"),
        ("NULL, '{}', NULL", "null_type"),
        (&format!("'large', {PAYLOAD}, NULL"), "oversize"),
        ("'headers', '{}', jsonb_build_object('h', repeat('x', 100000))", "header_too_large"),
        ("'rollup', '{}', '{\"nats-rollup\": \"all\"}'", "reserved_header"),
        ("'position', '{}', '{\"postrider-position\": \"1\"}'", "reserved_header"),
        ("'nested', '{}', '{\"a\": {\"b\": 1}}'", "bad_header"),
        ("'list', '{}', '[1]'", "bad_header"),
        ("'line', '{}', '{\"a\": \"b\\nNats-Rollup: all\"}'", "bad_header"),
    ];
    let mut expected = Vec::new();
    for (n, (values, _)) in poisons.iter().enumerate() {
        pipeline
            .execute(&format!(
                "INSERT INTO outbox (event_type, payload, headers) VALUES ({values}), ('good_{n}', '{{}}', NULL)"
            ))
            .await;
        expected.push(format!("outbox.good_{n}"));
    }
    lettered(&pipeline, poisons.len()).await;
    pipeline.stored(expected.len() as u64).await;
    assert_eq!(letters(&pipeline, "reason").await, poisons.map(|(_, reason)| reason));
    assert_eq!(pipeline.drained(&mut relay).await, expected);
    let nats = pipeline.nats.log();
    assert!(!nats.contains("Maximum Payload") && !nats.contains("Parser Error"), "{nats}");
}

#[tokio::test]
async fn an_event_without_an_id_is_a_letter() {
    let table = ARTICLE.replace("id SERIAL PRIMARY KEY", "id INT");
    let pipeline = Pipeline::with_table(&table).await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox VALUES (NULL, 'a', '{}'), (2, 'b', '{}')").await;
    pipeline.stored(1).await;
    assert_eq!(letters(&pipeline, "reason || ' ' || coalesce(event_id, 'no id')").await, ["null_id no id"]);
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.b"]);
}

#[tokio::test]
async fn an_event_that_the_stream_does_not_bind_is_a_letter() {
    let mut pipeline = Pipeline::start().await;
    pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "outbox.{event_type:tokens}");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let jetstream = pipeline.jetstream().await;
    let mut config = pipeline.stream().await.cached_info().config.clone();
    config.subjects = vec!["outbox.order.*".into()];
    jetstream.update_stream(config).await.unwrap();
    let mut relay = pipeline.run().await;
    for event_type in ["'order.placed'", "'mail.sent'", "'order.paid'"] {
        insert(&pipeline, event_type).await;
    }
    pipeline.stored(2).await;
    assert_eq!(letters(&pipeline, "reason || ' ' || subject").await, ["subject_unbound outbox.mail.sent"]);
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.order.placed", "outbox.order.paid"]);
}

#[tokio::test]
async fn a_letter_keeps_the_whole_row_and_says_why() {
    let pipeline = Pipeline::article().await;
    let _relay = pipeline.run().await;
    pipeline.execute(r#"INSERT INTO outbox VALUES (7, 'a b', '{"n": 1.50}', '2026-11-24', NULL)"#).await;
    lettered(&pipeline, 1).await;
    let whole = "slot || '|' || timeline || '|' || event_id || '|' || event_type || '|' || code || '|' \
         || convert_from(payload, 'UTF8') || '|' || row";
    assert_eq!(
        letters(&pipeline, whole).await,
        [
            r#"postrider|1|7|a b|PR0501|{"n": 1.50}|{"id": 7, "payload": {"n": 1.50}, "processed": null, "created_at": "2026-11-24 00:00:00", "event_type": "a b"}"#
        ]
    );
    let error = letters(&pipeline, "error").await.remove(0);
    assert!(error.contains("`event_type`") && error.contains("\"7\""), "{error}");
    let shown = pipeline.postrider(&["dlq", "show", "1", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!((&shown["payload"], &shown["reason"]), (&r#"{"n": 1.50}"#.into(), &"bad_subject".into()));
}

#[tokio::test]
async fn letters_at_the_end_are_not_lettered_again_after_a_crash_nor_after_drop() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'a'").await;
    insert(&pipeline, "'b c'").await;
    insert(&pipeline, "'d e'").await;
    lettered(&pipeline, 2).await;
    relay.kill();
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'f'").await;
    pipeline.stored(2).await;
    assert_eq!(letters(&pipeline, "id").await, ["1", "2"]);
    let dropped = pipeline.postrider(&["dlq", "drop", "1", "2"]).await;
    assert_eq!((dropped.code, dropped.stdout.trim()), (Some(0), "dropped 2 of 2"));
    relay.kill();
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'g'").await;
    pipeline.stored(3).await;
    assert_eq!(letters(&pipeline, "resolution").await, ["dropped", "dropped"]);
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.a", "outbox.f", "outbox.g"]);
}

#[tokio::test]
async fn letters_are_kept_though_the_configuration_would_publish_their_events_now() {
    let mut pipeline = Pipeline::article().await;
    // Nothing is confirmed, so everything comes again.
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "10m");
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'a b'").await;
    insert(&pipeline, "'c'").await;
    pipeline.stored(1).await;
    relay.kill();
    pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "outbox.{id}");
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'d'").await;
    pipeline.stored(2).await;
    assert_eq!(letters(&pipeline, "event_id").await, ["1"]);
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.c", "outbox.3"]);
}

#[tokio::test]
async fn a_replayed_letter_is_stored_once_with_its_id_also_over_a_restart() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute(r#"INSERT INTO outbox VALUES (7, 'a.b', '{"n": 1.50, "t": "\"\\é"}', '2026-11-24 01:02:03.4', true)"#)
        .await;
    let before = pipeline.ask("SELECT outbox FROM outbox").await;
    insert(&pipeline, "'c'").await;
    pipeline.stored(1).await;
    assert_eq!(relay.terminate().await, Some(0));
    pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "outbox.{event_type:tokens}");
    let mut relay = pipeline.run().await;
    let replayed = pipeline.postrider(&["dlq", "replay", "1", "--json"]).await;
    assert_eq!(
        (replayed.code, replayed.stdout.trim()),
        (Some(0), r#"{"refused":[],"replayed":[1]}"#),
        "{replayed:?}"
    );
    assert_eq!(pipeline.ask("SELECT outbox FROM outbox WHERE id = 7").await, before);
    pipeline.stored(2).await;
    let again = pipeline.postrider(&["dlq", "replay", "1"]).await;
    refused(&again, (2, "PR0108", "dlq list"));
    relay.kill();
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'d'").await;
    let messages = pipeline.exactly(3).await;
    assert_eq!(
        (messages[1].id(), &messages[1].payload[..]),
        ("7", r#"{"n": 1.50, "t": "\"\\é"}"#.as_bytes())
    );
    assert_eq!(letters(&pipeline, "resolution").await, ["replayed"]);
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.c", "outbox.a.b", "outbox.d"]);
}

#[tokio::test]
async fn a_replayed_row_is_there_again_though_it_was_deleted_meanwhile() {
    let mut pipeline = Pipeline::start().await;
    let table = "CREATE DOMAIN money_text AS text; CREATE TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY \
         PRIMARY KEY, event_type char(5), payload json, amount numeric(10, 2), at date, tags text[], raw bytea, \
         price money_text, twice bigint GENERATED ALWAYS AS (id * 2) STORED, nothing text)";
    pipeline.set("POSTRIDER_OUTBOX_PRESET", "columns");
    pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "outbox.{event_type}");
    pipeline.execute(table).await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    pipeline
        .execute(
            r#"INSERT INTO outbox (event_type, payload, amount, at, tags, raw, price)
               VALUES ('a b', '{"z":1,  "a":2}', 12.50, '2026-11-24', ARRAY['x', 'y,"z'], '\x00ff', '3 EUR')"#,
        )
        .await;
    lettered(&pipeline, 1).await;
    let before = pipeline.ask("SELECT outbox FROM outbox").await;
    pipeline.execute("DELETE FROM outbox").await;
    let replayed = pipeline.postrider(&["dlq", "replay", "--all"]).await;
    assert_eq!(replayed.stdout.trim(), "replayed 1 of 1", "{replayed:?}");
    assert_eq!(pipeline.ask("SELECT outbox FROM outbox").await, before);
    // Nothing was mended, so it is a letter again, at its new place.
    lettered(&pipeline, 2).await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_replay_is_refused_where_other_rows_refer_to_the_row_and_changes_nothing() {
    let pipeline = Pipeline::article().await;
    let _relay = pipeline.run().await;
    insert(&pipeline, "'a b'").await;
    lettered(&pipeline, 1).await;
    pipeline
        .execute(
            "CREATE TABLE audit (outbox_id int REFERENCES outbox ON DELETE CASCADE); INSERT INTO audit VALUES (1)",
        )
        .await;
    let replayed = pipeline.postrider(&["dlq", "replay", "1"]).await;
    refused(&replayed, (3, "PR0219", "dlq drop 1"));
    assert_eq!(pipeline.ask("SELECT count(*) FROM audit").await, "1");
    assert_eq!(letters(&pipeline, "resolution").await, ["NULL"]);
}

#[tokio::test]
async fn dead_letters_in_a_row_halt_the_relay_also_over_restarts_and_a_success_between_does_not() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_DEAD_LETTERS_MAX", "3");
    let relay = pipeline.run().await;
    for event_type in ["'a b'", "'a b'", "'a b'", "'good'", "'a b'", "'a b'", "'a b'", "'c d'", "'e'"] {
        insert(&pipeline, event_type).await;
    }
    refused(&relay.ended().await, (7, "PR0511", "dlq list"));
    assert_eq!(letters(&pipeline, "event_id").await, ["1", "2", "3", "5", "6", "7"]);
    refused(&pipeline.postrider(&["run"]).await, (7, "PR0511", "dlq list"));
    assert_eq!(letters(&pipeline, "event_id").await.len(), 6);
    pipeline.set("POSTRIDER_DELIVERY_DEAD_LETTERS_MAX", "4");
    let mut relay = pipeline.run().await;
    pipeline.stored(2).await;
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.good", "outbox.e"]);
    assert_eq!(letters(&pipeline, "event_id").await.len(), 7);
}

#[tokio::test]
async fn an_event_that_only_the_server_finds_too_large_is_a_letter() {
    let pipeline = Pipeline::article().await;
    let jetstream = pipeline.jetstream().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'a'").await;
    pipeline.stored(1).await;
    // The relay looked at the limits when the session began.
    let mut config = pipeline.stream().await.cached_info().config.clone();
    config.max_message_size = 2000;
    jetstream.update_stream(config).await.unwrap();
    pipeline
        .execute(
            "INSERT INTO outbox (event_type, payload) SELECT CASE n WHEN 50 THEN 'large' ELSE 'small' END, \
             jsonb_build_object('text', repeat('x', CASE n WHEN 50 THEN 5000 ELSE 5 END)) \
             FROM generate_series(1, 100) n",
        )
        .await;
    pipeline.stored(100).await;
    assert_eq!(letters(&pipeline, "reason || ' ' || event_id").await, ["oversize 51"]);
    assert_eq!(relay.terminate().await, Some(0));
    let ids: Vec<_> = pipeline.messages().await.iter().map(|message| message.id().to_owned()).collect();
    let expected: Vec<_> = (1..=101).filter(|id| *id != 51).map(|id| id.to_string()).collect();
    assert_eq!(ids, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_lettered_once_and_the_others_published_once_though_relay_and_nats_are_killed() {
    let mut pipeline = Pipeline::article().await;
    pipeline.watch_commits().await;
    // A fifth of the writers' rows have another type.
    pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "outbox.{payload}");
    pipeline.execute("ALTER TABLE outbox ALTER payload TYPE text").await;
    pipeline
        .execute(
            "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             NEW.payload := CASE WHEN NEW.id % 20 = 0 THEN 'a b' ELSE 'n' || NEW.id END; RETURN NEW; END $$; \
             CREATE TRIGGER spoil BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION spoil()",
        )
        .await;
    let mut relay = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 3, &[1, 10, 1, 50], Duration::from_millis(30));
    for round in 0..4 {
        let stored = pipeline.last_seq().await;
        pipeline.stored(stored + 300).await;
        if round % 2 == 0 {
            relay.kill();
            relay = pipeline.run().await;
        } else {
            pipeline.nats.kill();
            pipeline.nats.start_again().await.unwrap();
        }
    }
    load.finish().await;
    let committed = pipeline.committed().await;
    let (bad, good): (Vec<_>, Vec<_>) = committed.into_iter().partition(|(_, payload)| payload == "a b");
    pipeline.stored(good.len() as u64).await;
    lettered(&pipeline, bad.len()).await;
    assert_eq!(relay.terminate().await, Some(0));
    let ids = |rows: Vec<(String, String)>| rows.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(letters(&pipeline, "event_id").await, ids(bad));
    let stored: Vec<_> = pipeline.messages().await.iter().map(|message| message.id().to_owned()).collect();
    assert_eq!(stored, ids(good));
}

#[tokio::test]
async fn a_payload_that_is_too_large_goes_to_the_object_store_and_the_message_says_where() {
    let mut pipeline = Pipeline::start().await;
    pipeline.set("POSTRIDER_DELIVERY_OVERSIZE", "object_store");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'a'").await;
    pipeline.execute(&format!("INSERT INTO outbox (event_type, payload) VALUES ('large', {PAYLOAD})")).await;
    insert(&pipeline, "'b'").await;
    let messages = pipeline.exactly(3).await;
    assert_eq!(subjects(&pipeline).await, ["outbox.a", "outbox.large", "outbox.b"]);
    let reference: serde_json::Value = serde_json::from_slice(&messages[1].payload).unwrap();
    let store = pipeline.jetstream().await.get_object_store("OUTBOX_PAYLOADS").await.unwrap();
    let name = messages[1].header("Postrider-Object").unwrap();
    let mut bytes = Vec::new();
    store.get(name).await.unwrap().read_to_end(&mut bytes).await.unwrap();
    let (lsn, index) = crate::support::position(&messages[1]);
    assert_eq!(name, format!("{lsn:016X}-{index}-{}", &sha256_hex(&bytes)[..16]));
    assert_eq!(bytes.len(), 3_000_012);
    assert_eq!(
        (&reference["bucket"], &reference["object"], &reference["size"]),
        (&"OUTBOX_PAYLOADS".into(), &name.into(), &bytes.len().into())
    );
    assert_eq!(reference["digest"], store.info(name).await.unwrap().digest.unwrap());
    assert!(letters(&pipeline, "id").await.is_empty());
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn without_the_object_store_run_is_refused_and_init_makes_it() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_OVERSIZE", "object_store");
    refused(&pipeline.postrider(&["run"]).await, (4, "PR0304", "postrider init"));
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn an_event_that_is_too_large_halts_where_that_is_asked_for() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_OVERSIZE", "halt");
    let relay = pipeline.run().await;
    insert(&pipeline, "'a b'").await;
    pipeline.execute(&format!("INSERT INTO outbox (event_type, payload) VALUES ('large', {PAYLOAD})")).await;
    refused(&relay.ended().await, (7, "PR0503", "delivery"));
    assert_eq!(letters(&pipeline, "reason").await, ["bad_subject"]);
}

#[tokio::test]
async fn a_permission_that_is_revoked_pauses_the_relay_and_makes_no_letters() {
    let accounts = |deny: &str| {
        format!(
            "authorization: {{ users: [ {{ user: a, password: b, permissions: {{ publish: {{ allow: \">\", deny: [{deny}] }} }} }} ] }}"
        )
    };
    let open = accounts("");
    let mut pipeline = Pipeline::on(Servers { nats_extra: &open, ..Servers::default() }).await;
    let url = format!("nats://a:b@127.0.0.1:{}", pipeline.nats.port());
    pipeline.set("NATS_URL", &url);
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'a'").await;
    relay.published(1).await;
    pipeline.nats.set_extra(&accounts("\"outbox.*\""));
    pipeline.nats.stop().await.unwrap();
    pipeline.nats.start_again().await.unwrap();
    for n in 0..150 {
        insert(&pipeline, &format!("'n{n}'")).await;
    }
    within(DEADLINE, "the reason is named", async || {
        let status = relay.status().await?;
        (status["last_error"]["code"] == "PR0310").then_some(())
    })
    .await;
    pipeline.nats.set_extra(&open);
    pipeline.nats.stop().await.unwrap();
    pipeline.nats.start_again().await.unwrap();
    relay.published(151).await;
    assert!(letters(&pipeline, "id").await.is_empty());
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_session_whose_row_was_taken_commits_no_letter() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'a'").await;
    pipeline.stored(1).await;
    pipeline.execute("UPDATE postrider.pipeline SET session = 1").await;
    insert(&pipeline, "'b c'").await;
    insert(&pipeline, "'d'").await;
    // Another session of the same relay takes the row, and letters it.
    pipeline.stored(2).await;
    assert_eq!(letters(&pipeline, "event_id").await, ["2"]);
    assert!(relay.stderr().contains("PR0415"), "{}", relay.stderr());
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn status_counts_letters() {
    let pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    insert(&pipeline, "'a b'").await;
    insert(&pipeline, "'c d'").await;
    within(DEADLINE, "both are counted", async || {
        let status = relay.status().await?;
        (status["dead_letters"] == 2 && status["dead_lettered_total"] == 2).then_some(())
    })
    .await;
    let dropped = pipeline.postrider(&["dlq", "drop", "1"]).await;
    assert_eq!(dropped.code, Some(0));
    within(DEADLINE, "one is open", async || {
        let status = relay.status().await?;
        (status["dead_letters"] == 1 && status["dead_lettered_total"] == 2).then_some(())
    })
    .await;
    let listed = pipeline.postrider(&["dlq", "list", "--json"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["event_id"]), (1, &"2".into()));
}

#[tokio::test]
async fn resolved_letters_are_removed_after_their_time_and_others_are_not() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_DEAD_LETTER_RETENTION", "0s");
    let mut relay = pipeline.run().await;
    for event_type in ["'open 1'", "'dropped 2'", "'dropped 3'", "'replayed 4'"] {
        insert(&pipeline, event_type).await;
    }
    lettered(&pipeline, 4).await;
    let drop = pipeline.postrider(&["dlq", "drop", "2", "3"]).await;
    let replay = pipeline.postrider(&["dlq", "replay", "4"]).await;
    assert_eq!((drop.code, replay.code), (Some(0), Some(0)));
    pipeline.execute("DELETE FROM outbox WHERE id = 3").await;
    // 4 comes again as 5. Of the dropped ones, 2 still has its row.
    eventually("two are removed", async || (letters(&pipeline, "id").await == ["1", "2", "5"]).then_some(()))
        .await;
    assert_eq!(relay.terminate().await, Some(0));
}
