use super::*;

struct Scene {
    home: Home,
    pair: Pair,
    authority: Authority,
    folder: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Scene {
    /// A home with a pair and what the next one would be.
    fn new() -> (Self, [String; 2], [String; 2]) {
        let name = u64::from_be_bytes(entropy::random().unwrap());
        let folder = std::env::temp_dir().join(format!("doorward-pair-{name:016x}"));
        home::make_folder(&folder.join("pki")).unwrap();
        let home = Home::new(&folder);
        let serial = || Serial::from_random(entropy::random().unwrap());
        let root = Authority::root("Root", entropy::key_pair().unwrap(), serial(), clock::utc()).unwrap();
        let authority =
            root.issuing("Issuing", entropy::key_pair().unwrap(), serial(), clock::utc()).unwrap();
        home::write_new(&home.pki("root.crt"), root.certificate_pem(), PUBLIC).unwrap();
        let make = || {
            let key = entropy::key_pair().unwrap();
            let hosts = ["gw.example".parse().unwrap()];
            let lifetime = time::Duration::days(7);
            let leaf = authority.issue_gateway("gw", &hosts, &key, serial(), clock::utc(), lifetime).unwrap();
            [format!("{}{}", leaf.pem(), authority.certificate_pem()), key_to_pem(&key).to_string()]
        };
        let (old, new) = (make(), make());
        let pair = Pair::of(&TlsSection::default(), &home);
        home::write_new(&pair.certificate, &old[0], PUBLIC).unwrap();
        home::write_new(&pair.key, &old[1], SECRET).unwrap();
        (Self { home, pair, authority, folder }, old, new)
    }

    fn in_place(&self) -> [String; 2] {
        [home::read(&self.pair.certificate).unwrap(), home::read_secret(&self.pair.key).unwrap().to_string()]
    }

    fn leftovers(&self) -> usize {
        let names = fs::read_dir(self.home.path().join("pki")).unwrap();
        names.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".next")).count()
    }
}

/// What `Pair::replace` does, one step after the other.
fn steps(pair: &Pair, new: &[String; 2], how_many: usize) {
    let all: [&dyn Fn(); 4] = [
        &|| home::write_over(&next(&pair.key), &new[1], SECRET).unwrap(),
        &|| home::write_over(&next(&pair.certificate), &new[0], PUBLIC).unwrap(),
        &|| home::rename(&next(&pair.key), &pair.key).unwrap(),
        &|| home::rename(&next(&pair.certificate), &pair.certificate).unwrap(),
    ];
    all.iter().take(how_many).for_each(|step| step());
}

#[test]
fn cut_short_at_any_step_there_is_one_whole_pair_afterwards() {
    for done in 0..=4 {
        let (scene, old, new) = Scene::new();
        steps(&scene.pair, &new, done);
        let finished = scene.pair.recover().unwrap();
        let expected = if done < 2 { &old } else { &new };
        assert_eq!(scene.in_place(), *expected, "after {done} steps");
        assert_eq!((finished, scene.leftovers()), ((2..4).contains(&done), 0), "after {done} steps");
        assert!(fits(&expected[0], &expected[1]));
        assert!(!scene.pair.recover().unwrap(), "once is enough");
        // And the next one goes on from there.
        scene.pair.renew(&scene.home, &scene.authority, &[]).unwrap();
        let [certificate, key] = scene.in_place();
        assert!(fits(&certificate, &key) && certificate != expected[0]);
    }
}

#[test]
fn what_does_not_fit_is_never_put_in_place() {
    let (scene, old, new) = Scene::new();
    // A certificate without its key, from wherever.
    home::write_over(&next(&scene.pair.certificate), &new[0], PUBLIC).unwrap();
    assert!(!scene.pair.recover().unwrap());
    assert_eq!((scene.in_place(), scene.leftovers()), (old.clone(), 0));
    // Junk beside a key.
    home::write_over(&next(&scene.pair.key), &new[1], SECRET).unwrap();
    home::write_over(&next(&scene.pair.certificate), "junk", PUBLIC).unwrap();
    assert!(!scene.pair.recover().unwrap());
    assert_eq!((scene.in_place(), scene.leftovers()), (old, 0));
}

#[test]
fn a_key_that_cannot_be_read_now_is_no_reason_to_remove_its_certificate() {
    use std::os::unix::fs::PermissionsExt as _;
    let (scene, _, new) = Scene::new();
    // Killed between the two renames, and then somebody has opened the key to others.
    steps(&scene.pair, &new, 3);
    let mode = |mode| fs::set_permissions(&scene.pair.key, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o640);
    assert!(matches!(scene.pair.recover(), Err(FileError::Open { .. })));
    mode(0o600);
    assert!(scene.pair.recover().unwrap());
    assert_eq!(scene.in_place(), new);
}

