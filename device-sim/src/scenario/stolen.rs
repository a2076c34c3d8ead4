//! One factor without the other: a certificate is not enough, and neither is a key.

use std::sync::Arc;

use doorward_client::connection::Ended;
use doorward_proto::close::Close;
use tokio::task::JoinSet;

use super::attacks::{Attacks, local, strike_out};
use super::forge::random_key;
use super::{Cast, Context};
use crate::clock;
use crate::engine::probe::{Answer, Probe};

pub(super) async fn attack(context: &Arc<Context>, cast: &Cast, attacks: &Arc<Attacks>) {
    let mut tasks = JoinSet::new();
    for (attacker, thief) in cast.hostile.iter().copied().enumerate() {
        // The victim is honest, and its session is live all the while.
        let Some((victim, _)) = cast.honest.get(attacker).copied() else { continue };
        let (context, attacks) = (Arc::clone(context), Arc::clone(attacks));
        tasks.spawn(async move {
            foreign_certificate(&context, attacker, thief, victim, &attacks).await;
            no_key(&context, attacker, victim, &attacks).await;
            silence(&context, attacker, victim, &attacks).await;
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// The thief's own good certificate, with the victim's id and the victim's key.
async fn foreign_certificate(
    context: &Context,
    attacker: usize,
    thief: usize,
    victim: usize,
    attacks: &Attacks,
) {
    let (thief, victim) = (&context.members[thief], &context.members[victim]);
    let id = victim.id();
    let names = ("the victim's key with the thief's certificate", "the end of a session with another's key");
    let expected = ["bad_signature", "wrong_party", "bad_key"];
    match Probe::open(context, &thief.tls, local(context, attacker)).await {
        Ok(mut probe) => {
            let speak = |probe: &mut Probe| {
                let now = probe.time();
                victim.credentials.key().sign(probe.publish(id, now).1.as_bytes())
            };
            strike_out(&mut probe, attacks, names, &expected, id, speak).await;
        }
        Err(error) => attacks.untried(names.0, &expected.join(" or "), id, &error),
    }
}

/// The victim's certificate, and a key of the thief's making.
async fn no_key(context: &Context, attacker: usize, victim: usize, attacks: &Attacks) {
    let victim = &context.members[victim];
    let id = victim.id();
    let names = ("a stolen certificate without its key", "the end of a session with a stolen certificate");
    let key = random_key(victim.credentials.key().version());
    match Probe::open(context, &victim.tls, local(context, attacker)).await {
        Ok(mut probe) => {
            let speak = |probe: &mut Probe| {
                let now = probe.time();
                key.sign(probe.publish(id, now).1.as_bytes())
            };
            strike_out(&mut probe, attacks, names, &["bad_signature"], id, speak).await;
        }
        Err(error) => attacks.untried(names.0, "bad_signature", id, &error),
    }
}

/// The victim's certificate, and not a word: `welcome`, nothing else, and the end.
async fn silence(context: &Context, attacker: usize, victim: usize, attacks: &Attacks) {
    let victim = &context.members[victim];
    let id = victim.id();
    let name = "an unproven session";
    let expected = "'welcome', nothing else, and close 4011 in time";
    let mut probe = match Probe::open(context, &victim.tls, local(context, attacker)).await {
        Ok(probe) => probe,
        Err(error) => return attacks.untried(name, expected, id, &error),
    };
    let until = clock::now() + context.unproven_within;
    let instead = loop {
        match probe.answer_in(until.saturating_sub(clock::now())).await {
            Answer::Said(said) if said.op == "bye" => {}
            Answer::Ended(Ended::Closed { close: Close::Unproven }) => break None,
            other => break Some(other.words()),
        }
    };
    attacks.saw(name, expected, id, instead);
}
