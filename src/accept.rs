//! The front door: TCP, TLS, identity and upgrade of one connection in one task, under one deadline.

mod addresses;
mod counted;
mod door;
mod failures;
mod prefix;
mod proxy;
mod refusals;
mod table;
mod times;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use doorward_pki::identity::{Fingerprint, Leaf, display_subject};
use doorward_proto::ids::DeviceId;
use doorward_proto::limits::{Connects, Limits};
use doorward_proto::session::Grant;
use doorward_proto::time::NumericDate;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, warn};

use crate::bucket::{Bucket, Rate, nanos};
use crate::fold::{Kind, Sample};
use crate::gateway::sessions::Handle;
use crate::gateway::{Gateway, Source};
use crate::identity::{self, Asked, Denied, Problem};
use crate::metrics::Turned;
use crate::metrics::family::Label as _;
use crate::registry::cache::Entry;
use crate::registry::{Record, RegistryError};
use crate::threads::Threads;
use crate::traces::{Phase, Trail};
use crate::upgrade::{self, HeadError};
use crate::{clock, entropy, tls};

pub(crate) use addresses::Addresses;
pub(crate) use door::Pass;

use counted::Counted;
use refusals::{failed, late, refuse, refuse_in_tls};
use times::Times;

/// The connection's stream, boxed: what a session keeps of it is a pointer.
pub(crate) type Stream = Box<TlsStream<Counted>>;

/// Between tries of `accept` when it fails for want of a descriptor or of memory.
const BACK_OFF: Duration = Duration::from_millis(50);
/// How often that is said.
const COMPLAINTS: Rate = Rate::every(10, 1);
/// Descriptors that are kept for that.
const RESERVE: usize = 8;
/// How many are closed then before the next try: as many as a backlog holds, and a bound.
const CLEARED_AT_ONCE: usize = 1024;
/// How often an admission asks again when the record changes under it.
const MAX_LOOK_UPS: u32 = 8;
/// How long a handshake's turn lasts. Computing it takes milliseconds: who needs longer does not read or does not answer,
/// and goes on without keeping the others waiting.
const TURN: Duration = Duration::from_millis(200);
/// How long who is refused again and again waits for it: a loop that does not wait by itself goes round as seldom…
const AGAIN: Duration = Duration::from_secs(2);
/// …as long as at most one in so many connections waits like this; the others are answered at once.
pub(crate) const SHARE_OF_AGAIN: usize = 64;

const NOT_IN_TIME: &str = "not through the handshake in time";

/// A device that has come through the door.
pub(crate) struct Admitted {
    pub(crate) stream: Stream,
    /// What it sent behind its upgrade request.
    pub(crate) rest: Vec<u8>,
    pub(crate) handle: Arc<Handle>,
    pub(crate) grant: Grant,
    pub(crate) peer: SocketAddr,
    /// A drain waits as long as this is held.
    pub(crate) stay: TaskTrackerToken,
}

/// What lies behind the door: it takes the device from here on. The gateway's is [`crate::connection::begin`].
pub(crate) type Room = fn(Arc<Gateway>, Admitted, Pass);

/// A session's place in the table while its connection has not begun: given back where that never happens.
struct Place<'a> {
    gateway: &'a Gateway,
    handle: Option<Arc<Handle>>,
    stay: TaskTrackerToken,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.gateway.sessions.leave(&handle);
        }
    }
}

/// Accepts, on threads of its own, until it is told to stop. Sessions begin where the gateway was made.
///
/// # Errors
/// Where there can be no threads, or the door's work has failed.
pub(crate) async fn run(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    room: Room,
    stop: CancellationToken,
) -> io::Result<()> {
    let threads = Threads::for_the_door()?;
    let listener = listener.into_std()?;
    let accepting = threads.spawn(async move {
        accept(gateway, TcpListener::from_std(listener)?, room, stop).await;
        io::Result::Ok(())
    })?;
    accepting.await?
}

