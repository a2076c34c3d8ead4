//! `[admin]`: what an operator's programs ask a gateway, by HTTP: whether it lives (`/healthz`), whether it is ready and if
//! not why (`/readyz`), and what it counts (`/metrics`). Read-only, and without a password: a loopback address by default.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::gateway::Gateway;
use crate::gateway::readiness::{CHECKS, Check};
use crate::http::{self, Answer, Asked, Reserve, passing, plain};
use crate::metrics::page::Page;
use crate::metrics::process;

/// Descriptors held back for it.
const RESERVED: usize = 4;
/// Between tries to listen.
const RETRY: Duration = Duration::from_secs(5);
/// Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const WAITS: &str = "the gateway does not serve yet; it waits for its clock or its registry";

/// The admin listener. It is there before its gateway, which is shown to it once there is one.
pub struct Admin {
    gateway: OnceLock<Arc<Gateway>>,
    address: OnceLock<SocketAddr>,
}

impl Admin {
    /// Listens, and answers until it is stopped. A port that another program has keeps no device out: it is named, and tried
    /// again for as long as the gateway runs. Call it inside a tokio runtime.
    pub async fn start(at: SocketAddr, stop: CancellationToken) -> Arc<Self> {
        let admin = Arc::new(Self { gateway: OnceLock::new(), address: OnceLock::new() });
        match TcpListener::bind(at).await {
            Ok(listener) => admin.serve(listener, stop),
            Err(error) => {
                warn!(
                    address = %at, %error,
                    "cannot listen for /healthz, /readyz and /metrics (admin.listen): the gateway goes on without, and tries again; \
                     name another address in config.toml, or \"\" for none"
                );
                let late = Arc::clone(&admin);
                tokio::spawn(async move {
                    let listener = tokio::select! {
                        listener = until_bound(at) => listener,
                        () = stop.cancelled() => return,
                    };
                    late.serve(listener, stop);
                    late.say();
                });
            }
        }
        admin
    }

    fn serve(self: &Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        if let Ok(address) = listener.local_addr() {
            // Set once: there is one listener.
            let _ = self.address.set(address);
        }
        let asked = Arc::clone(self);
        let answer = move |request| {
            let admin = Arc::clone(&asked);
            async move { admin.answer(&request).await }
        };
        tokio::spawn(http::serve(listener, Reserve::new(RESERVED), answer, stop));
    }

    /// From now on it speaks for this gateway.
    pub fn show(&self, gateway: &Arc<Gateway>) {
        // The first one stays: there is one in a process.
        let _ = self.gateway.set(Arc::clone(gateway));
        self.say();
    }

    fn say(&self) {
        let Some(address) = self.address() else { return };
        info!(%address, "/healthz, /readyz and /metrics are served by HTTP");
        if !address.ip().is_loopback() {
            warn!(%address, "whoever reaches admin.listen reads what this gateway counts; it asks nobody for a password");
        }
    }

    /// Where it listens; `None` while it cannot.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    async fn answer(self: Arc<Self>, asked: &Asked) -> Answer {
        match asked.path.as_str() {
            // That it answers is the answer.
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/readyz" => self.ready(&asked.query),
            "/metrics" => {
                // Every session is looked at, and /proc is read: beside the devices, not before them.
                match tokio::task::spawn_blocking(move || self.metrics()).await {
                    Ok(Ok(text)) => passing(StatusCode::OK, TEXT, text.into()),
                    Ok(Err(error)) => {
                        warn!(%error, "the metrics cannot be shown");
                        plain(
                            StatusCode::INTERNAL_SERVER_ERROR,
                            "the metrics cannot be shown; the log says why\n",
                        )
                    }
                    Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be shown\n"),
                }
            }
            _ => plain(StatusCode::NOT_FOUND, "there is /healthz, /readyz and /metrics\n"),
        }
    }

    fn metrics(&self) -> Result<Vec<u8>, String> {
        let mut page = Page::default();
        match self.gateway.get() {
            Some(gateway) => gateway.collect(&mut page),
            None => page.flag("doorward_ready", "Whether every check of /readyz passes.", false),
        }
        process::collect(&mut page);
        page.text()
    }

    /// Each check, and whether all pass that were asked for: `?exclude=CHECK` leaves one out, as Kubernetes' own `/readyz` does.
    fn ready(&self, query: &str) -> Answer {
        let excluded: Vec<&str> = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("exclude="))
            .filter(|name| !name.is_empty())
            .collect();
        if excluded.iter().any(|name| !CHECKS.contains(name)) {
            let words = "exclude names one of serving, clock, draining, registry, staleness, store\n";
            return plain(StatusCode::BAD_REQUEST, words);
        }
        let checks = match self.gateway.get() {
            Some(gateway) => gateway.checks(),
            None => vec![Check::failed("serving", WAITS)],
        };
        let ready = checks.iter().all(|check| check.ok || excluded.contains(&check.check));
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let answer =
            Answered { ready, gateway: self.gateway.get().map(|gateway| &*gateway.name), checks: &checks };
        match serde_json::to_vec_pretty(&answer) {
            Ok(mut json) => {
                json.push(b'\n');
                passing(status, "application/json", Bytes::from(json))
            }
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the checks cannot be shown\n"),
        }
    }
}

async fn until_bound(at: SocketAddr) -> TcpListener {
    loop {
        tokio::time::sleep(RETRY).await;
        if let Ok(listener) = TcpListener::bind(at).await {
            return listener;
        }
    }
}

/// The answer to `/readyz`.
#[derive(Serialize)]
struct Answered<'a> {
    ready: bool,
    gateway: Option<&'a str>,
    checks: &'a [Check],
}
