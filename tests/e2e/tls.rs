//! TLS with Postgres, and logging in: what libpq takes, we take; what it refuses, we refuse.

use crate::certificates::{Authority, Issued, self_signed, write};
use crate::support::{Pipeline, Servers, psql};
use postrider::demo::servers::Stop;
use postrider::error::Failure;
use postrider::postgres::client::Sql;
use postrider::postgres::target::Target;
use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use std::time::Duration;
use tempfile::TempDir;

const SCRAM: &str = "hostssl all relay 127.0.0.1/32 scram-sha-256";

/// A Postgres with TLS, and a folder for the client's files.
struct Lab {
    pipeline: Pipeline,
    folder: TempDir,
}

impl Lab {
    /// With these lines of pg_hba.conf behind one for the superuser.
    async fn new(server: &Issued, hba: &str, settings: &[(&str, &str)]) -> Lab {
        Lab::on(None, server, hba, settings).await
    }

    async fn on(version: Option<u32>, server: &Issued, hba: &str, settings: &[(&str, &str)]) -> Lab {
        let hba = format!("host all postgres 127.0.0.1/32 trust\n{hba}");
        let servers = Servers { postgres: version, hba: Some(&hba), settings, ..Servers::default() };
        let mut lab = Lab { pipeline: Pipeline::on(servers).await, folder: tempfile::tempdir().unwrap() };
        lab.pipeline.execute("CREATE ROLE relay SUPERUSER LOGIN REPLICATION PASSWORD 'right'").await;
        lab.pipeline.postgres.set("ssl", "on").unwrap();
        lab.serve(server).await;
        lab
    }

    /// Shows this certificate from now on.
    async fn serve(&mut self, server: &Issued) {
        let postgres = &mut self.pipeline.postgres;
        postgres.stop(Stop::Fast, Duration::from_secs(60)).await.unwrap();
        postgres.install("server.crt", &server.certificate).unwrap();
        postgres.install("server.key", &server.key).unwrap();
        postgres.start_again().await.unwrap();
    }

    fn file(&self, name: &str, text: &str) -> String {
        write(self.folder.path(), name, text).display().to_string()
    }

    /// A connection string for the user `relay`, with these parameters more.
    fn url(&self, parameters: &str) -> String {
        let port = self.pipeline.postgres.port();
        format!("port={port} user=relay password=right dbname=postgres {parameters}")
    }

    /// Both kinds of connection; whether SQL's is inside TLS.
    async fn connect(&self, parameters: &str) -> Result<bool, Failure> {
        let target = Target::parse(Some(&self.url(parameters)), &|_| None).unwrap();
        let sql = Sql::connect_any(&target).await?;
        sql.walsender(&target).await?;
        let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        Ok(sql.client.query_one(ssl, &[]).await.unwrap().get(0))
    }

    /// The same by libpq.
    fn psql(&self, parameters: &str) -> Option<bool> {
        let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let mut psql = psql();
        psql.args(["-c", ssl, &self.url(parameters)]).env("HOME", self.folder.path());
        let output = psql.output().unwrap();
        match String::from_utf8_lossy(&output.stdout).trim() {
            "t" => Some(true),
            "f" => Some(false),
            _ => None,
        }
    }

    /// We do as libpq does.
    async fn agrees(&self, parameters: &str) -> Result<bool, Failure> {
        let ours = self.connect(parameters).await;
        assert_eq!(ours.as_ref().ok().copied(), self.psql(parameters), "{parameters}: {ours:?}");
        ours
    }

    /// Refused by both, and the remedy says so.
    async fn refused(&self, parameters: &str, code: &str, remedy: &str) {
        let failure = self.agrees(parameters).await.unwrap_err();
        assert_eq!(failure.code.as_str(), code, "{parameters}: {failure}");
        assert_eq!(failure.exit() as u8, 3);
        assert!(failure.remedy.contains(remedy), "{parameters}: {failure}");
        assert!(!failure.to_string().contains("right"), "{failure}");
    }
}