async fn accept(gateway: Arc<Gateway>, listener: TcpListener, room: Room, stop: CancellationToken) {
    // Descriptors in reserve: when none is left one is given up for a moment to accept and close what waits, so that the
    // backlog does not fill with the dead. Whoever else opens a file in that moment may take it: so there are some more.
    let mut reserve = Vec::new();
    keep_in_reserve(&mut reserve);
    let mut complaints = Bucket::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match &accepted {
            Ok(_) => gateway.counters.connection(),
            Err(_) => gateway.counters.accept_failed(),
        }
        match accepted {
            Ok((tcp, peer)) => {
                keep_in_reserve(&mut reserve);
                door::enter(&gateway, tcp, peer, room);
            }
            // The peer was gone before it was accepted: nothing of ours.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if complaints.try_take(COMPLAINTS, nanos(clock::now().monotonic)) {
                    warn!(%error, "cannot accept; raise the limit of open files (LimitNOFILE, ulimit -n) or lower limits.connections");
                }
                drop(reserve.pop());
                // One after the other, each by the descriptor that the one before has given back.
                for _ in 0..CLEARED_AT_ONCE {
                    let Ok(Ok((tcp, peer))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await
                    else {
                        break;
                    };
                    gateway.counters.door().turned(Turned::NoDescriptors);
                    debug!(%peer, "closed: no descriptor is left for it");
                    drop(tcp);
                }
                keep_in_reserve(&mut reserve);
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

fn keep_in_reserve(reserve: &mut Vec<File>) {
    while reserve.len() < RESERVE
        && let Ok(file) = File::open("/dev/null")
    {
        reserve.push(file);
    }
}

async fn admit(gateway: Arc<Gateway>, tcp: TcpStream, peer: SocketAddr, mut pass: Pass, room: Room) {
    let Ok(id) = entropy::random::<8>().map(|bytes| format!("{:016x}", u64::from_be_bytes(bytes))) else {
        warn!(%peer, "closed: the operating system gives no random bytes");
        return;
    };
    let id: Arc<str> = id.into();
    pass.trail = Trail::begin(&gateway, &id, peer);
    let under_way = gateway.counters.handshaking();
    let limits = gateway.live().config.limits.clone();
    let times = Times::new(&limits);
    // Boxed and dropped here: a session does not keep its handshake's state.
    let handshake = Box::pin(handshake(&gateway, tcp, peer, &id, &times, &mut pass));
    let outcome = tokio::time::timeout_at(times.end, handshake).await;
    drop(under_way);
    match outcome {
        Ok(Outcome::Admitted(admitted)) => {
            pass.arrival.opened();
            pass.trail.phase(Phase::Proof);
            let inside = gateway.threads.clone();
            let _inside = inside.enter();
            room(gateway, *admitted, pass);
        }
        // Beyond the deadline, which has been kept: the refusal is this connection's one verdict.
        Ok(Outcome::Refused(refused)) => {
            pass.trail.refused(&refused.denied);
            if failures::counts_as(refused.denied.problem) {
                failed(&gateway, &pass.arrival, &id);
            }
            if refused.denied.again {
                gateway.counters.door().repeat();
                if let Ok(_seat) = gateway.again.try_acquire() {
                    tokio::time::sleep(AGAIN).await;
                }
            }
            refuse(&gateway, *refused, peer, &id).await;
        }
        Ok(Outcome::Over) => {}
        Ok(Outcome::Late { what, by_the_peer }) => {
            late(&gateway, peer, &id, what);
            pass.trail.failed("timeout", what);
            if by_the_peer {
                failed(&gateway, &pass.arrival, &id);
            }
        }
        // Its turn had not come, or the registry had not answered: nothing that it has done.
        Err(_) => {
            late(&gateway, peer, &id, NOT_IN_TIME);
            pass.trail.failed("timeout", NOT_IN_TIME);
        }
    }
}

/// What a handshake comes to.
enum Outcome {
    Admitted(Box<Admitted>),
    /// To be answered.
    Refused(Box<Refused>),
    /// Nobody is there to be answered; counted and logged.
    Over,
    /// The peer did not say what it had to say in time.
    Late {
        what: &'static str,
        /// It has had all of its time for it.
        by_the_peer: bool,
    },
}

struct Refused {
    stream: Stream,
    subject: String,
    /// Whom the certificate names, if that can be a device. A device CA has signed it.
    named: Option<DeviceId>,
    denied: Denied,
}

/// TLS, identity, upgrade.
async fn handshake(
    gateway: &Arc<Gateway>,
    tcp: TcpStream,
    peer: SocketAddr,
    id: &Arc<str>,
    times: &Times,
    Pass { arrival, trail, .. }: &mut Pass,
) -> Outcome {
    // Small frames, answered at once: waiting to fill a segment would only add latency. A failure costs just that.
    let _ = tcp.set_nodelay(true);
    // A turn is for who has said all of its hello: what comes before costs nothing but memory.
    let hello = LazyConfigAcceptor::new(Acceptor::default(), Counted::new(tcp));
    let Ok(hello) = tokio::time::timeout_at(times.hello, hello).await else {
        return Outcome::Late { what: "no TLS hello in time", by_the_peer: true };
    };
    trail.phase(Phase::Turn);
    let Ok(turn) = gateway.handshakes.acquire().await else { return Outcome::Over };
    trail.phase(Phase::Handshake);
    let since = clock::instant(clock::now().monotonic);
    let (accepted, subject) = {
        let accept = async { hello?.into_stream(gateway.live().tls.server_config()).await };
        let mut accepting = std::pin::pin!(tls::noting_subject(accept));
        let in_turn = tokio::time::timeout(TURN, &mut accepting).await;
        // Over with the last computation: what comes now waits for the peer and for the registry.
        drop(turn);
        match in_turn {
            Ok(accepted) => accepted,
            // From here on the peer alone is waited for.
            Err(_) => match tokio::time::timeout_at(times.end, accepting).await {
                Ok(accepted) => accepted,
                Err(_) => return Times::late("TLS was not over in time", since, times.tls),
            },
        }
    };
    let mut stream: Stream = match accepted {
        Ok(stream) => Box::new(stream),
        Err(error) => {
            let class = refuse_in_tls(gateway, &error, peer, id, subject.as_deref().unwrap_or("-"));
            trail.failed(class.label(), "refused in TLS");
            if failures::counts_in_tls(&error) {
                failed(gateway, arrival, id);
            }
            return Outcome::Over;
        }
    };
    let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
    // The verifier demands a certificate; none here would be a hole, not a guest.
    let Some(leaf) = chain.first() else { return Outcome::Over };
    trail.secured(stream.get_ref().1);
    trail.phase(Phase::Request);
    let mut rest = Vec::new();
    let since = clock::instant(clock::now().monotonic);
    let head = upgrade::read_head(&mut stream, &mut rest);
    let Ok(head) = tokio::time::timeout_at(times.of_request(), head).await else {
        return Times::late("no request in time", since, times.its_request);
    };
    match admit_request(gateway, head, peer, id, &chain, trail).await {
        Ok(Some((wanted, mut place, grant))) => {
            trail.phase(Phase::Upgrade);
            if let Err(error) = upgrade::accept(&mut stream, &wanted).await {
                debug!(connection = %id, %peer, %error, "gone during the upgrade");
                return Outcome::Over;
            }
            if let Err(error) = stream.get_mut().0.move_to(&gateway.threads) {
                warn!(connection = %id, %peer, %error, "closed: its socket cannot be watched");
                return Outcome::Over;
            }
            let Some(handle) = place.handle.take() else { return Outcome::Over };
            let stay = place.stay.clone();
            Outcome::Admitted(Box::new(Admitted { stream, rest, handle, grant, peer, stay }))
        }
        Ok(None) => Outcome::Over,
        Err(denied) => {
            let named = Leaf::parse(leaf).ok().and_then(|leaf| DeviceId::new(leaf.common_name().ok()?).ok());
            Outcome::Refused(Box::new(Refused { stream, subject: display_subject(leaf), named, denied }))
        }
    }
}

type Admission<'a> = (upgrade::Wanted, Place<'a>, Grant);

async fn admit_request<'a>(
    gateway: &'a Arc<Gateway>,
    head: Result<upgrade::Request, HeadError>,
    peer: SocketAddr,
    id: &Arc<str>,
    chain: &[CertificateDer<'static>],
    trail: &mut Trail,
) -> Result<Option<Admission<'a>>, Denied> {
    let draining = || Denied::new(Problem::Draining, "this gateway is going away; reconnect");
    if gateway.is_draining() {
        return Err(draining());
    }
    let request = match head {
        Ok(request) => request,
        Err(HeadError::Malformed(why)) => return Err(Denied::new(Problem::Malformed, why)),
        Err(HeadError::Io(error)) => {
            gateway.counters.gone();
            debug!(connection = %id, %peer, %error, "gone before its request");
            return Ok(None);
        }
    };
    let der = chain.first().map_or(&[][..], |leaf| leaf);
    let leaf = Leaf::parse(der).map_err(|error| Denied::new(Problem::CertificateUnfit, error.to_string()))?;
    let fingerprint = Fingerprint::of(der);
    let leaf_ends = clock::date(NumericDate::from_seconds(leaf.not_after()));
    let asks_from = identity::asks_from(&leaf, &fingerprint);
    // Whose admission this is, for the feed; a name that is no id belongs to no record.
    let named = leaf.common_name().ok().and_then(|name| DeviceId::new(name).ok());
    if let Some(device) = &named {
        trail.named(device);
    }
    let watch = named.as_ref().map(|device| gateway.sessions.watch(device));

    if let Some(watch) = &watch
        && let Some(problem) = watch.spent().still_refused(&fingerprint, clock::now().monotonic)
    {
        return Err(Denied::again(problem));
    }

    let mut wanted = None;
    let mut request = Some(request);
    let mut counted = false;
    for _ in 0..MAX_LOOK_UPS {
        if let Some(watch) = &watch {
            watch.reset();
        }
        trail.phase(Phase::Registry);
        let (mut record, source) = look_up(gateway, &fingerprint, peer, id).await?;
        trail.pause();
        if let Some(record) = &mut record {
            record.end_by(leaf_ends);
        }
        let now = clock::now().wall;
        let late = record.as_ref().map_or(Ok(Duration::ZERO), |record| gateway.granter.lateness(record))?;
        let refusing = |denied: Denied| {
            if let (Some(watch), true) = (&watch, denied.problem.is_of_record()) {
                watch.spent().refuse(&fingerprint, denied.problem, clock::now().monotonic);
            }
            denied
        };
        identity::judge(&leaf, record.as_ref(), now, late).map_err(refusing)?;
        // By what is trusted now: that may be less than when the handshake began, and a resumed one asked nobody.
        let live = gateway.live();
        let origin = live.trust().origin(&leaf, chain);
        live.trust().judge(&origin, now).map_err(refusing)?;
        // Known devices alone are told what is wrong with their requests.
        if let Some(request) = request.take() {
            wanted = Some(request.judge(&live.config.gateway.origins)?);
        }
        let (Some(record), Some(key), Some(watch)) = (record, wanted.as_ref().map(|w| w.key), &watch) else {
            break;
        };
        let asked = Asked { key, asks_from };
        let grant = gateway.granter.grant(&record, asked, now)?;
        let entry = (source == Source::Registry).then(|| Entry::of(&record));
        let keep = || {
            if let Some(entry) = entry {
                gateway.cache.put(&fingerprint, entry);
            }
        };
        throttle(gateway, &record.device)?;
        // Once, however often the record is asked for.
        if !std::mem::replace(&mut counted, true) {
            let now = clock::now().monotonic;
            watch
                .spent()
                .connect(peer.ip(), grant.limits.connects, now)
                .map_err(|wait| too_often(wait, grant.limits))?;
        }
        let handle = Handle {
            key,
            certificate_ends: leaf_ends,
            asks_from,
            origin,
            supersedes: record.certificate.supersedes,
            heard_ms: AtomicI64::new(now.as_millis()),
            spent: Arc::clone(watch.spent()),
            ..Handle::new(Arc::clone(id), record.device, record.fleet, peer, fingerprint)
        };
        let handle = Arc::new(handle);
        let stay = gateway.tasks.token();
        if gateway.sessions.enter(watch, &handle, keep) {
            let place = Place { gateway, handle: Some(handle), stay };
            // A drain that has begun meanwhile may have said its goodbyes already: this one would never hear it.
            if gateway.is_draining() {
                return Err(draining());
            }
            return Ok(wanted.map(|wanted| (wanted, place, grant)));
        }
    }
    Err(Denied::new(Problem::Unavailable, "the device's record keeps changing; try again"))
}

