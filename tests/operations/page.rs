//! The page in Chromium: it says what `/status` says, whatever happens, and the console stays silent.

use crate::browser::Browser;
use crate::support::{Load, Pipeline, Relay};
use rustix::process::Signal;
use serde_json::Value;
use std::time::Duration;

/// Some two thousand rows a second.
const BUSY: &[i32] = &[10, 30, 10, 20, 10];
const PAUSE: Duration = Duration::from_millis(20);

/// The page of `relay`, once it shows what it was told.
async fn open(browser: &mut Browser, relay: &Relay) {
    browser.open(&format!("http://{}/", relay.http().unwrap())).await;
    browser.until("!document.getElementById('content').hidden").await;
}

/// What stands on the page is what the last answer of `/status` had.
async fn shows_its_status(browser: &mut Browser) -> Value {
    // In one go, so that no answer comes in between.
    let pair = "({status: window.answered, page: Object.fromEntries([...document.querySelectorAll('[id]')].map(\
         (node) => [node.id, node.textContent]))})";
    let pair = browser.value(pair).await;
    let (status, page) = (&pair["status"], &pair["page"]);
    let number = |id: &str| page[id].as_str().unwrap().replace(',', "");
    for (id, field) in [
        ("slot", "slot"),
        ("stream", "stream"),
        ("role", "role"),
        ("state-name", "state"),
        ("reason", "reason"),
        ("settled_lsn", "settled_lsn"),
        ("confirmed_lsn", "confirmed_lsn"),
        ("wal_status", "wal_status"),
    ] {
        let told = status[field].as_str().unwrap_or("–");
        assert_eq!(page[id], told, "{id}: {status}");
    }
    for id in
        ["published_total", "in_flight_messages", "dead_letters", "dead_lettered_total", "outbox_dead_tuples"]
    {
        let told = status[id].as_u64().map_or("–".to_owned(), |number| number.to_string());
        assert_eq!(number(id), told, "{id}: {status}");
    }
    for (id, told) in [
        ("rate", status["published_per_second"].as_f64()),
        ("p50", status["latency_seconds"]["p50"].as_f64().map(|seconds| seconds * 1e3)),
        ("p99", status["latency_seconds"]["p99"].as_f64().map(|seconds| seconds * 1e3)),
    ] {
        match told {
            None => assert_eq!(number(id), "–", "{id}: {status}"),
            Some(told) => {
                let shown: f64 = number(id).parse().unwrap();
                assert!((shown - told).abs() <= 0.5 + told / 1e3, "{id}: {shown} {told}");
            }
        }
    }
    status.clone()
}

async fn fits(browser: &mut Browser, width: u32) {
    assert_eq!(
        browser.value("document.documentElement.scrollWidth").await,
        width,
        "the page is wider than the screen"
    );
}

