//! One attack over and over, as fast as this machine carries it out. [`crate::run`] judges each answer; this is load, and
//! says only how much of it there was: what others notice of it is measured beside it.

mod turn;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use doorward_client::{Credentials, tls};
use rustls::ClientConfig;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::{self, Context};
use crate::plan::{Failure, Plan};
use crate::preflight;
use crate::scenario::{Cast, Scenario, wrong_ca};

/// A refusal that costs this machine nothing is no reason to spin.
const BREATH: Duration = Duration::from_millis(1);

/// What is done over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// TCP connections that are given up at once.
    Connect,
    /// TCP connections on which nothing is said.
    Silence,
    /// The first bytes of a TLS hello, and no more.
    HalfHello,
    /// Whole TLS handshakes with a certificate that another CA has signed in the real one's name.
    WrongCa,
    /// A device's TLS, and half of the request for the upgrade.
    HalfUpgrade,
    /// A device that comes, says one thing and goes.
    Flapping,
    /// A device that sends a message, closes and resets the connection at once.
    CloseRace,
    /// Messages that another key has signed.
    Forge,
    /// One message of the device, again and again.
    Replay,
    /// A device's own messages, as fast as it can.
    OverRate,
    /// A device that subscribes to what it publishes, and does not read.
    SlowReader,
    /// A frame of 17 MiB.
    Oversize,
    /// One message in fragments of a byte, without end.
    Fragments,
    /// Pings.
    Pings,
    /// Pings between the fragments of one message.
    PingsInFragments,
    /// A message that is not UTF-8.
    BadUtf8,
    /// A frame without a mask.
    Unmasked,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use clap::ValueEnum as _;
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

/// Where attackers connect from, where the gateway is on this machine. Elsewhere all have this machine's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// All from one address.
    One,
    /// Each from one of its own.
    Each,
    /// Each connection from any of 127.0.0.0/8.
    Many,
}

/// An attack.
#[derive(Debug, Clone)]
pub struct Flood {
    /// Whose certificates and keys the attackers have; they share them where there are fewer than attackers.
    pub devices: Vec<Credentials>,
    /// The gateway: `wss://HOST:PORT/v1/device`.
    pub url: String,
    /// What they do.
    pub kind: Kind,
    /// Where they come from.
    pub source: Source,
    /// The number of the first attacker's address, of those from 127.77.0.1 on: what a gateway remembers of an address is not
    /// for the next attack.
    pub first_address: u16,
    /// Attackers at once, a connection each.
    pub at_once: u16,
    /// How long.
    pub duration: Duration,
    /// Ends it early.
    pub cancel: CancellationToken,
}

/// How much of it there was.
#[derive(Debug, Clone, Serialize)]
pub struct FloodReport {
    /// What was done.
    pub kind: Kind,
    /// Where from.
    pub source: Source,
    /// For so many seconds.
    pub seconds: f64,
    /// Connections that were tried.
    pub connections: u64,
    /// Of those, the ones that did not get as far as the attack: closed, blocked or refused before.
    pub turned_away: u64,
    /// Messages, and other frames of the attack.
    pub frames: u64,
}

impl fmt::Display for FloodReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, source, seconds, connections, turned_away, frames } = self;
        write!(f, "{kind} for {seconds:.1} s: {connections} connections")?;
        match source {
            Source::One => write!(f, " from one address")?,
            Source::Each => write!(f, ", each attacker from one address")?,
            Source::Many => write!(f, " from any address")?,
        }
        write!(f, ", {turned_away} of them turned away; {frames} frames")
    }
}

/// What the attackers share.
struct Crowd {
    context: Arc<Context>,
    kind: Kind,
    source: Source,
    first_address: u16,
    connections: AtomicU64,
    turned_away: AtomicU64,
    frames: AtomicU64,
}

/// Attacks until the time is over.
///
/// # Errors
/// [`Failure`] where it cannot be carried out at all.
pub async fn run(flood: Flood) -> Result<FloodReport, Failure> {
    let plan = Plan {
        connect_within: Duration::from_secs(10),
        answer_within: Duration::from_secs(5),
        ..Plan::new(flood.devices, &flood.url, Scenario::Steady)
    };
    let cast = Cast { honest: Vec::new(), hostile: Vec::new() };
    preflight::files(flood.at_once.into())?;
    let context = engine::prepare(&plan, &cast).await?;
    if context.members.is_empty() {
        return Err(Failure::TooFew { what: flood.kind.to_string(), needed: 1, given: 0 });
    }
    let crowd = Arc::new(Crowd {
        context,
        kind: flood.kind,
        source: flood.source,
        first_address: flood.first_address,
        connections: AtomicU64::new(0),
        turned_away: AtomicU64::new(0),
        frames: AtomicU64::new(0),
    });
    let began = crate::clock::now();
    let mut attackers = JoinSet::new();
    for attacker in 0..usize::from(flood.at_once) {
        attackers.spawn(Arc::clone(&crowd).attack(attacker));
    }
    let _ = flood.cancel.run_until_cancelled(tokio::time::sleep(flood.duration)).await;
    // Their connections are dropped with them.
    attackers.shutdown().await;
    Ok(FloodReport {
        kind: crowd.kind,
        source: crowd.source,
        seconds: crate::clock::now().saturating_sub(began).as_secs_f64(),
        connections: crowd.connections.load(Ordering::Relaxed),
        turned_away: crowd.turned_away.load(Ordering::Relaxed),
        frames: crowd.frames.load(Ordering::Relaxed),
    })
}

impl Crowd {
    async fn attack(self: Arc<Self>, attacker: usize) {
        let tls = self.tls(attacker);
        loop {
            self.connections.fetch_add(1, Ordering::Relaxed);
            if turn::take(&self, attacker, &tls).await.is_err() {
                self.turned_away.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(BREATH).await;
            }
        }
    }

    /// Whom an attacker is taken for in TLS.
    fn tls(&self, attacker: usize) -> Arc<ClientConfig> {
        let member = self.member(attacker);
        let real = member.credentials.identity().chain().get(1);
        let other = (self.kind == Kind::WrongCa)
            .then(|| wrong_ca::impostor(member, real).ok().and_then(|other| tls::configuration(&other).ok()))
            .flatten();
        other.unwrap_or_else(|| Arc::clone(&member.tls))
    }

    fn member(&self, attacker: usize) -> &crate::fleet::Member {
        // `run` has seen that there is one.
        &self.context.members[attacker % self.context.members.len()]
    }

    /// The address that the next connection comes from.
    fn local(&self, attacker: usize) -> Option<IpAddr> {
        let first = usize::from(self.first_address);
        let fixed = |number| preflight::attackers_source(self.context.gateway, first + number);
        match self.source {
            Source::Each => fixed(attacker),
            Source::One => fixed(0),
            // Not those that honest devices connect from.
            Source::Many => fixed(0).map(|_| {
                let [low, middle, high] = [fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(100..)];
                Ipv4Addr::new(127, high, middle, low).into()
            }),
        }
    }

    fn sent(&self, frames: u64) {
        self.frames.fetch_add(frames, Ordering::Relaxed);
    }
}
