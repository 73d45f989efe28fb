//! `postrider run`

use super::{Ended, drive, load, logging, shadow};
use crate::config::{Environment, Flags};
use crate::ops::http::{self, Pulse};
use crate::ops::status::{Board, Status};
use crate::ops::systemd::Systemd;
use crate::postgres::timestamp::Timestamp;
use crate::relay::{self, Pace};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

/// Relay events until stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  DATABASE_URL=postgres://relay@db/shop NATS_URL=nats://nats:4222 postrider run
  DATABASE_URL=postgres://owner@db/shop postrider run --shadow --seconds 600   # beside a poller; publishes nothing

SIGTERM and SIGINT drain and end with 0; a second one ends at once, which is safe too.
`run` creates nothing: postrider init does. `run --shadow` needs neither init nor NATS, but a role that owns the
table: it makes a temporary slot and a publication, and drops both. Exit status 6 when relay and poller differ.")]
pub(super) struct Args {
    #[command(flatten)]
    shadow: shadow::Shadow,
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args) -> Ended {
    if args.shadow.shadow {
        return shadow::run(&args.shadow, &args.flags);
    }
    let config = load(&args.flags)?;
    logging::start(&config.log);
    let board = Board::new(Status {
        reason: "starting".to_owned(),
        host: Some(rustix::system::uname().nodename().to_string_lossy().into_owned()),
        started_at: Some(Timestamp::now().to_string()),
        ..Status::of(&config)
    });
    let pulse = Pulse::default();
    http::serve(&config.http, board.clone(), pulse.clone());
    let systemd = Systemd::of(&Environment::of_process());
    systemd.watch(board.clone(), pulse.clone());
    let pace = Pace::default();
    let resting = pace.clone();
    // One thread is the fastest: pump and NATS client wake each other without crossing cores.
    let mut runtime = Builder::new_current_thread();
    let told = systemd.clone();
    let ended = drive(runtime.on_thread_park(move || resting.rest()), async {
        let stop = stop_signal(move || told.stopping());
        let ended = relay::run(&config, &board, &pulse, &pace, stop).await;
        if ended.is_ok() {
            info!(published = board.read().published_total, "drained");
        }
        ended
    });
    systemd.ended(&board.read());
    ended
}

/// Turns true at the first SIGTERM or SIGINT, once `before` was called; the second ends the process.
pub(super) fn stop_signal(before: impl Fn() + Send + 'static) -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let (Some(mut terminate), Some(mut interrupt)) =
            (listen(SignalKind::terminate()), listen(SignalKind::interrupt()))
        else {
            // Without a handler the signals end the process, which is safe.
            std::future::pending::<()>().await;
            return;
        };
        for round in 0.. {
            let status = tokio::select! {
                _ = terminate.recv() => 143,
                _ = interrupt.recv() => 130,
            };
            if round > 0 {
                std::process::exit(status);
            }
            before();
            let _ = stop.send(true);
        }
    });
    stopped
}

fn listen(kind: SignalKind) -> Option<Signal> {
    signal(kind).inspect_err(|error| warn!(%error, "no handler for a signal")).ok()
}
