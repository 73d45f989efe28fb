//! A TCP proxy on loopback whose connections can be cut, stalled, slowed, or robbed of one direction.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the relay to the server.
    Up,
    /// From the server to the relay.
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Accepts and closes at once.
    Refuse,
    /// Accepts and keeps what comes. Once it passes again, all of it arrives late.
    Stall,
    /// Holds each piece for so long.
    Delay(Duration),
    /// Drops what goes this way. The connections are of no use afterwards: cut them.
    Lose(Way),
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// Connections of an earlier number are cut.
    cuts: u64,
}

pub(crate) struct Proxy {
    port: u16,
    state: watch::Sender<State>,
}

impl Proxy {
    /// Listens for as long as the runtime lives.
    pub(crate) async fn to(server: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, watched) = watch::channel(State { mode: Mode::Pass, cuts: 0 });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if watched.borrow().mode != Mode::Refuse {
                    tokio::spawn(connect(client, server, watched.clone()));
                }
            }
        });
        Proxy { port, state }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// Closes all connections.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }
}

async fn connect(client: TcpStream, server: u16, state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts;
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
        return;
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::spawn(carry(Way::Up, from_client, to_server, state.clone(), cuts));
    carry(Way::Down, from_server, to_client, state, cuts).await;
}

/// Ends with the sender's end of file, with an error, or when the connection is cut. The other way
/// goes on by itself: what a killed relay has sent still arrives.
async fn carry(
    way: Way,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    cuts: u64,
) {
    tokio::select! {
        _ = forward(way, from, to, state.clone()) => {}
        _ = state.wait_for(|state| state.cuts > cuts) => {}
    }
}

/// None, in the end.
async fn forward(
    way: Way,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
) -> Option<()> {
    let mut piece = vec![0; 1 << 16];
    loop {
        state.wait_for(|state| state.mode != Mode::Stall).await.ok()?;
        let length = from.read(&mut piece).await.ok().filter(|length| *length > 0)?;
        // Read before the stall began, it is held by it.
        let mode = state.wait_for(|state| state.mode != Mode::Stall).await.ok()?.mode;
        match mode {
            Mode::Lose(lost) if lost == way => continue,
            Mode::Delay(delay) => tokio::time::sleep(delay).await,
            _ => {}
        }
        to.write_all(&piece[..length]).await.ok()?;
    }
}
