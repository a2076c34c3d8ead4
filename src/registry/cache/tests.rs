use std::sync::Arc;

use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use sqlx::Connection as _;
use time::macros::datetime;

use super::super::{CertificateStatus, DeviceStatus, KeyState, Record, SealedKey, Standing};
use super::*;

fn record(device: &str, fleet: &str) -> Record {
    Record {
        device: DeviceId::new(device).unwrap(),
        fleet: FleetId::new(fleet).unwrap(),
        status: DeviceStatus::Active,
        reason: Some("é \"x\"".to_owned()),
        certificate: Standing {
            // Beyond what 64 bits of nanoseconds hold.
            not_after: datetime!(9999-12-31 23:59:59 UTC),
            status: CertificateStatus::Superseded,
            valid_until: Some(datetime!(2027-05-01 12:00:00.125 UTC)),
            reason: None,
            supersedes: true,
            rotate_by: Some(datetime!(2027-05-02 12:00 UTC)),
        },
        keys: vec![SealedKey {
            version: KeyVersion::FIRST,
            sealed: vec![0, 255, 7],
            state: KeyState::Grace,
            grace_until: Some(datetime!(2027-05-02 12:00 UTC)),
            grace: Duration::from_secs(86_400),
        }],
        policy: Arc::from("{}"),
        limits: Arc::from(r#"{"rate_burst":1}"#),
        schemas: Arc::from(r#"{"a":{}}"#),
    }
}

fn of(name: &str) -> Fingerprint {
    Fingerprint::of(name.as_bytes())
}

fn at(last: i64) -> Known {
    Known {
        position: Position { low: last, last, seen: [(3, 4)].into(), tail: Some((5, 6)) },
        known_at: NOON,
        max_staleness: Duration::from_secs(60),
        signed_off: false,
    }
}

fn device_a() -> Forgotten {
    Forgotten { devices: [DeviceId::new("a").unwrap()].into(), ..Forgotten::default() }
}

const NOON: NumericDate = NumericDate::since_epoch(Duration::from_secs(1_800_000_000));

async fn open(folder: &Path) -> Cache {
    Cache::open(folder, "sqlite://a", 100).await.unwrap()
}

/// A connection that is merely dropped closes on a thread of its own, and writes its log into the file as it does.
async fn close(cache: Cache) {
    if let State::Open(file) = cache.state.into_inner() {
        file.close().await;
    }
}

#[tokio::test]
async fn a_record_comes_back_as_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    assert_eq!(cache.known().await, None);
    let (a, b) = (record("a", "default"), record("b", "hall"));
    cache.put(&of("a"), Entry::of(&a));
    assert_eq!(cache.find(&of("a")).await.as_ref(), Some(&a), "also before it is written");
    // Nobody has said up to where it is right.
    cache.flush().await.unwrap();
    assert_eq!(cache.find(&of("a")).await, None);
    cache.put(&of("a"), Entry::of(&a));
    cache.keep(&at(7)).await.unwrap();
    cache.put(&of("b"), Entry::of(&b));
    cache.flush().await.unwrap();
    close(cache).await;
    let cache = open(folder.path()).await;
    assert_eq!(cache.known().await, Some(at(7)));
    assert_eq!(cache.find(&of("a")).await, Some(a));
    assert_eq!(cache.find(&of("b")).await, Some(b));
    assert_eq!(cache.find(&of("c")).await, None);
    cache.set_signed_off(true).await.unwrap();
    close(cache).await;
    assert!(open(folder.path()).await.known().await.unwrap().signed_off);
}

#[tokio::test]
async fn what_is_forgotten_is_not_found_whether_that_is_written_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    let put = |name: &str, fleet: &str| cache.put(&of(name), Entry::of(&record(name, fleet)));
    for (name, fleet) in [("a", "default"), ("b", "hall"), ("c", "yard"), ("d", "yard")] {
        put(name, fleet);
    }
    cache.keep(&at(1)).await.unwrap();
    let hall = Forgotten { fleets: [FleetId::new("hall").unwrap()].into(), ..Forgotten::default() };
    cache.forget(&device_a());
    cache.forget(&hall);
    assert!(cache.must_forget());
    for name in ["a", "b"] {
        assert_eq!(cache.find(&of(name)).await, None, "{name}");
    }
    // Newer than what made it forget.
    put("a", "hall");
    assert!(cache.find(&of("a")).await.is_some());
    cache.keep(&at(2)).await.unwrap();
    assert!(!cache.must_forget() && !cache.has_news());
    assert!(cache.find(&of("a")).await.is_some() && cache.find(&of("b")).await.is_none());
    cache.forget(&Forgotten::everything());
    assert_eq!(cache.find(&of("c")).await, None);
    put("d", "yard");
    close(cache).await;
    // Nothing of that was written: it stands where it stood, at its position.
    let cache = open(folder.path()).await;
    assert_eq!(cache.known().await.unwrap(), at(2));
    assert!(cache.find(&of("c")).await.is_some());
}

