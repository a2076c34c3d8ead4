//! Every change at every step of an admission and right after it: what the device sees (docs/protocol.md §1, §5), and that
//! nothing is stored of what it sends once its end is decided.

use std::sync::Arc;

use doorward::registry::Act;
use rustls::HandshakeKind;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::hooked::{self, Hooked};
use crate::support::database::Database;
use crate::support::device::{Device, Heard, TLS13, UPGRADE, dial, ranges, tls};
use crate::support::house::{Credentials, House, eventually};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Suspended,
    Revoked,
    CertificateRevoked,
    KeyRetired,
    Kicked,
    Moved,
    Restricted,
}

use Change::{CertificateRevoked, KeyRetired, Kicked, Moved, Restricted, Revoked, Suspended};

const ALL: [Change; 7] = [Suspended, Revoked, CertificateRevoked, KeyRetired, Kicked, Moved, Restricted];

/// What a device sees of a change.
struct Effect {
    /// How its upgrade is refused.
    refusal: Option<(u16, &'static str)>,
    /// How its session ends: the code, and `retry_after`. Where it does not, its publishes are forbidden.
    close: Option<(u16, Value)>,
    /// A publish that was accepted before, and not stored yet, is kept. The store asks whether the device is active.
    kept: i64,
}

impl Change {
    fn effect(self) -> Effect {
        let (refusal, close, kept) = match self {
            Suspended => (Some((403, "device-suspended")), Some((4004, json!(3600))), 0),
            Revoked => (Some((403, "device-revoked")), Some((4003, Value::Null)), 0),
            CertificateRevoked => (Some((403, "certificate-revoked")), Some((4004, json!(3600))), 1),
            KeyRetired => (Some((401, "key-unknown")), Some((4005, Value::Null)), 1),
            // It ends sessions; who has none may come in.
            Kicked => (None, Some((4005, Value::Null)), 1),
            Moved | Restricted => (None, None, 1),
        };
        Effect { refusal, close, kept }
    }
}

const OPEN: &str = r##"{"allow":[{"actions":["publish"],"channels":["devices/${device}/#"]}]}"##;

/// One device in a fleet of its own, and two bystanders that are ended to see how far the feed has been applied.
struct Case {
    house: Arc<House>,
    hooked: Arc<Hooked>,
    change: Change,
    credentials: Credentials,
    markers: [Device; 2],
}

impl Case {
    /// Every change, one after the other, in a house of a kind.
    async fn each(db: Database, run: impl AsyncFn(&mut Case)) {
        let (house, hooked) = hooked::house_on(db, |config| config.limits.undecided = 1).await;
        let house = Arc::new(house);
        house.db.registry.add_fleet(&"closed".parse().unwrap(), "{}").await.unwrap();
        for change in ALL {
            let name = format!("{change:?}");
            house.db.registry.add_fleet(&name.parse().unwrap(), OPEN).await.unwrap();
            let credentials = house.certify(&name, |_| {});
            house.record(&name, &name, &credentials).await;
            let mut markers = Vec::new();
            for n in 0..2 {
                let marker = house.add_device(&format!("{name}-marker-{n}")).await;
                markers.push(Device::prove(&house, &marker).await);
            }
            // Later there is nothing to be looked up but for the change.
            house.followed().await;
            let markers = markers.try_into().unwrap_or_else(|_| unreachable!("two"));
            let (of_house, hooked) = (Arc::clone(&house), Arc::clone(&hooked));
            run(&mut Case { house: of_house, hooked, change, credentials, markers }).await;
            eventually("an empty house", async || house.gateway.devices() == 0).await;
        }
    }

    async fn commit(&self) {
        let registry = &self.house.db.registry;
        let id = &self.credentials.id;
        let sql = async |what: &str| self.house.db.execute(what).await.unwrap();
        match self.change {
            Suspended => drop(registry.set_status(id, Act::Suspend, None).await.unwrap()),
            Revoked => drop(registry.set_status(id, Act::Revoke, None).await.unwrap()),
            Kicked => drop(registry.kick(id).await.unwrap()),
            Restricted => drop(registry.set_policy(&id.as_str().parse().unwrap(), "{}").await.unwrap()),
            CertificateRevoked => {
                sql(&format!("UPDATE certificates SET status = 'revoked' WHERE device = '{id}'")).await;
            }
            KeyRetired => sql(&format!("UPDATE hmac_keys SET state = 'retired' WHERE device = '{id}'")).await,
            Moved => sql(&format!("UPDATE devices SET fleet = 'closed' WHERE id = '{id}'")).await,
        }
    }

    /// Waits until everything committed so far has been applied: by the look that brought the first marker's end or an
    /// earlier one, and that one is over when the second's comes.
    async fn applied(&mut self) {
        for marker in &mut self.markers {
            self.house.db.registry.kick(&marker.credentials.id).await.unwrap();
            marker.closed_with_bye(4005).await;
        }
    }

    async fn knock(&self) -> TlsStream<TcpStream> {
        dial(&self.house, Arc::new(tls(&self.house, Some(&self.credentials), TLS13))).await.unwrap()
    }

    /// What became of an upgrade that was asked for before or after the change: it is judged by what is so now.
    async fn upgraded(&mut self, upgraded: std::io::Result<Device>) {
        match (upgraded, self.change.effect().refusal) {
            (Ok(mut device), None) => {
                device.expect("welcome").await;
                match self.change {
                    Kicked => device.hello().await,
                    _ => self.is_forbidden(&mut device).await,
                }
            }
            (Err(answer), Some((status, label))) => {
                let answer = answer.to_string();
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{:?}: {answer}", self.change);
                assert!(answer.contains(&format!("\"urn:doorward:problem:{label}\"")), "{answer}");
            }
            (upgraded, _) => panic!("{:?}: {:?}", self.change, upgraded.map(|device| device.sid)),
        }
        assert_eq!(self.stored("late").await, 0);
    }

