//! `policy …`: what a device may do.

use clap::{Args, Subcommand};
use doorward_proto::channel::{Filter, check_channel};
use doorward_proto::ids::DeviceId;
use doorward_proto::policy::{Action, Policy as Rules, Who};
use serde_json::json;

use super::failure::{Failure, Outcome};
use super::{Shared, output};
use crate::registry::DeviceStatus;

#[derive(Subcommand, Debug)]
pub(super) enum Policy {
    /// Say whether a device may publish or subscribe, and which rule decides
    ///
    /// Exit code 0: the policy of its fleet allows it; 4: it denies it; 3: there is no such device.
    #[command(
        after_help = "Example:\n  doorward policy check --device press-7 --publish devices/press-7/temperature"
    )]
    Check {
        /// The device
        #[arg(long, value_name = "ID")]
        device: DeviceId,
        #[command(flatten)]
        what: What,
    },
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct What {
    /// To this channel
    #[arg(long, value_name = "CHANNEL", value_parser = channel)]
    publish: Option<String>,
    /// With this filter
    #[arg(long, value_name = "FILTER")]
    subscribe: Option<Filter>,
}

fn channel(text: &str) -> Result<String, String> {
    check_channel(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

impl Policy {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let Self::Check { device, what } = self;
        let registry = shared.registry().await?;
        let missing = || {
            Failure::missing(format!("there is no device '{device}'"))
                .next("'doorward device list' shows those that there are")
        };
        let summary = registry.device(device).await?.ok_or_else(missing)?.summary;
        let gone =
            || Failure::new(format!("the fleet of device '{device}' has just been removed; ask again"));
        let fleet = registry.fleet(&summary.fleet).await?.ok_or_else(gone)?;
        let policy = Rules::parse(&fleet.policy).map_err(|error| {
            Failure::new(format!("the policy of fleet '{}' cannot be read: {error}", fleet.id)).next(format!(
                "set it anew with 'doorward fleet policy {} FILE'; until then its devices are not let in",
                fleet.id
            ))
        })?;

        let who = Who { device, fleet: &fleet.id };
        let (action, words, channel, ruling) = match (&what.publish, &what.subscribe) {
            (Some(channel), _) => {
                (Action::Publish, "publish to", channel.clone(), policy.judge_publish(who, channel))
            }
            (None, Some(filter)) => {
                (Action::Subscribe, "subscribe with", filter.to_string(), policy.judge_subscribe(who, filter))
            }
            (None, None) => return Err(Failure::usage("one of --publish and --subscribe is needed")),
        };
        let rule = match (ruling.by, ruling.allowed) {
            (Some(place), _) => format!("by {place}"),
            (None, _) => "for no rule allows it".to_owned(),
        };
        let verdict = if ruling.allowed { "may" } else { "may not" };
        let said = format!("device '{device}' of fleet '{}' {verdict} {words} '{channel}', {rule}", fleet.id);
        if shared.json {
            output::json(&json!({
                "device": device, "fleet": fleet.id, "status": summary.status, "action": action, "channel": channel,
                "allowed": ruling.allowed, "rule": ruling.by,
            }))?;
        } else if ruling.allowed {
            output::print(&said)?;
        }
        if summary.status != DeviceStatus::Active {
            output::say(format!(
                "device '{device}' is {}: it is not let in, whatever its policy says",
                summary.status.as_str()
            ));
        }
        if ruling.allowed {
            return Ok(());
        }
        Err(Failure::refused(said).next(format!("'doorward fleet show {}' shows the policy", fleet.id)))
    }
}
