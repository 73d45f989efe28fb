//! The page, `/status`, `/metrics`, `/healthz` and `/readyz`, on a thread of their own: nothing here can
//! slow the pump.

use super::metrics::{self, Format};
use super::page;
use super::status::Board;
use crate::config::Http;
use crate::postgres::target::Secret;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The loop turns at least ten times a second: one that has not for so long hangs, and only a
/// restart helps.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Far more than look at one relay. The process's descriptors are the sessions': a peer that comes when
/// so many are there takes the place of the oldest, so that silent ones lock nobody out.
const CONNECTIONS_MAX: usize = 64;

/// A request's head is here by then, or the connection is closed; so is one that rests for so long.
const HEADER_MAX: Duration = Duration::from_secs(5);
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// After an accept that failed, as it does without a free descriptor.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// Fed by the loop, looked at by `/healthz` and for systemd's watchdog.
#[derive(Debug, Clone)]
pub struct Pulse {
    began: Instant,
    millis: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse { began: Instant::now(), millis: Arc::default() }
    }
}

impl Pulse {
    /// The loop turns.
    pub fn beat(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    /// How long the loop has not turned, when it hangs.
    pub(super) fn stuck_for(&self) -> Option<Duration> {
        let last = Duration::from_millis(self.millis.load(Ordering::Relaxed));
        Some(self.began.elapsed().saturating_sub(last)).filter(|age| *age >= STUCK_AFTER)
    }
}

#[derive(Clone)]
struct Shared {
    board: Board,
    pulse: Pulse,
    token: Option<Secret>,
    /// It is for this machine, and asks for no token.
    local: bool,
    standby_ready: bool,
}

/// Serves on `http.listen` until the process ends. A port that is taken is a warning: the relay's
/// work does not depend on it.
pub fn serve(http: &Http, board: Board, pulse: Pulse) {
    let Some(address) = http.listen else { return };
    let token = http.token.clone();
    let local = address.ip().is_loopback() && token.is_none();
    let shared = Shared { board, pulse, token, local, standby_ready: http.standby_ready };
    let spawned = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return tracing::warn!(%error, "HTTP is off"),
        };
        runtime.block_on(async {
            let listener = match TcpListener::bind(address).await {
                Ok(listener) => listener,
                Err(error) => {
                    return tracing::warn!(%address, %error, "HTTP is off: choose another http.listen");
                }
            };
            if let Ok(address) = listener.local_addr() {
                tracing::info!(%address, "HTTP listens");
            }
            accept(&listener, &router(shared)).await;
        });
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "HTTP is off");
    }
}

/// Serves whoever connects, each on a task of its own.
async fn accept(listener: &TcpListener, router: &Router) {
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::with_capacity(CONNECTIONS_MAX);
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::debug!(%error, "a connection is not accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() == CONNECTIONS_MAX
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(router.clone());
        connections.push_back(tokio::spawn(async move {
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_MAX).max_buf_size(HEADER_BYTES_MAX);
            // It ended as its peer wanted, or did not speak HTTP.
            let _ = server.serve_connection(TokioIo::new(socket), service).await;
        }));
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route_layer(middleware::from_fn_with_state(shared.clone(), authorized))
        .route("/healthz", get(healthz))
        .route("/", get(page))
        .with_state(shared)
}

/// `/healthz` stays open: a supervisor has no token, and it tells nothing. So does the page, which is
/// empty until it has asked its reader for the token.
async fn authorized(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    if shared.local && !host.is_none_or(is_local) {
        let remedy = "ask by localhost or by an address, or set http.token: other names may be a web site's, which \
                      had a browser come here\n";
        return (StatusCode::MISDIRECTED_REQUEST, remedy).into_response();
    }
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let fits = shared.token.as_ref().is_none_or(|token| {
        given.and_then(|given| given.strip_prefix("Bearer ")).is_some_and(|given| {
            aws_lc_rs::constant_time::verify_slices_are_equal(given.as_bytes(), token.expose().as_bytes())
                .is_ok()
        })
    });
    if fits {
        return next.run(request).await;
    }
    let remedy = "send the header `Authorization: Bearer <http.token>`\n";
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], remedy).into_response()
}

/// A web site can have its own name lead here, and its script then reads what this machine may; it cannot
/// choose an address or `localhost` for a name.
fn is_local(host: &HeaderValue) -> bool {
    let Ok(host) = Authority::try_from(host.as_bytes()) else { return false };
    let host = host.host().trim_start_matches('[').trim_end_matches(']');
    let name = host.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || host.parse::<IpAddr>().is_ok()
}

async fn status(State(shared): State<Shared>) -> Response {
    match serde_json::to_vec(&shared.board.read()) {
        Ok(json) => {
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
            (headers, json).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let format = Format::accepted(headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()));
    let text = metrics::text(format, &shared.board.read(), &shared.board.counters());
    ([(header::CONTENT_TYPE, format.content_type())], text).into_response()
}

async fn page(State(shared): State<Shared>) -> Response {
    (page::headers(), page::html(shared.token.is_some())).into_response()
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let status = shared.board.read();
    let code =
        if status.is_ready(shared.standby_ready) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{}\n", status.reason)).into_response()
}

async fn healthz(State(shared): State<Shared>) -> Response {
    match shared.pulse.stuck_for() {
        None => (StatusCode::OK, "ok\n").into_response(),
        Some(age) => {
            let text = format!("the loop has not turned for {} s\n", age.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_has_not_turned_for_long_hangs_until_it_turns_again() {
        let pulse = Pulse { began: Instant::now() - 2 * STUCK_AFTER, millis: Arc::default() };
        assert!(pulse.stuck_for().is_some_and(|age| age >= 2 * STUCK_AFTER));
        pulse.beat();
        assert_eq!(pulse.stuck_for(), None);
    }

    #[test]
    fn a_name_is_local_when_no_web_site_can_have_it() {
        for (host, local) in [
            ("localhost", true),
            ("LocalHost:9464", true),
            ("relay.localhost:9464", true),
            ("127.0.0.1:9464", true),
            ("[::1]:9464", true),
            ("192.168.1.7", true),
            ("rebound.example:9464", false),
            ("127.0.0.1.example", false),
            ("localhost.example", false),
            ("notlocalhost", false),
            ("", false),
        ] {
            assert_eq!(is_local(&HeaderValue::from_static(host)), local, "{host}");
        }
    }
}
