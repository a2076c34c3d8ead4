//! A device that subscribes to what it publishes and reads none of it: its session must end, not grow.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use doorward_client::connection::Ended;
use doorward_proto::close::Close;
use serde_json::json;
use tokio::task::JoinSet;

use super::attacks::{Attacks, local};
use super::{Cast, Context};
use crate::engine::probe::{Answer, Probe};
use crate::fleet::Member;

/// What the kernels on both sides may hold is some megabytes; this is more.
const MESSAGES: usize = 1200;
const BYTES: usize = 24 << 10;
/// A gateway that takes nothing for so long has stopped reading.
const STALLED: Duration = Duration::from_secs(2);
const EXPECTED: &str = "close 4029, or rejects that hold it back";

pub(super) async fn attack(context: &Arc<Context>, cast: &Cast, attacks: &Arc<Attacks>) {
    let mut tasks = JoinSet::new();
    for (attacker, index) in cast.hostile.iter().copied().enumerate() {
        let (context, attacks) = (Arc::clone(context), Arc::clone(attacks));
        tasks.spawn(async move { one(&context, attacker, index, &attacks).await });
    }
    while tasks.join_next().await.is_some() {}
}

async fn one(context: &Context, attacker: usize, index: usize, attacks: &Attacks) {
    let member = &context.members[index];
    let (id, key) = (member.id(), member.credentials.key());
    let name = "a reader that does not read";
    let mut probe = match Probe::open(context, &member.tls, local(context, attacker)).await {
        Ok(probe) => probe,
        Err(error) => return attacks.untried(name, EXPECTED, id, &error),
    };
    let subscribe = probe.claims(id, json!({ "op": "subscribe", "ch": format!("devices/{id}/#") }));
    probe.send(&key.sign(subscribe.as_bytes())).await;
    let answer = probe.answer().await;
    if !answer.acks(1) {
        return attacks.saw(
            name,
            EXPECTED,
            id,
            Some(format!("its subscription was answered by {}", answer.words())),
        );
    }
    let data = "x".repeat(BYTES);
    for _ in 0..MESSAGES {
        let message = probe.claims(
            id,
            json!({
                "op": "publish", "ch": format!("devices/{id}/sim"), "data": data,
                "id": format!("sim-{:032x}", fastrand::u128(..)),
            }),
        );
        let frame = key.sign(message.as_bytes());
        if tokio::time::timeout(STALLED, probe.send(&frame)).await.is_err() {
            break;
        }
    }
    // Now it reads: what had been on its way, and how it ended.
    let mut held_back = false;
    let instead = loop {
        match probe.answer().await {
            Answer::Said(said) => held_back |= said.error == "rate_limited",
            Answer::Ended(Ended::Closed { close: Close::SlowReader }) => break None,
            // Its close may have found no way through what was not read: but then the gateway is still there.
            Answer::Ended(Ended::Lost(_)) => break lives(context, member, local(context, attacker)).await,
            Answer::Silence if held_back => break None,
            other => break Some(other.words()),
        }
    };
    attacks.saw(name, EXPECTED, id, instead);
}

/// Whether the device is let in again; else what came instead.
async fn lives(context: &Context, member: &Member, local: Option<IpAddr>) -> Option<String> {
    let opened = Probe::open(context, &member.tls, local).await;
    opened.err().map(|error| format!("the connection was lost, and the next one failed: {error}"))
}
