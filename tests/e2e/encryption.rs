//! Payloads that only those who have a key can read.

use crate::support::{ARTICLE, Ended, Load, Message, Pipeline, eventually};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::NamedTempFile;

/// In payloads, and nowhere else.
const MARK: &[u8] = b"swordfish-4711";

fn line(id: &str, byte: u8) -> String {
    format!("{id} {}\n", STANDARD.encode([byte; 32]))
}

fn key_file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// The article's pipeline with these keys.
async fn encrypted(keys: &NamedTempFile) -> Pipeline {
    let mut pipeline = Pipeline::start().await;
    pipeline.set("POSTRIDER_ENCRYPT_KEY_FILE", &keys.path().to_string_lossy());
    pipeline.set("POSTRIDER_DELIVERY_OVERSIZE", "object_store");
    pipeline.execute(ARTICLE).await;
    pipeline.init().await;
    pipeline
}

/// As a consumer does who has read the README alone.
fn open(byte: u8, message: &Message) -> String {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[byte; 32]).unwrap());
    let nonce = Nonce::try_assume_unique_for_key(&message.payload[..12]).unwrap();
    let mut rest = message.payload[12..].to_vec();
    let plain = key.open_in_place(nonce, Aad::from(message.id().as_bytes()), &mut rest).unwrap();
    String::from_utf8(plain.to_vec()).unwrap()
}

async fn decrypt(pipeline: &Pipeline, seq: u64) -> Ended {
    pipeline.postrider(&["decrypt", "--seq", &seq.to_string()]).await
}

/// Files below `folder` that hold `part`.
fn files_with(folder: &Path, part: &[u8]) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let holds = |path: &Path| {
        std::fs::read(path).unwrap_or_default().windows(part.len()).any(|window| window == part)
    };
    entries.map(|path| if path.is_dir() { files_with(&path, part) } else { usize::from(holds(&path)) }).sum()
}

