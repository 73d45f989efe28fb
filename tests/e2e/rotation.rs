//! Passwords rotated in their files while relays run: no restart.

use crate::certificates::write;
use crate::support::{ARTICLE, Pipeline, Servers};

async fn pipeline(nats_extra: &str) -> Pipeline {
    let hba = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256";
    let pipeline = Pipeline::on(Servers { hba: Some(hba), nats_extra, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline.execute("CREATE ROLE relay SUPERUSER LOGIN REPLICATION PASSWORD 'before'").await;
    pipeline
}

#[tokio::test]
async fn a_password_rotated_in_its_file_is_taken_at_the_next_connection() {
    let mut pipeline = pipeline("authorization { user: relay, password: before }").await;
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "password", "before\n").display().to_string();
    pipeline.set("NATS_USER", "relay");
    pipeline.set("POSTRIDER_NATS_PASSWORD_FILE", &path);
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    pipeline.nats.stop().await.unwrap();
    pipeline.nats.set_extra("authorization { user: relay, password: after }");
    pipeline.nats.start_again().await.unwrap();
    std::fs::write(&path, "after\n").unwrap();
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('more', '{}')").await;
    relay.published(1).await;
    assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
}

#[tokio::test]
async fn a_password_of_postgres_rotated_in_its_file_is_taken_at_the_next_connection() {
    let mut pipeline = pipeline("").await;
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "pgpass", "*:*:*:relay:before\n").display().to_string();
    let url = format!("postgres://relay@127.0.0.1:{}/postgres", pipeline.postgres.port());
    pipeline.set("DATABASE_URL", &url);
    pipeline.set("PGPASSFILE", &path);
    pipeline.init().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("ALTER ROLE relay PASSWORD 'after'").await;
    std::fs::write(&path, "*:*:*:relay:after\n").unwrap();
    pipeline
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'; \
             INSERT INTO outbox (event_type, payload) VALUES ('more', '{}')",
        )
        .await;
    relay.published(1).await;
    assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
}

#[tokio::test]
async fn a_standby_takes_over_with_the_password_of_the_day() {
    let mut pipeline = pipeline("").await;
    let folder = tempfile::tempdir().unwrap();
    let url = |password: &str| {
        format!("postgres://relay:{password}@127.0.0.1:{}/postgres\n", pipeline.postgres.port())
    };
    let (before, after) = (url("before"), url("after"));
    let path = write(folder.path(), "url", &before);
    pipeline.unset("DATABASE_URL");
    pipeline.set("POSTRIDER_POSTGRES_URL_FILE", path.to_str().unwrap());
    pipeline.init().await;
    let mut leader = pipeline.run().await;
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    pipeline.execute("ALTER ROLE relay PASSWORD 'after'").await;
    // As an editor does it: empty for a moment.
    std::fs::write(&path, "").unwrap();
    std::fs::write(&path, after).unwrap();
    leader.kill();
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('more', '{}')").await;
    standby.published(1).await;
    assert_eq!(standby.terminate().await, Some(0), "{}", standby.stderr());
}
