//! `rotation …`: campaigns that give a whole fleet a new credential.

use clap::Subcommand;
use doorward_proto::ids::DeviceId;
use serde_json::{Value, json};

use super::campaign::{self, Asking};
use super::failure::{Failure, Outcome};
use super::receipt::{self, Wait};
use super::{Shared, device, output};
use crate::clock;
use crate::registry::{
    Acted, Credential, Done, Member, MemberFilter, MemberState, Registry, Rotation, RotationState,
};

/// Rotations that are listed.
const MOST_LISTED: u32 = 1000;
/// Devices of each state that JSON names.
const MOST_NAMED: u32 = 1000;
/// Devices of each state that people are told of.
const MOST_SAID: usize = 20;
/// Devices of one transaction.
const BATCH: u32 = 500;

#[derive(Subcommand, Debug)]
pub(super) enum RotationCommand {
    /// List the rotations of fleets, the newest first
    #[command(after_help = "Example:\n  doorward rotation list --json")]
    List,
    /// Show how a rotation stands: how many devices have proven it, and which have not and why
    #[command(after_help = "Example:\n  doorward rotation show 3")]
    Show {
        /// Its number
        id: i64,
    },
    /// Stop a rotation: nobody else is asked; nothing is taken from anybody
    #[command(after_help = "Example:\n  doorward rotation stop 3 --reason \"firmware 2.1 crashes\"")]
    Stop {
        /// Its number
        id: i64,
        /// Why, for those who ask later
        #[arg(long, value_parser = device::parse_reason)]
        reason: String,
    },
    /// Go on with a rotation that was stopped or cut short; devices that have failed have their time once more
    #[command(after_help = "Example:\n  doorward rotation resume 3 --max-failures 5")]
    Resume {
        /// Its number
        id: i64,
        /// How many devices may fail from now on
        #[arg(long, value_name = "N")]
        max_failures: Option<u32>,
    },
    /// Give a rotation up: what no session can have brought to its device yet is taken back
    #[command(after_help = "Example:\n  doorward rotation undo 3")]
    Undo {
        /// Its number
        id: i64,
        #[command(flatten)]
        wait: Wait,
    },
}

impl RotationCommand {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        match self {
            Self::List => list(shared).await,
            Self::Show { id } => {
                let registry = shared.registry().await?;
                show(shared, &*registry, *id).await
            }
            Self::Stop { id, reason } => stop(shared, *id, reason).await,
            Self::Resume { id, max_failures } => resume(shared, *id, *max_failures).await,
            Self::Undo { id, wait } => undo(shared, *id, wait).await,
        }
    }
}

/// A rotation that there must be.
pub(super) async fn find(registry: &dyn Registry, id: i64) -> Result<Rotation, Failure> {
    registry.rotations().find(id).await?.ok_or_else(|| {
        Failure::missing(format!("there is no rotation {id}"))
            .next("'doorward rotation list' shows those that there are")
    })
}

async fn list(shared: &Shared) -> Outcome {
    let rotations = shared.registry().await?.rotations().list(MOST_LISTED).await?;
    if shared.json {
        return output::json(&rotations.iter().map(describe).collect::<Vec<_>>());
    }
    let columns = ["ID", "WHAT", "FLEET", "STATE", "PROVEN", "ASKED", "WAITING", "FAILED", "STARTED"];
    let mut table = output::table(columns);
    for rotation in &rotations {
        let counts = &rotation.counts;
        table.add_row([
            rotation.id.to_string(),
            rotation.plan.what.as_str().to_owned(),
            rotation.plan.fleet.to_string(),
            state(rotation).to_owned(),
            counts.proven.to_string(),
            counts.asked.to_string(),
            counts.waiting.to_string(),
            counts.failed.to_string(),
            output::time(rotation.started),
        ]);
    }
    output::print_table(&table, "no fleet was ever rotated")
}

/// In one word; one that runs without a driver waits for somebody to go on.
fn state(rotation: &Rotation) -> &'static str {
    match rotation.state {
        RotationState::Running if !is_driven(rotation) => "running, but nobody drives it",
        state => state.as_str(),
    }
}

fn is_driven(rotation: &Rotation) -> bool {
    rotation.heartbeat.is_some_and(|heard| clock::utc() - heard < campaign::SILENT)
}

