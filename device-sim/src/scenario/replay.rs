//! Captured frames, sent again.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::attacks::{Attacks, local, strike_out};
use super::{Cast, Context};
use crate::engine::probe::Probe;

/// Fewer than the strikes that end a session: it must survive the first part.
const CAPTURED: usize = 3;

pub(super) async fn attack(context: &Arc<Context>, cast: &Cast, attacks: &Arc<Attacks>) {
    let mut tasks = JoinSet::new();
    for (attacker, index) in cast.hostile.iter().copied().enumerate() {
        // Each attacker has a neighbour of its own: two unproven sessions of one device would end each other.
        let neighbour = cast.honest.get(attacker).map(|(index, _)| *index);
        let (context, attacks) = (Arc::clone(context), Arc::clone(attacks));
        tasks.spawn(async move { one(&context, attacker, index, neighbour, &attacks).await });
    }
    while tasks.join_next().await.is_some() {}
}

async fn one(context: &Context, attacker: usize, index: usize, neighbour: Option<usize>, attacks: &Attacks) {
    let member = &context.members[index];
    let (id, key) = (member.id(), member.credentials.key());
    let local = local(context, attacker);

    let name = "replay in the same session";
    let mut probe = match Probe::open(context, &member.tls, local).await {
        Ok(probe) => probe,
        Err(error) => return attacks.untried(name, "replayed", id, &error),
    };
    let mut captured = Vec::new();
    for _ in 0..CAPTURED {
        let now = probe.time();
        let (seq, payload) = probe.publish(id, now);
        let frame = key.sign(payload.as_bytes());
        probe.send(&frame).await;
        let answer = probe.answer().await;
        let instead = (!answer.acks(seq)).then(|| answer.words());
        attacks.saw("the message before its replay", "ack", id, instead);
        captured.push(frame);
    }
    for frame in &captured {
        probe.send(frame).await;
        attacks.judge(name, &["replayed"], id, &probe.answer().await);
    }
    let now = probe.time();
    let (seq, payload) = probe.publish(id, now);
    probe.send(&key.sign(payload.as_bytes())).await;
    let answer = probe.answer().await;
    let instead = (!answer.acks(seq)).then(|| answer.words());
    attacks.saw("a new message after the replays", "ack", id, instead);
    probe.close().await;

    let mut frames = captured.iter().cycle().cloned();
    let mut next = move |_: &mut Probe| frames.next().unwrap_or_default();
    let names = ("replay in the next session", "the end of a replaying session");
    match Probe::open(context, &member.tls, local).await {
        Ok(mut probe) => strike_out(&mut probe, attacks, names, &["wrong_session"], id, &mut next).await,
        Err(error) => attacks.untried(names.0, "wrong_session", id, &error),
    }

    let Some(neighbour) = neighbour.map(|index| &context.members[index]) else { return };
    let names =
        ("replay on another device's session", "the end of a session that replays another's messages");
    let expected = ["bad_signature", "wrong_party", "bad_key"];
    match Probe::open(context, &neighbour.tls, local).await {
        Ok(mut probe) => strike_out(&mut probe, attacks, names, &expected, id, &mut next).await,
        Err(error) => attacks.untried(names.0, &expected.join(" or "), id, &error),
    }
}
