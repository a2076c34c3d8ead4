//! The device's own clock, as far as its messages have shown it, or its refusing ours has.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::checks::{Bars, Check, State};
use super::{EVENTS, Facts};
use crate::cli::output;
use crate::registry::{DeviceDetail, EventFilter, EventKind, Registry, RegistryError, StoredEvent};
use crate::skew::Off;

/// Refusals in TLS that are looked through for one that may have been this device's.
const REFUSALS: u32 = 100;
/// How an event begins of a peer that has refused the gateway's certificate.
const BY_PEER: &str = "by_peer: received fatal alert: ";
/// What it says where the dates do not suit its clock: rustls the first, whichever way it is off; OpenSSL the second and mbedTLS
/// the third where the certificate is not valid yet, as for a clock that begins in 1970.
const DATES: [&str; 3] = ["CertificateExpired", "BadCertificate", "CertificateUnknown"];

/// What has been seen of a clock.
#[derive(Debug)]
pub(super) enum Seen {
    /// By messages.
    Off {
        last: Off,
        largest: Off,
        at: OffsetDateTime,
        gateway: String,
        /// The last one was refused for it.
        refused: bool,
    },
    /// A peer has refused the gateway's certificate for its dates: this device, for all that is known.
    RefusesUs { at: OffsetDateTime, peer: String, gateway: String, alert: &'static str },
}

impl Seen {
    pub(super) async fn gather(
        registry: &dyn Registry,
        device: &DeviceDetail,
    ) -> Result<Option<Self>, RegistryError> {
        let id = &device.summary.id;
        let newest = |kind, device, limit| EventFilter {
            device,
            kind: Some(kind),
            limit,
            newest: true,
            ..EventFilter::default()
        };
        let stale = EventKind::Message(doorward_proto::verdict::Refusal::Stale);
        let mut seen: Vec<(StoredEvent, Off)> = Vec::new();
        for kind in [stale, EventKind::ClockSkew] {
            let events = registry.events(&newest(kind, Some(id.clone()), EVENTS)).await?;
            seen.extend(
                events.into_iter().filter_map(|event| Off::read(&event.detail).map(|off| (event, off))),
            );
        }
        let largest = seen.iter().map(|(_, off)| *off).max_by_key(|off| off.0.unsigned_abs());
        let last = seen.into_iter().max_by_key(|(event, _)| event.at);
        if let (Some((event, last)), Some(largest)) = (last, largest) {
            let refused = event.kind == stale.as_str();
            return Ok(Some(Self::Off { last, largest, at: event.at, gateway: event.gateway, refused }));
        }
        // One whose clock is far off has said nothing that bears its name: it hangs up on the gateway's certificate.
        let refusals = registry.events(&newest(EventKind::TlsRefused, None, REFUSALS)).await?;
        let since = device.presence.as_ref().map_or(device.summary.created, |presence| presence.last_seen);
        let its_own = |event: &StoredEvent| match &device.presence {
            Some(presence) => address(&event.peer) == address(&presence.peer),
            None => true,
        };
        let one = refusals.into_iter().rev().filter(|event| event.at >= since && its_own(event)).find_map(
            |event| {
                let said = event.detail.strip_prefix(BY_PEER)?.split(';').next()?;
                Some((DATES.into_iter().find(|alert| *alert == said)?, event))
            },
        );
        Ok(one.map(|(alert, event)| Self::RefusesUs {
            at: event.at,
            peer: event.peer,
            gateway: event.gateway,
            alert,
        }))
    }
}

/// Of an address and a port, the address.
fn address(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(address, _)| address)
}

impl Facts {
    pub(super) fn device_clock(&self) -> Check {
        const TOPIC: &str = "device clock";
        const NTP: &str = "set the device's clock by NTP ('timedatectl set-ntp true' on Linux with systemd), or let it take the time \
            of the gateway's 'welcome'; if many devices are off alike, look at the clock of the gateway's host";
        match &self.skew {
            None => Check::fine(
                TOPIC,
                "no message of it was stale, and none off by more than half of what is taken",
            ),
            Some(Seen::Off { last, largest, at, gateway, refused }) => {
                let (gateway, at_words) = (output::plain(gateway), output::time(*at));
                let mut what = format!("{last}: seen on {gateway} at {at_words}");
                if largest != last {
                    what.push_str(&format!("; the largest lately: {}", seconds(*largest)));
                }
                // A message that was accepted since has proven a session since.
                let proven = self.detail.presence.as_ref().is_some_and(|presence| presence.since > *at);
                let here = self.detail.presence.as_ref().is_some_and(|presence| presence.session.is_some());
                // One that is here has been let in by the gateway's time, and may be again once it has that.
                let keeps_out = *refused && !proven && !here;
                let state = if keeps_out { State::Wrong(Bars::Connect) } else { State::Note };
                if *refused {
                    let most = self.max_skew().as_secs();
                    what.push_str(&format!(
                        "; messages are taken up to {most} s off, and that one was refused"
                    ));
                }
                if proven {
                    what.push_str("; it has been let in since");
                }
                Check::new(TOPIC, state, what).next(NTP)
            }
            Some(Seen::RefusesUs { at, peer, gateway, alert }) => {
                let what = format!(
                    "somebody at {} has refused the certificate of {} ({alert}) at {}: if that was this device, its clock is wrong, or it trusts another CA",
                    output::plain(peer),
                    output::plain(gateway),
                    output::time(*at)
                );
                Check::new(TOPIC, State::Note, what)
                    .next(format!("{NTP}, and at its certificate ('doorward gateway renew-cert')"))
            }
        }
    }

    fn max_skew(&self) -> std::time::Duration {
        self.limits.as_ref().map_or(self.own.limits.max_skew, |fleet| fleet.over(self.own.limits).max_skew)
    }
}

fn seconds(off: Off) -> String {
    let (ms, side) = (off.0.unsigned_abs(), if off.0 > 0 { "ahead" } else { "behind" });
    format!("{}.{:03} s {side}", ms / 1000, ms % 1000)
}

impl From<&Seen> for Value {
    fn from(seen: &Seen) -> Self {
        match seen {
            Seen::Off { last, largest, at, gateway, refused } => json!({
                "last_ms": last.0, "largest_ms": largest.0, "at": output::time(*at), "gateway": gateway,
                "refused": refused, "refuses_the_gateway": false,
            }),
            Seen::RefusesUs { at, peer, gateway, alert } => json!({
                "last_ms": null, "largest_ms": null, "at": output::time(*at), "gateway": gateway, "peer": peer,
                "refused": false, "refuses_the_gateway": true, "alert": alert,
            }),
        }
    }
}
