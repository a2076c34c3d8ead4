//! `explain`: why a device can or cannot connect and publish now, judged by what the gateway judges by.

mod certificates;
mod checks;
mod gateways;
mod report;
mod skew;

use std::time::Duration;

use clap::Args;
use doorward_proto::ids::DeviceId;
use doorward_proto::limits::FleetLimits;
use rustls::pki_types::CertificateDer;

use super::failure::{Failure, Outcome};
use super::{Shared, cas, device};
use crate::clock;
use crate::gateway::own_of;
use crate::home::FileError;
use crate::identity::Own;
use crate::master::MasterKeys;
use crate::registry::insight::Insight;
use crate::registry::{DeviceDetail, EventFilter, Fleet, Record, RegistryError, StoredEvent};
use crate::tls::{Door, TlsError};

use certificates::Judged;
use checks::{Bars, Check, State};

/// Security events that are looked at.
const EVENTS: u32 = 10;
/// What the database's clock may differ from ours before it is worth a word.
const CLOCKS_DIFFER: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  doorward explain press-7\n  doorward explain press-7 --gateway plant-2 --json\n\n\
    It asks what a gateway asks, in its order, by this home's configuration and master key, and names\n\
    the first thing that is wrong with the command that mends it. Exit code 0: it may connect and\n\
    publish; 4: it may not; 3: no such device or gateway; 1: that cannot be told from here."
)]
pub(super) struct Explain {
    /// The device's id
    device: DeviceId,
    /// At this gateway, rather than at any
    #[arg(long, value_name = "G")]
    gateway: Option<String>,
}

/// All that the answer is made from.
struct Facts {
    detail: DeviceDetail,
    fleet: Fleet,
    insight: Insight,
    /// In the order of storing.
    events: Vec<StoredEvent>,
    certificates: Vec<Judged>,
    /// What its messages have said of its clock.
    skew: Option<skew::Seen>,
    /// What a fleet may say otherwise, as this home's configuration has it.
    own: Own,
    /// The limits that the fleet does say; what is wrong with them.
    limits: Result<FleetLimits, String>,
    /// What opens the keys; why there is nothing.
    master: Result<MasterKeys, String>,
    /// Whose certificates are let in; why that is not known.
    door: Result<Door, String>,
    /// How far the database's clock is ahead of ours, in seconds; negative where it is behind. Zero where the time that
    /// the question took leaves room for that.
    ahead: time::Duration,
    /// What the gateway would be told of the certificate that counts.
    record: Option<Record>,
    now: doorward_proto::time::NumericDate,
}

impl Explain {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let facts = Facts::gather(shared, &self.device).await?;
        if let Some(name) = &self.gateway
            && !facts.insight.gateways.iter().any(|gateway| gateway.status.name == *name)
        {
            return Err(Failure::missing(format!("there is no gateway '{name}'"))
                .next("'doorward gateway list' shows those that ever served"));
        }
        let checks = facts.checks(self.gateway.as_deref());
        let verdict = Verdict::of(&checks);
        report::show(shared, &facts, &checks, verdict)?;
        match verdict.code() {
            0 => Ok(()),
            code => Err(Failure::answered(code)),
        }
    }
}

/// What all checks come to; `None`: that cannot be told from here.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    connect: Option<bool>,
    publish: Option<bool>,
}

impl Verdict {
    fn of(checks: &[Check]) -> Self {
        let bars = |which: &[Bars]| {
            checks.iter().any(|check| matches!(&check.state, State::Wrong(bars) if which.contains(bars)))
        };
        let unknown = checks.iter().any(|check| check.state == State::Unknown);
        let verdict = |barred: bool| if barred { Some(false) } else { (!unknown).then_some(true) };
        Self {
            connect: verdict(bars(&[Bars::Connect])),
            publish: verdict(bars(&[Bars::Connect, Bars::Publish])),
        }
    }

    fn code(self) -> u8 {
        match self.publish {
            Some(true) => 0,
            Some(false) => 4,
            None => 1,
        }
    }
}

