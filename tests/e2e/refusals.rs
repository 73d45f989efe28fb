//! What cannot work is refused: with its code, a remedy and the contract's exit status, and
//! nothing is lost by it.

use crate::support::{ARTICLE, Ended, Pipeline, Servers};
use postrider::demo::servers::Stop;
use std::time::Duration;

/// Exit status, code, and words of the remedy.
pub(crate) type Refusal = (i32, &'static str, &'static str);

#[track_caller]
pub(crate) fn refused(ended: &Ended, (exit, code, remedy): Refusal) {
    let said = ended.stderr.rfind(&format!("{code}: ")).map(|at| &ended.stderr[at..]);
    let said = said.unwrap_or_else(|| panic!("{code} is not among\n{}", ended.stderr));
    let remedies = said.split_once("remedy: ").map_or("", |(_, remedy)| remedy);
    assert!(remedies.contains(remedy), "`{remedy}` is not among\n{said}");
    assert_eq!(ended.code, Some(exit), "{said}");
}

pub(crate) async fn insert(pipeline: &Pipeline, event_type: &str) {
    pipeline
        .execute(&format!("INSERT INTO outbox (event_type, payload) VALUES ({event_type}, '{{}}')"))
        .await;
}

/// `run` is refused, the slot stays where it is, and after the mending nothing is missing.
async fn refused_until_mended(
    pipeline: &mut Pipeline,
    refusal: Refusal,
    mend: impl AsyncFnOnce(&mut Pipeline),
) {
    insert(pipeline, "'kept'").await;
    let confirmed = pipeline.confirmed_lsn().await;
    refused(&pipeline.postrider(&["run"]).await, refusal);
    assert_eq!(pipeline.confirmed_lsn().await, confirmed);
    mend(pipeline).await;
    let mut relay = pipeline.run().await;
    pipeline.stored(1).await;
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.kept"]);
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_shown() {
    let hba = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256";
    let mut pipeline = Pipeline::on(Servers { hba: Some(hba), ..Servers::default() }).await;
    pipeline
        .execute(&format!("CREATE ROLE relay SUPERUSER LOGIN REPLICATION PASSWORD 'right'; {ARTICLE}"))
        .await;
    let url = |password: &str| {
        format!("postgres://relay:{password}@127.0.0.1:{}/postgres", pipeline.postgres.port())
    };
    let (right, wrong) = (url("right"), url("hunter2"));
    pipeline.set("DATABASE_URL", &right);
    pipeline.init().await;
    pipeline.set("DATABASE_URL", &wrong);
    let ended = pipeline.postrider(&["run"]).await;
    assert!(!ended.stderr.contains("hunter2") && !ended.stdout.contains("hunter2"), "{}", ended.stderr);
    refused_until_mended(&mut pipeline, (3, "PR0203", ""), async |pipeline| {
        pipeline.set("DATABASE_URL", &right);
    })
    .await;
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_refused() {
    let mut pipeline = Pipeline::article().await;
    let (right, wrong) = (pipeline.postgres.url("postgres"), pipeline.postgres.url("nowhere"));
    pipeline.set("DATABASE_URL", &wrong);
    refused_until_mended(&mut pipeline, (3, "PR0204", ""), async |pipeline| {
        pipeline.set("DATABASE_URL", &right);
    })
    .await;
}

#[tokio::test]
async fn a_role_that_may_not_replicate_is_refused() {
    let mut pipeline = Pipeline::article().await;
    pipeline
        .execute(
            "CREATE ROLE relay LOGIN; GRANT USAGE ON SCHEMA postrider TO relay; \
             GRANT SELECT, INSERT, UPDATE ON postrider.pipeline TO relay; \
             GRANT ALL ON postrider.dead_letter TO relay",
        )
        .await;
    let url = pipeline.postgres.url("postgres").replace("postgres@", "relay@");
    pipeline.set("DATABASE_URL", &url);
    let remedy = "ALTER ROLE \"relay\" REPLICATION";
    refused_until_mended(&mut pipeline, (3, "PR0207", remedy), async |pipeline| {
        pipeline.execute(remedy).await;
    })
    .await;
}

#[tokio::test]
async fn a_role_that_may_not_write_letters_is_refused_before_there_is_one() {
    let mut pipeline = Pipeline::article().await;
    pipeline
        .execute(
            "CREATE ROLE relay LOGIN REPLICATION; GRANT USAGE ON SCHEMA postrider TO relay; \
             GRANT SELECT, INSERT, UPDATE ON postrider.pipeline TO relay; \
             GRANT SELECT ON postrider.dead_letter TO relay",
        )
        .await;
    let url = pipeline.postgres.url("postgres").replace("postgres@", "relay@");
    pipeline.set("DATABASE_URL", &url);
    let remedy = "GRANT SELECT, INSERT, UPDATE, DELETE ON \"postrider\".dead_letter TO \"relay\"";
    refused_until_mended(&mut pipeline, (3, "PR0216", remedy), async |pipeline| {
        pipeline.execute(remedy).await;
    })
    .await;
}

#[tokio::test]
async fn a_server_without_logical_decoding_is_refused() {
    let settings = &[("wal_level", "replica")];
    let mut pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    let remedy = "ALTER SYSTEM SET wal_level = 'logical'";
    refused(&pipeline.postrider(&["init"]).await, (3, "PR0206", remedy));
    pipeline.postgres.set("wal_level", "logical").unwrap();
    pipeline.postgres.stop(Stop::Fast, Duration::from_secs(10)).await.unwrap();
    pipeline.postgres.start_again().await.unwrap();
    pipeline.init().await;
    pipeline.run().await;
}

#[tokio::test]
async fn a_table_that_is_missing_or_lacks_columns_is_refused() {
    let mut pipeline = Pipeline::start().await;
    refused(&pipeline.postrider(&["init"]).await, (3, "PR0210", "postrider init --create-table"));
    pipeline.execute("CREATE TABLE outbox (id int, payload jsonb)").await;
    refused(&pipeline.postrider(&["init"]).await, (3, "PR0213", "outbox.preset = \"article\""));
    pipeline.set("POSTRIDER_OUTBOX_PRESET", "article");
    refused(&pipeline.postrider(&["init"]).await, (3, "PR0212", "outbox.type"));
    // Nothing was made meanwhile that would stand in the way.
    pipeline.execute("ALTER TABLE outbox ADD event_type text").await;
    pipeline.init().await;
    pipeline.run().await;
}

#[tokio::test]
async fn a_publication_that_is_gone_or_made_anew_is_refused() {
    let pipeline = Pipeline::article().await;
    let confirmed = pipeline.confirmed_lsn().await;
    pipeline.execute("DROP PUBLICATION postrider").await;
    refused(&pipeline.postrider(&["run"]).await, (3, "PR0208", "postrider init"));
    pipeline.execute("CREATE PUBLICATION postrider WITH (publish = 'insert')").await;
    refused(&pipeline.postrider(&["run"]).await, (3, "PR0209", "ALTER PUBLICATION \"postrider\" ADD TABLE"));
    pipeline.execute("ALTER PUBLICATION postrider ADD TABLE outbox").await;
    // Rows of the time between are not in the slot: it does not go on as if nothing were.
    refused(&pipeline.postrider(&["run"]).await, (5, "PR0412", "postrider recover"));
    assert_eq!(pipeline.confirmed_lsn().await, confirmed);
}

#[tokio::test]
async fn a_table_taken_out_of_the_publication_while_it_runs_ends_the_relay() {
    let pipeline = Pipeline::article().await;
    let relay = pipeline.run().await;
    pipeline.execute("ALTER PUBLICATION postrider DROP TABLE outbox").await;
    refused(&relay.ended().await, (5, "PR0412", "postrider recover"));
}

#[tokio::test]
async fn a_slot_that_is_gone_is_refused() {
    let pipeline = Pipeline::article().await;
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    insert(&pipeline, "'lost'").await;
    refused(&pipeline.postrider(&["run"]).await, (5, "PR0401", "postrider recover"));
    refused(&pipeline.postrider(&["init"]).await, (5, "PR0401", "postrider recover"));
    let adopted = pipeline.postrider(&["init", "--adopt"]).await;
    assert_eq!(adopted.code, Some(0), "{}", adopted.stderr);
    assert!(adopted.stdout.contains("given up"), "{}", adopted.stdout);
    insert(&pipeline, "'new'").await;
    let mut relay = pipeline.run().await;
    pipeline.stored(1).await;
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.new"]);
}

#[tokio::test]
async fn a_slot_of_another_kind_or_database_is_refused() {
    let pipeline = Pipeline::article().await;
    pipeline.execute("CREATE DATABASE other").await;
    let other = crate::support::connect(&pipeline.postgres.url("other")).await.unwrap();
    let here = pipeline.sql().await;
    for (sql, create) in [
        (&here, "pg_create_physical_replication_slot('postrider')"),
        (&here, "pg_create_logical_replication_slot('postrider', 'test_decoding')"),
        (&here, "pg_create_logical_replication_slot('postrider', 'pgoutput', false, true)"),
        (&other, "pg_create_logical_replication_slot('postrider', 'pgoutput')"),
    ] {
        here.batch_execute("SELECT pg_drop_replication_slot('postrider')").await.unwrap();
        sql.batch_execute(&format!("SELECT {create}")).await.unwrap();
        refused(&pipeline.postrider(&["run"]).await, (5, "PR0402", "choose another postgres.slot"));
    }
}

#[tokio::test]
async fn a_slot_that_someone_else_advanced_is_refused() {
    let pipeline = Pipeline::article().await;
    insert(&pipeline, "'skipped'").await;
    pipeline.execute("SELECT pg_replication_slot_advance('postrider', pg_current_wal_insert_lsn())").await;
    refused(&pipeline.postrider(&["run"]).await, (5, "PR0410", ""));
    assert_eq!(pipeline.last_seq().await, 0);
}

#[tokio::test]
async fn a_stream_that_is_gone_or_created_anew_is_refused() {
    let pipeline = Pipeline::article().await;
    insert(&pipeline, "'kept'").await;
    let confirmed = pipeline.confirmed_lsn().await;
    pipeline.jetstream().await.delete_stream("OUTBOX").await.unwrap();
    refused(&pipeline.postrider(&["run"]).await, (4, "PR0304", "postrider init"));
    refused(&pipeline.postrider(&["init"]).await, (5, "PR0406", "postrider init --adopt"));
    let config = async_nats::jetstream::stream::Config {
        name: "OUTBOX".into(),
        subjects: vec!["outbox.>".into()],
        ..Default::default()
    };
    pipeline.jetstream().await.create_stream(config).await.unwrap();
    refused(&pipeline.postrider(&["run"]).await, (5, "PR0408", "postrider recover"));
    assert_eq!(pipeline.confirmed_lsn().await, confirmed);
    assert_eq!(pipeline.postrider(&["init", "--adopt"]).await.code, Some(0));
    let mut relay = pipeline.run().await;
    pipeline.stored(1).await;
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.kept"]);
}

#[tokio::test]
async fn a_stream_that_does_not_bind_the_subject_is_refused() {
    let mut pipeline = Pipeline::article().await;
    bind(&pipeline, "other.>").await;
    refused_until_mended(&mut pipeline, (4, "PR0306", "nats stream edit OUTBOX"), async |pipeline| {
        bind(pipeline, "outbox.>").await;
    })
    .await;
}

async fn bind(pipeline: &Pipeline, subject: &str) {
    let mut config = pipeline.stream().await.cached_info().config.clone();
    config.subjects = vec![subject.into()];
    pipeline.jetstream().await.update_stream(config).await.unwrap();
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused() {
    let mut pipeline = Pipeline::article().await;
    pipeline.nats.set_extra("jetstream: disabled");
    pipeline.nats.stop().await.unwrap();
    pipeline.nats.start_again().await.unwrap();
    refused_until_mended(&mut pipeline, (4, "PR0303", "nats-server -js"), async |pipeline| {
        pipeline.nats.set_extra("");
        pipeline.nats.stop().await.unwrap();
        pipeline.nats.start_again().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_wrong_password_for_nats_is_refused_and_not_shown() {
    let nats_extra = "authorization { user: relay, password: right }";
    let mut pipeline = Pipeline::on(Servers { nats_extra, ..Servers::default() }).await;
    let url = format!("nats://relay:hunter2@127.0.0.1:{}", pipeline.nats.port());
    pipeline.set("NATS_URL", &url);
    pipeline.execute(ARTICLE).await;
    for command in ["init", "run"] {
        let ended = pipeline.postrider(&[command]).await;
        refused(&ended, (4, "PR0302", "nats.url"));
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn user_and_password_or_the_token_of_the_url_log_in_to_nats() {
    for (nats_extra, login) in [
        ("authorization { user: relay, password: \"p@s s\" }", "relay:p%40s%20s"),
        ("authorization { token: hush }", "hush"),
    ] {
        let mut pipeline = Pipeline::on(Servers { nats_extra, ..Servers::default() }).await;
        let url = format!("nats://{login}@127.0.0.1:{}", pipeline.nats.port());
        pipeline.set("NATS_URL", &url);
        pipeline.execute(ARTICLE).await;
        pipeline.init().await;
        let mut relay = pipeline.run().await;
        insert(&pipeline, "'kept'").await;
        relay.published(1).await;
        assert_eq!(relay.terminate().await, Some(0));
    }
}

#[tokio::test]
async fn partitions_under_their_own_names_are_refused() {
    let pipeline = Pipeline::start().await;
    let columns =
        ARTICLE.replace("PRIMARY KEY", "").replace("FALSE)", "FALSE) PARTITION BY LIST (event_type)");
    pipeline.execute(&format!("{columns}; CREATE TABLE leaf PARTITION OF outbox DEFAULT")).await;
    pipeline.init().await;
    pipeline.execute("ALTER PUBLICATION postrider SET (publish_via_partition_root = false)").await;
    let refusal = (3, "PR0209", "publish_via_partition_root = true");
    refused(&pipeline.postrider(&["run"]).await, refusal);
}

#[tokio::test]
async fn a_message_of_someone_else_is_refused_before_the_start_and_while_it_runs() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    insert(&pipeline, "'ours'").await;
    pipeline.stored(1).await;
    pipeline.jetstream().await.publish("outbox.theirs", "".into()).await.unwrap().await.unwrap();
    insert(&pipeline, "'kept'").await;
    refused(&relay.ended().await, (4, "PR0307", "source"));
    let confirmed = pipeline.confirmed_lsn().await;
    refused(&pipeline.postrider(&["run"]).await, (4, "PR0307", "source"));
    assert_eq!(pipeline.confirmed_lsn().await, confirmed);
    // What the remedy leaves to a person: it is meant to be there.
    assert_eq!(pipeline.postrider(&["init", "--adopt"]).await.code, Some(0));
    relay = pipeline.run().await;
    pipeline.stored(3).await;
    assert_eq!(pipeline.drained(&mut relay).await, ["outbox.ours", "outbox.theirs", "outbox.kept"]);
}

#[tokio::test]
async fn an_unknown_key_is_refused_with_the_nearest_one() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_NATS_STREEM", "X");
    let ended = pipeline.postrider(&["run"]).await;
    refused(&ended, (2, "PR0101", ""));
    assert!(ended.stderr.contains("POSTRIDER_NATS_STREAM"), "{}", ended.stderr);
    refused_until_mended(&mut pipeline, (2, "PR0101", ""), async |pipeline| {
        pipeline.unset("POSTRIDER_NATS_STREEM");
    })
    .await;
}

#[tokio::test]
async fn a_bad_template_is_refused() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "outbox.{event_type");
    refused_until_mended(&mut pipeline, (2, "PR0105", ""), async |pipeline| {
        pipeline.unset("POSTRIDER_OUTBOX_SUBJECT");
    })
    .await;
}

#[tokio::test]
async fn servers_that_are_not_up_yet_are_waited_for() {
    let mut pipeline = Pipeline::article().await;
    pipeline.nats.stop().await.unwrap();
    let mut relay = pipeline.spawn(&["run"]);
    relay.is("role", "waiting").await;
    pipeline.postgres.stop(Stop::Fast, Duration::from_secs(10)).await.unwrap();
    pipeline.nats.start_again().await.unwrap();
    relay.is("role", "waiting").await;
    pipeline.postgres.start_again().await.unwrap();
    relay.streams().await;
    relay.kill();

    pipeline.set("POSTRIDER_START_TIMEOUT", "1s");
    pipeline.nats.stop().await.unwrap();
    refused(&pipeline.postrider(&["run"]).await, (4, "PR0301", "nats-server"));
    pipeline.nats.start_again().await.unwrap();
    pipeline.postgres.stop(Stop::Fast, Duration::from_secs(10)).await.unwrap();
    refused(&pipeline.postrider(&["run"]).await, (3, "PR0201", ""));
}

/// A row that cannot be published halts the relay behind all that went before it, again and again,
/// until `mend`; then it goes on with that very row.
async fn halts_until_mended(
    pipeline: &mut Pipeline,
    poison: &str,
    code: &'static str,
    mend: impl AsyncFnOnce(&mut Pipeline),
) {
    const BEFORE: usize = 300;
    pipeline.set("POSTRIDER_DELIVERY_ON_POISON", "halt");
    let relay = pipeline.run().await;
    pipeline
        .execute(&format!(
            "BEGIN; INSERT INTO outbox (event_type, payload) SELECT 'before', '{{}}' FROM generate_series(1, {BEFORE}); \
             {poison}; INSERT INTO outbox (event_type, payload) VALUES ('behind', '{{}}'); COMMIT"
        ))
        .await;
    refused(&relay.ended().await, (7, code, ""));
    // Stored by the time it halts, not by a later attempt.
    assert_eq!(pipeline.last_seq().await, BEFORE as u64);
    refused(&pipeline.postrider(&["run"]).await, (7, code, ""));
    assert_eq!(pipeline.last_seq().await, BEFORE as u64);
    mend(pipeline).await;
    let mut relay = pipeline.run().await;
    let messages = pipeline.exactly(BEFORE + 2).await;
    let ids: Vec<_> = messages.iter().map(|message| message.id().to_owned()).collect();
    assert_eq!(ids, (1..=BEFORE + 2).map(|id| id.to_string()).collect::<Vec<_>>());
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn an_event_with_a_bad_subject_halts_until_the_template_is_mended() {
    let mut pipeline = Pipeline::article().await;
    let poison = "INSERT INTO outbox (event_type, payload) VALUES ('two words', '{}')";
    halts_until_mended(&mut pipeline, poison, "PR0501", async |pipeline| {
        pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "outbox.{id}");
    })
    .await;
}

#[tokio::test]
async fn an_event_without_a_type_halts_until_no_type_is_asked_for() {
    let mut pipeline = Pipeline::article().await;
    let poison = "INSERT INTO outbox (event_type, payload) VALUES (NULL, '{}')";
    halts_until_mended(&mut pipeline, poison, "PR0508", async |pipeline| {
        pipeline.set("POSTRIDER_OUTBOX_PRESET", "columns");
        pipeline.set("POSTRIDER_OUTBOX_SUBJECT", "outbox.event");
    })
    .await;
}

#[tokio::test]
async fn an_event_that_is_too_large_halts_until_the_server_takes_it() {
    let nats_extra = "max_payload: 64KB";
    let mut pipeline = Pipeline::on(Servers { nats_extra, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let poison = "INSERT INTO outbox (event_type, payload) \
         VALUES ('large', jsonb_build_object('text', repeat('x', 100000)))";
    halts_until_mended(&mut pipeline, poison, "PR0503", async |pipeline| {
        pipeline.nats.set_extra("");
        pipeline.nats.stop().await.unwrap();
        pipeline.nats.start_again().await.unwrap();
    })
    .await;
}
