//! Clocks that are minutes off. Ahead are honest devices whose clock jumps (see `engine::honest`): the link corrects
//! them by itself. A link is never behind the time that the gateway told, so those that are behind sign by hand.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::attacks::{Attacks, local};
use super::{Cast, Context};
use crate::engine::probe::Probe;

/// After the correction.
const MESSAGES: usize = 3;
/// Five minutes, or twice what the gateway tolerates.
const OFF: Duration = Duration::from_secs(300);

pub(super) async fn attack(context: &Arc<Context>, cast: &Cast, attacks: &Arc<Attacks>) {
    let mut tasks = JoinSet::new();
    for (attacker, index) in cast.hostile.iter().copied().enumerate() {
        let (context, attacks) = (Arc::clone(context), Arc::clone(attacks));
        tasks.spawn(async move { behind(&context, attacker, index, &attacks).await });
    }
    while tasks.join_next().await.is_some() {}
}

async fn behind(context: &Context, attacker: usize, index: usize, attacks: &Attacks) {
    let member = &context.members[index];
    let (id, key) = (member.id(), member.credentials.key());
    let name = "a clock that is behind";
    let mut probe = match Probe::open(context, &member.tls, local(context, attacker)).await {
        Ok(probe) => probe,
        Err(error) => return attacks.untried(name, "stale", id, &error),
    };
    let off = OFF.max(probe.max_skew * 2);
    let late = probe.time().saturating_sub(off);
    let (_, payload) = probe.publish(id, late);
    probe.send(&key.sign(payload.as_bytes())).await;
    attacks.judge(name, &["stale"], id, &probe.answer().await);
    // The reject has told the time.
    for _ in 0..MESSAGES {
        let now = probe.time();
        let (seq, payload) = probe.publish(id, now);
        probe.send(&key.sign(payload.as_bytes())).await;
        let answer = probe.answer().await;
        let instead = (!answer.acks(seq)).then(|| answer.words());
        attacks.saw("a corrected clock", "ack", id, instead);
    }
    probe.close().await;
}
