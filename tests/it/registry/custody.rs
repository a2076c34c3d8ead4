//! Master keys: who holds which, and how one takes another's place.

use std::time::Duration;

use doorward::registry::custody::{KeyRow, Resealed};
use doorward::registry::{AuditFilter, Enrolment, NewDevice, NewKey, RegistryError};
use doorward_pki::MasterKey;
use doorward_pki::seal::sealed_with;
use doorward_proto::ids::KeyVersion;

use super::{device, new_device};
use crate::support::database::Database;

fn master(byte: u8) -> MasterKey {
    MasterKey::from_bytes([byte; 32])
}

fn sealed_by(key: &MasterKey, id: &str) -> Vec<u8> {
    key.seal(&device(id), KeyVersion::FIRST, &[7; 32], [1; 12])
}

fn new_device_by(key: &MasterKey, id: &str) -> NewDevice {
    NewDevice { sealed_key: sealed_by(key, id), ..new_device(id) }
}

async fn with_devices(db: &Database, key: &MasterKey, ids: &[&str]) {
    db.registry.add_devices(&ids.iter().map(|id| new_device_by(key, id)).collect::<Vec<_>>()).await.unwrap();
}

fn again(rows: Vec<KeyRow>, key: &MasterKey) -> Vec<Resealed> {
    rows.into_iter()
        .map(|was| Resealed { sealed: key.seal(&was.device, was.version, &[7; 32], [2; 12]), was })
        .collect()
}

async fn acts(db: &Database) -> String {
    let filter = AuditFilter { limit: 1000, ..AuditFilter::default() };
    let rows = db.registry.audit(&filter).await.unwrap();
    rows.iter().map(|row| String::from_utf8_lossy(&row.body).into_owned()).collect::<Vec<_>>().join("\n")
}

fn enrolment(name: &str, instance: &str, may_serve: Duration) -> Enrolment {
    Enrolment {
        name: name.into(),
        instance: instance.to_owned(),
        version: "1",
        address: "a".to_owned(),
        may_serve,
    }
}

/// What each gateway that may serve has said.
async fn held(db: &Database) -> Vec<(String, Option<Vec<String>>)> {
    let holders = db.registry.master_key_holders().await.unwrap();
    holders.into_iter().map(|holder| (holder.gateway, holder.keys)).collect()
}

async fn a_run_says_which_master_keys_it_holds(db: Database) {
    let (hour, ids) = (Duration::from_secs(3600), ["ab".repeat(8), "cd".repeat(8)]);
    db.registry.enrol(&enrolment("g1", "home.1", hour)).await.unwrap();
    db.registry.enrol(&enrolment("g2", "other.1", hour)).await.unwrap();
    assert_eq!(held(&db).await, [("g1".to_owned(), None), ("g2".to_owned(), None)]);
    assert!(db.registry.note_master_keys("g1", "home.1", &ids).await.unwrap());
    assert!(!db.registry.note_master_keys("g1", "home.0", &[]).await.unwrap(), "an earlier run");
    assert!(!db.registry.note_master_keys("g3", "home.1", &[]).await.unwrap());
    assert_eq!(held(&db).await[0].1, Some(ids.to_vec()));
    // Another run of it has said nothing yet.
    db.registry.enrol(&enrolment("g1", "home.2", hour)).await.unwrap();
    assert_eq!(held(&db).await[0].1, None);
    assert!(db.registry.note_master_keys("g1", "home.2", &ids[..1]).await.unwrap());
    assert_eq!(held(&db).await[0].1, Some(ids[..1].to_vec()));
    // Who has signed off, or whose time is over, serves nobody.
    db.registry.sign_off("g1", "home.2").await.unwrap();
    db.registry.enrol(&enrolment("g2", "other.2", Duration::ZERO)).await.unwrap();
    let behind = match &db.sql {
        crate::support::database::Sql::Sqlite(_) => {
            "UPDATE gateways SET heartbeat = '2020-01-01T00:00:00.000Z'"
        }
        crate::support::database::Sql::Postgres(_) => "UPDATE gateways SET heartbeat = '2020-01-01'",
    };
    db.execute(behind).await.unwrap();
    assert_eq!(held(&db).await, []);
}

