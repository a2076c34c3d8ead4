//! The way to a Postgres server, and what can happen to it: cut, silent, slow, lossy.
//!
//! What a connection sends while it is held waits in the wire, as it would in a sender's kernel, and goes on when the
//! wire is mended. A connection that is lost stays held for ever and nobody is told: so does a firewall that has
//! forgotten it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use doorward::config::Config;
use doorward::registry::{Access, DatabaseUrl, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::database::Database;
use super::house::House;

/// What a mended wire passes on at once.
const CHUNK: usize = 16 << 10;

/// A house on Postgres whose gateway goes by a wire; the test does not.
pub(crate) async fn house(edit: impl FnOnce(&mut Config)) -> (House, Wire) {
    let db = Database::postgres().await;
    let (wire, url) = Wire::to_database(&db).await;
    let registry = connect(&url, Access::Existing).unwrap();
    (House::behind(db, registry, edit).await, wire)
}

/// A wire to a server on this machine.
pub(crate) struct Wire {
    pub(crate) port: u16,
    state: watch::Sender<State>,
    /// Connections so far.
    made: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// Connections are closed as soon as they are made.
    cut: bool,
    /// How often it has been cut: a cut that is mended at once ends connections too.
    cuts: u64,
    held: Held,
    /// Connections with smaller numbers are lost.
    lost_before: u64,
    /// Bytes that pass at a time, and how long the next ones wait then.
    chunk: usize,
    pause: Duration,
    /// The next connection that comes so far is lost.
    loss: Option<Loss>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    None,
    /// Those that have said LISTEN.
    Listeners,
    All,
}

/// When a connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The gateway says these words, and they never arrive.
    Question(&'static str),
    /// They arrive; the answer does not.
    Answer(&'static str),
    /// The gateway's pool asks whether it still answers, after a use.
    AfterUse,
}

/// What a pool says to see whether a connection answers: Sync, alone.
const PING: &[u8] = b"S\0\0\0\x04";

const WHOLE: State = State {
    cut: false,
    cuts: 0,
    held: Held::None,
    lost_before: 0,
    chunk: CHUNK,
    pause: Duration::ZERO,
    loss: None,
};

/// One connection of the gateway's.
struct Connection {
    number: u64,
    cuts: u64,
    listens: AtomicBool,
    pinged: AtomicBool,
    lost: AtomicBool,
    state: watch::Sender<State>,
}

impl Wire {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let wire = Self { port, state: watch::Sender::new(WHOLE), made: Arc::default() };
        let (state, made) = (wire.state.clone(), Arc::clone(&wire.made));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let State { cut, cuts, .. } = *state.borrow();
                let connection = Connection {
                    cuts,
                    number: made.fetch_add(1, Ordering::SeqCst),
                    listens: AtomicBool::new(false),
                    pinged: AtomicBool::new(false),
                    lost: AtomicBool::new(false),
                    state: state.clone(),
                };
                if !cut {
                    tokio::spawn(connection.run(near, server));
                }
            }
        });
        wire
    }

    /// A wire to a database's server, and the URL of a gateway that goes by it.
    pub(crate) async fn to_database(db: &Database) -> (Self, DatabaseUrl) {
        let url = db.url_as("gateway").to_string();
        let (front, name) = url.rsplit_once('/').unwrap();
        let (front, port) = front.rsplit_once(':').unwrap();
        let wire = Self::to(port.parse().unwrap()).await;
        let url = DatabaseUrl::parse(&format!("{front}:{}/{name}", wire.port)).unwrap();
        (wire, url)
    }

    /// Ends every connection, and new ones as soon as they are made.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| (state.cut, state.cuts) = (true, state.cuts + 1));
    }

    /// Everything passes again, but for what is lost.
    pub(crate) fn mend(&self) {
        self.state.send_modify(|state| {
            *state = State { cuts: state.cuts, lost_before: state.lost_before, ..WHOLE }
        });
    }

    /// Nothing passes any more, in either direction. New connections are taken all the same.
    pub(crate) fn silence(&self) {
        self.state.send_modify(|state| state.held = Held::All);
    }

    /// Nothing passes any more on connections that have said LISTEN, nor on those that will.
    pub(crate) fn silence_listeners(&self) {
        self.state.send_modify(|state| state.held = Held::Listeners);
    }

    /// Every connection that there is by now is lost; new ones pass.
    pub(crate) fn lose_all(&self) {
        let made = self.made.load(Ordering::SeqCst);
        self.state.send_modify(|state| state.lost_before = made);
    }

    /// The next connection that comes so far is lost.
    pub(crate) fn lose_at(&self, loss: Loss) {
        self.state.send_modify(|state| state.loss = Some(loss));
    }

    /// Whether that has happened.
    pub(crate) fn has_lost(&self) -> bool {
        self.state.borrow().loss.is_none()
    }

    /// So many bytes at a time, and after each time a pause.
    pub(crate) fn slow_down(&self, chunk: usize, pause: Duration) {
        self.state.send_modify(|state| (state.chunk, state.pause) = (chunk, pause));
    }
}

impl Connection {
    async fn run(self, near: TcpStream, server: u16) {
        let mut state = self.state.subscribe();
        let Ok(far) = TcpStream::connect(("127.0.0.1", server)).await else { return };
        let (near_from, near_to) = near.into_split();
        let (far_from, far_to) = far.into_split();
        let both = async {
            tokio::join!(self.pass(near_from, far_to, true), self.pass(far_from, near_to, false));
        };
        tokio::select! {
            () = both => {}
            _ = state.wait_for(|state| state.cuts != self.cuts) => {}
        }
    }

    /// One direction, to its end.
    async fn pass(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, asks: bool) {
        let mut bytes = [0; CHUNK];
        loop {
            let most = self.state.borrow().chunk;
            let Ok(count) = from.read(&mut bytes[..most]).await else { return };
            let bytes = &bytes[..count];
            if !(asks && self.is_last(bytes)) {
                self.may_pass().await;
            }
            if count == 0 || to.write_all(bytes).await.is_err() {
                let _ = to.shutdown().await;
                return;
            }
            let pause = self.state.borrow().pause;
            tokio::time::sleep(pause).await;
        }
    }

    /// Looks at what the gateway says. Whether it passes whatever has become of its connection.
    fn is_last(&self, bytes: &[u8]) -> bool {
        let says = |words: &str| bytes.windows(words.len()).any(|part| part == words.as_bytes());
        if says("LISTEN") {
            self.listens.store(true, Ordering::SeqCst);
        }
        // Before the next use it is asked again.
        let used = !self.pinged.swap(bytes == PING, Ordering::SeqCst);
        let mut met = None;
        self.state.send_if_modified(|state| {
            met = state.loss.take_if(|loss| match loss {
                Loss::Question(words) | Loss::Answer(words) => says(words),
                Loss::AfterUse => used && bytes == PING,
            });
            met.is_some()
        });
        if met.is_some() {
            self.lost.store(true, Ordering::SeqCst);
        }
        matches!(met, Some(Loss::Answer(_)))
    }

    async fn may_pass(&self) {
        let held = |state: &State| {
            self.lost.load(Ordering::SeqCst)
                || self.number < state.lost_before
                || state.held == Held::All
                || (state.held == Held::Listeners && self.listens.load(Ordering::SeqCst))
        };
        let _ = self.state.subscribe().wait_for(|state| !held(state)).await;
    }
}
