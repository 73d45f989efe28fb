//! The servers that the demo and the tests stand on.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use postrider::demo::servers::{
    NatsServer, PostgresOptions, PostgresPrograms, PostgresServer, Stop, nats_program,
};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

const DEADLINE: Duration = Duration::from_secs(20);

async fn postgres(settings: &[(&str, &str)]) -> PostgresServer {
    PostgresServer::start(&PostgresPrograms::find(None).unwrap(), settings).await.unwrap()
}

async fn nats(extra: &str) -> NatsServer {
    NatsServer::start(&nats_program(None).unwrap(), extra).await.unwrap()
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn ask(server: &PostgresServer, sql: &str) -> String {
    let client = connect(&server.url("postgres")).await.unwrap();
    let row = client.query_one(&format!("SELECT ({sql})::text"), &[]).await.unwrap();
    row.get(0)
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test]
async fn postgres_decodes_logically_and_goes_with_its_handle() {
    let server = postgres(&[("track_commit_timestamp", "on")]).await;
    assert_eq!(ask(&server, "current_setting('wal_level')").await, "logical");
    assert_eq!(ask(&server, "current_setting('track_commit_timestamp')").await, "on");
    let (pid, folder) = (server.pid().unwrap(), server.data_dir());
    drop(server);
    assert!(!is_running(pid));
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_killed_postgres_comes_back_on_its_port_with_what_was_committed() {
    let mut server = postgres(&[]).await;
    let port = server.port();
    let client = connect(&server.url("postgres")).await.unwrap();
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (7)").await.unwrap();
    server.kill().await;
    assert!(client.simple_query("SELECT 1").await.is_err());
    server.start_again().await.unwrap();
    assert_eq!(server.port(), port);
    assert_eq!(ask(&server, "SELECT a FROM t").await, "7");
}

#[tokio::test]
async fn postgres_stops_fast_though_a_client_stays_and_smart_only_when_it_leaves() {
    let mut server = postgres(&[]).await;
    let client = connect(&server.url("postgres")).await.unwrap();
    let refused = server.stop(Stop::Smart, Duration::from_millis(300)).await;
    assert!(refused.is_err());
    drop(client);
    server.stop(Stop::Smart, DEADLINE).await.unwrap();
    for mode in [Stop::Fast, Stop::Immediate] {
        server.start_again().await.unwrap();
        let _client = connect(&server.url("postgres")).await.unwrap();
        server.stop(mode, DEADLINE).await.unwrap();
    }
}

#[tokio::test]
async fn a_frozen_postgres_answers_only_after_the_thaw() {
    let mut server = postgres(&[]).await;
    let client = connect(&server.url("postgres")).await.unwrap();
    server.freeze();
    let query = client.simple_query("SELECT 1");
    tokio::pin!(query);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut query).await.is_err());
    server.thaw();
    tokio::time::timeout(DEADLINE, query).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_frozen_or_killed_postgres_leaves_nothing_behind() {
    for kill in [false, true] {
        let mut server = postgres(&[]).await;
        let (pid, folder) = (server.pid().unwrap(), server.data_dir());
        server.freeze();
        if kill {
            server.kill().await;
        }
        drop(server);
        assert!(!is_running(pid));
        assert!(!folder.exists());
    }
}

#[tokio::test]
async fn a_password_is_asked_for_where_pg_hba_says_so() {
    let server = postgres(&[("password_encryption", "scram-sha-256")]).await;
    let client = connect(&server.url("postgres")).await.unwrap();
    client.batch_execute("CREATE ROLE app LOGIN PASSWORD 'right'").await.unwrap();
    server.set_hba("host all all 127.0.0.1/32 scram-sha-256").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let url = |password| format!("postgres://app:{password}@127.0.0.1:{}/postgres", server.port());
    let begun = Instant::now();
    while connect(&url("wrong")).await.is_ok() {
        assert!(begun.elapsed() < DEADLINE, "the new pg_hba.conf is not in force");
    }
    connect(&url("right")).await.unwrap();
}

#[tokio::test]
async fn the_unix_socket_serves_too() {
    let server = postgres(&[]).await;
    let socket = server.socket_dir().unwrap();
    let dsn = format!("host={} port={} user=postgres dbname=postgres", socket.display(), server.port());
    connect(&dsn).await.unwrap();
}

#[tokio::test]
async fn copies_share_a_system_identifier_unless_asked_otherwise() {
    let programs = PostgresPrograms::find(None).unwrap();
    let own = PostgresOptions { own_system: true, ..PostgresOptions::default() };
    let (one, two, other) = tokio::join!(postgres(&[]), postgres(&[]), async {
        PostgresServer::start_with(&programs, own).await.unwrap()
    });
    let system = "SELECT system_identifier FROM pg_control_system()";
    assert_eq!(ask(&one, system).await, ask(&two, system).await);
    assert_ne!(ask(&one, system).await, ask(&other, system).await);
    assert_ne!(one.port(), two.port());
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let programs = PostgresPrograms::find(None).unwrap();
    let failure = PostgresServer::start(&programs, &[("no_such_setting", "1")]).await.unwrap_err();
    assert!(failure.to_string().contains("no_such_setting"), "{failure}");
    let failure = NatsServer::start(&nats_program(None).unwrap(), "max_payload: nonsense").await.unwrap_err();
    assert!(failure.to_string().contains("nats.conf:6:1"), "{failure}");
}

#[tokio::test]
async fn a_stream_outlives_kill_and_stop_of_its_nats_server() {
    let mut server = nats("").await;
    let url = server.url();
    let stream = {
        let jetstream = async_nats::jetstream::new(async_nats::connect(&url).await.unwrap());
        let config = async_nats::jetstream::stream::Config {
            name: "S".into(),
            subjects: vec!["s.>".into()],
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();
        jetstream.publish("s.a", "x".into()).await.unwrap().await.unwrap();
        jetstream
    };
    drop(stream);
    for kill in [true, false] {
        if kill {
            server.kill()
        } else {
            server.stop().await.unwrap()
        }
        assert!(async_nats::connect(&url).await.is_err());
        server.start_again().await.unwrap();
        let jetstream = async_nats::jetstream::new(async_nats::connect(&url).await.unwrap());
        let stream = jetstream.get_stream("S").await.unwrap();
        assert_eq!(stream.get_info().await.unwrap().state.messages, 1);
    }
    assert!(server.store_dir().join("jetstream").is_dir());
}

#[tokio::test]
async fn extra_lines_replace_the_jetstream_block() {
    let none = nats("jetstream: disabled").await;
    let client = async_nats::connect(none.url()).await.unwrap();
    assert!(async_nats::jetstream::new(client).query_account().await.is_err());
    let always = nats("jetstream { store_dir: $STORE, sync_interval: always }").await;
    let client = async_nats::connect(always.url()).await.unwrap();
    assert!(async_nats::jetstream::new(client).query_account().await.is_ok());
}

#[tokio::test]
async fn a_frozen_nats_server_answers_only_after_the_thaw() {
    let mut server = nats("").await;
    let client = async_nats::connect(server.url()).await.unwrap();
    server.freeze();
    let flush = client.flush();
    tokio::pin!(flush);
    client.publish("a", "".into()).await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(200), async_nats::connect(server.url())).await.is_err()
    );
    server.thaw();
    tokio::time::timeout(DEADLINE, flush).await.unwrap().unwrap();
}