#[tokio::test]
async fn a_certificate_is_verified_as_sslmode_asks() {
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let mut lab = Lab::new(&ours.issue("db", &["localhost"]), SCRAM, &[]).await;
    let root = lab.file("ours.crt", &ours.certificate);
    let other = lab.file("others.crt", &others.certificate);

    for mode in ["prefer", "require", "allow"] {
        assert!(lab.agrees(&format!("host=localhost sslmode={mode}")).await.unwrap(), "{mode}");
    }
    lab.refused("host=localhost sslmode=disable", "PR0203", "pg_hba.conf").await;
    let by = |host: &str, mode: &str, root: &str| format!("host={host} sslmode={mode} sslrootcert={root}");
    assert!(lab.agrees(&by("localhost", "verify-full", &root)).await.unwrap());
    assert!(lab.agrees(&by("127.0.0.1", "verify-ca", &root)).await.unwrap());
    lab.refused(&by("127.0.0.1", "verify-full", &root), "PR0214", "(localhost)").await;
    let address = format!("host=localhost hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={root}");
    assert!(lab.agrees(&address).await.unwrap());
    for mode in ["require", "verify-ca", "verify-full"] {
        lab.refused(&by("localhost", mode, &other), "PR0214", "sslrootcert").await;
    }
    lab.refused(&by("localhost", "verify-full", "/nowhere.crt"), "PR0214", "sslrootcert=system").await;
    assert!(lab.agrees(&by("localhost", "require", "/nowhere.crt")).await.unwrap());

    lab.serve(&ours.expired(&["localhost"])).await;
    lab.refused(&by("localhost", "verify-ca", &root), "PR0214", "renew").await;
    assert!(lab.agrees("host=localhost sslmode=require").await.unwrap());
    lab.serve(&ours.issue("db", &["*.example.org", "127.0.0.1"])).await;
    assert!(lab.agrees(&by("127.0.0.1", "verify-full", &root)).await.unwrap());
    let wildcard = format!("host=db.example.org hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={root}");
    assert!(lab.agrees(&wildcard).await.unwrap());
    lab.refused(&by("localhost", "verify-full", &root), "PR0214", "*.example.org").await;
}