async fn all_keys_are_sealed_again_and_then_the_old_one_seals_nothing(db: Database) {
    let (old, new) = (master(1), master(2));
    with_devices(&db, &old, &["a", "b", "c"]).await;
    let second = NewKey {
        version: KeyVersion::from_number(2).unwrap(),
        sealed: old.seal(&device("b"), KeyVersion::from_number(2).unwrap(), &[7; 32], [3; 12]),
        grace: Duration::ZERO,
    };
    db.registry.add_key(&device("b"), &second).await.unwrap();
    assert_eq!(db.registry.master_keys().await.unwrap().sealed, [(old.id(), 4)]);
    assert_eq!(db.registry.begin_rewrap(&new.id()).await.unwrap(), None);
    assert_eq!(db.registry.begin_rewrap(&new.id()).await.unwrap(), None, "again");
    assert_eq!(db.registry.master_keys().await.unwrap().next, Some(new.id()));

    // Pages: each key once, the retired one too.
    let first = db.registry.not_sealed_by(&new.id(), None, 2).await.unwrap();
    let last = first.last().map(|row| (row.device.clone(), row.version)).unwrap();
    let rest = db.registry.not_sealed_by(&new.id(), Some(&last), 9).await.unwrap();
    let names =
        |rows: &[KeyRow]| rows.iter().map(|row| format!("{}{}", row.device, row.version)).collect::<Vec<_>>();
    assert_eq!(
        (names(&first), names(&rest)),
        (vec!["a1".into(), "b1".into()], vec!["b2".into(), "c1".into()])
    );
    assert_eq!(db.registry.finish_rewrap(&old.id(), &new.id(), 0).await.unwrap(), 4, "not yet");
    assert_eq!(db.registry.reseal(&again(first, &new)).await.unwrap(), 2);
    assert_eq!(names(&db.registry.not_sealed_by(&new.id(), None, 9).await.unwrap()), ["b2", "c1"]);

    // What has changed since it was read stays: nobody's new key is lost.
    let changed = old.seal(&device("c"), KeyVersion::FIRST, &[9; 32], [4; 12]);
    let hex: String = changed.iter().map(|byte| format!("{byte:02x}")).collect();
    let blob = match &db.sql {
        crate::support::database::Sql::Sqlite(_) => format!("x'{hex}'"),
        crate::support::database::Sql::Postgres(_) => format!("'\\x{hex}'"),
    };
    db.execute(&format!("UPDATE hmac_keys SET sealed = {blob} WHERE device = 'c'")).await.unwrap();
    assert_eq!(db.registry.reseal(&again(rest, &new)).await.unwrap(), 1);
    assert_eq!(db.registry.finish_rewrap(&old.id(), &new.id(), 0).await.unwrap(), 1);
    let rest = db.registry.not_sealed_by(&new.id(), None, 9).await.unwrap();
    assert_eq!(rest[0].sealed, changed);
    assert_eq!(db.registry.reseal(&again(rest, &new)).await.unwrap(), 1);
    assert_eq!(db.registry.finish_rewrap(&old.id(), &new.id(), 0).await.unwrap(), 0);
    assert_eq!(db.registry.finish_rewrap(&old.id(), &new.id(), 0).await.unwrap(), 0, "again");
    let found = db.registry.master_keys().await.unwrap();
    assert_eq!((found.sealed, found.next, found.retired), (vec![(new.id(), 4)], None, vec![old.id()]));
    let detail = db.registry.device(&device("b")).await.unwrap().unwrap();
    assert!(detail.keys.iter().all(|key| sealed_with(&key.sealed) == Some(new.id())));

    // From now on the old one gives nobody a key, by whatever hand.
    let refused = db.registry.add_devices(&[new_device_by(&old, "d")]).await.unwrap_err();
    assert!(matches!(&refused, RegistryError::Refused(words) if words.contains("pki rewrap")), "{refused:?}");
    assert!(db.registry.device(&device("d")).await.unwrap().is_none());
    assert!(db.execute(&format!("UPDATE hmac_keys SET sealed = {blob} WHERE device = 'c'")).await.is_err());
    let refused = db.registry.begin_rewrap(&old.id()).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Refused(_)), "{refused:?}");
    assert!(db.execute("DELETE FROM master_keys").await.is_err());
    assert!(db.execute("UPDATE master_keys SET state = 'next'").await.is_err());
    with_devices(&db, &new, &["d"]).await;

    let acts = acts(&db).await;
    for (action, times) in [("key.reseal", 5), ("master_key.next", 1), ("master_key.retire", 1)] {
        assert_eq!(acts.matches(&format!("\"{action}\"")).count(), times, "{action}: {acts}");
    }
}