#[test]
fn a_renewed_one_is_like_the_old_one_with_another_key() {
    let (scene, old, _) = Scene::new();
    let renewed = scene.pair.renew(&scene.home, &scene.authority, &[]).unwrap();
    let hosts: Vec<Host> = vec!["gw.example".parse().unwrap()];
    assert_eq!(renewed.hosts, hosts);
    let [certificate, key] = scene.in_place();
    assert_ne!(key, old[1]);
    let leaf = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let read = ServerCertificate::parse(&leaf).unwrap();
    assert_eq!((read.name.as_deref(), &read.hosts, read.not_after), (Some("gw"), &hosts, renewed.not_after));
    // Other hosts, where they are said.
    let other: Vec<Host> = vec!["10.0.0.7".parse().unwrap(), "gw2.example".parse().unwrap()];
    assert_eq!(scene.pair.renew(&scene.home, &scene.authority, &other).unwrap().hosts, other);
}

#[test]
fn what_is_not_ours_stands() {
    let (scene, old, new) = Scene::new();
    let (stranger, ..) = Scene::new();
    let renew = || scene.pair.renew(&scene.home, &stranger.authority, &[]);
    // A CA below another root, though this home's own has signed what is there.
    fs::remove_file(scene.home.pki("root.crt")).unwrap();
    assert!(matches!(renew(), Err(RenewError::Foreign(_))));
    assert_eq!(scene.in_place(), old);
    // A link is turned by whoever made it.
    fs::rename(&scene.pair.certificate, scene.home.pki("elsewhere.crt")).unwrap();
    std::os::unix::fs::symlink("elsewhere.crt", &scene.pair.certificate).unwrap();
    assert!(matches!(scene.pair.renew(&scene.home, &scene.authority, &[]), Err(RenewError::Link(_))));
    fs::remove_file(&scene.pair.certificate).unwrap();
    assert!(matches!(scene.pair.renew(&scene.home, &scene.authority, &[]), Err(RenewError::File(_))));
    home::write_new(&scene.pair.certificate, "junk", PUBLIC).unwrap();
    assert!(matches!(
        scene.pair.renew(&scene.home, &scene.authority, &[]),
        Err(RenewError::Unreadable { .. })
    ));
    home::write_over(&scene.pair.certificate, &new[0], PUBLIC).unwrap();
    scene.pair.renew(&scene.home, &scene.authority, &[]).unwrap();
}

#[test]
fn a_ca_that_ends_first_gains_nothing() {
    let (scene, ..) = Scene::new();
    let ends = ServerCertificate::parse(&scene.pair.chain().unwrap()[0]).unwrap().not_after;
    let serial = Serial::from_random(entropy::random().unwrap());
    // A CA of the same name and key could be renewed; one that ends sooner is of no use.
    let root_then = clock::utc() - time::Duration::days(3650);
    let old_root = Authority::root("Old root", entropy::key_pair().unwrap(), serial, root_then).unwrap();
    assert!(old_root.not_after().unix_timestamp() < ends);
    let key = entropy::key_pair().unwrap();
    let hosts = ["gw.example".parse().unwrap()];
    let leaf =
        old_root.issue_gateway("gw", &hosts, &key, serial, clock::utc(), time::Duration::days(7)).unwrap();
    home::write_over(&scene.pair.certificate, leaf.pem(), PUBLIC).unwrap();
    let refused = scene.pair.renew(&scene.home, &old_root, &[]);
    assert!(matches!(refused, Err(RenewError::CaEnds(_))), "{refused:?}");
}

#[test]
fn a_pair_that_devices_would_refuse_is_never_put_in_place() {
    let (scene, old, _) = Scene::new();
    let (stranger, ..) = Scene::new();
    // The root is another than the one that has signed the CA.
    fs::copy(stranger.home.pki("root.crt"), scene.home.pki("root.crt")).unwrap();
    let refused = scene.pair.renew(&scene.home, &scene.authority, &[]);
    assert!(matches!(refused, Err(RenewError::NotAccepted(TrialError::Server { .. }))), "{refused:?}");
    assert_eq!((scene.in_place(), scene.leftovers()), (old, 0));
}

#[test]
fn a_pair_below_any_of_the_homes_roots_is_ours() {
    let (scene, ..) = Scene::new();
    let (next, ..) = Scene::new();
    // A CA that signs now, below a root that has come to stand before the one that the pair in place is below.
    let [own, other] = [&scene, &next].map(|scene| home::read(&scene.home.pki("root.crt")).unwrap());
    for both in [format!("{own}{other}"), format!("{other}{own}")] {
        home::write_over(&scene.home.pki("root.crt"), both, PUBLIC).unwrap();
        scene.pair.renew(&scene.home, &next.authority, &[]).unwrap();
        scene.pair.renew(&scene.home, &scene.authority, &[]).unwrap();
    }
}
