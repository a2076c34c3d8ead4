//! What an address may do before anybody behind it is known. It is asked once for each connection, before a byte of it is
//! read, and costs two lookups whatever has come before.
//!
//! An address starts with full buckets. Who makes connections faster than its rate waits its turn, and is closed only
//! when that would take too long. Who fails again and again ([`super::failures`]) is slowed down, then blocked; but many
//! devices may share an address, so one from which sessions have been proven is only slowed down. The clock is the
//! monotonic one: nothing here cares what time of day it is. Who is known is kept over a restart ([`crate::gateway`]).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::prefix::Prefix;
use super::table::{Place, Remembered, Table};
use crate::bucket::{Bucket, Rate, nanos};
use crate::clock;
use crate::config::AddressesSection;
use crate::metrics::Turned;

/// A turn that is further away is not worth the wait: the peer's own patience ends about then.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// What the handshake of an address waits that has failed as often as it may.
const SLOWEST: Duration = Duration::from_secs(5);
/// How long an address counts as one with proven sessions after the last one.
pub(crate) const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);
/// One in so many chairs is the most that an address may hold that nobody knows, that its network may, and that a known
/// address may: a site behind one address gets far, and never takes the whole room.
const SHARES: [usize; 3] = [8, 4, 2];
/// One in so many of the reserved places is the most that a known address may hold with what is not proven yet.
const SHARE_OF_RESERVE: usize = 2;

/// What is remembered of an address.
#[derive(Debug, Default)]
struct Host {
    arrivals: Bucket,
    failures: Bucket,
    blocked_until: u64,
    /// The last block, in doublings of the first.
    doublings: u8,
    /// How often blocks had been lifted when this was written.
    lifted: u32,
    known_until: u64,
    /// Proven sessions now.
    proven: u32,
    handshakes: u32,
    /// Of those, how many wait for their turn.
    waiting: u32,
    /// Reserved places that are held by what is not proven yet.
    reserved: u32,
}

/// What is remembered of a network.
#[derive(Debug, Default)]
struct Network {
    arrivals: Bucket,
    handshakes: u32,
    waiting: u32,
}

impl Host {
    fn is_known(&self, now: u64) -> bool {
        self.proven > 0 || self.known_until > now
    }

    /// Forgets failures from before the last time that all were forgiven.
    fn forgive(&mut self, lifted: u32) {
        if self.lifted != lifted {
            (self.lifted, self.failures, self.blocked_until, self.doublings) =
                (lifted, Bucket::default(), 0, 0);
        }
    }
}

impl Remembered for Host {
    fn worth(&self, now: u64) -> u8 {
        if self.is_known(now) {
            3
        } else if self.handshakes > 0 || self.blocked_until > now {
            2
        } else {
            u8::from(!self.arrivals.is_full(now) || !self.failures.is_full(now))
        }
    }
}

impl Remembered for Network {
    fn worth(&self, now: u64) -> u8 {
        if self.handshakes > 0 { 2 } else { u8::from(!self.arrivals.is_full(now)) }
    }
}

/// Every address that is remembered.
#[derive(Debug)]
pub(crate) struct Addresses {
    hosts: Table<Host>,
    networks: Table<Network>,
    lifted: AtomicU32,
    /// Room for those whose turn has not come. What they hold is a socket, and no place among `limits.connections`.
    pub(crate) waiting: Arc<Semaphore>,
}

impl Addresses {
    pub(crate) fn new(config: &AddressesSection) -> Arc<Self> {
        Arc::new(Self {
            hosts: Table::new(config.remembered),
            networks: Table::new(config.remembered),
            lifted: AtomicU32::new(0),
            waiting: Arc::new(Semaphore::new(config.waiting)),
        })
    }

    /// The bytes that all of it takes, whoever comes.
    pub(crate) fn bytes(config: &AddressesSection) -> usize {
        Table::<Host>::bytes(config.remembered) + Table::<Network>::bytes(config.remembered)
    }

    /// Forgets every failure: who was refused may be let in by what the gateway goes by now.
    pub(crate) fn forgive(&self) {
        self.lifted.fetch_add(1, Ordering::SeqCst);
    }

    /// Goes by other rates from now on. Failures are forgiven whenever a configuration is taken anew.
    pub(crate) fn rebase(&self, old: &AddressesSection, new: &AddressesSection, now: Duration) {
        let now = nanos(now);
        if own_rate(old) != own_rate(new) {
            self.hosts.each(|_, host| host.arrivals.rebase(own_rate(old), own_rate(new), now));
        }
        if network_rate(old) != network_rate(new) {
            self.networks
                .each(|_, network| network.arrivals.rebase(network_rate(old), network_rate(new), now));
        }
    }

