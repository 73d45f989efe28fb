//! From a row to a message: presets, names, types, templates.

use crate::support::{ARTICLE, Message, Pipeline};

/// What the stream holds once `rows` are written to an outbox made by `table`.
async fn published(table: &str, settings: &[(&str, &str)], rows: &str, count: usize) -> Vec<Message> {
    let mut pipeline = Pipeline::start().await;
    for (name, value) in settings {
        pipeline.set(name, value);
    }
    pipeline.execute(table).await;
    pipeline.init().await;
    let _relay = pipeline.run().await;
    pipeline.execute(rows).await;
    pipeline.exactly(count).await
}

fn subjects(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.subject.as_str()).collect()
}

#[tokio::test]
async fn a_quoted_table_of_another_schema_is_read_by_its_exact_names() {
    let messages = published(
        r#"CREATE SCHEMA "My Shop";
           CREATE TABLE "My Shop"."Out.Box" ("Id" bigint, "Event Type" text, "Pay""load" jsonb);
           CREATE TABLE "My Shop".outbox (LIKE "My Shop"."Out.Box")"#,
        &[
            ("POSTRIDER_OUTBOX_TABLE", r#""My Shop"."Out.Box""#),
            ("POSTRIDER_OUTBOX_PRESET", "columns"),
            ("POSTRIDER_OUTBOX_ID", "Id"),
            ("POSTRIDER_OUTBOX_TYPE", "Event Type"),
            ("POSTRIDER_OUTBOX_PAYLOAD", r#"Pay"load"#),
            ("POSTRIDER_OUTBOX_SUBJECT", r#"outbox.{"Event Type"}"#),
        ],
        r#"INSERT INTO "My Shop".outbox VALUES (1, 'other', '{}');
           INSERT INTO "My Shop"."Out.Box" VALUES (7, 'Placed', '{"a": 1}')"#,
        1,
    )
    .await;
    assert_eq!(messages[0].subject, "outbox.Placed");
    assert_eq!(
        messages[0].plain_headers(),
        ["Content-Type: application/json", "Postrider-Event-Id: 7", "Postrider-Event-Type: Placed"]
    );
    assert_eq!(&messages[0].payload[..], br#"{"a": 1}"#);
}

/// Content type and body of a payload of this type.
async fn payload(declaration: &str, literal: &str) -> (Option<String>, Vec<u8>) {
    let messages = published(
        &format!(
            "{declaration}; CREATE TYPE kind AS ENUM ('order-placed'); CREATE DOMAIN name AS kind; \
             CREATE DOMAIN serial_number AS bigint; \
             CREATE TABLE outbox (id serial_number, event_type name, payload payload_type, \
             created_at timestamptz, processed boolean)"
        ),
        &[],
        &format!("INSERT INTO outbox VALUES (5, 'order-placed', {literal})"),
        1,
    )
    .await;
    assert_eq!(subjects(&messages), ["outbox.order-placed"]);
    assert_eq!(messages[0].id(), "5");
    (messages[0].header("Content-Type").map(str::to_owned), messages[0].payload.to_vec())
}

#[tokio::test]
async fn json_and_text_are_published_verbatim_and_bytea_raw() {
    let json = Some("application/json".to_owned());
    for (of_type, literal, content_type, body) in [
        ("json", r#"'{"b" :1,  "a":2}'"#, json.clone(), &br#"{"b" :1,  "a":2}"#[..]),
        ("text", r"'\x00 is text, ü too'", None, r"\x00 is text, ü too".as_bytes()),
        ("bytea", r"'\x00ff0a5c'", None, b"\x00\xff\n\\"),
    ] {
        // A type's name cannot be an alias, so the table is made with the type itself.
        let messages = published(
            &format!(
                "CREATE TABLE outbox (id int, event_type text, payload {of_type}, created_at date, processed bool)"
            ),
            &[],
            &format!("INSERT INTO outbox VALUES (1, 'a', {literal})"),
            1,
        )
        .await;
        assert_eq!(messages[0].header("Content-Type").map(str::to_owned), content_type, "{of_type}");
        assert_eq!(&messages[0].payload[..], body, "{of_type}");
    }
}

#[tokio::test]
async fn enums_and_domains_are_read_as_what_they_are_made_of() {
    let json = Some("application/json".to_owned());
    let of_jsonb = payload("CREATE DOMAIN payload_type AS jsonb", r#"'{"a":1}'"#).await;
    assert_eq!(of_jsonb, (json, br#"{"a": 1}"#.to_vec()));
    let of_bytea =
        payload("CREATE DOMAIN inner_type AS bytea; CREATE DOMAIN payload_type AS inner_type", r"'\x00ff'")
            .await;
    assert_eq!(of_bytea, (None, b"\x00\xff".to_vec()));
}

#[tokio::test]
async fn a_null_payload_is_an_empty_body_that_says_so_and_an_empty_one_is_not() {
    let table = ARTICLE.replace("JSONB", "TEXT");
    let rows = "INSERT INTO outbox (event_type, payload) VALUES ('a', NULL), ('a', '')";
    let messages = published(&table, &[], rows, 2).await;
    assert!(messages.iter().all(|message| message.payload.is_empty()));
    let nulls: Vec<_> = messages.iter().map(|message| message.header("Postrider-Null")).collect();
    assert_eq!(nulls, [Some("true"), None]);
}

#[tokio::test]
async fn columns_come_and_go_and_change_their_names_while_it_runs() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    let sql = pipeline.sql().await;
    let insert = "INSERT INTO outbox (event_type, payload) VALUES ('a', '1')";
    for change in [
        "ALTER TABLE outbox ADD COLUMN tenant text DEFAULT 'x'",
        "ALTER TABLE outbox RENAME COLUMN tenant TO customer",
        "ALTER TABLE outbox DROP COLUMN processed",
        // The columns that are read move to other places.
        "ALTER TABLE outbox ADD COLUMN type2 varchar; ALTER TABLE outbox RENAME event_type TO old_type; \
         ALTER TABLE outbox RENAME type2 TO event_type; ALTER TABLE outbox DROP COLUMN old_type",
        "ALTER TABLE outbox ALTER COLUMN id TYPE bigint",
    ] {
        sql.batch_execute(&format!("{insert}; BEGIN; {insert}; {change}; {insert}; COMMIT; {insert}"))
            .await
            .unwrap_or_else(|error| panic!("{change}: {error}"));
    }
    let messages = pipeline.exactly(20).await;
    let ids: Vec<_> = messages.iter().map(|message| message.id().to_owned()).collect();
    assert_eq!(ids, (1..=20).map(|id| id.to_string()).collect::<Vec<_>>());
    assert!(messages.iter().all(|message| message.subject == "outbox.a" && &message.payload[..] == b"1"));
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_partitioned_outbox_is_one_outbox() {
    let messages = published(
        "CREATE TABLE outbox (id bigint, event_type text, payload jsonb, created_at date, processed bool)
             PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF outbox FOR VALUES FROM (0) TO (10);
         CREATE TABLE high (payload jsonb, id bigint, processed bool, event_type text, created_at date);
         ALTER TABLE outbox ATTACH PARTITION high FOR VALUES FROM (10) TO (20)",
        &[],
        r#"INSERT INTO outbox VALUES (1, 'a', '1'), (12, 'b', '2');
           CREATE TABLE late PARTITION OF outbox FOR VALUES FROM (20) TO (30);
           INSERT INTO outbox VALUES (25, 'c', '3'), (2, 'd', '4');
           INSERT INTO high (id, event_type, payload) VALUES (13, 'e', '5');
           ALTER TABLE outbox DETACH PARTITION low;
           INSERT INTO low VALUES (3, 'x', '0');
           DROP TABLE low;
           INSERT INTO outbox VALUES (14, 'f', '6')"#,
        6,
    )
    .await;
    let seen: Vec<_> =
        messages.iter().map(|message| format!("{} {:?}", message.subject, message.payload)).collect();
    let expected = ["a 1", "b 2", "c 3", "d 4", "e 5", "f 6"].map(|event| {
        let (event_type, payload) = event.split_once(' ').unwrap();
        format!("outbox.{event_type} b\"{payload}\"")
    });
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn the_debezium_preset_gives_aggregate_and_key() {
    let mut pipeline = Pipeline::start().await;
    let made = pipeline.postrider(&["init", "--create-table=debezium"]).await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    pipeline.set("POSTRIDER_OUTBOX_PRESET", "auto");
    let _relay = pipeline.run().await;
    let id = "0195a7c2-0000-7000-8000-000000000001";
    pipeline
        .execute(&format!(
            "INSERT INTO outbox VALUES ('{id}', 'Order', '42', 'OrderPlaced', '{{\"total\": 1}}')"
        ))
        .await;
    let message = pipeline.exactly(1).await.remove(0);
    assert_eq!(message.subject, "outbox.event.Order");
    assert_eq!(
        message.plain_headers(),
        [
            "Content-Type: application/json".to_owned(),
            format!("Postrider-Event-Id: {id}"),
            "Postrider-Event-Type: OrderPlaced".to_owned(),
            "Postrider-Key: 42".to_owned(),
        ]
    );
}

#[tokio::test]
async fn the_open_outbox_preset_gives_the_headers_of_its_column() {
    let messages = published(
        "CREATE TABLE outbox (event_id uuid PRIMARY KEY, event_type text NOT NULL, partition_key text, \
         payload jsonb, headers jsonb, available_at timestamptz DEFAULT now(), created_at timestamptz DEFAULT now())",
        &[],
        r#"INSERT INTO outbox (event_id, event_type, partition_key, payload, headers) VALUES
           ('0195a7c2-0000-7000-8000-000000000001', 'placed', 'k 1', '{}',
            '{"text": "plain ü", "number": 1.50, "yes": true, "none": null, "traceparent": "00-1-2-01",
              "content-type": "application/x-order"}'),
           ('0195a7c2-0000-7000-8000-000000000002', 'placed', NULL, '{}', NULL)"#,
        2,
    )
    .await;
    assert_eq!(
        messages[0].plain_headers(),
        [
            "Content-Type: application/x-order",
            "Postrider-Event-Id: 0195a7c2-0000-7000-8000-000000000001",
            "Postrider-Event-Type: placed",
            "Postrider-Key: k 1",
            "number: 1.50",
            "text: plain ü",
            "traceparent: 00-1-2-01",
            "yes: true",
        ]
    );
    assert_eq!(
        messages[1].plain_headers(),
        [
            "Content-Type: application/json",
            "Postrider-Event-Id: 0195a7c2-0000-7000-8000-000000000002",
            "Postrider-Event-Type: placed",
        ]
    );
}

#[tokio::test]
async fn every_header_can_have_a_column_of_its_own() {
    let table = ARTICLE.replace(
        "event_type VARCHAR(50)",
        "event_type VARCHAR(50), customer int, version int, mime text, parent text, state text, extra jsonb",
    );
    let messages = published(
        &table,
        &[
            ("POSTRIDER_OUTBOX_KEY", "customer"),
            ("POSTRIDER_OUTBOX_SCHEMA_VERSION", "version"),
            ("POSTRIDER_OUTBOX_CONTENT_TYPE", "mime"),
            ("POSTRIDER_OUTBOX_TRACEPARENT", "parent"),
            ("POSTRIDER_OUTBOX_TRACESTATE", "state"),
            ("POSTRIDER_OUTBOX_HEADERS", "extra"),
        ],
        r#"INSERT INTO outbox (event_type, customer, version, mime, parent, state, extra, payload)
           VALUES ('a', 9, 3, 'text/json', '00-ab-cd-01', 'v=1', '{"tenant": "x", "tracestate": "lost"}', '{}')"#,
        1,
    )
    .await;
    assert_eq!(
        messages[0].plain_headers(),
        [
            "Content-Type: text/json",
            "Postrider-Event-Id: 1",
            "Postrider-Event-Type: a",
            "Postrider-Key: 9",
            "Postrider-Schema-Version: 3",
            "tenant: x",
            "traceparent: 00-ab-cd-01",
            "tracestate: v=1",
        ]
    );
}

#[tokio::test]
async fn a_template_lets_dots_through_as_tokens_and_spreads_keys_over_buckets() {
    let messages = published(
        ARTICLE,
        &[("POSTRIDER_OUTBOX_SUBJECT", "outbox.{id:bucket(16)}.{event_type:tokens}")],
        "INSERT INTO outbox (id, event_type) VALUES (1, 'order.placed'), (2, 'order.placed.eu'), (300, 'plain')",
        3,
    )
    .await;
    // FNV-1a 32 of the text's bytes, as anyone computes it.
    let bucket = |text: &str| {
        text.bytes().fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619))
            % 16
    };
    let expected = [("1", "order.placed"), ("2", "order.placed.eu"), ("300", "plain")]
        .map(|(id, event_type)| format!("outbox.{}.{event_type}", bucket(id)));
    assert_eq!(subjects(&messages), expected);
}

#[tokio::test]
async fn init_run_twice_makes_nothing_twice() {
    let pipeline = Pipeline::start().await;
    for _ in 0..2 {
        let made = pipeline.postrider(&["init", "--create-table"]).await;
        assert_eq!(made.code, Some(0), "{}", made.stderr);
    }
    let _relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{}')").await;
    pipeline.exactly(1).await;
    let again = pipeline.postrider(&["init"]).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stdout.contains("exists") && !again.stdout.contains("created"), "{}", again.stdout);
}

#[tokio::test]
async fn init_only_prints_its_sql_when_asked_to() {
    let pipeline = Pipeline::start().await;
    let printed = pipeline.postrider(&["init", "--create-table", "--print-sql"]).await;
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    for part in ["CREATE TABLE", "CREATE SCHEMA", "CREATE PUBLICATION", "pg_create_logical_replication_slot"]
    {
        assert!(printed.stdout.contains(part), "{part} is missing in\n{}", printed.stdout);
    }
    assert_eq!(pipeline.ask("SELECT count(*) FROM pg_publication").await, "0");
}
