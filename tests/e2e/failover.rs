//! Postgres fails over, comes back, or is put back: another history, or the same one told elsewhere.

use crate::refusals::refused;
use crate::support::{ARTICLE, DEADLINE, Pipeline, Relay, Servers, connect, eventually, within};
use postrider::demo::servers::{PostgresServer, Stop};
use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(crate) const STOP_MAX: Duration = Duration::from_secs(30);

/// What a standby that synchronizes slots needs (17 and later).
pub(crate) const FAILOVER_SLOTS: &[(&str, &str)] =
    &[("sync_replication_slots", "on"), ("hot_standby_feedback", "on"), ("primary_slot_name", "standby")];

/// A pipeline and a standby of its Postgres, made after `init`.
pub(crate) async fn with_standby(version: u32, settings: &[(&str, &str)]) -> (Pipeline, PostgresServer) {
    let mut pipeline = Pipeline::on(Servers { postgres: Some(version), ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    pipeline.execute("SELECT pg_create_physical_replication_slot('standby')").await;
    // What the slot keeps on the primary moves on at once.
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", "0s");
    pipeline.postgres.stop(Stop::Fast, STOP_MAX).await.unwrap();
    let primary = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", pipeline.postgres.port());
    let settings: Vec<_> = settings.iter().copied().chain([("primary_conninfo", primary.as_str())]).collect();
    let standby = pipeline.postgres.copy(Some("standby.signal"), &settings).await.unwrap();
    // The copy has the slot's files; a standby made by pg_basebackup has not.
    let sql = connect(&standby.url("postgres")).await.unwrap();
    sql.execute("SELECT pg_drop_replication_slot('postrider')", &[]).await.unwrap();
    pipeline.postgres.start_again().await.unwrap();
    // The primary's host comes first.
    let (first, second) = (pipeline.postgres.port(), standby.port());
    pipeline.set(
        "DATABASE_URL",
        &format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres?connect_timeout=3"),
    );
    (pipeline, standby)
}

async fn ask(server: &PostgresServer, expression: &str) -> String {
    let sql = connect(&server.url("postgres")).await.unwrap();
    let row = sql.query_one(&format!("SELECT ({expression})::text"), &[]).await.unwrap();
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

async fn holds(server: &PostgresServer, what: &str) {
    eventually(what, async || (ask(server, what).await == "true").then_some(())).await;
}

/// Commits rows one by one, so that the order of ids is that of commits.
async fn write(server: &PostgresServer, event_type: &str, count: usize) {
    let sql = connect(&server.url("postgres")).await.unwrap();
    for _ in 0..count {
        let insert = "INSERT INTO outbox (event_type, payload) VALUES ($1, '{}')";
        sql.execute(insert, &[&event_type]).await.unwrap();
    }
}

pub(crate) async fn promote(server: &PostgresServer) {
    assert_eq!(ask(server, "pg_promote(true, 60)").await, "true");
}

async fn rows(server: &PostgresServer) -> Vec<String> {
    let sql = connect(&server.url("postgres")).await.unwrap();
    let rows = sql.query("SELECT event_type || ' ' || id FROM outbox ORDER BY id", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn stored(pipeline: &Pipeline) -> Vec<String> {
    let name = |message: &crate::support::Message| {
        format!("{} {}", message.subject.trim_start_matches("outbox."), message.id())
    };
    pipeline.messages().await.iter().map(name).collect()
}

/// Waits until the stream has every row of `server` once, in order; the rest of it are events that
/// only the former primary had.
async fn complete(pipeline: &Pipeline, server: &PostgresServer) -> Vec<String> {
    let rows = rows(server).await;
    within(2 * DEADLINE, "every row is stored", async || {
        let stored = stored(pipeline).await;
        rows.iter().all(|row| stored.contains(row)).then_some(())
    })
    .await;
    let (ours, phantoms): (Vec<_>, Vec<_>) =
        stored(pipeline).await.into_iter().partition(|event| rows.contains(event));
    assert_eq!(ours, rows);
    phantoms
}

/// Waits until the standby keeps the slot. It does once the slot's catalog_xmin on the primary has
/// passed its own: the relay confirms events, and the primary logs its running transactions. Returns
/// how many events that took.
pub(crate) async fn synchronized(primary: &PostgresServer, standby: &PostgresServer) -> u64 {
    let events = Cell::new(0);
    let sql = connect(&primary.url("postgres")).await.unwrap();
    let slot = "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'postrider' AND synced AND NOT temporary";
    eventually(slot, async || {
        write(primary, "early", 1).await;
        events.set(events.get() + 1);
        sql.execute("SELECT pg_log_standby_snapshot()", &[]).await.unwrap();
        (ask(standby, slot).await == "true").then_some(())
    })
    .await;
    events.get()
}

async fn goes_on_after_a_failover(version: u32) {
    let (mut pipeline, standby) = with_standby(version, FAILOVER_SLOTS).await;
    let mut relay = pipeline.run().await;
    let early = synchronized(&pipeline.postgres, &standby).await;
    write(&pipeline.postgres, "before", 200).await;
    pipeline.stored(early + 200).await;
    let last = ask(&pipeline.postgres, "pg_current_wal_lsn()").await;
    holds(&standby, &format!("pg_last_wal_replay_lsn() >= '{last}'")).await;
    pipeline.postgres.kill().await;
    promote(&standby).await;
    write(&standby, "after", 200).await;
    assert!(complete(&pipeline, &standby).await.is_empty());
    assert_eq!(relay.terminate().await, Some(0));
    let last = pipeline.messages().await.pop().unwrap();
    assert_eq!(last.header("Postrider-Position").unwrap().split('/').nth(1), Some("2"));
}

#[tokio::test]
async fn the_relay_goes_on_at_a_promoted_standby_of_17() {
    goes_on_after_a_failover(17).await;
}

#[tokio::test]
async fn the_relay_goes_on_at_a_promoted_standby_of_18() {
    goes_on_after_a_failover(18).await;
}

/// A standby that lacks the last 100 of 200 published events is promoted.
async fn lagging_standby_promoted() -> (Pipeline, PostgresServer, Relay) {
    let (mut pipeline, mut standby) = with_standby(17, FAILOVER_SLOTS).await;
    let relay = pipeline.run().await;
    let early = synchronized(&pipeline.postgres, &standby).await;
    write(&pipeline.postgres, "before", 100).await;
    pipeline.stored(early + 100).await;
    let last = ask(&pipeline.postgres, "pg_current_wal_lsn()").await;
    holds(&standby, &format!("pg_last_wal_replay_lsn() >= '{last}'")).await;
    standby.stop(Stop::Fast, STOP_MAX).await.unwrap();
    write(&pipeline.postgres, "lost", 100).await;
    pipeline.stored(early + 200).await;
    pipeline.postgres.kill().await;
    standby.start_again().await.unwrap();
    promote(&standby).await;
    (pipeline, standby, relay)
}

#[tokio::test]
async fn no_event_of_a_promoted_standby_is_skipped_though_its_lsn_is_lower_than_the_streams() {
    let (pipeline, standby, mut relay) = lagging_standby_promoted().await;
    write(&standby, "after", 50).await;
    let phantoms = complete(&pipeline, &standby).await;
    assert!(phantoms.len() == 100 && phantoms.iter().all(|event| event.starts_with("lost")), "{phantoms:?}");
    assert!(relay.stderr().contains("lost in the fail-over"), "{}", relay.stderr());
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_former_primary_that_comes_back_is_not_followed_and_the_next_host_is() {
    let (mut pipeline, standby, mut relay) = lagging_standby_promoted().await;
    write(&standby, "after", 50).await;
    complete(&pipeline, &standby).await;
    assert_eq!(relay.terminate().await, Some(0));
    // It is up again, takes writes, and its host is the first of the two.
    pipeline.postgres.start_again().await.unwrap();
    write(&pipeline.postgres, "stale", 10).await;
    let mut relay = pipeline.run().await;
    write(&standby, "later", 10).await;
    let phantoms = complete(&pipeline, &standby).await;
    assert!(phantoms.iter().all(|event| event.starts_with("lost")), "{phantoms:?}");
    assert!(relay.stderr().contains("PR0414"), "{}", relay.stderr());
    assert_eq!(relay.terminate().await, Some(0));

    let alone = pipeline.postgres.url("postgres");
    pipeline.set("DATABASE_URL", &alone);
    let mut relay = pipeline.spawn(&["run"]);
    within(DEADLINE, "it says so", async || {
        let status = relay.status().await?;
        (status["last_error"]["code"] == "PR0414" && status["role"] == "waiting").then_some(())
    })
    .await;
    assert!(relay.is_running());
    assert!(!stored(&pipeline).await.iter().any(|event| event.starts_with("stale")));
}

/// `recover`, and a relay that then has every row of `server` in the stream once and in order.
async fn is_recovered(pipeline: &Pipeline, server: &PostgresServer) -> Vec<String> {
    let ended = pipeline.postrider(&["recover", "--yes"]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let mut relay = pipeline.run().await;
    write(server, "later", 5).await;
    let phantoms = complete(pipeline, server).await;
    assert!(!relay.stderr().contains("went back"), "{}", relay.stderr());
    assert_eq!(relay.terminate().await, Some(0));
    phantoms
}

/// A standby of 16, which has no failover slots, promoted under a relay.
async fn failed_over_without_the_slot() -> (Pipeline, PostgresServer, Relay) {
    let (mut pipeline, standby) = with_standby(16, &[("primary_slot_name", "standby")]).await;
    let relay = pipeline.run().await;
    write(&pipeline.postgres, "before", 10).await;
    pipeline.stored(10).await;
    pipeline.postgres.kill().await;
    promote(&standby).await;
    write(&standby, "after", 10).await;
    (pipeline, standby, relay)
}

#[tokio::test]
async fn a_failover_without_a_failover_slot_ends_the_relay_with_exit_5() {
    let (_pipeline, _standby, relay) = failed_over_without_the_slot().await;
    refused(&relay.ended().await, (5, "PR0401", "recover"));
}

#[tokio::test]
async fn a_failover_that_lost_the_slot_is_recovered() {
    let (pipeline, standby, relay) = failed_over_without_the_slot().await;
    refused(&relay.ended().await, (5, "PR0401", "recover"));
    // The standby may not have got them all.
    assert!(is_recovered(&pipeline, &standby).await.iter().all(|event| event.starts_with("before")));
}

// ---- Another history under the same name ------------------------------------------------------

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

/// A pipeline whose data folder was copied cold after ten events; twenty more were written and
/// published, and then the copy was put back.
async fn put_back(hold_back: &str) -> Pipeline {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_DELIVERY_HOLD_BACK", hold_back);
    let mut relay = pipeline.run().await;
    write(&pipeline.postgres, "common", 10).await;
    pipeline.stored(10).await;
    assert_eq!(relay.terminate().await, Some(0));
    pipeline.postgres.stop(Stop::Fast, STOP_MAX).await.unwrap();
    let folder = tempfile::tempdir_in(pipeline.postgres.data_dir().parent().unwrap()).unwrap();
    let (data, kept) = (pipeline.postgres.data_dir(), folder.path().join("kept"));
    copy(&data, &kept);
    pipeline.postgres.start_again().await.unwrap();
    let mut relay = pipeline.run().await;
    write(&pipeline.postgres, "original", 20).await;
    pipeline.stored(30).await;
    assert_eq!(relay.terminate().await, Some(0));
    pipeline.postgres.stop(Stop::Fast, STOP_MAX).await.unwrap();
    copy(&kept, &data);
    pipeline.postgres.start_again().await.unwrap();
    pipeline
}

async fn is_another_history(pipeline: &Pipeline) {
    let ended = pipeline.postrider(&["run"]).await;
    refused(&ended, (5, "PR0411", "recover"));
    assert_eq!(pipeline.last_seq().await, 30);
    refused(&pipeline.postrider(&["run"]).await, (5, "PR0411", "recover"));
    assert_eq!(pipeline.last_seq().await, 30);
}

#[tokio::test]
async fn a_data_folder_put_back_is_told_though_it_was_written_on_beyond_the_old_lsn() {
    let pipeline = put_back("0s").await;
    write(&pipeline.postgres, "new", 100).await;
    is_another_history(&pipeline).await;
}

#[tokio::test]
async fn a_data_folder_put_back_is_told_though_nothing_was_confirmed() {
    let pipeline = put_back("10m").await;
    write(&pipeline.postgres, "new", 100).await;
    is_another_history(&pipeline).await;
}

#[tokio::test]
async fn a_data_folder_put_back_is_told_though_the_same_rows_were_written_again() {
    let pipeline = put_back("0s").await;
    // The same ids, types and very likely LSNs: only the commit times differ.
    write(&pipeline.postgres, "original", 20).await;
    write(&pipeline.postgres, "original", 20).await;
    is_another_history(&pipeline).await;
}

#[tokio::test]
async fn a_data_folder_put_back_is_told_though_every_message_is_purged() {
    let pipeline = put_back("0s").await;
    pipeline.stream().await.purge().await.unwrap();
    write(&pipeline.postgres, "new", 100).await;
    is_another_history(&pipeline).await;
}

#[tokio::test]
async fn a_data_folder_put_back_is_told_before_it_is_written_on() {
    let pipeline = put_back("0s").await;
    is_another_history(&pipeline).await;
}

#[tokio::test]
async fn a_copy_that_was_promoted_is_followed_and_skips_nothing() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    write(&pipeline.postgres, "common", 10).await;
    pipeline.stored(10).await;
    assert_eq!(relay.terminate().await, Some(0));
    pipeline.postgres.stop(Stop::Fast, STOP_MAX).await.unwrap();
    let clone = pipeline.postgres.copy(Some("standby.signal"), &[]).await.unwrap();
    pipeline.postgres.start_again().await.unwrap();
    let mut relay = pipeline.run().await;
    write(&pipeline.postgres, "original", 10).await;
    pipeline.stored(20).await;
    assert_eq!(relay.terminate().await, Some(0));
    promote(&clone).await;
    write(&clone, "restored", 10).await;
    let url = clone.url("postgres");
    pipeline.set("DATABASE_URL", &url);
    let mut relay = pipeline.run().await;
    let phantoms = complete(&pipeline, &clone).await;
    assert!(
        phantoms.len() == 10 && phantoms.iter().all(|event| event.starts_with("original")),
        "{phantoms:?}"
    );
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test]
async fn a_dump_loaded_into_another_cluster_ends_the_relay_with_exit_5() {
    use postrider::demo::servers::{PostgresOptions, PostgresPrograms};
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    write(&pipeline.postgres, "common", 10).await;
    pipeline.stored(10).await;
    assert_eq!(relay.terminate().await, Some(0));
    let programs = PostgresPrograms::find(None).unwrap();
    let options = PostgresOptions { own_system: true, ..PostgresOptions::default() };
    let other = PostgresServer::start_with(&programs, options).await.unwrap();
    let url = other.url("postgres");
    let row = pipeline.ask("SELECT to_jsonb(p) FROM postrider.pipeline AS p").await;
    pipeline.set("DATABASE_URL", &url);
    // What pg_dump takes along: tables and publication, not the slot.
    let sql = connect(&url).await.unwrap();
    let tables = [
        postrider::state::checkpoint::create_table("postrider"),
        postrider::state::dead_letter::create_table("postrider"),
    ];
    let publication = "CREATE PUBLICATION postrider FOR TABLE outbox WITH (publish = 'insert')";
    sql.batch_execute(&format!("{ARTICLE}; CREATE SCHEMA postrider; {}; {publication}", tables.join("; ")))
        .await
        .unwrap();
    sql.execute("INSERT INTO postrider.pipeline SELECT * FROM jsonb_populate_record(NULL::postrider.pipeline, $1::text::jsonb)", &[&row])
        .await
        .unwrap();
    refused(&pipeline.postrider(&["run"]).await, (5, "PR0401", "recover"));
    // A slot made by hand does not make it the same history.
    sql.batch_execute(
        "UPDATE postrider.pipeline SET publication_oid = (SELECT oid FROM pg_publication), \
         publication_rel_oid = (SELECT oid FROM pg_publication_rel), table_oid = 'outbox'::regclass",
    )
    .await
    .unwrap();
    sql.execute("SELECT pg_create_logical_replication_slot('postrider', 'pgoutput')", &[]).await.unwrap();
    refused(&pipeline.postrider(&["run"]).await, (5, "PR0407", "recover"));
    assert_eq!(pipeline.last_seq().await, 10);
}

#[tokio::test]
async fn a_slot_that_someone_advanced_ends_the_relay_with_exit_5() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    write(&pipeline.postgres, "before", 10).await;
    pipeline.stored(10).await;
    assert_eq!(relay.terminate().await, Some(0));
    write(&pipeline.postgres, "skipped", 10).await;
    pipeline.execute("SELECT pg_replication_slot_advance('postrider', pg_current_wal_lsn())").await;
    refused(&pipeline.postrider(&["run"]).await, (5, "PR0410", "recover"));
    assert_eq!(pipeline.last_seq().await, 10);
}

#[tokio::test]
async fn a_slot_made_anew_under_its_name_ends_the_relay_with_exit_5() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    write(&pipeline.postgres, "before", 10).await;
    pipeline.stored(10).await;
    assert_eq!(relay.terminate().await, Some(0));
    pipeline.execute("SELECT pg_drop_replication_slot('postrider')").await;
    write(&pipeline.postgres, "between", 10).await;
    pipeline.execute("SELECT pg_create_logical_replication_slot('postrider', 'pgoutput')").await;
    write(&pipeline.postgres, "after", 10).await;
    let ended = pipeline.postrider(&["run"]).await;
    refused(&ended, (5, "PR0410", "recover"));
    assert_eq!(pipeline.last_seq().await, 10);
}

#[tokio::test]
async fn a_slot_whose_wal_was_removed_during_an_outage_ends_the_relay_with_exit_5() {
    let settings = &[("max_slot_wal_keep_size", "16MB"), ("min_wal_size", "32MB"), ("max_wal_size", "48MB")];
    let mut pipeline = Pipeline::on(Servers { settings, ..Servers::default() }).await;
    pipeline.execute(&format!("{ARTICLE}; CREATE TABLE other (noise text)")).await;
    pipeline.init().await;
    let relay = pipeline.run().await;
    write(&pipeline.postgres, "before", 10).await;
    pipeline.stored(10).await;
    pipeline.nats.kill();
    let noise = "INSERT INTO other SELECT repeat(md5(n::text), 300) FROM generate_series(1, 8000) n";
    pipeline.execute("ALTER TABLE other ALTER noise SET STORAGE EXTERNAL").await;
    eventually("the slot is lost", async || {
        pipeline.execute(&format!("{noise}; SELECT pg_switch_wal(); CHECKPOINT")).await;
        let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = 'postrider'";
        (pipeline.ask(lost).await == "true").then_some(())
    })
    .await;
    pipeline.nats.start_again().await.unwrap();
    refused(&relay.ended().await, (5, "PR0403", "recover"));
}

#[tokio::test]
async fn a_data_folder_put_back_is_recovered_though_new_rows_have_the_ids_of_lost_ones() {
    for hold_back in ["0s", "10m"] {
        let pipeline = put_back(hold_back).await;
        write(&pipeline.postgres, "new", 30).await;
        assert_eq!(pipeline.postrider(&["run"]).await.code, Some(5));
        assert_eq!(is_recovered(&pipeline, &pipeline.postgres).await.len(), 20);
    }
}

/// Runs a command that looks into a slot with four rows, and must wait for a standby that is away; the standby
/// comes back.
async fn looks_while_a_standby_is_away(arguments: &[&str]) -> (Pipeline, serde_json::Value) {
    let pipeline = Pipeline::on(Servers { postgres: Some(18), ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    let sql = pipeline.sql().await;
    sql.execute("SELECT pg_create_physical_replication_slot('standby', true)", &[]).await.unwrap();
    sql.execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'", &[]).await.unwrap();
    sql.execute("SELECT pg_reload_conf()", &[]).await.unwrap();
    holds(&pipeline.postgres, "current_setting('synchronized_standby_slots') = 'standby'").await;
    write(&pipeline.postgres, "held", 4).await;
    let command = pipeline.spawn(arguments);
    holds(
        &pipeline.postgres,
        "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'WaitForStandbyConfirmation')",
    )
    .await;
    let advance = "SELECT pg_replication_slot_advance('standby', pg_current_wal_lsn())";
    sql.execute(advance, &[]).await.unwrap();
    let ended = command.ended().await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    (pipeline, serde_json::from_str(&ended.stdout).unwrap())
}

#[tokio::test]
async fn recover_keeps_a_slot_whose_look_had_to_wait_for_a_standby() {
    let (pipeline, mended) = looks_while_a_standby_is_away(&["recover", "--yes", "--json"]).await;
    assert!(mended["new_slot"].is_null(), "{mended}");
    assert_eq!(pipeline.last_seq().await, 0, "the slot holds the rows: they are its to send");
}

#[tokio::test]
async fn prune_proves_what_it_sees_in_a_slot_whose_look_had_to_wait_for_a_standby() {
    let prune = ["prune", "--json", "--care-delete-after", "0s"];
    let (_, report) = looks_while_a_standby_is_away(&prune).await;
    assert_eq!((&report["deleted"], &report["waiting"]), (&0.into(), &4.into()), "{report}");
}
