use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::home::SECRET;

fn device() -> DeviceId {
    DeviceId::new("press-7").unwrap()
}

fn key(byte: u8) -> MasterKey {
    MasterKey::from_bytes([byte; 32])
}

fn sealed_by(key: &MasterKey) -> Vec<u8> {
    key.seal(&device(), KeyVersion::FIRST, &[7; 32], [1; 12])
}

fn home_with(files: &[(&str, u8)]) -> (tempfile::TempDir, Home) {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::new(folder.path());
    home::make_folder(&folder.path().join("pki")).unwrap();
    for (name, byte) in files {
        home::write_new(&home.pki(name), key(*byte).to_file().as_bytes(), SECRET).unwrap();
    }
    (folder, home)
}

/// As if the last look were long ago.
fn a_second_later(keys: &MasterKeys) {
    keys.lock().looked = None;
}

fn opens(keys: &MasterKeys, byte: u8) -> bool {
    keys.open(&device(), KeyVersion::FIRST, &sealed_by(&key(byte))).is_ok()
}

#[test]
fn each_opens_what_it_has_sealed_and_the_current_one_seals() {
    let (_folder, home) = home_with(&[(CURRENT, 1), (NEXT, 2)]);
    let keys = MasterKeys::load(&home, false).unwrap();
    assert!(opens(&keys, 1) && opens(&keys, 2) && !opens(&keys, 3));
    assert_eq!(keys.ids(), [key(1).id(), key(2).id()]);
    let sealed = keys.seal(&device(), KeyVersion::FIRST, &[7; 32], [1; 12]);
    assert_eq!(sealed_with(&sealed), Some(key(1).id()));
    let refused = keys.open(&device(), KeyVersion::FIRST, &sealed_by(&key(3))).unwrap_err();
    let right = SealError::WrongMasterKey { device: device(), sealed_with: key(3).id(), ours: key(1).id() };
    assert_eq!(refused, right);
}

#[test]
fn a_key_that_comes_later_is_found_when_it_is_needed() {
    let (_folder, home) = home_with(&[(CURRENT, 1)]);
    let keys = MasterKeys::load(&home, false).unwrap();
    home::write_new(&home.pki(NEXT), key(2).to_file().as_bytes(), SECRET).unwrap();
    assert!(!opens(&keys, 2), "the files were read a moment ago");
    a_second_later(&keys);
    assert!(opens(&keys, 2));
}

#[test]
fn what_leaves_the_files_lingers_and_a_broken_file_changes_nothing() {
    let (_folder, home) = home_with(&[(CURRENT, 1), (NEXT, 2)]);
    let keys = MasterKeys::load(&home, false).unwrap();
    home::rename(&home.pki(NEXT), &home.pki(CURRENT)).unwrap();
    assert!(keys.look().unwrap());
    assert_eq!((keys.id(), keys.ids()), (key(2).id(), vec![key(2).id()]));
    assert!(opens(&keys, 1), "a record may have been read just before");
    assert!(!keys.look().unwrap());
    assert!(opens(&keys, 1) && opens(&keys, 2));

    std::fs::write(home.pki(CURRENT), "junk").unwrap();
    let why = keys.look().unwrap_err().to_string();
    assert!(why.contains("master.key: a master key file is one line"), "{why}");
    std::fs::set_permissions(home.pki(CURRENT), std::fs::Permissions::from_mode(0o644)).unwrap();
    let why = keys.look().unwrap_err().to_string();
    assert!(why.contains("chmod 600"), "{why}");
    std::fs::remove_file(home.pki(CURRENT)).unwrap();
    assert!(matches!(keys.look(), Err(SecretError::File(FileError::Missing(_)))));
    assert_eq!(keys.ids(), [key(2).id()]);
    assert!(opens(&keys, 2));
}

#[test]
fn no_more_than_four_are_ever_held() {
    let (_folder, home) = home_with(&[]);
    home::write_over(&home.pki(CURRENT), key(0).to_file().as_bytes(), SECRET).unwrap();
    let keys = MasterKeys::load(&home, false).unwrap();
    for byte in 1..9 {
        home::write_over(&home.pki(CURRENT), key(byte).to_file().as_bytes(), SECRET).unwrap();
        keys.look().unwrap();
    }
    assert_eq!((0..9).filter(|byte| opens(&keys, *byte)).collect::<Vec<_>>(), [5, 6, 7, 8]);
}

#[test]
fn debug_shows_ids_alone() {
    let (_folder, home) = home_with(&[(CURRENT, 1)]);
    let keys = MasterKeys::load(&home, false).unwrap();
    let shown = format!("{keys:?}");
    assert_eq!(shown, format!("MasterKeys {{ ids: [{:?}], .. }}", key(1).id()));
}
