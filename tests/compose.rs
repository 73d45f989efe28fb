//! docker-compose.yml, run without Docker: its commands, settings and environment on local servers.
//! Only what a container would provide is replaced: host names, published ports, the store's folder.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use postrider::demo::servers::{NatsServer, PostgresPrograms, PostgresServer, nats_program};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

const FILE: &str = include_str!("../docker-compose.yml");
const IMAGE: &str = include_str!("../Dockerfile");
const DEADLINE: Duration = Duration::from_secs(30);

/// What this test reads of the file.
#[derive(Deserialize)]
struct Compose {
    services: BTreeMap<String, Service>,
    configs: BTreeMap<String, Inline>,
}

#[derive(Deserialize)]
struct Service {
    command: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    depends_on: BTreeMap<String, Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    condition: String,
}

#[derive(Deserialize)]
struct Inline {
    content: String,
}

impl Compose {
    fn read() -> Compose {
        serde_saphyr::from_str(FILE).unwrap()
    }

    fn nats_config(&self) -> &str {
        &self.configs["nats-server"].content
    }

    /// The `-c name=value` of the command.
    fn postgres_settings(&self) -> Vec<(&str, &str)> {
        let (program, arguments) = self.services["postgres"].command.split_first().unwrap();
        assert_eq!(program, "postgres");
        let settings = arguments.chunks(2).map(|pair| match pair {
            [flag, setting] if flag == "-c" => setting.split_once('='),
            _ => None,
        });
        settings.collect::<Option<_>>().unwrap()
    }
}

/// The servers of the file, here.
struct Servers {
    postgres: PostgresServer,
    nats: NatsServer,
    /// Of the relay's HTTP, in place of the container's own.
    http_port: u16,
}

impl Servers {
    async fn start(compose: &Compose) -> Servers {
        let programs = PostgresPrograms::find(None).unwrap();
        let postgres = PostgresServer::start(&programs, &compose.postgres_settings()).await.unwrap();
        let database = &compose.services["postgres"].environment["POSTGRES_DB"];
        connect(&postgres, "postgres")
            .await
            .batch_execute(&format!("CREATE DATABASE {database}"))
            .await
            .unwrap();

        let config = replaced(compose.nats_config(), "\"/data\"", "$STORE");
        let config = replaced(&config, "http: 8222", "http: \"127.0.0.1:-1\"");
        let nats = NatsServer::start(&nats_program(None).unwrap(), &config).await.unwrap();
        let http_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Servers { postgres, nats, http_port }
    }

    /// `postrider` with the service's command.
    fn spawn(&self, service: &Service, folder: &Path) -> Child {
        let mut postrider = Command::new(env!("CARGO_BIN_EXE_postrider"));
        self.within(service, postrider.args(&service.command).current_dir(folder)).spawn().unwrap()
    }

    /// The image's health check, by the shell that Docker gives it to, in the service's container.
    async fn is_healthy(&self, service: &Service) -> bool {
        let line = IMAGE.lines().find(|line| line.starts_with("HEALTHCHECK ")).unwrap();
        let (_, check) = line.split_once(" CMD ").unwrap();
        let folder = Path::new(env!("CARGO_BIN_EXE_postrider")).parent().unwrap();
        let mut shell = Command::new("/bin/sh");
        let checked =
            self.within(service, shell.args(["-c", check])).env("PATH", folder).output().await.unwrap();
        // Docker knows no other.
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        checked.status.success()
    }

    /// With the service's environment and nothing else.
    fn within<'a>(&self, service: &Service, command: &'a mut Command) -> &'a mut Command {
        let environment = service.environment.iter().map(|(name, value)| {
            let value = match name.as_str() {
                "DATABASE_URL" => {
                    replaced(value, "@postgres:5432/", &format!("@127.0.0.1:{}/", self.postgres.port()))
                }
                "NATS_URL" => replaced(value, "nats:4222", &format!("127.0.0.1:{}", self.nats.port())),
                "POSTRIDER_HTTP_LISTEN" => replaced(value, ":9464", &format!(":{}", self.http_port)),
                _ => value.clone(),
            };
            (name, value)
        });
        command.env_clear().envs(environment).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true)
    }

    /// The message at `seq`, as soon as it is stored.
    async fn stored(&self, seq: u64) -> (String, Vec<u8>) {
        let client = async_nats::connect(self.nats.url()).await.unwrap();
        let stream = async_nats::jetstream::new(client).get_stream("OUTBOX").await.unwrap();
        let begun = Instant::now();
        loop {
            match stream.get_raw_message(seq).await {
                Ok(message) => return (message.subject.to_string(), message.payload.to_vec()),
                Err(error) => assert!(begun.elapsed() < DEADLINE, "{error}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from} is not in {text}");
    text.replace(from, to)
}

async fn connect(server: &PostgresServer, database: &str) -> tokio_postgres::Client {
    let connected = tokio_postgres::connect(&server.url(database), tokio_postgres::NoTls).await;
    let (client, connection) = connected.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn the_commands_and_variables_of_docker_compose_carry_a_row_into_the_stream() {
    let compose = Compose::read();
    let servers = Servers::start(&compose).await;
    let folder = tempfile::tempdir().unwrap();

    // As its dependency on init says, relay starts when init has ended well; twice is harmless.
    let (init, run) = (&compose.services["init"], &compose.services["relay"]);
    assert_eq!(run.depends_on["init"].condition, "service_completed_successfully");
    for _ in 0..2 {
        let ended = timeout(DEADLINE, servers.spawn(init, folder.path()).wait_with_output()).await;
        let ended = ended.unwrap().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let relay = servers.spawn(run, folder.path());

    let shop = connect(&servers.postgres, "shop").await;
    let insert = r#"INSERT INTO outbox (event_type, payload) VALUES ('order_placed', '{"order_id": 1}')"#;
    shop.batch_execute(insert).await.unwrap();
    let (subject, payload) = servers.stored(1).await;
    assert_eq!(subject, "outbox.order_placed");
    assert_eq!(payload, br#"{"order_id": 1}"#);

    let begun = Instant::now();
    while !servers.is_healthy(run).await {
        assert!(begun.elapsed() < DEADLINE, "the container does not become healthy");
    }

    // What `docker compose stop` sends.
    let pid = Pid::from_raw(relay.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let ended = timeout(DEADLINE, relay.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(!servers.is_healthy(run).await, "no relay runs any more");
}

#[test]
fn docker_compose_tells_the_relay_the_sync_interval_of_its_nats_server() {
    let compose = Compose::read();
    let told = &compose.services["relay"].environment["POSTRIDER_NATS_SYNC_INTERVAL"];
    let lines: Vec<_> = compose.nats_config().lines().map(str::trim).collect();
    assert!(lines.contains(&format!("sync_interval: {told}").as_str()), "{lines:?}");
}