async fn look_up(
    gateway: &Gateway,
    certificate: &Fingerprint,
    peer: SocketAddr,
    id: &str,
) -> Result<(Option<Record>, Source), Denied> {
    gateway.record(certificate).await.map_err(|error| {
        if !matches!(error, RegistryError::Unavailable(_) | RegistryError::Unknown(_)) {
            let sample = || Sample::new(id, peer, "-");
            if gateway.folds.may_say(&gateway.counters, Kind::Unreadable, "unreadable", sample) {
                warn!(connection = %id, %peer, %error, "the device's record cannot be read");
            }
        }
        let detail = "the gateway cannot ask its registry, and has no fresh copy of this device's record";
        Denied::new(Problem::Unavailable, detail)
    })
}

fn throttle(gateway: &Gateway, device: &DeviceId) -> Result<(), Denied> {
    let Some(wait) = gateway.sessions.throttled(device, clock::now().monotonic) else { return Ok(()) };
    let detail =
        "this device has been taken over again and again, as if there were two of it; try again later";
    Err(Denied { retry_after: Some(wait.as_secs() + 1), ..Denied::new(Problem::TooMany, detail) })
}

fn too_often(wait: Duration, limits: Limits) -> Denied {
    let Connects { per_minute, burst } = limits.connects;
    let detail =
        format!("this device has connected more than {burst} times at once and {per_minute} times a minute");
    Denied { retry_after: Some(wait.as_secs() + 1), ..Denied::new(Problem::TooMany, detail) }
}
