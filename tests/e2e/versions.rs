//! Every supported version of Postgres and of nats-server at least once.

use crate::support::{ARTICLE, Load, Pipeline, Servers};
use std::time::Duration;

async fn works(postgres: u32, nats: &str) {
    let servers = Servers { postgres: Some(postgres), nats: Some(nats), ..Servers::default() };
    let pipeline = Pipeline::on(servers).await;
    assert!(pipeline.ask("current_setting('server_version_num')").await.starts_with(&postgres.to_string()));
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    pipeline.watch_commits().await;
    let mut relay = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 2, &[1, 10, 1, 200], Duration::from_millis(20));
    pipeline.stored(500).await;
    relay.kill();
    let mut relay = pipeline.run().await;
    load.finish().await;
    pipeline.proves(&mut relay).await;
}

#[tokio::test]
async fn postgres_14_with_nats_2_10() {
    works(14, "2.10").await;
}

#[tokio::test]
async fn postgres_15_with_nats_2_12() {
    works(15, "2.12").await;
}

#[tokio::test]
async fn postgres_16_with_nats_2_15() {
    works(16, "2.15").await;
}

#[tokio::test]
async fn postgres_17_with_nats_2_10() {
    works(17, "2.10").await;
}

#[tokio::test]
async fn postgres_18_with_nats_2_15() {
    works(18, "2.15").await;
}