fn describe(rotation: &Rotation) -> Value {
    let (plan, counts) = (&rotation.plan, &rotation.counts);
    json!({
        "rotation": rotation.id, "what": plan.what.as_str(), "fleet": plan.fleet,
        "state": rotation.state.as_str(), "driven": is_driven(rotation), "reason": rotation.reason,
        "canary": plan.canary.to_string(), "wave": plan.wave.to_string(), "max_failures": plan.max_failures,
        "patience": humantime::format_duration(plan.patience).to_string(),
        "grace": (plan.what == Credential::Key).then(|| humantime::format_duration(plan.grace).to_string()),
        "started": output::time(rotation.started), "started_by": rotation.started_by,
        "ended": rotation.ended.map(output::time),
        "devices": {
            "waiting": counts.waiting, "asked": counts.asked, "proven": counts.proven,
            "failed": counts.failed, "left_out": counts.left_out, "withdrawn": counts.withdrawn,
        },
    })
}

/// The devices in a state, as many as are named.
async fn members(registry: &dyn Registry, id: i64, state: MemberState) -> Result<Vec<Member>, Failure> {
    let filter = MemberFilter { states: vec![state], after: None, limit: MOST_NAMED };
    Ok(registry.rotations().members(id, &filter).await?)
}

fn named(members: &[Member]) -> Vec<Value> {
    let named = members.iter().map(|member| {
        json!({
            "device": member.device, "reason": member.reason, "wave": member.wave, "version": member.version,
            "asked": member.asked.map(output::time),
        })
    });
    named.collect()
}

/// As JSON: the rotation, and by name who has failed, was left out or has not answered.
async fn whole(registry: &dyn Registry, rotation: &Rotation) -> Result<Value, Failure> {
    let mut value = describe(rotation);
    for state in [MemberState::Failed, MemberState::LeftOut, MemberState::Asked] {
        value[state.as_str()] = named(&members(registry, rotation.id, state).await?).into();
    }
    Ok(value)
}

async fn show(shared: &Shared, registry: &dyn Registry, id: i64) -> Outcome {
    let rotation = find(registry, id).await?;
    if shared.json {
        return output::json(&whole(registry, &rotation).await?);
    }
    let Rotation { plan, counts, .. } = &rotation;
    let mut lines = vec![
        format!(
            "rotation {id}: a new {} for fleet '{}', {}",
            plan.what.as_str(),
            plan.fleet,
            state(&rotation)
        ),
        format!(
            "  begun         {} by {}",
            output::time(rotation.started),
            output::plain(&rotation.started_by)
        ),
    ];
    lines.extend(rotation.ended.map(|at| format!("  ended         {}", output::time(at))));
    lines.extend(rotation.reason.as_deref().map(|why| format!("  why           {}", output::plain(why))));
    lines.push(format!(
        "  settings      canary {}, wave {}, at most {} failures, patience {}{}",
        plan.canary,
        plan.wave,
        plan.max_failures,
        humantime::format_duration(plan.patience),
        match plan.what {
            Credential::Key => format!(", grace {}", humantime::format_duration(plan.grace)),
            Credential::Certificate => String::new(),
        }
    ));
    for (word, n) in [
        ("proven", counts.proven),
        ("asked", counts.asked),
        ("waiting", counts.waiting),
        ("failed", counts.failed),
        ("left out", counts.left_out),
        ("withdrawn", counts.withdrawn),
    ] {
        lines.push(format!("  {word:<13} {n}"));
    }
    for (state, words) in [(MemberState::Failed, "failed"), (MemberState::LeftOut, "left out")] {
        let found = members(registry, id, state).await?;
        for member in found.iter().take(MOST_SAID) {
            let why = member.reason.as_deref().map(output::plain).unwrap_or_default();
            lines.push(format!("{words}: '{0}', {why}; 'doorward device show {0}' shows it", member.device));
        }
        if found.len() > MOST_SAID {
            lines.push(format!("{words}: and more; --json names up to {MOST_NAMED}"));
        }
    }
    output::print(&lines.join("\n"))
}

/// What a driver says at its end.
pub(super) async fn report(shared: &Shared, registry: &dyn Registry, id: i64) -> Outcome {
    let rotation = find(registry, id).await?;
    if shared.json {
        return output::json(&whole(registry, &rotation).await?);
    }
    let (counts, what) = (&rotation.counts, rotation.plan.what.as_str());
    let all = counts.all() - counts.left_out;
    let mut words = format!(
        "rotation {id} of fleet '{}' is {}: {} of {all} devices have proven their new {what}",
        rotation.plan.fleet,
        rotation.state.as_str(),
        counts.proven
    );
    for (n, meaning) in [
        (counts.asked, "not answered yet (it waits for them, whenever they come)"),
        (counts.waiting, "not asked"),
    ] {
        if n > 0 {
            words.push_str(&format!("; {n} {meaning}"));
        }
    }
    for (state, n, meaning) in
        [(MemberState::Failed, counts.failed, "failed"), (MemberState::LeftOut, counts.left_out, "left out")]
    {
        if n > 0 {
            let members = members(registry, id, state).await?;
            let names =
                members.iter().map(|m| format!("'{}' {}", m.device, m.reason.as_deref().unwrap_or_default()));
            words.push_str(&format!("; {n} {meaning} ({})", some(names)));
        }
    }
    output::say(words);
    Ok(())
}

