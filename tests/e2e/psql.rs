//! What a connection string and its surroundings mean, beside psql on the same: the same server, user,
//! database, password and TLS, or both refuse.

use crate::certificates::{Authority, write};
use crate::support::{Pipeline, Servers, psql};
use postrider::demo::servers::Stop;
use postrider::postgres::client::Sql;
use postrider::postgres::target::Target;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const WHERE: &str = "SELECT concat_ws(' ', session_user, current_database(), coalesce(host(inet_server_addr()), 'socket'), \
     current_setting('port'), CASE WHEN ssl THEN 'tls' END, nullif(current_setting('geqo'), 'on')) \
     FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

const HBA: &str = "local all free trust\nlocal all all scram-sha-256\nhost all free 127.0.0.1/32 trust\n\
     hostssl all secure 127.0.0.1/32 scram-sha-256\nhostnossl all open 127.0.0.1/32 scram-sha-256\n\
     host all postgres 127.0.0.1/32 trust\nhost all ann 127.0.0.1/32 scram-sha-256";

async fn ours(url: Option<&str>, variables: &BTreeMap<&str, String>) -> Result<String, String> {
    let env = |name: &str| variables.get(name).cloned();
    let target = Target::parse(url, &env).map_err(|error| error.to_string())?;
    let sql = Sql::connect_any(&target).await.map_err(|error| error.to_string())?;
    Ok(sql.client.query_one(WHERE, &[]).await.unwrap().get(0))
}