    /// Each address that is known, and for how long it will be if nobody comes from there any more.
    pub(crate) fn each_known(&self, now: Duration, mut act: impl FnMut(Prefix, Duration)) {
        let now = nanos(now);
        self.hosts.each(|key, host| {
            let left = Duration::from_nanos(host.known_until.saturating_sub(now));
            let left = if host.proven > 0 { KNOWN_FOR } else { left };
            if !left.is_zero() {
                act(key, left);
            }
        });
    }

    /// An earlier run has known an address; it counts as known for so long.
    pub(crate) fn recall(&self, address: IpAddr, left: Duration, now: Duration) {
        let until = nanos(now + left.min(KNOWN_FOR));
        self.hosts.with(Prefix::host(address), nanos(now), |host| {
            host.known_until = host.known_until.max(until);
        });
    }

    /// A new connection: whether it may go on, and after what wait.
    pub(crate) fn arrive(
        self: &Arc<Self>,
        config: &AddressesSection,
        address: IpAddr,
        now: Duration,
    ) -> Result<Arrival, Turned> {
        let (now, key) = (nanos(now), Prefix::host(address));
        let lifted = self.lifted.load(Ordering::SeqCst);
        // Always the host's lock first.
        let (host, (network, verdict)) = self.hosts.with(key, now, |host| {
            host.forgive(lifted);
            self.networks.with(key.network(), now, |network| judge(config, host, network, now))
        });
        let (wait, known) = verdict?;
        let wait = Duration::from_nanos(wait);
        let (stage, waits, reserved) = (Stage::Handshake, false, false);
        Ok(Arrival { addresses: Arc::clone(self), key, host, network, wait, known, stage, waits, reserved })
    }
}

fn own_rate(config: &AddressesSection) -> Rate {
    Rate::per_second(config.rate, config.burst)
}

fn network_rate(config: &AddressesSection) -> Rate {
    Rate::per_second(config.network_rate, config.network_burst)
}

fn over(count: u32, most: usize) -> bool {
    usize::try_from(count).unwrap_or(usize::MAX) >= most
}

/// One more if that is within a share of so many, of which everybody has one.
fn take_share(count: &mut u32, of: usize, share: usize) -> bool {
    let room = !over(*count, (of / share).max(1));
    *count += u32::from(room);
    room
}

/// How long it waits, and whether its address is known.
fn judge(
    config: &AddressesSection,
    host: &mut Host,
    network: &mut Network,
    now: u64,
) -> Result<(u64, bool), Turned> {
    let known = host.is_known(now);
    if host.blocked_until > now && !known {
        return Err(Turned::Blocked);
    }
    if over(host.handshakes, config.handshakes) {
        return Err(Turned::AddressHandshakes);
    }
    // A known address is not held to what its neighbours do.
    if !known && over(network.handshakes, config.network_handshakes) {
        return Err(Turned::NetworkHandshakes);
    }
    let (own, of_network) = (own_rate(config), network_rate(config));
    let turns = [
        (host.arrivals.wait(own, now), Turned::AddressRate),
        (if known { 0 } else { network.arrivals.wait(of_network, now) }, Turned::NetworkRate),
    ];
    let mut wait = slowed(config, host, now);
    for (turn, why) in turns {
        if turn > nanos(LONGEST_WAIT) {
            return Err(why);
        }
        wait = wait.max(turn);
    }
    host.arrivals.take(own, now);
    if !known {
        network.arrivals.take(of_network, now);
    }
    host.handshakes += 1;
    network.handshakes += 1;
    Ok((wait, known))
}

/// From half the failures on that an address may have, each one more slows it down.
fn slowed(config: &AddressesSection, host: &Host, now: u64) -> u64 {
    let rate = Rate::within(config.failures, config.failure_window.0);
    let (half, taken) = (rate.burst() / 2, host.failures.taken(rate, now));
    let over = taken.saturating_sub(half).min(half);
    nanos(SLOWEST).checked_div(half).unwrap_or(0) * over
}

/// A connection from its arrival to its end: it counts in its address's favour or against it.
#[derive(Debug)]
pub(crate) struct Arrival {
    addresses: Arc<Addresses>,
    key: Prefix,
    host: Place,
    network: Place,
    wait: Duration,
    known: bool,
    stage: Stage,
    /// It has a chair where turns are waited for.
    waits: bool,
    /// It has one of the reserved places, and is not proven.
    reserved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Handshake,
    Open,
    Proven,
}

impl Arrival {
    /// How long its handshake has to wait.
    pub(crate) fn wait(&self) -> Duration {
        self.wait
    }

    /// Whether sessions from its address have been proven.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// The address, as it is counted.
    pub(crate) fn address(&self) -> Prefix {
        self.key
    }

