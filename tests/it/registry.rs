//! The registry's contract, written once and run for both implementations: whatever is true of one is true of the other.
//! What only one of them has (a hole to close, a late commit) stands in `sqlite` and `postgres`.

mod audit;
mod crl;
mod custody;
mod devices;
mod events;
mod feed;
mod issuers;
mod making_roles;
mod own_row;
mod pooler;
mod postgres;
mod quarantine;
mod renewals;
mod roles;
mod rotations;
mod schema;
mod sqlite;
mod store;

use std::sync::Arc;

use doorward::registry::{Batch, Claim, NewCertificate, NewDevice, NewMessage, Registry};
use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId, MessageId};
use time::OffsetDateTime;
use time::macros::datetime;

/// Runs each function on a fresh registry of each kind.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test] async fn $name() {
                super::$name(crate::support::database::Database::sqlite().await).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test] async fn $name() {
                super::$name(crate::support::database::Database::postgres().await).await;
            })*
        }
    };
}
pub(crate) use contract;

const NOON: OffsetDateTime = datetime!(2027-03-01 12:00:00.125 UTC);
/// After anything that the database's own clock says.
const FAR: OffsetDateTime = datetime!(2999-01-01 00:00 UTC);

fn device(id: &str) -> DeviceId {
    DeviceId::new(id).unwrap()
}

fn fleet(id: &str) -> FleetId {
    FleetId::new(id).unwrap()
}

fn certificate_of(id: &str) -> NewCertificate {
    let fingerprint = Fingerprint::of(id.as_bytes());
    NewCertificate {
        fingerprint,
        serial: fingerprint.to_string()[..32].to_owned(),
        issuer: "ab12".repeat(10),
        der: id.as_bytes().to_vec(),
        not_before: datetime!(2027-01-01 00:00 UTC),
        not_after: datetime!(2028-01-01 00:00 UTC),
    }
}

fn new_device(id: &str) -> NewDevice {
    NewDevice {
        id: device(id),
        fleet: fleet("default"),
        certificate: certificate_of(id),
        sealed_key: vec![7, 0, 255],
    }
}

async fn add(registry: &Arc<dyn Registry>, ids: &[&str]) {
    registry.add_devices(&ids.iter().map(|id| new_device(id)).collect::<Vec<_>>()).await.unwrap();
}

fn claim(id: &str, session: &str) -> Claim {
    Claim {
        device: device(id),
        session: session.into(),
        gateway: "g1".into(),
        peer: "192.0.2.7:4000".into(),
        at: NOON,
        late: false,
    }
}

fn message(id: &str, session: &str, message: &str) -> NewMessage {
    NewMessage {
        device: device(id),
        session: session.into(),
        id: MessageId::new(message).unwrap(),
        channel: format!("devices/{id}/t").into(),
        data: r#"{"t": 21.50, "é": "𝄞"}"#.into(),
        at_ms: Some(1_800_000_000_123),
        received_ms: 1_800_000_000_456,
    }
}

/// The devices with a session `s1` each.
async fn connected(registry: &Arc<dyn Registry>, ids: &[&str]) {
    add(registry, ids).await;
    let claims = ids.iter().map(|id| claim(id, "s1")).collect();
    registry.write(&Batch { claims, ..Batch::default() }).await.unwrap();
}
