//! A run: everybody connects, the honest ones send while the attackers attack, what is outstanding is waited for.

pub(crate) mod honest;
mod pacer;
pub(crate) mod probe;
pub(crate) mod raw;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use doorward_client::connection::Dial;
use doorward_client::target::Target;
use doorward_client::{Credentials, Renew, RenewalOptions};
use rustls::ClientConfig;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use pacer::Pace;

use crate::clock;
use crate::fleet::{self, Member};
use crate::plan::{Failure, Plan};
use crate::preflight::{self, Sources};
use crate::report::{self, Report};
use crate::scenario::{self, Cast};
use crate::tally::Tally;

/// Handshakes at once: what keeps two cores busy, and a gateway's queue of new connections short.
const HANDSHAKES: usize = 256;
/// Messages taken from the gateway are short; commands and subscriptions are none of the simulator's.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Where the run stands. All devices watch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nobody sends yet.
    Connecting,
    /// Since this moment.
    Sending(Duration),
    /// No more is sent; answers are waited for until this moment.
    Draining { ended: Duration, until: Duration },
}

/// What all devices share.
pub(crate) struct Context {
    pub(crate) members: Vec<Member>,
    pub(crate) tally: Tally,
    pub(crate) payload: usize,
    pub(crate) phase: watch::Sender<Phase>,
    /// How often all have lost their connections at once.
    pub(crate) storm: watch::Sender<u32>,
    pub(crate) handshakes: Semaphore,
    pub(crate) cancel: CancellationToken,
    pub(crate) gateway: SocketAddr,
    pub(crate) answer_within: Duration,
    pub(crate) unproven_within: Duration,
    renewal: RenewalOptions,
    began: Duration,
    connect_rate: Option<f64>,
    target: Arc<Target>,
    connect_within: Duration,
    sources: Sources,
    /// Honest devices that are up or have given up.
    settled: AtomicUsize,
    all_settled: Notify,
}

impl Context {
    /// How a device's connection is made.
    pub(crate) fn dial(&self, tls: &Arc<ClientConfig>, local: Option<IpAddr>) -> Dial {
        Dial {
            tls: Arc::clone(tls),
            target: Arc::clone(&self.target),
            address: Some(self.gateway),
            local,
            key: None,
            within: self.connect_within,
            max_message_bytes: MAX_MESSAGE_BYTES,
        }
    }

    pub(crate) fn honest_dial(&self, index: usize, tls: &Arc<ClientConfig>) -> Dial {
        self.dial(tls, self.sources.of(index))
    }

    /// How a device takes what the gateway rotates.
    pub(crate) fn renewal_of(&self, credentials: &Credentials) -> RenewalOptions {
        let stored = self.renewal.renew == Renew::InMemory && credentials.folder().is_some();
        let renew = if stored { Renew::Stored } else { self.renewal.renew };
        RenewalOptions { renew, ..self.renewal.clone() }
    }

    /// When a device's turn to connect comes.
    pub(crate) fn turn(&self, place: usize) -> Duration {
        match self.connect_rate {
            #[expect(clippy::cast_precision_loss, reason = "a fleet is far below 2^52")]
            Some(rate) => self.began + seconds(place as f64 / rate),
            None => self.began,
        }
    }

    pub(crate) fn settle(&self) {
        self.settled.fetch_add(1, Ordering::AcqRel);
        self.all_settled.notify_one();
    }
}

/// Never a panic, whatever the numbers were.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(86_400))
}

/// Carries out a plan and judges what happened. It ends in bounded time: connecting, the duration or the attacks,
/// and the wait for answers each have their limit.
///
/// # Errors
/// [`Failure`] where it cannot be carried out at all. What the gateway did wrong is in [`Report::failures`].
pub async fn run(plan: Plan) -> Result<Report, Failure> {
    let cast = scenario::cast(&plan)?;
    let context = prepare(&plan, &cast).await?;
    let ticker = tokio::spawn(tell(plan.progress.clone(), Arc::clone(&context)));

    let mut honest = JoinSet::new();
    for (place, (index, role)) in cast.honest.iter().enumerate() {
        honest.spawn(honest::live(Arc::clone(&context), *index, place, *role));
    }
    connect_all(&context, &plan, cast.honest.len()).await;

    let sending = clock::now();
    context.phase.send_replace(Phase::Sending(sending));
    let attacks = scenario::attack(&plan, &context, &cast);
    let duration = plan.cancel.run_until_cancelled(tokio::time::sleep(plan.duration));
    let (attacks, _) = tokio::join!(attacks, duration);
    // What was due at the very end was never meant to go; attacks may take longer than was planned.
    let now = clock::now();
    let ended = if cast.hostile.is_empty() { now.min(sending + plan.duration) } else { now };
    context.phase.send_replace(Phase::Draining { ended, until: now + plan.answer_within });

    let mut outcomes = Vec::with_capacity(cast.honest.len());
    while let Some(outcome) = honest.join_next().await {
        // A task that panicked has reported itself; its device counts as one that never connected.
        outcomes.extend(outcome);
    }
    ticker.abort();
    outcomes.sort_by_key(|outcome| outcome.index);
    let mut report = report::build(&plan, &context, &outcomes, now.saturating_sub(sending));
    report.attacks = attacks;
    report.failures = scenario::judge(&plan, &cast, &outcomes, &report);
    report.met = report.failures.is_empty();
    Ok(report)
}

/// What a plan's devices share. Nothing is sent yet.
pub(crate) async fn prepare(plan: &Plan, cast: &Cast) -> Result<Arc<Context>, Failure> {
    let target = Target::parse(&plan.url)?;
    let resolved = target.resolve().await;
    let gateway = resolved
        .and_then(|all| all.first().copied().ok_or_else(|| std::io::ErrorKind::NotFound.into()))
        .map_err(|error| Failure::Resolve { url: plan.url.clone(), error })?;
    let sources = preflight::check(cast.honest.len(), gateway, plan.source_addresses)?;
    let members =
        fleet::members(plan.devices.clone()).map_err(|(device, error)| Failure::Tls { device, error })?;
    Ok(Arc::new(Context {
        members,
        tally: Tally::new(plan.laps.clone()),
        payload: plan.payload,
        phase: watch::Sender::new(Phase::Connecting),
        storm: watch::Sender::new(0),
        handshakes: Semaphore::new(HANDSHAKES),
        cancel: plan.cancel.clone(),
        gateway,
        answer_within: plan.answer_within,
        unproven_within: plan.unproven_within,
        renewal: RenewalOptions { renew: plan.renew, spread: plan.renew_spread, ..RenewalOptions::default() },
        began: clock::now(),
        connect_rate: plan.connect_rate.filter(|rate| *rate > 0.0),
        target: Arc::new(target),
        connect_within: plan.connect_within,
        sources,
        settled: AtomicUsize::new(0),
        all_settled: Notify::new(),
    }))
}

/// Until every honest device is up or has given up; those that are late join in while the others send.
async fn connect_all(context: &Context, plan: &Plan, devices: usize) {
    let all = async {
        while context.settled.load(Ordering::Acquire) < devices {
            context.all_settled.notified().await;
        }
    };
    let last_turn = context.turn(devices).saturating_sub(context.began);
    let patience = last_turn + plan.connect_within * 2;
    // What is not up by then shows in the report.
    let _ = plan.cancel.run_until_cancelled(tokio::time::timeout(patience, all)).await;
}

async fn tell(progress: Option<crate::plan::Progress>, context: Arc<Context>) {
    let Some(progress) = progress else { return };
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        progress(&context.tally.snapshot());
    }
}
