//! A gateway's parts, from the start of the first to the end of the last.

use std::future::Future;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use doorward_proto::close::Close;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::follow::{self, Follower};
use super::mailbox::Ending;
use super::{
    Gateway, confirm, credentials, custody, events, own, places, quarantine, renewals, upkeep, watch, witness,
};
use crate::registry::{Enrolment, RegistryError};
use crate::threads::Threads;
use crate::traces::Exporting;
use crate::{accept, connection, crl_server, sink};

/// A part of the drain's time is kept for the store's last transaction.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// Serves until `shutdown`, then drains: no new upgrades, publishes under way are answered, every session gets its
/// `bye` and 1001, what is stored is committed.
///
/// # Errors
/// [`RegistryError`] where the registry does not answer at the start and no earlier run has left a copy of it that may serve;
/// where its schema is another; and where another gateway takes this one's name.
pub async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), RegistryError> {
    serve_into(gateway, listener, shutdown, connection::begin).await
}

/// The same with another room behind the door.
pub(crate) async fn serve_into(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    shutdown: CancellationToken,
    room: accept::Room,
) -> Result<(), RegistryError> {
    let name = &gateway.name;
    let enrolment = Enrolment {
        name: Arc::clone(name),
        instance: gateway.instance.clone(),
        version: env!("CARGO_PKG_VERSION"),
        address: listener.local_addr().map(|address| address.to_string()).unwrap_or_default(),
        may_serve: follow::may_serve(gateway.max_staleness()),
    };
    let follower = Follower::start(Arc::clone(&gateway), enrolment).await?;
    let stop = CancellationToken::new();
    let stop_writer = CancellationToken::new();
    // Beside the parts: without it everybody is served.
    let exporting = gateway.traces.as_ref().and_then(Exporting::start);
    let writer = sink::Writer {
        sink: Arc::clone(&gateway.sink),
        registry: Arc::clone(&gateway.registry),
        routes: Arc::clone(&gateway.routes),
        look_at_feed: Arc::clone(&gateway.look_at_feed),
        sight: Arc::clone(&gateway.sight),
        size: sink::Size::default(),
        failed: None,
        away: false,
    };
    let cannot = |error: io::Error| RegistryError::Internal(format!("a thread cannot be started: {error}"));
    let threads = Threads::for_the_feed().map_err(cannot)?;
    let beside = threads.handle().map_err(cannot)?;
    let mut parts = JoinSet::new();
    parts.spawn(ends(sink::run(writer, stop_writer.clone())));
    parts.spawn_on(confirm::run(Arc::clone(&gateway), follower.effects(), stop.clone()), beside);
    parts.spawn_on(follower.run(stop.clone()), beside);
    parts.spawn(ends(upkeep::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(renewals::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(credentials::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(quarantine::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(custody::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(witness::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(places::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(watch::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(own::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(events::run(Arc::clone(&gateway), stop.clone())));
    let accepting = accept::run(Arc::clone(&gateway), listener, room, stop.clone());
    parts.spawn(async {
        accepting.await.map_err(|error| RegistryError::Internal(format!("nobody can be let in: {error}")))
    });
    let lists = gateway.lists.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(listener) = lists {
        parts.spawn(ends(crl_server::run(Arc::clone(&gateway), listener, stop.clone())));
    }
    gateway.ready.send_replace(true);

    // None of the parts ends by itself. Without one the others would serve devices that nobody can revoke.
    let failed = tokio::select! {
        () = shutdown.cancelled() => None,
        Some(ended) = parts.join_next() => Some(match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) => RegistryError::Internal("a part of the gateway has ended".to_owned()),
            Err(error) => RegistryError::Internal(format!("a part of the gateway has failed: {error}")),
        }),
    };
    if let Some(error) = &failed {
        error!(%error, "the gateway cannot go on; it drains and ends");
    }
    drain(&gateway).await;
    gateway.say_all();
    stop.cancel();
    stop_writer.cancel();
    let ended = async {
        while parts.join_next().await.is_some() {}
        sign_off(&gateway).await
    };
    if tokio::time::timeout(FLUSH_WITHIN, ended).await.is_err() {
        warn!("the store did not take what was under way before the drain ended; it was never acked");
    }
    if let Some(exporting) = exporting {
        exporting.end().await;
    }
    failed.map_or(Ok(()), Err)
}

/// A part that ends in no other way than by being told to.
async fn ends(part: impl Future<Output = ()>) -> Result<(), RegistryError> {
    part.await;
    Ok(())
}

/// Tells the registry that this gateway serves nobody any more. From then on no receipt counts it, so what it has kept lets
/// nobody in before the registry has been read again: that is noted first.
async fn sign_off(gateway: &Gateway) {
    if gateway.sight.is_away() {
        info!("the registry is away: this gateway counts as serving until it may serve no more");
        return;
    }
    let signed_off = match gateway.cache.set_signed_off(true).await {
        Ok(()) => gateway.registry.sign_off(&gateway.name, &gateway.instance).await,
        Err(stuck) => Err(RegistryError::Unavailable(stuck.to_string())),
    };
    let Err(error) = signed_off else { return };
    warn!(%error, "this gateway could not sign off; receipts count it until it may serve no more");
    if matches!(error, RegistryError::Unavailable(_)) {
        // For certain it has not: it counts, and may serve.
        if let Err(error) = gateway.cache.set_signed_off(false).await {
            warn!(%error, "and it starts again only with its registry");
        }
    }
}

async fn drain(gateway: &Arc<Gateway>) {
    let devices = gateway.devices();
    info!(devices, "draining");
    gateway.draining.store(true, Ordering::SeqCst);
    let whole = gateway.drain_within();
    // The door stays open for the time being: who knocks is told to come back (503).
    let away = |gently| {
        move || Ending {
            close: Close::GoingAway,
            // Spread, so that a fleet does not come back in one second.
            retry_after: Some(fastrand::u64(1..=10)),
            gently,
        }
    };
    gateway.sessions.end_all(away(true));
    gateway.tasks.close();
    if tokio::time::timeout(whole.mul_f32(0.6), gateway.tasks.wait()).await.is_err() {
        gateway.sessions.end_all(away(false));
        if tokio::time::timeout(whole.mul_f32(0.4), gateway.tasks.wait()).await.is_err() {
            warn!(devices = gateway.devices(), "some connections did not end within the drain");
        }
    }
    info!("drained");
}