    /// What a session sees that is there when the change is committed.
    async fn lived_through(&mut self, device: &mut Device) {
        let Some((code, retry_after)) = self.change.effect().close else {
            self.applied().await;
            return self.is_forbidden(device).await;
        };
        eventually("its end", async || self.house.gateway.devices() == self.markers.len()).await;
        device.publish("late", json!(1)).await;
        let (closed, messages) = device.until_closed().await;
        let [bye] = messages.as_slice() else { panic!("{:?}: {messages:?}", self.change) };
        assert_eq!((closed, &bye["op"], &bye["retry_after"]), (Some(code), &json!("bye"), &retry_after));
        self.applied().await;
    }

    async fn is_forbidden(&self, device: &mut Device) {
        let seq = device.publish("late", json!(1)).await;
        assert_eq!(device.rejected().await, (json!(seq), "forbidden".to_owned(), Value::Null));
        // Its session is as good as any.
        device.hello().await;
    }

    /// How many of this device's messages with an id are stored.
    async fn stored(&self, id: &str) -> i64 {
        let device = &self.credentials.id;
        let count = format!("SELECT count(*) FROM messages WHERE device = '{device}' AND id = '{id}'");
        self.house.db.number(&count).await
    }
}

/// The look-up has its answer in hand when the change is committed.
async fn before_the_answer_is_used(db: Database) {
    Case::each(db, async |case| {
        case.hooked.look_ups.close();
        let (stream, credentials) = (case.knock().await, case.credentials.clone());
        let hooked = Arc::clone(&case.hooked);
        let changed = async {
            hooked.look_ups.reached().await;
            case.commit().await;
            case.applied().await;
            hooked.look_ups.open();
        };
        let (upgraded, ()) = tokio::join!(Device::upgrade_on(stream, &credentials, UPGRADE), changed);
        case.upgraded(upgraded).await;
    })
    .await;
}

async fn between_tls_and_the_request(db: Database) {
    Case::each(db, async |case| {
        let stream = case.knock().await;
        case.commit().await;
        case.applied().await;
        let upgraded = Device::upgrade_on(stream, &case.credentials, UPGRADE).await;
        case.upgraded(upgraded).await;
    })
    .await;
}

async fn after_the_welcome(db: Database) {
    Case::each(db, async |case| {
        let mut device = Device::connect(&case.house, &case.credentials).await;
        case.commit().await;
        case.lived_through(&mut device).await;
        assert_eq!(case.stored("late").await, 0);
    })
    .await;
}

/// A publish has been accepted and is about to be stored; another has come, and is read when the first is decided.
async fn while_publishes_are_under_way(db: Database) {
    Case::each(db, async |case| {
        let mut device = Device::prove(&case.house, &case.credentials).await;
        let presence = format!("SELECT count(*) FROM presence WHERE device = '{}'", case.credentials.id);
        eventually("presence", async || case.house.db.number(&presence).await == 1).await;
        let written = case.hooked.messages_written();
        case.hooked.writes.close();
        let under_way = device.publish("under-way", json!(1)).await;
        case.hooked.writes.reached().await;
        let late = device.publish("late", json!(1)).await;
        case.commit().await;
        let effect = case.change.effect();
        if effect.close.is_none() {
            case.applied().await;
            case.hooked.writes.open();
            // In whichever order.
            let (mut acks, mut rejects) = (Vec::new(), Vec::new());
            while acks.is_empty() || rejects.is_empty() {
                match device.next().await {
                    Heard::Message(ack) if ack["op"] == "ack" => acks.extend(ranges(&ack)),
                    Heard::Message(reject) => rejects.push((reject["ref"].clone(), reject["error"].clone())),
                    Heard::Closed(code) => panic!("closed with {code:?}"),
                }
            }
            assert_eq!(acks, [(under_way, under_way)]);
            assert_eq!(rejects, [(json!(late), json!("forbidden"))]);
        } else {
            case.lived_through(&mut device).await;
            case.hooked.writes.open();
            eventually("its batch", async || case.hooked.messages_written() > written).await;
        }
        assert_eq!(case.stored("under-way").await, effect.kept, "{:?}", case.change);
        assert_eq!(case.stored("late").await, 0);
    })
    .await;
}

/// What TLS remembers of it after its end opens nothing that its certificate would not.
async fn back_by_a_ticket(db: Database) {
    Case::each(db, async |case| {
        let config = Arc::new(tls(&case.house, Some(&case.credentials), TLS13));
        let stream = dial(&case.house, Arc::clone(&config)).await.unwrap();
        let mut device = Device::upgrade_on(stream, &case.credentials, UPGRADE).await.unwrap();
        device.expect("welcome").await;
        device.hello().await;
        case.commit().await;
        case.lived_through(&mut device).await;
        drop(device);
        let stream = dial(&case.house, config).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
        let upgraded = Device::upgrade_on(stream, &case.credentials, UPGRADE).await;
        case.upgraded(upgraded).await;
    })
    .await;
}

macro_rules! on_both {
    ($($step:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test] async fn $step() {
                super::$step(crate::support::database::Database::sqlite().await).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test] async fn $step() {
                super::$step(crate::support::database::Database::postgres().await).await;
            })*
        }
    };
}

on_both!(
    before_the_answer_is_used,
    between_tls_and_the_request,
    after_the_welcome,
    while_publishes_are_under_way,
    back_by_a_ticket,
);
