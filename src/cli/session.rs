//! `session list`.

use clap::Subcommand;
use serde_json::json;

use super::failure::Outcome;
use super::{Shared, output};
use crate::clock;
use crate::gateway::SEEN_EVERY;

#[derive(Subcommand, Debug)]
pub(super) enum Session {
    /// Who is connected, where and since when
    #[command(after_help = "Example:\n  doorward session list --json")]
    List,
}

impl Session {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let Self::List = self;
        // A gateway writes what it hears every half minute: a session unheard of for three of them is not there.
        let fresh = clock::utc() - SEEN_EVERY * 3;
        let sessions = shared.registry().await?.sessions(fresh).await?;
        if shared.json {
            let rows: Vec<_> = sessions
                .iter()
                .map(|s| {
                    json!({
                        "device": s.device, "fleet": s.fleet, "gateway": s.gateway, "session": s.session,
                        "peer": s.peer, "since": output::time(s.since), "last_seen": output::time(s.last_seen),
                    })
                })
                .collect();
            return output::json(&rows);
        }
        let mut table = output::table(["DEVICE", "FLEET", "GATEWAY", "PEER", "SINCE", "LAST SEEN"]);
        for s in &sessions {
            table.add_row([
                s.device.to_string(),
                s.fleet.to_string(),
                output::plain(&s.gateway),
                output::plain(&s.peer),
                output::time(s.since),
                output::time(s.last_seen),
            ]);
        }
        output::print_table(&table, "no device is connected")
    }
}
