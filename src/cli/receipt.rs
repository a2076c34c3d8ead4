//! The receipt of an act: on which gateways it has taken effect. An act is committed before anybody waits for it; what is
//! not confirmed has happened all the same, and the operator is told who may not have heard.

use std::time::Duration;

use clap::Args;
use doorward_proto::ids::DeviceId;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::failure::{Failure, Outcome};
use super::output;
use crate::clock;
use crate::registry::{Acted, GatewayStatus, Registry, RegistryError};

/// Between two looks at what gateways have confirmed; grows to the second.
const LOOK_EVERY: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(100)];

/// How long the look may take that is begun when the time is over.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// How long a session that ends may take to be gone from the registry, too.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(1);

#[derive(Args, Debug, Clone)]
pub(super) struct Wait {
    /// How long to wait for the gateways to confirm
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Do not wait for the gateways to confirm
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
}

/// What was found out.
pub(super) struct Receipt {
    /// `None` for an act that ends none.
    sessions_ended: Option<u64>,
    confirmed: usize,
    slowest: Duration,
    /// Who has not confirmed, and until when each may serve what it knows.
    unconfirmed: Vec<(String, OffsetDateTime)>,
    /// Why nobody could be asked any more.
    lost: Option<RegistryError>,
}

/// Says what was done and on whom it has taken effect; fails (1) where that is not known of every gateway.
pub(super) async fn finish(
    registry: &dyn Registry,
    acted: &Acted,
    device: Option<&DeviceId>,
    wait: &Wait,
    words: &str,
    as_json: Option<Value>,
) -> Outcome {
    let receipt = if wait.no_wait { None } else { Some(take(registry, acted, device, wait.wait).await) };
    match as_json {
        Some(mut value) => {
            value["receipt"] = receipt.as_ref().map_or(Value::Null, Receipt::json);
            output::json(&value)?;
        }
        None => match &receipt {
            Some(receipt) if receipt.is_whole() => output::say(format!("{words}; {}", receipt.words())),
            Some(_) => {}
            None => output::say(format!("{words}; nobody was waited for")),
        },
    }
    match receipt {
        Some(receipt) if !receipt.is_whole() => Err(receipt.failure(words)),
        _ => Ok(()),
    }
}

/// The receipt alone, of an act on many devices, where one is waited for.
pub(super) async fn taken(registry: &dyn Registry, acted: &Acted, wait: &Wait) -> Option<Receipt> {
    if wait.no_wait { None } else { Some(take(registry, acted, None, wait.wait).await) }
}

async fn take(registry: &dyn Registry, acted: &Acted, device: Option<&DeviceId>, wait: Duration) -> Receipt {
    let began = clock::now().monotonic;
    let spent = || clock::now().monotonic.saturating_sub(began);
    let mut receipt = Receipt {
        sessions_ended: device.map(|_| 0),
        confirmed: 0,
        slowest: Duration::ZERO,
        unconfirmed: Vec::new(),
        lost: None,
    };
    let mut seen: Vec<String> = Vec::new();
    let mut confirmed_at = None;
    let [mut pause, longest] = LOOK_EVERY;
    loop {
        // A registry that hangs keeps nobody waiting longer than was asked.
        let looking =
            tokio::time::timeout(wait.saturating_sub(spent()) + LAST_LOOK, look(registry, acted, device));
        let looked = looking.await.unwrap_or_else(|_| {
            Err(RegistryError::Unavailable(format!("no answer within {} s", spent().as_secs())))
        });
        match looked {
            Ok((gateways, ended)) => {
                for gateway in gateways.iter().filter(|gateway| gateway.confirmed) {
                    if !seen.contains(&gateway.name) {
                        seen.push(gateway.name.clone());
                        receipt.slowest = spent();
                    }
                }
                receipt.confirmed = seen.len();
                receipt.sessions_ended = device.map(|_| u64::from(ended));
                let waits = |gateway: &&GatewayStatus| gateway.may_serve && !gateway.confirmed;
                let late = gateways.iter().filter(waits);
                receipt.unconfirmed = late.map(|g| (g.name.clone(), g.serves_until)).collect();
                if receipt.unconfirmed.is_empty() {
                    confirmed_at.get_or_insert_with(spent);
                }
                // The session's last word comes a moment after its gateway's; one that may go on has none.
                let heard = confirmed_at.is_some_and(|at| {
                    ended || acted.session.is_none() || spent().saturating_sub(at) >= LAST_WORD_WITHIN
                });
                if heard || spent() >= wait {
                    return receipt;
                }
            }
            Err(error) if spent() >= wait => {
                receipt.lost = Some(error);
                return receipt;
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause.min(wait.saturating_sub(spent()))).await;
        pause = (pause * 2).min(longest);
    }
}

/// Who has confirmed, and whether the session that there was has ended. Who signed off or whose time is over counts no more.
async fn look(
    registry: &dyn Registry,
    acted: &Acted,
    device: Option<&DeviceId>,
) -> Result<(Vec<GatewayStatus>, bool), RegistryError> {
    let mut gateways = registry.gateways(Some(acted.mark)).await?;
    gateways.retain(|gateway| gateway.may_serve);
    let ended = match (device, &acted.session) {
        (Some(device), Some(session)) => {
            let presence = registry.device(device).await?.and_then(|detail| detail.presence);
            presence.and_then(|presence| presence.session).as_ref() != Some(session)
        }
        _ => false,
    };
    Ok((gateways, ended))
}

impl Receipt {
    pub(super) fn is_whole(&self) -> bool {
        self.unconfirmed.is_empty() && self.lost.is_none()
    }

    fn words(&self) -> String {
        let sessions = match self.sessions_ended {
            None => String::new(),
            Some(0) => "no session ended, ".to_owned(),
            Some(1) => "1 session ended, ".to_owned(),
            Some(n) => format!("{n} sessions ended, "),
        };
        match self.confirmed {
            0 => format!("{sessions}no gateway serves now"),
            1 => format!("{sessions}confirmed by 1 gateway after {} ms", self.slowest.as_millis()),
            n => {
                format!(
                    "{sessions}confirmed by {n} gateways, the slowest after {} ms",
                    self.slowest.as_millis()
                )
            }
        }
    }

    pub(super) fn json(&self) -> Value {
        let unconfirmed: Vec<Value> = self
            .unconfirmed
            .iter()
            .map(|(name, until)| json!({ "gateway": name, "may_serve_until": output::time(*until) }))
            .collect();
        json!({
            "sessions_ended": self.sessions_ended,
            "confirmed": self.confirmed,
            "slowest_ms": u64::try_from(self.slowest.as_millis()).unwrap_or(u64::MAX),
            "unconfirmed": unconfirmed,
            "complete": self.is_whole(),
        })
    }

    pub(super) fn failure(&self, words: &str) -> Failure {
        let mut late: Vec<String> = self
            .unconfirmed
            .iter()
            .map(|(name, until)| {
                format!("gateway '{}' may serve until {}", output::plain(name), output::time(*until))
            })
            .collect();
        late.extend(
            self.lost.as_ref().map(|error| format!("the gateways could not be asked any more ({error})")),
        );
        Failure::unconfirmed(format!(
            "committed, not confirmed: {words}, but {}; {} confirmed",
            late.join(", "),
            self.confirmed
        ))
        .next("look after those gateways, then repeat the command: it waits again. A gateway that is gone for good stops counting at that time")
    }
}
