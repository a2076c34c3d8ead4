//! `message list`.

use clap::Subcommand;
use doorward_proto::channel::Filter;
use doorward_proto::ids::DeviceId;
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::failure::{Failure, Outcome};
use super::{Shared, output};
use crate::registry::{MessageFilter, StoredMessage};

/// Messages of one query.
const PAGE: u32 = 1000;

#[derive(Subcommand, Debug)]
pub(super) enum Message {
    /// What was stored, in the order of storing
    #[command(
        after_help = "Example:\n  doorward message list --device press-7 --since 1h\n  doorward message list --follow"
    )]
    List {
        /// Of this device alone
        #[arg(long, value_name = "ID")]
        device: Option<DeviceId>,
        /// On channels that this filter matches alone
        #[arg(long, value_name = "FILTER")]
        channel: Option<Filter>,
        /// Received since: RFC 3339, or how long ago (90s, 2h, 7d)
        #[arg(long, value_name = "T", value_parser = output::parse_since)]
        since: Option<OffsetDateTime>,
        /// Go on with what is stored from now on; with --json, one object a line
        #[arg(long)]
        follow: bool,
    },
}

/// A message as `--json` shows it.
#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    device: &'a str,
    channel: &'a str,
    data: &'a RawValue,
    at: Option<String>,
    received_at: String,
}

impl Message {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let Self::List { device, channel, since, follow } = self;
        let registry = shared.registry().await?;
        if let Some(device) = device
            && registry.device(device).await?.is_none()
        {
            return Err(Failure::missing(format!("there is no device '{device}'"))
                .next("'doorward device list' shows those that there are"));
        }
        let mut filter = MessageFilter { device: device.clone(), since: *since, after: 0, limit: PAGE };
        let wanted = |message: &StoredMessage| channel.as_ref().is_none_or(|f| f.matches(&message.channel));
        let mut first = true;
        let array = shared.json && !follow;
        loop {
            let page = registry.messages(&filter).await?;
            let Some(last) = page.last() else { break };
            filter.after = last.position;
            for message in page.iter().filter(|m| wanted(m)) {
                let separator = if std::mem::take(&mut first) { "[" } else { "," };
                if array {
                    output::print(&format!("{separator}{}", json(message)?))?;
                } else {
                    line(message, shared.json)?;
                }
            }
            if page.len() < PAGE as usize {
                break;
            }
        }
        if array {
            output::print(if first { "[]" } else { "]" })?;
        } else if first && !follow {
            output::say("there is no such message");
        }
        if *follow {
            let page =
                async |after| Ok(registry.messages(&MessageFilter { after, ..filter.clone() }).await?);
            let show =
                |message: &StoredMessage| if wanted(message) { line(message, shared.json) } else { Ok(()) };
            return super::follow::follow(
                filter.after,
                PAGE as usize,
                page,
                |message| message.position,
                show,
            )
            .await;
        }
        Ok(())
    }
}

fn line(message: &StoredMessage, as_json: bool) -> Outcome {
    if as_json {
        return output::print(&json(message)?);
    }
    output::print(&format!(
        "{}  {}  {}  {}",
        output::time(message.received_at),
        message.device,
        message.channel,
        output::plain(&message.data)
    ))
}

fn json(message: &StoredMessage) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Row {
        id: message.id.as_str(),
        device: message.device.as_str(),
        channel: &message.channel,
        data: serde_json::from_str(&message.data)?,
        at: message.at.map(output::time),
        received_at: output::time(message.received_at),
    })
}
