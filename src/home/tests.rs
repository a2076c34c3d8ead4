use super::*;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_leftover_that_is_another_name_of_the_live_key_goes_and_the_key_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("root.key");
    write_new(&key, "the key", SECRET).unwrap();
    // As two runs have left it that were killed between the link and the removal.
    for mark in ["0123456789abcdef", &std::process::id().to_string()] {
        fs::hard_link(&key, folder.path().join(format!("root.key.{mark}.tmp"))).unwrap();
    }
    assert!(matches!(write_new(&key, "another", SECRET), Err(FileError::Exists(_))));
    let before = fs::metadata(&key).unwrap().ino();
    let copy = folder.path().join("copy");
    fs::hard_link(&key, &copy).unwrap();
    write_over(&key, "the next key", SECRET).unwrap();
    assert_eq!(names(folder.path()), ["copy", "root.key"]);
    assert_eq!(fs::read_to_string(&key).unwrap(), "the next key");
    assert_eq!(
        fs::read_to_string(&copy).unwrap(),
        "the key",
        "what stood under the other name is not written into"
    );
    assert_eq!(fs::metadata(&copy).unwrap().ino(), before);
}

#[test]
fn any_command_sweeps_what_the_killed_have_left_and_nothing_that_is_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::new(folder.path());
    make_folder(&home.path().join("pki")).unwrap();
    let leave = |name: &str| fs::write(home.pki(name), "half").unwrap();
    for name in ["root.key.4711.tmp", "gateway.key.next.00ff00ff00ff00ff.tmp", "notes.tmp", "x.final.tmp"] {
        leave(name);
    }
    let (living, _held) = write_temporary(&home.pki("master.key"), b"whole", SECRET).unwrap();
    let living = living.file_name().unwrap().to_str().unwrap().to_owned();
    sweep(&home);
    assert_eq!(names(&home.path().join("pki")), [living.as_str(), "notes.tmp", "x.final.tmp"]);
}