#[tokio::test]
async fn every_version_of_the_matrix_starts() {
    for major in 14..=18 {
        let programs = PostgresPrograms::find(Some(major)).unwrap();
        let server = PostgresServer::start(&programs, &[]).await.unwrap();
        assert!(ask(&server, "current_setting('server_version_num')").await.starts_with(&major.to_string()));
    }
    for version in ["2.10", "2.12", "2.15"] {
        let server = NatsServer::start(&nats_program(Some(version)).unwrap(), "").await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        assert!(client.server_info().version.starts_with(version));
    }
}

/// Runs as a process of its own, started by the next test; by itself it does nothing.
#[tokio::test]
async fn child_that_is_killed() {
    if std::env::var_os("SERVERS_TEST_CHILD").is_none() {
        return;
    }
    let (postgres, nats) = (postgres(&[]).await, nats("").await);
    println!("\nservers {} {}", postgres.pid().unwrap(), nats.pid().unwrap());
    println!("folders {} {}", postgres.data_dir().display(), nats.store_dir().display());
    std::future::pending::<()>().await;
}

#[test]
fn servers_die_with_a_killed_process_that_started_them() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--nocapture"])
        .env("SERVERS_TEST_CHILD", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut words = |name: &str| -> Vec<String> {
        let line = lines.find(|line| line.starts_with(name)).unwrap();
        line.split(' ').skip(1).map(str::to_owned).collect()
    };
    let pids: Vec<u32> = words("servers ").iter().map(|pid| pid.parse().unwrap()).collect();
    let folders: Vec<PathBuf> = words("folders ").iter().map(PathBuf::from).collect();
    assert!(pids.iter().all(|pid| is_running(*pid)));
    child.kill().unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    while pids.iter().any(|pid| is_running(*pid)) {
        assert!(begun.elapsed() < DEADLINE, "a server outlives its starter");
        std::thread::sleep(Duration::from_millis(10));
    }
    // What such a death leaves: the folders and the postmaster's System V segment.
    let pid_file = std::fs::read_to_string(folders[0].join("postmaster.pid")).unwrap();
    let segment = pid_file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)).unwrap();
    Command::new("ipcrm").args(["-m", segment]).status().unwrap();
    for folder in folders {
        std::fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }
}
