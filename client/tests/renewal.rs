//! A device gets itself a new certificate: it keeps both until the new one is let in, is never left with none, and ends
//! with one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test")]

mod support;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use doorward_client::renewal::Renew;
use doorward_client::{CertificateStatus, Credentials, Device, Options, RenewalOptions, RenewalState, State};
use doorward_proto::close::Close;
use doorward_proto::verdict::Refusal;
use serde_json::json;
use support::bundle::{self, WHOLE, names, quick};
use support::renewal::{Answer, TurnAway};
use support::{Gateway, Setup};

const UNKNOWN: TurnAway = TurnAway::Problem(401, "certificate-unknown");
const SUPERSEDED: TurnAway = TurnAway::Problem(403, "certificate-superseded");

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come"))
}

async fn status(device: &Device, what: &str, is: impl Fn(&CertificateStatus) -> bool) -> CertificateStatus {
    let mut status = device.certificate();
    within(what, status.wait_for(is)).await.unwrap().clone()
}

async fn connected(device: &Device) {
    let mut state = device.state();
    within("welcome", state.wait_for(|state| matches!(state, State::Connected(_)))).await.unwrap();
}

async fn renewed(device: &Device) -> CertificateStatus {
    status(device, "the renewal", |status| status.renewed > 0).await
}

async fn publishes(device: &Device, value: u32) {
    within("the ack", device.publish("devices/dev-00000/t", &value)).await.unwrap();
}

async fn eventually(what: &str, is: impl Fn() -> bool) {
    let waits = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, waits).await;
}

struct Scene {
    gateway: Gateway,
    folder: tempfile::TempDir,
    before: Vec<Vec<u8>>,
}

impl Scene {
    /// A gateway that asks its devices to renew, and the bundle of one.
    async fn new() -> Self {
        let gateway = Gateway::start(Setup { devices: 1, ..Setup::default() }).await;
        gateway.renewals().asks.store(true, Ordering::SeqCst);
        let folder = tempfile::tempdir().unwrap();
        bundle::write(&gateway, 0, folder.path());
        let before = contents(folder.path());
        Self { gateway, folder, before }
    }

    fn device(&self) -> Device {
        self.device_with(quick())
    }

    fn device_with(&self, options: Options) -> Device {
        Device::connect(Credentials::load(self.folder.path()).unwrap(), options).unwrap()
    }

    fn answers(&self, answer: Answer) {
        *self.gateway.renewals().answer.lock().unwrap() = answer;
    }

    fn turns_away(&self, old: Option<TurnAway>, new: Option<TurnAway>) {
        *self.gateway.renewals().old.lock().unwrap() = old;
        *self.gateway.renewals().new.lock().unwrap() = new;
    }

    fn turned_away(&self) -> usize {
        self.gateway.renewals().turned_away.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.gateway.renewals().requests.load(Ordering::SeqCst)
    }

    /// Nothing but a bundle is left, and it is the new one.
    fn is_renewed(&self) {
        assert_eq!(names(self.folder.path()), WHOLE);
        let (before, after) = (&self.before, contents(self.folder.path()));
        let changed: Vec<&str> = WHOLE
            .into_iter()
            .enumerate()
            .filter(|(n, _)| before[*n] != after[*n])
            .map(|(_, name)| name)
            .collect();
        assert_eq!(changed, ["device.crt", "device.key"]);
        assert!(self.gateway.renewals().generation(0) > 0, "the new one has proven itself");
    }

    /// Nothing but the first bundle is left.
    fn is_as_it_was(&self) {
        assert_eq!(names(self.folder.path()), WHOLE);
        assert!(contents(self.folder.path()) == self.before);
    }
}

fn contents(folder: &Path) -> Vec<Vec<u8>> {
    WHOLE.iter().map(|name| std::fs::read(folder.join(name)).unwrap()).collect()
}