#[tokio::test]
async fn no_file_of_nats_holds_the_plain_text_and_decrypt_prints_it() {
    let keys = key_file(&line("2026-11", 1));
    let mut pipeline = encrypted(&keys).await;
    let mut relay = pipeline.run().await;
    let mark = String::from_utf8_lossy(MARK).into_owned();
    let insert = |payload: String| {
        format!("INSERT INTO outbox (event_type, payload) VALUES ('seen_by_all', {payload})")
    };
    pipeline.execute(&insert(format!("jsonb_build_object('card', '{mark}')"))).await;
    pipeline.execute(&insert("NULL".to_owned())).await;
    // Too large for a message: its encrypted body is in the object store.
    pipeline.execute(&insert(format!("to_jsonb(repeat('{mark}', 100000))"))).await;
    let messages = pipeline.exactly(3).await;
    assert_eq!(messages[0].header("Postrider-Encryption"), Some("A256GCM"));
    assert_eq!(messages[0].header("Postrider-Key-Id"), Some("2026-11"));
    assert_eq!(open(1, &messages[0]), format!("{{\"card\": \"{mark}\"}}"));
    assert_eq!((messages[1].header("Postrider-Null"), messages[1].payload.len()), (Some("true"), 0));
    assert_eq!(messages[1].header("Postrider-Encryption"), None);
    assert!(messages[2].header("Postrider-Object").is_some());

    let ended = decrypt(&pipeline, 1).await;
    assert_eq!(
        (ended.code, ended.stdout),
        (Some(0), format!("{{\"card\": \"{mark}\"}}")),
        "{}",
        ended.stderr
    );
    let shown = pipeline.postrider(&["tail", "--last", "3", "--count", "1", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["payload"]["card"], mark, "tail shows what it has the key for");
    let ended = decrypt(&pipeline, 2).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    let ended = decrypt(&pipeline, 3).await;
    assert_eq!(
        (ended.code, ended.stdout),
        (Some(0), format!("\"{}\"", mark.repeat(100_000))),
        "{}",
        ended.stderr
    );
    let ended = decrypt(&pipeline, 4).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("PR0112") && ended.stderr.contains("its last is 3"), "{}", ended.stderr);

    assert_eq!(relay.terminate().await, Some(0));
    pipeline.nats.stop().await.unwrap();
    let store = pipeline.nats.store_dir();
    // What is no secret is found, so the search finds.
    assert!(files_with(&store, b"outbox.seen_by_all") > 0, "nothing in {}", store.display());
    assert_eq!(files_with(&store, MARK), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_events_are_stored_once_and_in_order_though_the_relay_is_killed() {
    let keys = key_file(&line("k", 1));
    let pipeline = encrypted(&keys).await;
    pipeline.watch_commits().await;
    let mut relay = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 3, &[1, 10, 1, 20, 1], Duration::from_millis(20));
    for _ in 0..3 {
        let stored = pipeline.last_seq().await;
        pipeline.stored(stored + 100).await;
        relay.kill();
        relay = pipeline.run().await;
    }
    load.finish().await;
    let committed = pipeline.committed().await;
    let messages = pipeline.exactly(committed.len()).await;
    assert_eq!(relay.terminate().await, Some(0), "{}", relay.stderr());
    let opened: Vec<_> = messages.iter().map(|message| (message.id().to_owned(), open(1, message))).collect();
    assert!(opened == committed, "not what was committed");
}

#[tokio::test]
async fn an_old_event_opens_as_long_as_its_key_is_listed() {
    let keys = key_file(&line("old", 1));
    let pipeline = encrypted(&keys).await;
    let insert = "INSERT INTO outbox (event_type, payload) VALUES ('a', '{\"n\": 1}')";
    for (text, key) in [(line("old", 1), "old"), (line("new", 2) + &line("old", 1), "new")] {
        std::fs::write(keys.path(), text).unwrap();
        let mut relay = pipeline.run().await;
        pipeline.execute(insert).await;
        eventually("it is stored", async || {
            let messages = pipeline.messages().await;
            let last = messages.last()?;
            (last.header("Postrider-Key-Id") == Some(key)).then_some(())
        })
        .await;
        assert_eq!(relay.terminate().await, Some(0));
    }
    for seq in [1, 2] {
        let ended = decrypt(&pipeline, seq).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "{\"n\": 1}"), "{}", ended.stderr);
    }
    for (text, code, told) in [
        (line("new", 2), "PR0110", "put key `old` back"),
        (line("old", 3), "PR0111", "does not open with key `old`"),
    ] {
        std::fs::write(keys.path(), text).unwrap();
        let ended = decrypt(&pipeline, 1).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
        assert!(ended.stderr.contains(code) && ended.stderr.contains(told), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_body_on_standard_input_opens_without_any_server() {
    let keys = key_file(&line("k", 1));
    let pipeline = encrypted(&keys).await;
    let _relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a', '{\"n\": 1}')").await;
    let messages = pipeline.exactly(1).await;
    let body = key_file("");
    std::fs::write(body.path(), &messages[0].payload).unwrap();
    let decrypt = |event_id: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        command.env_clear().args(["decrypt", "--event-id", event_id, "--key-id", "k", "--key-file"]);
        let stdin = Stdio::from(std::fs::File::open(body.path()).unwrap());
        command.arg(keys.path()).stdin(stdin).output().unwrap()
    };
    let ended = decrypt(messages[0].id());
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "{\"n\": 1}");
    let ended = decrypt("2");
    assert_eq!((ended.status.code(), ended.stdout.len()), (Some(2), 0));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("PR0111"));
}

#[tokio::test]
async fn a_key_file_that_cannot_be_used_ends_the_start_and_shows_no_key() {
    let secret = STANDARD.encode([9; 32]);
    let keys = key_file(&format!("k {secret}\nk {secret}\n{secret}\n"));
    let pipeline = encrypted(&keys).await;
    let ended = pipeline.postrider(&["run"]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    for told in ["PR0109", "line 2: its key id", "line 3: expected two words", "openssl rand"] {
        assert!(ended.stderr.contains(told), "{}", ended.stderr);
    }
    assert!(!(ended.stdout + &ended.stderr).contains(&secret[..12]));

    std::fs::remove_file(keys.path()).unwrap();
    let ended = pipeline.postrider(&["run"]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("No such file"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_dead_letter_keeps_the_plain_payload() {
    let keys = key_file(&line("k", 1));
    let pipeline = encrypted(&keys).await;
    let _relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('a b', '{\"n\": 1}')").await;
    eventually("the letter is written", async || {
        (pipeline.ask("SELECT count(*) FROM postrider.dead_letter").await == "1").then_some(())
    })
    .await;
    let payload = "SELECT convert_from(payload, 'UTF8') FROM postrider.dead_letter";
    assert_eq!(pipeline.ask(payload).await, "{\"n\": 1}");
}

#[tokio::test]
async fn a_key_file_that_everyone_can_read_is_used_and_warned_of() {
    let keys = key_file(&line("k", 1));
    let pipeline = encrypted(&keys).await;
    for (mode, warned) in [(0o640, false), (0o644, true)] {
        std::fs::set_permissions(keys.path(), Permissions::from_mode(mode)).unwrap();
        let mut relay = pipeline.run().await;
        assert_eq!(relay.terminate().await, Some(0));
        assert_eq!(relay.stderr().contains("can read the keys"), warned, "{}", relay.stderr());
    }
}
