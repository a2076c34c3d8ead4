//! The answer on standard output: what is wrong first and what mends it, then everything.

use doorward_proto::policy::{Action, Policy, Reach, Who};
use serde_json::{Value, json};

use super::certificates::{Judged, Refusal};
use super::checks::{Check, State};
use super::{Facts, Verdict};
use crate::cli::failure::Outcome;
use crate::cli::{Shared, event, output};
use crate::clock;

pub(super) fn show(shared: &Shared, facts: &Facts, checks: &[Check], verdict: Verdict) -> Outcome {
    if shared.json {
        return output::json(&as_json(facts, checks, verdict));
    }
    let id = &facts.detail.summary.id;
    let first = first(checks);
    let why = first.map(|check| format!(": {}", check.what)).unwrap_or_default();
    let headline = match (verdict.connect, verdict.publish) {
        (Some(true), Some(true)) => format!("device '{id}' may connect and publish"),
        (Some(false), _) => format!("device '{id}' cannot connect{why}"),
        (_, Some(false)) => format!("device '{id}' cannot publish{why}"),
        _ => format!("whether device '{id}' may connect cannot be told{why}"),
    };
    let mut lines = vec![headline];
    lines.extend(first.and_then(|check| check.next.as_ref()).map(|next| format!("to mend it: {next}")));
    lines.push(String::new());
    output::print(&lines.join("\n"))?;

    let mut table = output::table(["CHECK", "STATE", "WHAT"]);
    for check in checks {
        table.add_row([check.topic, check.state.word(), &check.what]);
    }
    output::print_table(&table, "")?;
    output::print("")?;
    let mut table = output::table(["CERTIFICATE", "STATUS", "FROM", "UNTIL", "GRACE UNTIL", "NOW"]);
    for judged in &facts.certificates {
        let row = &judged.row;
        table.add_row([
            row.serial.clone(),
            word(&row.status),
            output::time(row.not_before),
            output::time(row.not_after),
            output::maybe_time(row.valid_until),
            standing(judged),
        ]);
    }
    output::print_table(&table, "it has no certificate")
}

/// The first thing that is wrong; else the first that is not known.
fn first(checks: &[Check]) -> Option<&Check> {
    let of = |wanted: fn(&State) -> bool| checks.iter().find(|check| wanted(&check.state));
    of(|state| matches!(state, State::Wrong(_))).or_else(|| of(|state| *state == State::Unknown))
}

fn standing(judged: &Judged) -> String {
    match &judged.refusal {
        Some(refusal) => refusal.words(),
        None if judged.late => "let in to renew it, and for nothing else".to_owned(),
        None => "let in".to_owned(),
    }
}

/// The word that a state has in JSON.
fn word(state: &impl serde::Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn as_json(facts: &Facts, checks: &[Check], verdict: Verdict) -> Value {
    let of = |check: &Check| json!({ "check": check.topic, "state": check.state.word(), "what": check.what, "next": check.next });
    json!({
        "device": facts.detail.summary.id,
        "fleet": facts.fleet.id,
        "status": facts.detail.summary.status,
        "may_connect": verdict.connect,
        "may_publish": verdict.publish,
        "first": first(checks).map(of),
        "answer": facts.answer().as_ref().map(Value::from),
        "checks": checks.iter().map(of).collect::<Vec<_>>(),
        "certificates": facts.certificates.iter().map(certificate).collect::<Vec<_>>(),
        "keys": keys(facts),
        "publish": reach(facts, Action::Publish),
        "subscribe": reach(facts, Action::Subscribe),
        "limits": limits(facts),
        "gateways": facts.insight.gateways.iter().map(|gateway| json!({
            "name": gateway.status.name,
            "address": gateway.status.address,
            "state": facts.gateway_state(gateway),
            "heartbeat": output::time(gateway.status.heartbeat),
            "may_serve_until": gateway.status.signed_off.is_none().then(|| output::time(gateway.status.serves_until)),
            "confirmed": gateway.status.confirmed,
            "behind": gateway.behind,
            "behind_since": gateway.since.filter(|_| gateway.behind > 0).map(output::time),
        })).collect::<Vec<_>>(),
        "session": facts.detail.presence.as_ref().map(|presence| json!({
            "gateway": presence.gateway,
            "session": presence.session,
            "peer": presence.peer,
            "since": output::time(presence.since),
            "last_seen": output::time(presence.last_seen),
        })),
        "skew": facts.skew.as_ref().map(Value::from),
        "events": facts.events.iter().rev().map(event::json_of).collect::<Vec<_>>(),
        "clock": { "database": output::time(facts.insight.now), "ahead_seconds": facts.ahead.as_seconds_f64() },
    })
}

fn certificate(judged: &Judged) -> Value {
    let row = &judged.row;
    let refusal = match &judged.refusal {
        None => Value::Null,
        Some(Refusal::InTls(words)) => json!({ "status": null, "type": "tls", "detail": words }),
        Some(Refusal::Denied(denied)) => denied.into(),
    };
    json!({
        "serial": row.serial, "fingerprint": row.fingerprint, "issuer": row.issuer, "status": row.status,
        "not_before": output::time(row.not_before), "not_after": output::time(row.not_after),
        "valid_until": row.valid_until.map(output::time), "reason": row.reason,
        "renewal_asked_from": judged.asks_from.map(|at| output::time(clock::date(at))),
        "late": judged.late, "refusal": refusal,
    })
}

fn keys(facts: &Facts) -> Vec<Value> {
    let of = |key: &crate::registry::SealedKey| json!({ "version": key.version, "state": key.state, "grace_until": key.grace_until.map(output::time) });
    facts.detail.keys.iter().map(of).collect()
}

fn reach(facts: &Facts, action: Action) -> Value {
    let who = Who { device: &facts.detail.summary.id, fleet: &facts.fleet.id };
    match Policy::parse(&facts.fleet.policy) {
        Ok(policy) => {
            let Reach { allowed, except } = policy.reach(who, action);
            json!({ "allowed": allowed, "except": except })
        }
        Err(_) => Value::Null,
    }
}

fn limits(facts: &Facts) -> Value {
    let Ok(fleet) = &facts.limits else { return Value::Null };
    let limits = fleet.over(facts.own.limits);
    json!({
        "rate_per_second": limits.rate.per_second,
        "rate_burst": limits.rate.burst,
        "bytes_per_second": limits.bytes.per_second,
        "bytes_burst": limits.bytes.burst,
        "message_bytes": limits.max_message_bytes,
        "outgoing_bytes": limits.outgoing_bytes,
        "strikes": limits.strikes,
        "connects_per_minute": limits.connects.per_minute,
        "connects_burst": limits.connects.burst,
        "max_skew_seconds": limits.max_skew.as_secs_f64(),
        "heartbeat_seconds": limits.heartbeat.as_secs_f64(),
        "renew_after_expiry_seconds": facts.own.lateness(fleet).as_secs(),
        "of_the_fleet": fleet,
    })
}
