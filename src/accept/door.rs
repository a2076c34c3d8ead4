//! From `accept` to the first byte of TLS: who is closed without a word, who waits, who goes on.

use std::net::SocketAddr;
use std::sync::Arc;

use doorward_proto::ids::DeviceId;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, info, warn};

use super::Room;
use super::addresses::Arrival;
use super::proxy::{self, Sender};
use crate::clock;
use crate::fold::{Kind, Sample};
use crate::gateway::Gateway;
use crate::metrics::Turned;
use crate::metrics::family::Label as _;
use crate::traces::Trail;

/// One in so many places is for addresses from which sessions have been proven: strangers cannot take them all.
const RESERVE: usize = 16;

/// What a connection holds: a place among all, and one of its address.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) arrival: Arrival,
    /// Nothing where it is not traced.
    pub(crate) trail: Trail,
    _place: OwnedSemaphorePermit,
}

impl Pass {
    /// Its device has shown its key. Whether its address was not known before.
    pub(crate) fn proven(&mut self, device: &DeviceId) -> bool {
        self.trail.proven(device);
        self.arrival.proven()
    }
}

/// A new connection. What can be decided at once is, before a task is made for it.
pub(super) fn enter(gateway: &Arc<Gateway>, tcp: TcpStream, peer: SocketAddr, room: Room) {
    // An IPv4 peer of a socket that takes both is an IPv4 peer everywhere from here on.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if !gateway.clock_is_right() {
        // No certificate can be judged: closed before one is asked for.
        gateway.counters.clock_behind();
        if may_say(gateway, Kind::ClockBehind, "clock_behind", peer) {
            warn!(%peer, reason = "clock_behind", "closed: the clock is behind the build");
        }
        return;
    }
    let live = gateway.live();
    if live.config.gateway.proxy_networks.iter().any(|network| network.contains(peer.ip())) {
        match Arc::clone(&gateway.connections).try_acquire_owned() {
            Ok(place) => drop(tokio::spawn(from_proxy(Arc::clone(gateway), tcp, peer, place, room))),
            Err(_) => full(gateway, peer),
        }
        return;
    }
    arrive(gateway, tcp, peer, room);
}

/// For whom a proxy connects is known when it has said so.
async fn from_proxy(
    gateway: Arc<Gateway>,
    mut tcp: TcpStream,
    proxy: SocketAddr,
    place: OwnedSemaphorePermit,
    room: Room,
) {
    let patience = gateway.live().config.limits.hello_timeout.0;
    let peer = match tokio::time::timeout(patience, proxy::read(&mut tcp)).await {
        Ok(Ok(Sender::Peer(peer))) => peer,
        Ok(Ok(Sender::Proxy)) => proxy,
        Ok(Err(proxy::ProxyError::Io(error))) => {
            // A proxy that looks whether the port is open.
            gateway.counters.gone();
            debug!(%proxy, %error, "gone before its PROXY header");
            return;
        }
        Ok(Err(error)) => return not_proxied(&gateway, proxy, &error.to_string()),
        Err(_) => return not_proxied(&gateway, proxy, "timeout"),
    };
    debug!(%proxy, %peer, "connected by a proxy");
    // Its peer's place is asked for as anybody's is.
    drop(place);
    arrive(&gateway, tcp, peer, room);
}

fn arrive(gateway: &Arc<Gateway>, tcp: TcpStream, peer: SocketAddr, room: Room) {
    let live = gateway.live();
    let now = clock::now().monotonic;
    let arrival = match gateway.addresses.arrive(&live.config.addresses, peer.ip(), now) {
        Ok(arrival) => arrival,
        Err(why) => return turn_away(gateway, peer, why),
    };
    if arrival.wait().is_zero() {
        return admit(gateway, tcp, peer, arrival, room);
    }
    let mut arrival = arrival;
    // The last quarter of the chairs is for known addresses: else strangers would make of 'slowed' a 'closed' for them.
    let (chairs, kept) = (live.config.addresses.waiting, live.config.addresses.waiting / 4);
    match Arc::clone(&gateway.addresses.waiting).try_acquire_owned() {
        Ok(_) if !arrival.is_known() && gateway.addresses.waiting.available_permits() < kept => {
            turn_away(gateway, peer, Turned::Waiting);
        }
        Ok(_) if !arrival.sit(chairs) => turn_away(gateway, peer, Turned::AddressWaiting),
        Ok(chair) => {
            gateway.counters.door().slow_down();
            debug!(%peer, wait = ?arrival.wait(), "its handshake waits");
            let gateway = Arc::clone(gateway);
            tokio::spawn(async move {
                tokio::time::sleep(arrival.wait()).await;
                drop(chair);
                arrival.stand();
                admit(&gateway, tcp, peer, arrival, room);
            });
        }
        Err(_) => turn_away(gateway, peer, Turned::Waiting),
    }
}

fn admit(gateway: &Arc<Gateway>, tcp: TcpStream, peer: SocketAddr, mut arrival: Arrival, room: Room) {
    let reserve = gateway.live().config.limits.connections / RESERVE;
    match Arc::clone(&gateway.connections).try_acquire_owned() {
        Ok(place) => {
            if gateway.connections.available_permits() < reserve {
                if !arrival.is_known() {
                    return turn_away(gateway, peer, Turned::Reserved);
                }
                // Many may share a known address, and one of them may be a stranger.
                if !arrival.take_reserved(reserve) {
                    return turn_away(gateway, peer, Turned::AddressReserved);
                }
            }
            // No drain waits for a stranger: only who has been let in is counted among `tasks`.
            let pass = Pass { arrival, trail: Trail::default(), _place: place };
            tokio::spawn(super::admit(Arc::clone(gateway), tcp, peer, pass, room));
        }
        Err(_) => full(gateway, peer),
    }
}

fn not_proxied(gateway: &Gateway, proxy: SocketAddr, reason: &str) {
    gateway.counters.door().turned(Turned::NotProxied);
    if may_say(gateway, Kind::NotProxied, "not_proxied", proxy) {
        info!(%proxy, reason, "refused: of gateway.proxy_networks, and no header of the PROXY protocol");
    }
}

fn turn_away(gateway: &Gateway, peer: SocketAddr, why: Turned) {
    gateway.counters.door().turned(why);
    if may_say(gateway, Kind::Turned, why.label(), peer) {
        info!(%peer, reason = why.label(), "closed before TLS");
    }
}

fn full(gateway: &Gateway, peer: SocketAddr) {
    gateway.counters.over_limit();
    if may_say(gateway, Kind::OverLimit, "over_limit", peer) {
        warn!(%peer, reason = "over_limit", "closed: as many connections as limits.connections allows");
    }
}

fn may_say(gateway: &Gateway, kind: Kind, reason: &'static str, peer: SocketAddr) -> bool {
    gateway.folds.may_say(&gateway.counters, kind, reason, || Sample::new("-", peer, "-"))
}