#[tokio::test]
async fn asked_it_renews_and_only_the_new_pair_is_left() {
    let scene = Scene::new().await;
    let device = scene.device();
    let first = device.certificate().borrow().current.clone().unwrap();
    let status = renewed(&device).await;
    assert_ne!(status.current.as_ref().unwrap().serial, first.serial);
    assert_eq!((status.renewed, &status.renewal), (1, &RenewalState::None));
    publishes(&device, 1).await;
    scene.is_renewed();
    #[cfg(unix)]
    for (name, mode) in [("device.key", 0o600), ("device.crt", 0o644)] {
        use std::os::unix::fs::PermissionsExt as _;
        let metadata = std::fs::metadata(scene.folder.path().join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
    }
    device.close().await;
    // What it has stored is what it comes back with; the old one is not let in any more.
    let again = scene.device();
    publishes(&again, 2).await;
    assert_eq!(again.certificate().borrow().current, status.current);
    assert_eq!((scene.requests(), scene.gateway.renewals().issued()), (1, 1));
}

#[tokio::test]
async fn what_waits_for_an_answer_goes_into_the_session_of_the_new_certificate() {
    let scene = Scene::new().await;
    scene.gateway.deaf(true);
    let device = scene.device();
    let proven = async {
        renewed(&device).await;
        // The first session has heard it and kept silent; only the next one answers.
        scene.gateway.deaf(false);
        scene.gateway.end("dev-00000", Close::Internal);
    };
    tokio::join!(publishes(&device, 1), proven);
    assert_eq!(scene.gateway.stored().len(), 1);
}

#[tokio::test]
async fn a_certificate_that_is_turned_away_is_shown_a_few_times_and_given_up() {
    for way in [UNKNOWN, TurnAway::HangUp] {
        let scene = Scene::new().await;
        scene.turns_away(None, Some(way));
        // Nobody asks for another after that.
        let renewal = RenewalOptions { retry_cap: Duration::from_secs(600), ..quick().renewal };
        let device = scene.device_with(Options { renewal, ..quick() });
        let status =
            status(&device, "the end of it", |status| matches!(status.renewal, RenewalState::GivenUp(_)))
                .await;
        let RenewalState::GivenUp(why) = &status.renewal else { unreachable!() };
        assert!(why.contains("is not let in"), "{why}");
        assert_eq!(status.renewed, 0);
        publishes(&device, 1).await;
        assert_eq!(scene.turned_away(), 3, "{way:?}: as often as it was told to, and no more");
        assert_eq!(scene.requests(), 1);
        scene.is_as_it_was();
    }
}

#[tokio::test]
async fn while_neither_is_let_in_both_are_kept_and_either_brings_it_back() {
    for new_one_wins in [true, false] {
        let scene = Scene::new().await;
        scene.turns_away(None, Some(UNKNOWN));
        let options =
            Options { renewal: RenewalOptions { give_up_after: 1000, ..quick().renewal }, ..quick() };
        let device = scene.device_with(options.clone());
        eventually("the new one is shown", || scene.turned_away() > 0).await;
        scene.turns_away(Some(SUPERSEDED), Some(UNKNOWN));
        scene.gateway.end("dev-00000", Close::Suspended);
        let shown = scene.turned_away();
        eventually("it is shown again, by turns", || scene.turned_away() > shown + 8).await;
        drop(device);

        // A new process knows both.
        let device = scene.device_with(options);
        let shown = scene.turned_away();
        eventually("it is shown by the next process", || scene.turned_away() > shown + 3).await;
        assert!(names(scene.folder.path()).contains(&"renewal.pem".to_owned()));
        if new_one_wins {
            scene.turns_away(Some(SUPERSEDED), None);
            renewed(&device).await;
            publishes(&device, 1).await;
            scene.is_renewed();
        } else {
            scene.turns_away(None, Some(UNKNOWN));
            publishes(&device, 1).await;
            assert_eq!(device.certificate().borrow().renewed, 0);
        }
        assert_eq!(scene.gateway.renewals().issued(), 1, "the key is the same all the time");
    }
}

async fn is_of_no_use(answer: Answer, words: &str) {
    let scene = Scene::new().await;
    scene.answers(answer);
    let device = scene.device();
    let refused = |status: &CertificateStatus| matches!(&status.renewal, RenewalState::Refused(why) if why.contains(words));
    status(&device, words, refused).await;
    publishes(&device, 1).await;
    assert_eq!(scene.turned_away(), 0, "{answer:?}");
    scene.answers(Answer::Sign);
    renewed(&device).await;
    publishes(&device, 2).await;
    scene.is_renewed();
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_not_kept_and_another_key_is_made() {
    tokio::join!(
        is_of_no_use(Answer::ForAnotherDevice, "it is for 'another'"),
        is_of_no_use(Answer::ForAnotherKey, "cannot be used"),
        is_of_no_use(Answer::Expired, "expired"),
        is_of_no_use(Answer::Rubbish, "no certificate"),
    );
}

#[tokio::test]
async fn a_refused_renewal_is_asked_for_again_and_with_another_key_where_it_may_be_the_fault() {
    for refusal in [Refusal::Forbidden, Refusal::BadMessage] {
        let scene = Scene::new().await;
        scene.answers(Answer::Refuse(refusal));
        let device = scene.device();
        let key = || std::fs::read(scene.folder.path().join("renewal.pem")).ok();
        eventually("the key is stored", || key().is_some()).await;
        let first = key();
        eventually("several requests", || scene.requests() > 1).await;
        eventually("another key", || key().is_some_and(|key| Some(key) != first)).await;
        // A key that may be right is asked for several times.
        assert!(scene.requests() > 3 || refusal == Refusal::BadMessage, "{}", scene.requests());
        let told = |status: &CertificateStatus| matches!(&status.renewal, RenewalState::Refused(why) if why.contains(refusal.as_str()));
        status(&device, "why", told).await;
        scene.answers(Answer::Sign);
        renewed(&device).await;
        publishes(&device, 1).await;
        scene.is_renewed();
    }
}

#[tokio::test]
async fn a_device_that_comes_late_renews_and_then_says_what_it_had_to_say() {
    let scene = Scene::new().await;
    scene.gateway.renewals().late.store(true, Ordering::SeqCst);
    // It need not be asked.
    scene.gateway.renewals().asks.store(false, Ordering::SeqCst);
    let renewal = RenewalOptions { spread: Duration::from_secs(600), ..quick().renewal };
    let device = scene.device_with(Options { renewal, ..quick() });
    device.subscribe("devices/dev-00000/#").await.unwrap();
    publishes(&device, 1).await;
    scene.is_renewed();
}

#[tokio::test]
async fn an_expired_certificate_is_shown_until_it_may_be_renewed() {
    let scene = Scene::new().await;
    scene.turns_away(Some(TurnAway::Problem(403, "certificate-expired")), None);
    let device = scene.device();
    let mut state = device.state();
    let refused = |state: &State| matches!(state, State::Connecting { last: Some(why) } if why.contains("certificate-expired"));
    within("the refusal", state.wait_for(refused)).await.unwrap();
    // The operator allows it.
    scene.gateway.renewals().late.store(true, Ordering::SeqCst);
    scene.turns_away(None, None);
    renewed(&device).await;
    publishes(&device, 1).await;
    scene.is_renewed();
}

#[tokio::test]
async fn a_new_key_in_the_middle_of_a_renewal_is_kept_and_so_is_the_renewal() {
    let scene = Scene::new().await;
    scene.gateway.renewals().rekeys.store(true, Ordering::SeqCst);
    let device = scene.device();
    renewed(&device).await;
    publishes(&device, 1).await;
    device.close().await;
    assert_eq!(names(scene.folder.path()), WHOLE);
    let stored = Credentials::load(scene.folder.path()).unwrap();
    assert_eq!(stored.key().version().get(), 2);
    let again = scene.device();
    publishes(&again, 2).await;
    assert_eq!(again.certificate().borrow().renewal, RenewalState::None);
}

#[tokio::test]
async fn without_a_folder_it_renews_only_where_it_is_told_to() {
    let gateway = Gateway::start(Setup { devices: 2, ..Setup::default() }).await;
    gateway.renewals().asks.store(true, Ordering::SeqCst);
    let mut credentials = gateway.credentials().into_iter();
    let stored = Device::connect(credentials.next().unwrap(), quick()).unwrap();
    let renewal = RenewalOptions { renew: Renew::InMemory, ..quick().renewal };
    let in_memory = Device::connect(credentials.next().unwrap(), Options { renewal, ..quick() }).unwrap();
    renewed(&in_memory).await;
    connected(&in_memory).await;
    within("the ack", in_memory.publish("devices/dev-00001/t", &json!(1))).await.unwrap();
    assert_eq!((gateway.renewals().generation(0), gateway.renewals().issued()), (0, 1));
    publishes(&stored, 1).await;
    assert_eq!(stored.certificate().borrow().renewed, 0);
}

#[tokio::test]
async fn told_never_to_it_leaves_the_folder_alone() {
    let scene = Scene::new().await;
    let renewal = RenewalOptions { renew: Renew::Never, ..quick().renewal };
    let device = scene.device_with(Options { renewal, ..quick() });
    publishes(&device, 1).await;
    scene.gateway.rotate();
    publishes(&device, 2).await;
    assert_eq!(scene.requests(), 0);
    scene.is_as_it_was();
}

#[cfg(unix)]
#[tokio::test]
async fn a_folder_that_cannot_be_written_costs_the_renewal_and_nothing_else() {
    let scene = Scene::new().await;
    // Not a mode: those do not hold for root.
    let name = scene.folder.path().join("renewal.pem.new");
    std::fs::create_dir_all(name.join("in the way")).unwrap();
    let device = scene.device();
    let refused = |status: &CertificateStatus| matches!(&status.renewal, RenewalState::Refused(why) if why.contains("renewal.pem"));
    status(&device, "the refusal", refused).await;
    publishes(&device, 1).await;
    assert_eq!(scene.requests(), 0, "the gateway never hears of a key that is not stored");
    std::fs::remove_dir_all(name).unwrap();
    renewed(&device).await;
    publishes(&device, 2).await;
    scene.is_renewed();
}