/// The first of them, and that there are more.
fn some(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len() > MOST_SAID;
    let first: Vec<String> = names.take(MOST_SAID).map(|name| output::plain(name.trim())).collect();
    format!("{}{}", first.join(", "), if more { ", and more" } else { "" })
}

async fn stop(shared: &Shared, id: i64, reason: &str) -> Outcome {
    let registry = shared.registry().await?;
    let done = registry.rotations().stop(id, reason).await?;
    if shared.json {
        return output::json(
            &json!({ "rotation": id, "state": "stopped", "changed": done == Done::Changed }),
        );
    }
    output::say(match done {
        Done::Changed => format!(
            "rotation {id} is stopped; who was asked keeps both, and 'doorward rotation resume {id}' goes on"
        ),
        Done::Already => format!("rotation {id} was stopped already"),
    });
    Ok(())
}

async fn resume(shared: &Shared, id: i64, max_failures: Option<u32>) -> Outcome {
    let registry = shared.registry().await?;
    let asking = Asking::load(shared, find(&*registry, id).await?.plan.what)?;
    let rotation = find(&*registry, id).await?;
    if rotation.state == RotationState::Running {
        // Somebody may drive it.
        return campaign::drive(shared, &*registry, rotation, &asking, max_failures).await;
    }
    registry.rotations().resume(id, max_failures).await?;
    let rotation = find(&*registry, id).await?;
    campaign::drive(shared, &*registry, rotation, &asking, None).await
}

/// What was handed out cannot be taken back: a device that has stored a key signs with it, and must not be locked out.
async fn undo(shared: &Shared, id: i64, wait: &Wait) -> Outcome {
    let registry = shared.registry().await?;
    find(&*registry, id).await?;
    registry.rotations().undo(id).await?;
    let mut taken = 0;
    let mark = loop {
        let (devices, mark) = registry.rotations().withdraw(id, BATCH).await?;
        if devices.is_empty() {
            break mark;
        }
        taken += devices.len();
    };
    // Repeated it waits again for what was taken back the first time.
    let receipt = if find(&*registry, id).await?.counts.withdrawn > 0 {
        let acted = Acted { done: Done::Changed, mark, session: None };
        receipt::taken(&*registry, &acted, wait).await
    } else {
        None
    };
    // Once no gateway hands it out any more: whose session began just then?
    let doubtful = registry.rotations().doubtful(id, MOST_NAMED).await?;
    let rotation = find(&*registry, id).await?;
    let words = undone(&rotation, taken, &doubtful);
    if shared.json {
        let mut value = whole(&*registry, &rotation).await?;
        value["taken_back"] = taken.into();
        value["doubtful"] = json!(doubtful);
        value["receipt"] = receipt.as_ref().map_or(Value::Null, receipt::Receipt::json);
        output::json(&value)?;
    } else {
        output::say(&words);
    }
    match receipt {
        Some(receipt) if !receipt.is_whole() => Err(receipt.failure(&words)),
        _ => Ok(()),
    }
}

fn devices(n: u64) -> String {
    if n == 1 { "1 device".to_owned() } else { format!("{n} devices") }
}

fn undone(rotation: &Rotation, taken: usize, doubtful: &[DeviceId]) -> String {
    let (id, counts, what) = (rotation.id, &rotation.counts, rotation.plan.what.as_str());
    let mut words = match rotation.plan.what {
        Credential::Key => format!(
            "rotation {id} is undone: the new key of {} was taken back before it reached them",
            devices(taken as u64)
        ),
        Credential::Certificate => format!(
            "rotation {id} is undone: {} will not be asked for a new certificate any more",
            devices(taken as u64)
        ),
    };
    let kept = counts.asked + counts.failed;
    if kept > 0 {
        words.push_str(&format!(
            "; {kept} that may have it already, and keep both ('doorward rotation show {id} --json' names them)"
        ));
    }
    if counts.proven > 0 {
        words.push_str(&format!("; {} proven, which keep it: undoing that is a new rotation", counts.proven));
    }
    if !doubtful.is_empty() {
        let names = some(doubtful.iter().map(|device| format!("'{device}'")));
        words.push_str(&format!(
            "; these connected just then and may hold a {what} that is worth nothing: {names}. If one does not come back, \
             'doorward device rotate-key ID --grace 0s --out DIR' makes a bundle for it"
        ));
    }
    words
}