impl Facts {
    async fn gather(shared: &Shared, id: &DeviceId) -> Result<Self, Failure> {
        let config = shared.config()?;
        let home = shared.home();
        let registry = shared.registry().await?;
        let detail = device::find(&*registry, id).await?;
        let fleet = registry
            .fleet(&detail.summary.fleet)
            .await?
            .ok_or_else(|| RegistryError::NotFound { kind: "fleet", id: detail.summary.fleet.to_string() })?;
        let before = clock::utc();
        let insight = registry.insight(id, &fleet.id).await?;
        let after = clock::utc();
        let newest =
            EventFilter { device: Some(id.clone()), limit: EVENTS, newest: true, ..EventFilter::default() };
        let events = registry.events(&newest).await?;
        let skew = skew::Seen::gather(&*registry, &detail).await?;
        // Last: what admission would be told is no older than what else is said.
        let names: Vec<_> = detail.certificates.iter().map(|row| row.fingerprint).collect();
        let mut records = registry.look_up_all(&names).await?;

        let door = Door::load(&config, &home).map_err(|error| words_of(&error));
        let master = shared.master_keys().map_err(|failure| failure.what().to_owned());
        let own = own_of(&config);
        let limits = FleetLimits::parse(&fleet.limits).map_err(|error| error.to_string());
        let late = own.lateness(limits.as_ref().unwrap_or(&FleetLimits::default()));
        // What a device sends above its leaf: what its bundle has.
        let above: Vec<CertificateDer<'static>> = cas::read(&home.pki("issuing.crt"))
            .map(|all| all.iter().map(|ca| ca.der().to_vec().into()).collect())
            .unwrap_or_default();
        let now = clock::now().wall;
        let mut certificates = Vec::with_capacity(detail.certificates.len());
        for row in &detail.certificates {
            let record = match records.remove(&row.fingerprint) {
                Some(record) => Some(record?),
                None => None,
            };
            certificates.push(Judged::new(row, record, door.as_ref().ok(), &above, now, late));
        }
        certificates::best_first(&mut certificates);
        let record = certificates.first().and_then(|judged| judged.record.clone());
        let ahead = difference(before, insight.now, after);
        Ok(Self {
            detail,
            fleet,
            insight,
            events,
            certificates,
            skew,
            own,
            limits,
            master,
            door,
            ahead,
            record,
            now,
        })
    }
}

/// How far a clock is ahead that was read between two readings of ours.
fn difference(
    before: time::OffsetDateTime,
    read: time::OffsetDateTime,
    after: time::OffsetDateTime,
) -> time::Duration {
    let slack = time::Duration::try_from(CLOCKS_DIFFER).unwrap_or_default();
    if read > after + slack {
        read - after
    } else if read < before - slack {
        read - before
    } else {
        time::Duration::ZERO
    }
}

/// A file that is missing here is most likely on the gateway's host.
fn words_of(error: &TlsError) -> String {
    match error {
        TlsError::File(FileError::Missing(path)) => format!("{} is not in this home", path.display()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_differs_only_by_what_the_question_does_not_explain() {
        let at = |seconds: i64| time::OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds);
        for (read, ahead) in [(100, 0), (105, 0), (112, 0), (113, 3), (98, 0), (97, -3)] {
            assert_eq!(difference(at(100), at(read), at(110)), time::Duration::seconds(ahead), "{read}");
        }
    }

    #[test]
    fn what_is_wrong_counts_before_what_is_unknown() {
        let check = |state| Check { topic: "x", state, what: String::new(), next: None };
        for (states, code) in [
            (vec![State::Fine, State::Note], 0),
            (vec![State::Fine, State::Unknown], 1),
            (vec![State::Unknown, State::Wrong(Bars::Publish)], 4),
            (vec![State::Wrong(Bars::Connect)], 4),
        ] {
            let checks: Vec<Check> = states.into_iter().map(check).collect();
            assert_eq!(Verdict::of(&checks).code(), code, "{checks:?}");
        }
    }
}