async fn one_at_a_time_takes_the_place(db: Database) {
    let (old, one, other) = (master(1), master(2), master(3));
    with_devices(&db, &old, &["a", "b"]).await;
    assert_eq!(db.registry.begin_rewrap(&one.id()).await.unwrap(), None);
    // It has sealed nothing: its file may be lost, and another one is taken.
    assert_eq!(db.registry.begin_rewrap(&other.id()).await.unwrap(), None);
    assert_eq!(db.registry.begin_rewrap(&one.id()).await.unwrap(), None);
    let rows = db.registry.not_sealed_by(&one.id(), None, 1).await.unwrap();
    assert_eq!(db.registry.reseal(&again(rows, &one)).await.unwrap(), 1);
    assert_eq!(db.registry.begin_rewrap(&other.id()).await.unwrap(), Some(one.id()));
    assert_eq!(db.registry.master_keys().await.unwrap().next, Some(one.id()));
    assert_eq!(db.registry.begin_rewrap(&one.id()).await.unwrap(), None, "the first goes on");
}

async fn what_is_damaged_is_left_where_that_is_wanted(db: Database) {
    let (old, new) = (master(1), master(2));
    with_devices(&db, &old, &["a", "b"]).await;
    db.registry.begin_rewrap(&new.id()).await.unwrap();
    let rows = db.registry.not_sealed_by(&new.id(), None, 1).await.unwrap();
    db.registry.reseal(&again(rows, &new)).await.unwrap();
    assert_eq!(db.registry.finish_rewrap(&old.id(), &new.id(), 0).await.unwrap(), 1);
    assert_eq!(db.registry.master_keys().await.unwrap().retired, Vec::<String>::new());
    assert_eq!(db.registry.finish_rewrap(&old.id(), &new.id(), 1).await.unwrap(), 1);
    let found = db.registry.master_keys().await.unwrap();
    assert_eq!((found.next, found.retired), (None, vec![old.id()]));
    let mut sealed = vec![(old.id(), 1), (new.id(), 1)];
    sealed.sort();
    assert_eq!(found.sealed, sealed);
    // It may still be retired, suspended or taken away.
    db.execute("UPDATE hmac_keys SET state = 'retired' WHERE device = 'b'").await.unwrap();
}

super::contract!(
    a_run_says_which_master_keys_it_holds,
    all_keys_are_sealed_again_and_then_the_old_one_seals_nothing,
    one_at_a_time_takes_the_place,
    what_is_damaged_is_left_where_that_is_wanted,
);

/// A gateway's role says what it holds, in its own row, and no more.
#[tokio::test]
async fn a_gateways_role_says_what_it_holds_and_does_not_rewrap() {
    let db = Database::postgres().await;
    let gateway = db.for_gateway();
    gateway.enrol(&enrolment("g1", "home.1", Duration::from_secs(60))).await.unwrap();
    assert!(gateway.note_master_keys("g1", "home.1", &["ab".repeat(8)]).await.unwrap());
    for refused in [
        gateway.begin_rewrap(&master(1).id()).await.map(drop),
        gateway.finish_rewrap(&master(1).id(), &master(2).id(), 9).await.map(drop),
        gateway.reseal(&[]).await.map(drop),
    ] {
        assert!(matches!(refused, Err(RegistryError::Forbidden(_))), "{refused:?}");
    }
}