/// Makes every write of how far it is right fail.
async fn spoil(folder: &Path) {
    let mut other = sqlx::SqliteConnection::connect(&folder.join(NAME).display().to_string()).await.unwrap();
    let spoil = "CREATE TRIGGER spoilt BEFORE UPDATE ON known BEGIN SELECT RAISE(ABORT, 'spoilt'); END";
    sqlx::query(spoil).execute(&mut other).await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    cache.put(&of("a"), Entry::of(&record("a", "default")));
    cache.keep(&at(1)).await.unwrap();
    spoil(folder.path()).await;
    cache.forget(&device_a());
    cache.keep(&at(2)).await.unwrap();
    assert!(!folder.path().join(NAME).exists());
    // Until it is made anew, nothing is kept.
    cache.put(&of("b"), Entry::of(&record("b", "default")));
    cache.keep(&at(3)).await.unwrap();
    assert_eq!((cache.find(&of("b")).await, cache.known().await), (None, None));
    assert!(!cache.is_empty_again());
}

#[tokio::test]
async fn a_file_that_can_neither_be_written_nor_removed_lets_nothing_be_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    cache.put(&of("a"), Entry::of(&record("a", "default")));
    cache.keep(&at(1)).await.unwrap();
    spoil(folder.path()).await;
    // In the way of its removal.
    let obstacle = folder.path().join(format!("{NAME}-journal"));
    std::fs::create_dir_all(obstacle.join("x")).unwrap();
    for n in 2..5 {
        cache.forget(&device_a());
        cache.keep(&at(n)).await.unwrap_err();
        cache.flush().await.unwrap_err();
        cache.set_signed_off(true).await.unwrap_err();
    }
    assert!(
        Cache::open(folder.path(), "sqlite://b", 100).await.is_err(),
        "nor does another run begin with it"
    );
    std::fs::remove_dir_all(&obstacle).unwrap();
    cache.keep(&at(5)).await.unwrap();
    assert!(!folder.path().join(NAME).exists());
}

#[tokio::test]
async fn of_another_registry_of_another_layout_or_broken_it_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    let filled = async || {
        let cache = open(folder.path()).await;
        cache.put(&of("a"), Entry::of(&record("a", "default")));
        cache.keep(&at(1)).await.unwrap();
        assert!(cache.find(&of("a")).await.is_some());
        close(cache).await;
    };
    filled().await;
    let other = Cache::open(folder.path(), "sqlite://b", 100).await.unwrap();
    assert_eq!((other.known().await, other.find(&of("a")).await), (None, None));
    close(other).await;
    for spoil in ["PRAGMA user_version = 1", "DROP TABLE known", "DELETE FROM known"] {
        filled().await;
        let mut file = sqlx::SqliteConnection::connect(&path.display().to_string()).await.unwrap();
        sqlx::query(spoil).execute(&mut file).await.unwrap();
        file.close().await.unwrap();
        let cache = open(folder.path()).await;
        assert_eq!((cache.known().await, cache.find(&of("a")).await), (None, None), "{spoil}");
        close(cache).await;
    }
    for text in ["", "no database", &"x".repeat(10_000)] {
        filled().await;
        // What a log beside it still holds would mend it.
        for log in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(folder.path().join(format!("{NAME}{log}")));
        }
        std::fs::write(&path, text).unwrap();
        let cache = open(folder.path()).await;
        assert_eq!((cache.known().await, cache.find(&of("a")).await), (None, None));
        close(cache).await;
    }
}