    /// Takes a chair of so many where turns are waited for, unless its address or its network has its share of them.
    pub(crate) fn sit(&mut self, chairs: usize) -> bool {
        let [stranger, network, known] = SHARES;
        let share = if self.known { known } else { stranger };
        let sat = |host: &mut Host| take_share(&mut host.waiting, chairs, share);
        if !self.addresses.hosts.at(self.host, sat).unwrap_or(false) {
            return false;
        }
        self.waits = true;
        // A known address is not held to what its neighbours do; its chair is counted all the same.
        let most = if self.known { 1 } else { network };
        let sat = |network: &mut Network| take_share(&mut network.waiting, chairs, most);
        let room = self.addresses.networks.at(self.network, sat).unwrap_or(false);
        if !room {
            self.addresses.hosts.at(self.host, |host| host.waiting = host.waiting.saturating_sub(1));
            self.waits = false;
        }
        room
    }

    /// Its turn has come.
    pub(crate) fn stand(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.addresses.hosts.at(self.host, |host| host.waiting = host.waiting.saturating_sub(1));
            self.addresses.networks.at(self.network, |network| {
                network.waiting = network.waiting.saturating_sub(1);
            });
        }
    }

    /// Takes one of the places that are kept for known addresses, unless its own has its share of so many.
    pub(crate) fn take_reserved(&mut self, places: usize) -> bool {
        let take = |host: &mut Host| take_share(&mut host.reserved, places, SHARE_OF_RESERVE);
        self.reserved = self.addresses.hosts.at(self.host, take).unwrap_or(false);
        self.reserved
    }

    fn give_up_reserved(&mut self) {
        if std::mem::take(&mut self.reserved) {
            self.addresses.hosts.at(self.host, |host| host.reserved = host.reserved.saturating_sub(1));
        }
    }

    /// It is through the handshake.
    pub(crate) fn opened(&mut self) {
        if self.stage == Stage::Handshake {
            self.stage = Stage::Open;
            self.addresses.hosts.at(self.host, |host| host.handshakes = host.handshakes.saturating_sub(1));
            self.addresses.networks.at(self.network, |network| {
                network.handshakes = network.handshakes.saturating_sub(1);
            });
        }
    }

    /// Its session is proven: whoever else shares the address is blocked no more. Whether the address was not known before.
    pub(crate) fn proven(&mut self) -> bool {
        self.opened();
        if self.stage != Stage::Open {
            return false;
        }
        self.stage = Stage::Proven;
        // One of the fleet: it counts against its site no more.
        self.give_up_reserved();
        let now = nanos(clock::now().monotonic);
        // By its key: in a flood the address may have been forgotten during the handshake.
        let (place, is_new) = self.addresses.hosts.with(self.key, now, |host| {
            let is_new = !host.is_known(now);
            host.proven += 1;
            host.blocked_until = 0;
            is_new
        });
        self.host = place;
        is_new
    }

    /// Its handshake has failed by the peer's fault. How long its address is blocked, if this was one failure too many.
    pub(crate) fn failed(&self, config: &AddressesSection) -> Option<Duration> {
        self.failed_at(config, nanos(clock::now().monotonic))
    }

    fn failed_at(&self, config: &AddressesSection, now: u64) -> Option<Duration> {
        let rate = Rate::within(config.failures, config.failure_window.0);
        let lifted = self.addresses.lifted.load(Ordering::SeqCst);
        let fail = |host: &mut Host| {
            host.forgive(lifted);
            if host.failures.wait(rate, now) == 0 {
                host.failures.take(rate, now);
            }
            // The last one that fits is the last one that is borne. Many may fail at once that were under way at the
            // block's beginning: they do not make it longer.
            let one_too_many = host.failures.wait(rate, now) > 0;
            if !one_too_many || host.is_known(now) || host.blocked_until > now {
                return None;
            }
            let length = |doublings: u8| {
                config.block.0.saturating_mul(1 << u32::from(doublings.min(20))).min(config.block_at_most.0)
            };
            // Who has kept quiet for as long again as the last block begins anew.
            let quiet = nanos(length(host.doublings).max(config.failure_window.0));
            let again = host.blocked_until > 0 && now < host.blocked_until.saturating_add(quiet);
            host.doublings = if again { host.doublings.saturating_add(1).min(20) } else { 0 };
            let block = length(host.doublings);
            host.blocked_until = now.saturating_add(nanos(block));
            Some(block)
        };
        self.addresses.hosts.with(self.key, now, fail).1
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.stand();
        self.give_up_reserved();
        self.opened();
        if self.stage == Stage::Proven {
            let until = nanos(clock::now().monotonic + KNOWN_FOR);
            self.addresses.hosts.at(self.host, |host| {
                host.proven = host.proven.saturating_sub(1);
                host.known_until = until;
            });
        }
    }
}

#[cfg(test)]
mod tests;