#[tokio::test]
async fn a_self_signed_certificate_with_a_common_name_alone_is_verified_as_the_manual_makes_it() {
    let server = self_signed("localhost");
    let mut lab = Lab::new(&server, SCRAM, &[]).await;
    let root = lab.file("root.crt", &server.certificate);
    let by = |host: &str| format!("host={host} sslmode=verify-full sslrootcert={root}");
    assert!(lab.agrees(&by("localhost")).await.unwrap());
    lab.refused(&by("127.0.0.1"), "PR0214", "(localhost)").await;
    // Another with the same name and another key.
    lab.serve(&self_signed("localhost")).await;
    assert_eq!(lab.agrees(&by("localhost")).await.unwrap_err().code.as_str(), "PR0214");
    let authority = Authority::new("ours");
    let root = lab.file("ours.crt", &authority.certificate);
    lab.serve(&authority.issue("localhost", &[])).await;
    assert!(lab.agrees(&format!("host=localhost sslmode=verify-full sslrootcert={root}")).await.unwrap());
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_missed() {
    let authority = Authority::new("ours");
    let hba = "hostssl all relay 127.0.0.1/32 cert";
    let server = authority.issue("db", &["localhost"]);
    let mut lab = Lab::new(&server, hba, &[]).await;
    lab.pipeline.postgres.install("root.crt", &authority.certificate).unwrap();
    lab.pipeline.postgres.set("ssl_ca_file", "root.crt").unwrap();
    lab.serve(&server).await;
    let client = |name: &str, issued: &Issued| {
        let certificate = lab.file(&format!("{name}.crt"), &issued.certificate);
        let key = lab.file(&format!("{name}.key"), &issued.key);
        format!("host=localhost sslmode=require sslcert={certificate} sslkey={key}")
    };
    let right = client("good", &authority.issue("relay", &[]));
    assert!(lab.agrees(&right).await.unwrap());
    lab.refused("host=localhost sslmode=require", "PR0203", "sslcert").await;
    lab.refused(&client("other", &authority.issue("someone", &[])), "PR0203", "sslcert").await;
    let foreign = client("foreign", &Authority::new("others").issue("relay", &[]));
    lab.refused(&foreign, "PR0214", "ssl_ca_file").await;
    lab.refused(&right.replace("good.key", "other.key"), "PR0214", "sslkey").await;

    let key = lab.folder.path().join("good.key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    lab.refused(&right, "PR0214", "sslkey").await;
}

#[tokio::test]
async fn scram_is_bound_to_the_channel_where_the_certificate_has_a_hash() {
    let authority = Authority::new("ours");
    let hba = format!("{SCRAM}\nhostnossl all relay 127.0.0.1/32 scram-sha-256");
    let mut lab = Lab::new(&authority.issue("db", &["localhost"]), &hba, &[]).await;
    let by = |mode: &str, binding: &str| format!("host=localhost sslmode={mode} channel_binding={binding}");
    for binding in ["require", "prefer", "disable"] {
        assert!(lab.agrees(&by("require", binding)).await.unwrap(), "{binding}");
    }
    lab.refused(&by("disable", "require"), "PR0203", "sslmode=verify-full").await;
    // The hash of the signature counts; that of Ed25519 has none.
    let authority = Authority::signing_by(&PKCS_ECDSA_P384_SHA384, "ours");
    lab.serve(&authority.issue("db", &["localhost"])).await;
    assert!(lab.agrees(&by("require", "require")).await.unwrap());
    let authority = Authority::signing_by(&PKCS_ED25519, "ours");
    lab.serve(&authority.issue("db", &["localhost"])).await;
    assert!(lab.connect(&by("require", "prefer")).await.unwrap());
    let failure = lab.connect(&by("require", "require")).await.unwrap_err();
    assert_eq!((failure.code.as_str(), failure.remedy.contains("RSA")), ("PR0203", true), "{failure}");
}

#[tokio::test]
async fn a_server_is_asked_for_no_less_than_what_was_required() {
    let authority = Authority::new("ours");
    let hba = "hostssl all relay 127.0.0.1/32 password\nhostnossl all relay 127.0.0.1/32 password";
    let lab = Lab::new(&authority.issue("db", &["localhost"]), hba, &[]).await;
    assert!(lab.agrees("host=localhost sslmode=require").await.unwrap());
    assert!(!lab.agrees("host=localhost sslmode=disable require_auth=password").await.unwrap());
    lab.refused("host=localhost sslmode=require require_auth=scram-sha-256", "PR0203", "require_auth").await;
    lab.refused("host=localhost sslmode=require require_auth=!password", "PR0203", "require_auth").await;
    lab.refused("host=localhost sslmode=require channel_binding=require", "PR0203", "scram").await;
    // libpq would send it to anyone who listens.
    let failure = lab.connect("host=localhost sslmode=disable").await.unwrap_err();
    assert_eq!((failure.code.as_str(), failure.exit() as u8), ("PR0203", 3));
    assert!(failure.remedy.contains("require_auth=password"), "{failure}");
}

#[tokio::test]
async fn what_the_server_refuses_inside_tls_is_not_tried_outside() {
    let hba = "host all limited 127.0.0.1/32 scram-sha-256";
    let settings = &[("log_connections", "on")];
    let lab = Lab::new(&Authority::new("ours").issue("db", &["localhost"]), hba, settings).await;
    lab.pipeline.execute("CREATE ROLE limited LOGIN CONNECTION LIMIT 0 PASSWORD 'right'").await;
    let refused = lab.connect("host=localhost user=limited sslmode=prefer").await.unwrap_err();
    assert_eq!(refused.code.as_str(), "PR0202", "{refused}");
    let wrong = lab.connect("host=localhost user=limited password=wrong sslmode=prefer").await.unwrap_err();
    assert_eq!(wrong.code.as_str(), "PR0203", "{wrong}");
    let log = lab.pipeline.postgres.log();
    assert_eq!(log.matches("too many connections for role").count(), 1, "{log}");
    assert_eq!(log.matches("password authentication failed").count(), 1, "{log}");
}

#[tokio::test]
async fn of_several_hosts_one_that_is_away_is_waited_for() {
    let lab = Lab::new(&Authority::new("ours").issue("db", &["localhost"]), SCRAM, &[]).await;
    let port = lab.pipeline.postgres.port();
    let url = format!("host=127.0.0.1,127.0.0.1 port=1,{port} user=relay password=wrong sslmode=require");
    let both = lab.connect(&url).await.unwrap_err();
    assert_eq!(both.code.as_str(), "PR0201", "{both}");
    assert!(both.message.contains("password authentication failed"), "{both}");
    let url =
        format!("host=127.0.0.1,localhost port={port},{port} user=relay password=wrong sslmode=require");
    assert_eq!(lab.connect(&url).await.unwrap_err().code.as_str(), "PR0203");
    let url = format!("host=127.0.0.1,127.0.0.1 port=1,{port} user=relay sslmode=require");
    assert!(lab.agrees(&url).await.unwrap());
}

#[tokio::test]
async fn md5_and_trust_let_us_in() {
    let hba = "host all relay 127.0.0.1/32 md5\nhost all free 127.0.0.1/32 trust";
    let lab = Lab::new(&Authority::new("ours").issue("db", &["localhost"]), hba, &[]).await;
    lab.pipeline
        .execute(
            "SET password_encryption = 'md5'; ALTER ROLE relay PASSWORD 'right'; \
             CREATE ROLE free SUPERUSER LOGIN REPLICATION",
        )
        .await;
    assert!(!lab.agrees("host=localhost sslmode=disable").await.unwrap());
    assert!(lab.agrees("host=localhost sslmode=prefer").await.unwrap());
    assert!(lab.agrees("host=localhost user=free").await.unwrap());
    lab.refused("host=localhost user=free require_auth=md5", "PR0203", "require_auth").await;
    lab.refused("host=localhost password=wrong", "PR0203", "password").await;
}

#[tokio::test]
async fn without_tls_at_the_server_the_modes_part() {
    let mut pipeline = Pipeline::start().await;
    let url = |mode: &str| format!("{}?sslmode={mode}", pipeline.postgres.url("postgres"));
    let urls = ["disable", "allow", "prefer"].map(url);
    let refused = ["require", "verify-full"].map(url);
    for url in urls {
        pipeline.set("DATABASE_URL", &url);
        assert_eq!(pipeline.postrider(&["status"]).await.code, Some(0), "{url}");
    }
    for url in refused {
        pipeline.set("DATABASE_URL", &format!("{url}&sslrootcert=/dev/null"));
        let ended = pipeline.postrider(&["status"]).await;
        assert_eq!(ended.code, Some(3), "{}", ended.stderr);
        assert!(ended.stderr.contains("PR0214") && ended.stderr.contains("ssl = on"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn postgres_17_and_later_speak_tls_from_the_first_byte() {
    let authority = Authority::new("ours");
    let lab = Lab::on(Some(17), &authority.issue("db", &["localhost"]), SCRAM, &[]).await;
    let root = lab.file("root.crt", &authority.certificate);
    let direct = format!("host=localhost sslmode=verify-full sslrootcert={root} sslnegotiation=direct");
    assert!(lab.connect(&direct).await.unwrap());
    let lab = Lab::on(Some(15), &authority.issue("db", &["localhost"]), SCRAM, &[]).await;
    assert!(lab.connect(&direct).await.is_err());
}
