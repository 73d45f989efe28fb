//! NATS as people run it: every way to log in, TLS, accounts and domains; rotation while the relay runs.

use crate::certificates::{Authority, Issued, write};
use crate::support::{ARTICLE, Ended, Pipeline, Servers, eventually};
use async_nats::ConnectOptions;
use async_nats::jetstream;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// Writes into the table, and waits until the stream has it, as the superuser of NATS sees it.
async fn relays(pipeline: &Pipeline, seen: &jetstream::Context) {
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('seen', '{}')").await;
    let mut relay = pipeline.run().await;
    eventually("the stream has the event", async || {
        let stream = seen.get_stream("OUTBOX").await.ok()?;
        (stream.cached_info().state.messages > 0).then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
}

fn refused(ended: &Ended, code: &str, remedy: &str) {
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains(code) && ended.stderr.contains(remedy), "{}", ended.stderr);
}

async fn pipeline(nats_extra: &str) -> Pipeline {
    let pipeline = Pipeline::on(Servers { nats_extra, ..Servers::default() }).await;
    pipeline.execute(ARTICLE).await;
    pipeline
}

fn file(folder: &TempDir, name: &str, text: &str) -> String {
    write(folder.path(), name, text).display().to_string()
}

/// A token of the decentralized kind (ADR-14).
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(&json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": name, "nats": nats
    });
    let signed = format!("{head}.{}", part(&claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// An operator with one account, and what makes users of it.
struct Operator {
    config: String,
    account: KeyPair,
}

impl Operator {
    fn new() -> Operator {
        let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
        let operator_jwt = jwt(&operator, &operator, "ops", &json!({"type": "operator", "version": 2}));
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1
        });
        let account_jwt =
            jwt(&operator, &account, "shop", &json!({"type": "account", "version": 2, "limits": limits}));
        let system = KeyPair::new_account();
        let system_jwt = jwt(&operator, &system, "SYS", &json!({"type": "account", "version": 2}));
        let config = format!(
            "operator: \"{operator_jwt}\"\nsystem_account: {1}\nresolver: MEMORY\n\
             resolver_preload {{ {0}: \"{account_jwt}\", {1}: \"{system_jwt}\" }}\n",
            account.public_key(),
            system.public_key()
        );
        Operator { config, account }
    }

    fn user(&self) -> (String, String) {
        let user = KeyPair::new_user();
        let limits = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
        (jwt(&self.account, &user, "relay", &limits), user.seed().unwrap())
    }

    fn credentials(&self) -> String {
        let (jwt, seed) = self.user();
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

#[tokio::test]
async fn a_user_with_a_password_and_a_token_let_us_in() {
    let mut pipeline = pipeline("authorization { user: relay, password: \"p@ss\" }").await;
    let superuser = ConnectOptions::with_user_and_password("relay".into(), "p@ss".into());
    let seen = jetstream::new(superuser.connect(pipeline.nats.url()).await.unwrap());
    refused(&pipeline.postrider(&["init"]).await, "PR0302", "nats.user");
    pipeline.set("NATS_USER", "relay");
    pipeline.set("NATS_PASSWORD", "hunter2");
    let ended = pipeline.postrider(&["init"]).await;
    refused(&ended, "PR0302", "nats.user");
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    pipeline.set("NATS_PASSWORD", "p@ss");
    pipeline.init().await;
    relays(&pipeline, &seen).await;
}

#[tokio::test]
async fn a_token_lets_us_in() {
    let mut pipeline = pipeline("authorization { token: \"t0k3n\" }").await;
    let seen = ConnectOptions::with_token("t0k3n".into()).connect(pipeline.nats.url()).await.unwrap();
    pipeline.set("NATS_TOKEN", "t0k3n");
    pipeline.init().await;
    relays(&pipeline, &jetstream::new(seen)).await;
    let url = pipeline.nats.url().replace("nats://", "nats://t0k3n@");
    pipeline.unset("NATS_TOKEN");
    pipeline.set("NATS_URL", &url);
    assert_eq!(pipeline.postrider(&["status"]).await.code, Some(0));
}

#[tokio::test]
async fn an_nkey_lets_us_in() {
    let key = KeyPair::new_user();
    let config = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", key.public_key());
    let mut pipeline = pipeline(&config).await;
    let seed = key.seed().unwrap();
    let seen = ConnectOptions::with_nkey(seed.clone()).connect(pipeline.nats.url()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    pipeline.set("NATS_NKEY", &file(&folder, "nkey", "no seed"));
    refused(&pipeline.postrider(&["init"]).await, "PR0302", "nats.nkey");
    pipeline.set("NATS_NKEY", &file(&folder, "nkey", &format!("# relay\n{seed}\n")));
    pipeline.init().await;
    relays(&pipeline, &jetstream::new(seen)).await;
}

#[tokio::test]
async fn a_credentials_file_lets_us_in_and_can_be_rotated() {
    let operator = Operator::new();
    let mut pipeline = pipeline(&operator.config).await;
    let folder = tempfile::tempdir().unwrap();
    let credentials = operator.credentials();
    let path = file(&folder, "relay.creds", &credentials);
    let seen =
        ConnectOptions::with_credentials(&credentials).unwrap().connect(pipeline.nats.url()).await.unwrap();
    let seen = jetstream::new(seen);
    pipeline.set("NATS_CREDS", "/nowhere.creds");
    refused(&pipeline.postrider(&["init"]).await, "PR0302", "nats.creds");
    pipeline.set("NATS_CREDS", &path);
    pipeline.init().await;
    relays(&pipeline, &seen).await;

    let (jwt, seed) = operator.user();
    pipeline.unset("NATS_CREDS");
    pipeline.set("POSTRIDER_NATS_JWT", &jwt);
    pipeline.set("POSTRIDER_NATS_SEED_FILE", &file(&folder, "seed", &seed));
    assert_eq!(pipeline.postrider(&["run", "--help"]).await.code, Some(0));
    relays(&pipeline, &seen).await;
}

#[tokio::test]
async fn a_context_of_the_nats_cli_lets_us_in() {
    let mut pipeline = pipeline("authorization { user: relay, password: secret }").await;
    let superuser = ConnectOptions::with_user_and_password("relay".into(), "secret".into());
    let seen = jetstream::new(superuser.connect(pipeline.nats.url()).await.unwrap());
    let home = tempfile::tempdir().unwrap();
    let contexts = home.path().join(".config/nats/context");
    std::fs::create_dir_all(&contexts).unwrap();
    let context = json!({
        "description": "the shop", "url": pipeline.nats.url(), "user": "relay", "password": "secret", "creds": "",
        "nkey": "", "jetstream_domain": "", "inbox_prefix": "_INBOX_relay"
    });
    std::fs::write(contexts.join("shop.json"), context.to_string()).unwrap();
    pipeline.unset("NATS_URL");
    pipeline.set("HOME", home.path().to_str().unwrap());
    pipeline.set("NATS_CONTEXT", "nowhere");
    let ended = pipeline.postrider(&["init"]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("nats context ls"), "{}", ended.stderr);
    pipeline.set("NATS_CONTEXT", "shop");
    pipeline.init().await;
    relays(&pipeline, &seen).await;
    let shown = pipeline.postrider(&["config"]).await.stdout;
    assert!(shown.contains("shop.json") && !shown.contains("secret"), "{shown}");
}

fn tls(folder: &Path, server: &Issued, more: &str) -> String {
    let certificate = write(folder, "server.crt", &server.certificate);
    let key = write(folder, "server.key", &server.key);
    format!("tls {{ cert_file: \"{}\", key_file: \"{}\"{more} }}", certificate.display(), key.display())
}

#[tokio::test]
async fn the_servers_certificate_is_verified() {
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let folder = tempfile::tempdir().unwrap();
    let mut pipeline = pipeline(&tls(folder.path(), &ours.issue("nats", &["127.0.0.1"]), "")).await;
    refused(&pipeline.postrider(&["init"]).await, "PR0313", "nats.ca");
    pipeline.set("NATS_CA", &file(&folder, "others.crt", &others.certificate));
    refused(&pipeline.postrider(&["init"]).await, "PR0313", "nats.ca");
    pipeline.set("NATS_CA", "/nowhere.crt");
    refused(&pipeline.postrider(&["init"]).await, "PR0313", "nats.ca");
    let ca = file(&folder, "ours.crt", &ours.certificate);
    pipeline.set("NATS_CA", &ca);
    pipeline.init().await;
    let seen =
        ConnectOptions::new().add_root_certificates(ca.into()).connect(pipeline.nats.url()).await.unwrap();
    relays(&pipeline, &jetstream::new(seen)).await;

    let localhost = pipeline.nats.url().replace("127.0.0.1", "localhost");
    pipeline.set("NATS_URL", &localhost);
    refused(&pipeline.postrider(&["run"]).await, "PR0313", "subjectAltName");
    let expired = tls(folder.path(), &ours.expired(&["localhost"]), "");
    pipeline.nats.stop().await.unwrap();
    pipeline.nats.set_extra(&expired);
    pipeline.nats.start_again().await.unwrap();
    refused(&pipeline.postrider(&["run"]).await, "PR0313", "renew");
}

#[tokio::test]
async fn a_backlog_goes_through_tls_without_a_pause() {
    const ROWS: u64 = 20_000;
    let authority = Authority::new("ours");
    let folder = tempfile::tempdir().unwrap();
    let mut pipeline = pipeline(&tls(folder.path(), &authority.issue("nats", &["127.0.0.1"]), "")).await;
    let ca = file(&folder, "ca.crt", &authority.certificate);
    pipeline.set("NATS_CA", &ca);
    pipeline.init().await;
    let payload = "jsonb_build_object('text', repeat('x', 400))";
    pipeline
        .execute(&format!(
            "INSERT INTO outbox (event_type, payload) SELECT 'x', {payload} FROM generate_series(1, {ROWS})"
        ))
        .await;
    let mut relay = pipeline.run().await;
    relay.published(ROWS).await;
    assert_eq!(relay.terminate().await, Some(0));
    // The last word of a relay that ends is `draining` too, and has no reason.
    assert!(!relay.stderr().contains("\"why\""), "{}", relay.stderr());
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_certificates_are_named() {
    let mut pipeline = pipeline("").await;
    let folder = tempfile::tempdir().unwrap();
    pipeline.set("NATS_CA", &file(&folder, "ours.crt", &Authority::new("ours").certificate));
    let ended = pipeline.postrider(&["init"]).await;
    refused(&ended, "PR0313", "nats.ca");
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_missed_by_nats() {
    let authority = Authority::new("ours");
    let folder = tempfile::tempdir().unwrap();
    let ca = file(&folder, "ca.crt", &authority.certificate);
    let more = format!(", ca_file: \"{ca}\", verify: true");
    let mut pipeline = pipeline(&tls(folder.path(), &authority.issue("nats", &["127.0.0.1"]), &more)).await;
    pipeline.set("NATS_CA", &ca);
    refused(&pipeline.postrider(&["init"]).await, "PR0313", "nats.cert");
    let client = authority.issue("relay", &["relay"]);
    let certificate = file(&folder, "client.crt", &client.certificate);
    let key = file(&folder, "client.key", &client.key);
    pipeline.set("NATS_CERT", &certificate);
    let ended = pipeline.postrider(&["init"]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    pipeline.set("NATS_KEY", &key);
    pipeline.init().await;
    let seen = ConnectOptions::new().add_root_certificates(ca.into());
    let seen = seen.add_client_certificate(certificate.into(), key.into());
    let seen = jetstream::new(seen.connect(pipeline.nats.url()).await.unwrap());
    relays(&pipeline, &seen).await;
}

#[tokio::test]
async fn a_server_that_begins_with_tls_is_spoken_to_so() {
    let authority = Authority::new("ours");
    let folder = tempfile::tempdir().unwrap();
    let server = tls(folder.path(), &authority.issue("nats", &["127.0.0.1"]), ", handshake_first: true");
    let mut pipeline = pipeline(&server).await;
    let ca = file(&folder, "ca.crt", &authority.certificate);
    pipeline.set("NATS_CA", &ca);
    pipeline.set("POSTRIDER_NATS_TLS_FIRST", "true");
    pipeline.init().await;
    let seen = ConnectOptions::new().add_root_certificates(ca.into()).tls_first();
    relays(&pipeline, &jetstream::new(seen.connect(pipeline.nats.url()).await.unwrap())).await;
}

#[tokio::test]
async fn jetstream_of_a_domain_and_of_another_account_is_reached() {
    let accounts = "jetstream { store_dir: $STORE, domain: hub }\n\
        accounts {\n\
          OWNER: { jetstream: enabled, users: [{user: owner, password: o}], exports: [\n\
            {service: \"$JS.API.>\", response_type: stream}, {service: \"outbox.>\", response_type: stream} ] }\n\
          APP: { users: [{user: app, password: a}], imports: [\n\
            {service: {account: OWNER, subject: \"$JS.API.>\"}, to: \"JS.owner.API.>\"},\n\
            {service: {account: OWNER, subject: \"outbox.>\"}} ] }\n\
        }";
    let mut pipeline = pipeline(accounts).await;
    let owner = ConnectOptions::with_user_and_password("owner".into(), "o".into());
    let seen = jetstream::new(owner.connect(pipeline.nats.url()).await.unwrap());
    pipeline.set("NATS_USER", "owner");
    pipeline.set("NATS_PASSWORD", "o");
    pipeline.set("POSTRIDER_NATS_DOMAIN", "hub");
    pipeline.init().await;
    relays(&pipeline, &seen).await;
    pipeline.set("NATS_USER", "app");
    pipeline.set("NATS_PASSWORD", "a");
    pipeline.unset("POSTRIDER_NATS_DOMAIN");
    refused(&pipeline.postrider(&["run"]).await, "PR0303", "");
    pipeline.set("POSTRIDER_NATS_JS_PREFIX", "JS.owner.API");
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('more', '{}')").await;
    relay.published(1).await;
    assert_eq!(relay.terminate().await, Some(0));
}
