//! Every seed holds, a fixed number of mutations of each too, and each target is there wherever it has to be.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use doorward_fuzz::{Hunt, TARGETS, hunt};

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn every_seed_and_some_mutations_of_it_hold() {
    for (name, target) in TARGETS {
        let how = Hunt { seed: 7, inputs: 300, elapsed: || Duration::ZERO, until: Duration::MAX };
        let seeds = seeds(name);
        assert!(seeds.len() >= 3, "{name} has {} seeds", seeds.len());
        let found = hunt(target, &seeds, how);
        assert_eq!(
            found.failure,
            None,
            "{name}: {:?}",
            found.failure.as_deref().map(String::from_utf8_lossy)
        );
        assert!(found.outcomes >= 4, "{name}: all comes to the same");
    }
}

#[test]
fn every_target_has_its_program() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
    for (name, _) in TARGETS {
        let path = format!("fuzz_targets/{name}.rs");
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"{path}\"\n")), "{name}");
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        assert!(text.contains(&format!("doorward_fuzz::{name}(data)")), "{name}");
    }
}
