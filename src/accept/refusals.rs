//! How a connection ends that is not let in: what is counted, logged and noted, and what its peer is told.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::info;

use super::Refused;
use super::addresses::Arrival;
use crate::fold::{Kind, Sample};
use crate::gateway::Gateway;
use crate::gateway::events::Event;
use crate::identity::Problem;
use crate::metrics::TlsRefusal;
use crate::metrics::family::Label as _;
use crate::registry::EventKind;
use crate::upgrade;

/// How long a refused peer may take to read its refusal.
const LINGER: Duration = Duration::from_secs(2);

/// It was not through in time.
pub(super) fn late(gateway: &Gateway, peer: SocketAddr, id: &str, what: &'static str) {
    gateway.counters.handshake_timeout();
    let sample = || Sample::new(id, peer, "-");
    if gateway.folds.may_say(&gateway.counters, Kind::Timeout, what, sample) {
        info!(connection = %id, %peer, reason = "timeout", "refused: {what}");
    }
}

/// A handshake has failed by the peer's fault.
pub(super) fn failed(gateway: &Gateway, arrival: &Arrival, id: &str) {
    gateway.counters.door().failure();
    if let Some(block) = arrival.failed(&gateway.live().config.addresses) {
        gateway.counters.door().block();
        let (address, seconds) = (arrival.address(), block.as_secs());
        let sample = || Sample::new(id, address, "-");
        if gateway.folds.may_say(&gateway.counters, Kind::Blocked, "blocked", sample) {
            info!(connection = %id, %address, seconds, "address blocked: too many failures, and no proven session from there");
        }
        gateway.note(Event {
            kind: EventKind::AddressBlocked,
            device: None,
            reason: "",
            peer: &address,
            detail: &format_args!("for {seconds} s: too many failures, and no proven session from there"),
        });
    }
}

/// Returns what it came down to. Whoever it was has shown no certificate that leads to a device CA: what its subject says is anybody's word.
pub(super) fn refuse_in_tls(
    gateway: &Gateway,
    error: &io::Error,
    peer: SocketAddr,
    id: &str,
    subject: &str,
) -> TlsRefusal {
    let class = TlsRefusal::of(error);
    gateway.counters.tls_refused(class);
    let sample = || Sample::new(id, peer, subject);
    if gateway.folds.may_say(&gateway.counters, Kind::Tls, class.label(), sample) {
        info!(connection = %id, %peer, subject, class = class.label(), reason = %error, "refused in TLS");
    }
    // Who goes away, or was no device of anybody's, is the network's noise and no security event.
    if !matches!(class, TlsRefusal::Gone | TlsRefusal::Protocol) {
        gateway.note(Event {
            kind: EventKind::TlsRefused,
            device: None,
            reason: class.label(),
            peer: &peer,
            detail: &format_args!("{}: {error}; subject {subject}", class.label()),
        });
    }
    class
}

/// Its request is refused, in words.
pub(super) async fn refuse(gateway: &Gateway, refused: Refused, peer: SocketAddr, id: &str) {
    let Refused { mut stream, subject, named, denied } = refused;
    let problem = denied.problem;
    gateway.counters.refused(problem);
    let sample = || Sample::new(id, peer, &subject);
    if gateway.folds.may_say(&gateway.counters, Kind::Refused, problem.label(), sample) {
        info!(
            connection = %id, %peer, subject, status = problem.status(), reason = problem.label(), detail = %denied.detail,
            "refused"
        );
    }
    if !matches!(problem, Problem::Draining | Problem::Unavailable) {
        gateway.note(Event {
            kind: EventKind::Refused,
            device: named.as_ref(),
            reason: problem.label(),
            peer: &peer,
            detail: &format_args!("{}: {}", problem.label(), denied.detail),
        });
    }
    let retry_after = match problem {
        Problem::Draining | Problem::Unavailable | Problem::TooMany => {
            Some(denied.retry_after.unwrap_or_else(|| fastrand::u64(1..=10)))
        }
        _ => None,
    };
    let answer = async {
        upgrade::refuse(&mut stream, &denied, id, retry_after).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection under the answer.
        let mut unread = [0; 512];
        let mut left = 64;
        while left > 0 && stream.read(&mut unread).await? > 0 {
            left -= 1;
        }
        io::Result::Ok(())
    };
    // A peer that does not take its refusal has lost only that.
    let _ = tokio::time::timeout(LINGER, answer).await;
}
