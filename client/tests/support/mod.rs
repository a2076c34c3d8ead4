//! A gateway for tests: TLS with a throwaway CA, the upgrade, and `doorward_proto`'s session over a store in memory.
//! It can be told to misbehave, so that what judges gateways can be seen to judge.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this module")]
#![allow(clippy::unwrap_used, reason = "a test's gateway that cannot start is a test that fails")]

pub mod bundle;
mod ca;
mod connection;
pub mod renewal;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use doorward_client::Credentials;
use doorward_proto::close::Close;
use doorward_proto::ids::{DeviceId, KeyVersion};
use doorward_proto::key::Key;
use doorward_proto::limits::Rate;
use doorward_proto::session::Settings;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use ca::Ca;
use renewal::Renewals;

/// What a gateway does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// A refused message is acked all the same, and no strike counted.
    AckRefused,
    /// Every n-th message is forgotten: no ack.
    ForgetEvery(usize),
    /// A new session ends the older one before it is proven.
    UnprovenTakesOver,
    /// Unproven sessions are left open.
    KeepUnproven,
    /// Any client certificate is taken, as the device that its place in the chain says.
    AnyCertificate,
    /// Every n-th message is refused for good, as forbidden.
    ForbidEvery(usize),
    /// Messages out of time are taken.
    IgnoreTime,
    /// Whoever has had a session is not let in again.
    OnceOnly,
    /// Messages may be very long, and are not answered then.
    AnySize,
    /// A peer that does not read is waited for.
    WaitForReaders,
    /// So is one that does not go on with its handshake.
    WaitForHandshakes,
}

/// How a gateway is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    pub devices: usize,
    pub fault: Fault,
    pub rate: Rate,
    pub proof_within: Duration,
    pub heartbeat: Duration,
    pub handshake_within: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            devices: 2,
            fault: Fault::None,
            rate: Rate { per_second: 1000, burst: 1000 },
            proof_within: Duration::from_millis(1500),
            heartbeat: Duration::from_secs(30),
            handshake_within: Duration::from_secs(10),
        }
    }
}

pub struct Record {
    pub id: DeviceId,
    pub key: Key,
    pub line: String,
}

/// What all connections share.
pub struct Shared {
    pub setup: Setup,
    pub settings: Arc<Settings>,
    pub renewals: Renewals,
    pub records: Vec<Record>,
    /// `(device, message id)` to how often it came; the second one is acked and not stored again.
    pub stored: Mutex<BTreeMap<(String, String), usize>>,
    pub revoked: Mutex<BTreeSet<String>>,
    /// Ends proven sessions: device and why.
    pub orders: broadcast::Sender<(String, Close)>,
    /// Asks every live session to renew.
    pub rotations: broadcast::Sender<()>,
    /// What was stored, as it came first.
    pub values: Mutex<Vec<String>>,
    /// Published messages, for subscribers.
    pub published: broadcast::Sender<doorward_proto::downlink::Message>,
    /// Takes messages but forgets all of them.
    pub deaf: AtomicBool,
    pub sessions: AtomicUsize,
    pub generations: Mutex<BTreeMap<String, usize>>,
    pub unproven: Mutex<BTreeMap<String, usize>>,
}

pub struct Gateway {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Gateway {
    pub async fn start(setup: Setup) -> Self {
        let ca = Ca::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut records = Vec::new();
        let mut by_leaf = BTreeMap::new();
        for n in 0..setup.devices {
            let id = format!("dev-{n:05}");
            let secret = [u8::try_from(n % 251).unwrap() + 1; 32];
            let (leaf, line) = ca.device(&id, &secret, &format!("wss://{address}/v1/device"));
            by_leaf.insert(leaf, n);
            let key = Key::new(KeyVersion::FIRST, &secret);
            records.push(Record { id: DeviceId::new(&id).unwrap(), key, line });
        }
        let settings = Settings { proof_within: setup.proof_within, ..Settings::new("fake".into()) };
        let acceptor = ca.acceptor(setup.fault == Fault::AnyCertificate);
        let shared = Arc::new(Shared {
            setup,
            settings: Arc::new(settings),
            renewals: Renewals::new(ca, by_leaf),
            records,
            stored: Mutex::default(),
            revoked: Mutex::default(),
            orders: broadcast::channel(1024).0,
            rotations: broadcast::channel(16).0,
            values: Mutex::default(),
            published: broadcast::channel(1024).0,
            deaf: AtomicBool::new(false),
            sessions: AtomicUsize::new(0),
            generations: Mutex::default(),
            unproven: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let (inner, stopped) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            loop {
                let tcp = tokio::select! {
                    () = stopped.cancelled() => return,
                    Ok((tcp, _)) = listener.accept() => tcp,
                };
                let (acceptor, shared, stopped) = (acceptor.clone(), Arc::clone(&inner), stopped.clone());
                tokio::spawn(async move {
                    stopped.run_until_cancelled(connection::serve(tcp, acceptor, shared)).await;
                });
            }
        });
        Self { address, shared, stop }
    }

    pub fn url(&self) -> String {
        format!("wss://{}/v1/device", self.address)
    }

    pub fn credentials(&self) -> Vec<Credentials> {
        self.shared.records.iter().map(|record| Credentials::from_line(&record.line).unwrap()).collect()
    }

    pub fn revoke(&self, device: &str) {
        self.shared.revoked.lock().unwrap().insert(device.to_owned());
        let _ = self.shared.orders.send((device.to_owned(), Close::Revoked));
    }

    pub fn end(&self, device: &str, close: Close) {
        let _ = self.shared.orders.send((device.to_owned(), close));
    }

    /// Asks every live session to renew.
    pub fn rotate(&self) {
        let _ = self.shared.rotations.send(());
    }

    pub fn renewals(&self) -> &Renewals {
        &self.shared.renewals
    }

    pub fn deaf(&self, deaf: bool) {
        self.shared.deaf.store(deaf, Ordering::SeqCst);
    }

    pub fn stored(&self) -> BTreeMap<(String, String), usize> {
        self.shared.stored.lock().unwrap().clone()
    }

    pub fn sessions(&self) -> usize {
        self.shared.sessions.load(Ordering::SeqCst)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