fn is_silent(browser: &Browser) {
    assert!(browser.complaints.is_empty(), "{:#?}", browser.complaints);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_the_numbers_of_status_under_load_on_a_desk_and_on_a_phone() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_NATS_SYNC_INTERVAL", "1s");
    pipeline.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'").await;
    pipeline.execute("SELECT pg_reload_conf()").await;
    let mut relay = pipeline.run().await;
    let mut load = Load::endless(&pipeline, 3, BUSY, PAUSE);
    let mut browser = Browser::start().await;
    browser.looks(1180, 1040, "light").await;
    open(&mut browser, &relay).await;
    // A curve to look at.
    browser.until("window.answered.published_total > 10000 && window.answered.held_back_bytes > 0").await;
    browser.until("document.querySelector('#rate-chart .one').getAttribute('d').length > 100").await;
    let status = shows_its_status(&mut browser).await;
    assert_eq!(status["state"], "stream");
    assert!(status["published_per_second"].as_f64().unwrap() > 100.0, "{status}");
    assert_eq!(browser.text("headline").await, "Publishing");
    fits(&mut browser, 1180).await;
    browser.picture("light").await;
    browser.looks(1180, 1040, "dark").await;
    browser.picture("dark").await;
    browser.looks(375, 1500, "light").await;
    shows_its_status(&mut browser).await;
    fits(&mut browser, 375).await;
    browser.picture("phone").await;
    is_silent(&browser);
    load.finish().await;
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_says_why_nothing_is_published_while_nats_is_away_and_when_it_goes_on() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order', '{}'), ('a b', '{}')").await;
    pipeline.stored(1).await;
    let mut browser = Browser::start().await;
    browser.looks(1180, 900, "light").await;
    open(&mut browser, &relay).await;
    browser.until("window.answered.dead_letters === 1").await;
    browser.until("document.getElementById('headline').textContent === 'Publishing, with a warning'").await;
    assert!(browser.text("advice").await.contains("postrider dlq list"));
    pipeline.nats.kill();
    browser.until("document.getElementById('headline').textContent === 'Not publishing'").await;
    browser.until("window.answered.last_error.code === 'PR0301'").await;
    browser.until("document.getElementById('advice').textContent.includes('start nats-server')").await;
    let status = shows_its_status(&mut browser).await;
    assert_eq!(status["role"], "waiting");
    let changes = browser.text("changes").await;
    assert!(changes.contains("leader · stream") && changes.contains("waiting"), "{changes}");
    let remedy = browser.text("error-remedy").await;
    assert!(remedy.starts_with("start nats-server"), "{remedy}");
    browser.picture("nats-away").await;
    pipeline.nats.start_again().await.unwrap();
    browser.until("document.getElementById('state-name').textContent === 'stream'").await;
    shows_its_status(&mut browser).await;
    is_silent(&browser);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remedy_that_is_marked_stays_marked_while_the_page_goes_on() {
    let mut pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    let mut browser = Browser::start().await;
    open(&mut browser, &relay).await;
    pipeline.nats.kill();
    browser.until("document.getElementById('advice').textContent.includes('start nats-server')").await;
    browser.value("getSelection().selectAllChildren(document.querySelector('#advice code'))").await;
    browser.value("window.before = window.asked").await;
    browser.until("window.asked >= window.before + 4").await;
    let marked = browser.value("getSelection().toString()").await;
    assert!(marked.as_str().unwrap().contains("start nats-server"), "{marked}");
    is_silent(&browser);
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_of_a_relay_that_does_not_answer_claims_nothing() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    let mut browser = Browser::start().await;
    browser.looks(1180, 900, "light").await;
    open(&mut browser, &relay).await;
    browser.until("document.title.startsWith('Publishing – postrider')").await;
    relay.kill();
    browser.until("document.getElementById('headline').textContent === 'The relay does not answer'").await;
    for (id, says) in [("role", "?"), ("state-name", "?"), ("sign", "?"), ("reason", "last answer at ")] {
        let text = browser.text(id).await;
        assert!(text.starts_with(says), "{id}: {text}");
    }
    let title = browser.value("document.title").await;
    assert_eq!(title, "The relay does not answer – postrider – Postrider");
    browser.picture("no-answer").await;
}

/// Where the points of the curve of rates stand.
const PLACES: &str = "[...document.querySelector('#rate-chart .one').getAttribute('d').matchAll(/[ML]([0-9.]+) /g)]\
     .map((found) => Number(found[1]))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_curve_has_a_gap_where_the_relay_did_not_answer() {
    let pipeline = Pipeline::article().await;
    let mut relay = pipeline.run().await;
    let mut browser = Browser::start().await;
    open(&mut browser, &relay).await;
    browser.until(&format!("{PLACES}.length >= 3")).await;
    relay.signal(Signal::STOP);
    browser.until("document.getElementById('headline').textContent === 'The relay does not answer'").await;
    relay.signal(Signal::CONT);
    browser.until("document.getElementById('headline').textContent === 'Publishing'").await;
    let places = browser.value(PLACES).await;
    let places: Vec<f64> = serde_json::from_value(places).unwrap();
    // An answer is waited for five seconds.
    assert!(places.windows(2).any(|pair| pair[1] - pair[0] > 5.0), "{places:?}");
    assert_eq!(places.last(), Some(&120.0));
    assert_eq!(relay.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_s_page_says_that_it_stands_by() {
    let pipeline = Pipeline::article().await;
    let mut leader = pipeline.run().await;
    let mut standby = pipeline.spawn(&["run"]);
    standby.is("role", "standby").await;
    let mut browser = Browser::start().await;
    browser.looks(1180, 800, "light").await;
    open(&mut browser, &standby).await;
    browser.until("window.answered.wal_status === 'reserved'").await;
    browser.until("document.getElementById('wal_status').textContent === 'reserved'").await;
    assert_eq!(browser.text("headline").await, "Standing by");
    shows_its_status(&mut browser).await;
    browser.picture("standby").await;
    is_silent(&browser);
    assert_eq!(standby.terminate().await, Some(0));
    assert_eq!(leader.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_asks_for_the_token_where_one_is_set() {
    let mut pipeline = Pipeline::article().await;
    pipeline.set("POSTRIDER_HTTP_TOKEN", "open-sesame");
    let mut relay = pipeline.spawn(&["run"]);
    crate::support::eventually("it listens", async || relay.get("/healthz").await).await;
    let mut browser = Browser::start().await;
    browser.looks(800, 600, "dark").await;
    browser.open(&format!("http://{}/", relay.http().unwrap())).await;
    browser.until("!document.getElementById('token').hidden").await;
    assert_eq!(browser.value("document.getElementById('content').hidden").await, true);
    browser.picture("token").await;
    browser
        .value(
            "document.getElementById('token-input').value = 'open-sesame'; \
             document.querySelector('#token-form button').click(); \
             document.querySelector('#token-form button').click()",
        )
        .await;
    browser.until("document.getElementById('state-name').textContent === 'stream'").await;
    shows_its_status(&mut browser).await;
    // Also after a double click it asks once a second.
    browser.value("window.before = [window.asked, performance.now()]").await;
    browser.until("window.asked >= window.before[0] + 6").await;
    let took = browser.value("performance.now() - window.before[1]").await;
    assert!(took.as_f64().unwrap() > 4_500.0, "six answers in {took} ms");
    is_silent(&browser);
    assert_eq!(relay.terminate().await, Some(0));
}
