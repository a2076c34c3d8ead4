//! Devices that come, say one thing and go, again and again, as on a link that is hardly there: each time they are let in, or
//! told to wait, and nobody else notices.

use std::sync::Arc;
use std::time::Duration;

use doorward_client::connection::ConnectError;
use tokio::task::JoinSet;

use super::attacks::{Attacks, local};
use super::{Cast, Context};
use crate::clock;
use crate::engine::probe::Probe;

/// More than a gateway may like of one device, and an end.
const MOST: usize = 500;
const EXPECTED: &str = "an ack, or 429";

pub(super) async fn attack(context: &Arc<Context>, cast: &Cast, attacks: &Arc<Attacks>, duration: Duration) {
    let until = clock::now() + duration;
    let mut tasks = JoinSet::new();
    for (attacker, index) in cast.hostile.iter().copied().enumerate() {
        let (context, attacks) = (Arc::clone(context), Arc::clone(attacks));
        tasks.spawn(async move {
            for round in 0..MOST {
                if round > 0 && clock::now() >= until {
                    break;
                }
                one(&context, attacker, index, round, &attacks).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn one(context: &Context, attacker: usize, index: usize, round: usize, attacks: &Attacks) {
    let member = &context.members[index];
    let (id, key) = (member.id(), member.credentials.key());
    let name = "a device that comes and goes";
    let mut probe = match Probe::open(context, &member.tls, local(context, attacker)).await {
        Ok(probe) => probe,
        Err(ConnectError::Refused(refused)) if refused.status == 429 => {
            // Once is not what it was told, and it keeps on all the same: that is the attack.
            tokio::time::sleep(Duration::from_millis(100)).await;
            return attacks.saw(name, EXPECTED, id, None);
        }
        Err(error) => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            return attacks.untried(name, EXPECTED, id, &error);
        }
    };
    let now = probe.time();
    let (seq, payload) = probe.publish(id, now);
    probe.send(&key.sign(payload.as_bytes())).await;
    let answer = probe.answer().await;
    attacks.saw(name, EXPECTED, id, (!answer.acks(seq)).then(|| answer.words()));
    // Every other time without a goodbye.
    if round.is_multiple_of(2) {
        probe.close().await;
    }
}
