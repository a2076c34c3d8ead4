//! `event list`, `event tail`: what a security officer reads.

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use doorward_proto::ids::DeviceId;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::failure::{Failure, Outcome};
use super::follow::follow;
use super::{Shared, output};
use crate::registry::{EventFilter, EventKind, Registry, RegistryError, StoredEvent};

/// Rows of one query.
const PAGE: u32 = 1000;

#[derive(Subcommand, Debug)]
pub(super) enum Event {
    /// Security events, oldest first: refused connections and messages, strikes, possible clones, quarantine. A row stands for
    /// as many alike as it counts
    #[command(after_help = "Example:\n  doorward event list --device press-7 --since 1d\n  \
        doorward event list --kind bad_signature --limit 20 --json")]
    List {
        #[command(flatten)]
        which: Which,
        /// The newest N alone
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: Option<u32>,
    },
    /// The newest events, and with --follow what comes
    #[command(
        after_help = "Example:\n  doorward event tail --follow\n  doorward event tail --lines 100 --kind refused"
    )]
    Tail {
        #[command(flatten)]
        which: Which,
        /// How many
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        lines: u32,
        /// Go on with what is stored from now on; with --json, one object a line
        #[arg(long)]
        follow: bool,
    },
}

#[derive(Args, Debug)]
pub(super) struct Which {
    /// Of this device alone
    #[arg(long, value_name = "ID")]
    device: Option<DeviceId>,
    /// Of this kind alone
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(EventKind::ALL.map(EventKind::as_str)))]
    kind: Option<String>,
    /// Since: RFC 3339, or how long ago (90s, 2h, 7d)
    #[arg(long, value_name = "T", value_parser = output::parse_since)]
    since: Option<OffsetDateTime>,
}

impl Event {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let (which, most, lasting) = match self {
            Self::List { which, limit } => (which, *limit, false),
            Self::Tail { which, lines, follow } => (which, Some(*lines), *follow),
        };
        let registry = shared.registry().await?;
        let filter = EventFilter {
            device: which.device.clone(),
            kind: which.kind.as_deref().and_then(EventKind::from_word),
            since: which.since,
            after: 0,
            limit: most.unwrap_or(PAGE),
            newest: most.is_some(),
        };
        let array = shared.json && !lasting;
        let mut shown = Shown { array, json: shared.json, last: 0, first: true };
        let mut next = filter.clone();
        loop {
            let page = registry.events(&next).await?;
            page.iter().try_for_each(|event| shown.show(event))?;
            if next.newest || page.len() < PAGE as usize {
                break;
            }
            next.after = shown.last;
        }
        if shown.first
            && let Some(device) = &which.device
        {
            check_exists(&*registry, device).await?;
        }
        shown.end(lasting)?;
        if lasting {
            let filter = EventFilter { newest: false, limit: PAGE, ..filter };
            let page = async |after| Ok(registry.events(&EventFilter { after, ..filter.clone() }).await?);
            return follow(
                shown.last,
                PAGE as usize,
                page,
                |event| event.id,
                |event| line(event, shared.json),
            )
            .await;
        }
        Ok(())
    }
}

/// A device of which nothing was written may be one that there is not. Events name devices that are not registered, too, and
/// who may read events alone (doorward_auditor) cannot ask for devices.
async fn check_exists(registry: &dyn Registry, device: &DeviceId) -> Outcome {
    match registry.device(device).await {
        Ok(Some(_)) | Err(RegistryError::Forbidden(_)) => Ok(()),
        Ok(None) => Err(Failure::missing(format!("there is no device '{device}', and no event of one"))
            .next("'doorward device list' shows those that there are")),
        Err(error) => Err(error.into()),
    }
}

/// What has been shown so far.
struct Shown {
    /// In one array, rather than a line each.
    array: bool,
    json: bool,
    last: i64,
    first: bool,
}

impl Shown {
    fn show(&mut self, event: &StoredEvent) -> Outcome {
        self.last = event.id;
        let separator = if std::mem::take(&mut self.first) { "[" } else { "," };
        if self.array {
            output::print(&format!("{separator}{}", json_of(event)))
        } else {
            line(event, self.json)
        }
    }

    fn end(&self, lasting: bool) -> Outcome {
        if self.array {
            return output::print(if self.first { "[]" } else { "]" });
        }
        if self.first && !lasting {
            output::say("there is no such event");
        }
        Ok(())
    }
}

pub(super) fn json_of(event: &StoredEvent) -> Value {
    json!({
        "id": event.id, "at": output::time(event.at), "since": output::time(event.since), "count": event.count,
        "gateway": event.gateway, "device": event.device, "kind": event.kind, "peer": event.peer, "detail": event.detail,
    })
}

fn line(event: &StoredEvent, as_json: bool) -> Outcome {
    if as_json {
        return output::print(&json_of(event).to_string());
    }
    let times = match event.count {
        1 => String::new(),
        count => format!("  {count} times since {}", output::time(event.since)),
    };
    output::print(&format!(
        "{}  {}  {}  {}  {}{times}  {}",
        output::time(event.at),
        output::plain(&event.gateway),
        output::plain(&event.kind),
        event.device.as_deref().map_or_else(|| "-".to_owned(), output::plain),
        output::plain(&event.peer),
        output::plain(&event.detail)
    ))
}