fn psqls(url: Option<&str>, variables: &BTreeMap<&str, String>) -> Result<String, String> {
    let output = psql().args(["-c", WHERE]).args(url).envs(variables).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[tokio::test]
async fn strings_and_surroundings_mean_to_us_what_they_mean_to_psql() {
    let mut pipeline = Pipeline::on(Servers { hba: Some(HBA), ..Servers::default() }).await;
    pipeline
        .execute(
            "CREATE ROLE ann LOGIN PASSWORD 'p@ss:w/rd é'; CREATE ROLE free LOGIN; \
             CREATE ROLE secure LOGIN PASSWORD 's'; CREATE ROLE open LOGIN PASSWORD 'o'",
        )
        .await;
    for database in ["shop", "ann", "free"] {
        pipeline.execute(&format!("CREATE DATABASE {database}")).await;
    }
    let authority = Authority::new("ours");
    let server = authority.issue("db", &["localhost"]);
    let postgres = &mut pipeline.postgres;
    postgres.stop(Stop::Fast, Duration::from_secs(60)).await.unwrap();
    postgres.install("server.crt", &server.certificate).unwrap();
    postgres.install("server.key", &server.key).unwrap();
    postgres.set("ssl", "on").unwrap();
    postgres.start_again().await.unwrap();
    let (port, socket) = (postgres.port(), postgres.socket_dir().unwrap().display().to_string());
    let encoded = socket.replace('/', "%2F");

    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| write(home.path(), name, text).display().to_string();
    let root = file("root.crt", &authority.certificate);
    let passwords = format!(
        "# ours\n\nnowhere:*:*:*:no\nlocalhost:{port}:shop:ann:p@ss\\:w/rd é\n{socket}:*:*:ann:p@ss\\:w/rd é\n\
         127.0.0.1:*:ann:ann:wrong\n*:*:*:secure:s\n*:*:*:open:o\n"
    );
    file(".pgpass", &passwords);
    let passfile = file("passwords", "*:*:*:*:p@ss\\:w/rd é\n");
    let readable = file("readable", "*:*:*:*:p@ss\\:w/rd é\n");
    std::fs::set_permissions(&readable, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    file(
        ".pg_service.conf",
        &format!(
            "[shop]\nhost=localhost\nport={port}\nuser=ann\ndbname=shop\nsslmode=require\n[broken]\nnix\n"
        ),
    );
    let other = file("services", &format!("[other]\nhost={socket}\nport={port}\nuser=free\n"));

    let at_home = |more: &[(&'static str, &str)]| {
        let mut variables = BTreeMap::from([("HOME", home.path().display().to_string())]);
        variables.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        variables
    };
    let port = port.to_string();
    let none: &[(&'static str, &str)] = &[];
    let cases: Vec<(String, BTreeMap<&str, String>)> = [
        (format!("postgres://free@127.0.0.1:{port}/shop"), none),
        (format!("postgresql://free@127.0.0.1:{port}"), none),
        (format!("postgres://ann:p%40ss%3Aw%2Frd%20%C3%A9@127.0.0.1:{port}/shop"), none),
        (format!("postgres://ann:p%40ss%3Aw%2Frd%20é@127.0.0.1:{port}/shop"), none),
        (format!("postgres://ann:wrong@127.0.0.1:{port}/shop"), none),
        (format!("postgres://ann@localhost:{port}/shop"), none),
        (format!("postgres://ann@127.0.0.1:{port}/ann"), none),
        (format!("postgres://ann@{encoded}:{port}/shop"), none),
        (format!("postgres://free@/shop?host={encoded}&port={port}"), none),
        (format!("postgres:///shop?host=127.0.0.1&port={port}&user=free"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?sslmode=disable"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?sslmode=allow"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?sslmode=require"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?ssl=true"), none),
        (format!("postgres://secure@127.0.0.1:{port}/shop?sslmode=allow"), none),
        (format!("postgres://secure@127.0.0.1:{port}/shop?sslmode=disable"), none),
        (format!("postgres://open@127.0.0.1:{port}/shop?sslmode=prefer"), none),
        (format!("postgres://open@127.0.0.1:{port}/shop?sslmode=require"), none),
        (format!("postgres://free@localhost:{port}/shop?sslmode=verify-full&sslrootcert={root}"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?sslmode=verify-full&sslrootcert={root}"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?sslmode=verify-ca&sslrootcert={root}"), none),
        (format!("postgres://free@localhost:{port}/shop?sslrootcert=system"), none),
        (format!("postgres://free@localhost:{port}/shop?sslrootcert=system&sslmode=require"), none),
        (format!("postgres://free@db.invalid:{port}/shop?hostaddr=127.0.0.1"), none),
        (format!("postgres://free@127.0.0.1:1,127.0.0.1:{port}/shop"), none),
        (format!("postgres://free@127.0.0.1,{encoded}/shop?port={port}"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?options=-c%20geqo%3Doff"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?target_session_attrs=read-write"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?target_session_attrs=primary"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?connect_timeout=5&keepalives_idle=9"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?channel_binding=require&sslmode=require"), none),
        (format!("postgres://secure@127.0.0.1:{port}/shop?channel_binding=require&sslmode=require"), none),
        (format!("postgres://free@127.0.0.1:{port}/shop?nix=1"), none),
        (format!("host=127.0.0.1 port={port} user=free dbname=shop"), none),
        (format!("host = '127.0.0.1' port='{port}' user=free dbname='shop' sslmode = disable"), none),
        (format!("hostaddr=127.0.0.1 port={port} user=ann dbname=shop password='p@ss:w/rd é'"), none),
        (format!("host={socket} port={port} user=ann"), none),
        (format!("host=localhost port={port} user=ann dbname=shop passfile={passfile}"), none),
        (format!("host=localhost port={port} user=ann dbname=shop passfile={readable}"), none),
        ("service=shop".to_owned(), none),
        ("service=shop dbname=free user=free sslmode=disable".to_owned(), none),
        ("service=broken".to_owned(), none),
        ("service=nowhere".to_owned(), none),
        ("service=other".to_owned(), &[("PGSERVICEFILE", &other), ("PGDATABASE", "shop")]),
        ("postgres:///shop".to_owned(), &[("PGHOST", "127.0.0.1"), ("PGPORT", &port), ("PGUSER", "free")]),
        ("postgres://free@/shop".to_owned(), &[("PGHOST", &socket), ("PGPORT", &port)]),
        (
            "postgres://localhost/shop".to_owned(),
            &[("PGHOSTADDR", "127.0.0.1"), ("PGPORT", &port), ("PGUSER", "free")],
        ),
        (
            format!("postgres://127.0.0.1:{port}"),
            &[("PGUSER", "ann"), ("PGDATABASE", "shop"), ("PGPASSWORD", "p@ss:w/rd é")],
        ),
        (format!("postgres://ann@127.0.0.1:{port}/shop"), &[("PGPASSFILE", &passfile)]),
        (format!("postgres://free@127.0.0.1:{port}/shop"), &[("PGSSLMODE", "disable")]),
        (
            format!("postgres://free@127.0.0.1:{port}/shop"),
            &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &root)],
        ),
        (
            format!("postgres://free@localhost:{port}/shop"),
            &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &root)],
        ),
        (format!("postgres://free@127.0.0.1:{port}/shop"), &[("PGOPTIONS", "-c geqo=off")]),
        (format!("postgres://free@127.0.0.1:{port}/shop"), &[("PGREQUIREAUTH", "scram-sha-256")]),
        (String::new(), &[("PGSERVICE", "shop"), ("PGUSER", "free"), ("PGSSLMODE", "disable")]),
    ]
    .into_iter()
    .map(|(url, variables)| (url, at_home(variables)))
    .collect();

    let mut differ = Vec::new();
    for (url, variables) in &cases {
        let url = Some(url.as_str()).filter(|url| !url.is_empty());
        let (ours, theirs) = (ours(url, variables).await, psqls(url, variables));
        if ours.as_ref().ok() != theirs.as_ref().ok() {
            differ.push(format!("{url:?} {variables:?}\n  ours: {ours:?}\n  psql: {theirs:?}"));
        }
    }
    assert!(differ.is_empty(), "{} of {}:\n{}", differ.len(), cases.len(), differ.join("\n"));
    assert!(Path::new(&root).exists());
}
