//! What docs/threat-model.md names is there: a row that points at nothing would promise a check that nobody makes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = "docs/threat-model.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    fs::read_to_string(root().join(PAGE)).unwrap()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_path(word: &str) -> bool {
    let ends = [".rs", ".sql", ".md", ".toml"];
    ends.iter().any(|end| word.ends_with(end)) && !word.contains(' ')
}

fn is_test(word: &str) -> bool {
    let snake = word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let words = word.split('_').count();
    // One-word tests are told by where they stand: the last cell of an attack's row.
    snake && words > 2 && !word.starts_with("doorward")
}

fn sources(folder: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let below = path.strip_prefix(root()).unwrap().display().to_string();
        if path.is_dir() && !path.ends_with("target") {
            sources(&below, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The names of functions behind `#[test]`, and of those that a macro runs on both databases.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in ["tests", "src", "proto", "pki", "client", "device-sim", "fuzz"] {
        sources(folder, &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let is_on_both = text.contains("on_both");
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            let name =
                line.trim_start_matches("pub(super) ").trim_start_matches("async ").strip_prefix("fn ");
            if let Some(name) = name.and_then(|rest| rest.split(['(', '<']).next())
                && (marked
                    || is_on_both
                    || text.contains(&format!("{name}_on_sqlite"))
                    || text.contains("contract!"))
            {
                names.insert(name.to_owned());
            }
            marked = line.starts_with("#[test]")
                || line.starts_with("#[tokio::test")
                || marked && line.starts_with("#[");
        }
    }
    names
}

#[test]
fn every_file_and_test_of_the_threat_model_exists() {
    let (page, tests) = (page(), tests());
    let mut missing = Vec::new();
    for word in quoted(&page) {
        if is_path(word) && !root().join(word).is_file() {
            missing.push(format!("no file {word}"));
        }
        if is_test(word) && !tests.contains(word) {
            missing.push(format!("no test {word}"));
        }
    }
    assert!(missing.is_empty(), "{PAGE}: {missing:#?}");
}

#[test]
fn every_attack_has_a_check_and_a_test_that_shows_it() {
    let (page, tests) = (page(), tests());
    let attacks = page.split("\n## ").find(|part| part.starts_with("Attacks")).unwrap();
    let rows: Vec<&str> = attacks.lines().filter(|line| line.starts_with("| ")).collect();
    let mut counted = 0;
    for row in rows.iter().filter(|row| !row.starts_with("| attack ") && !row.starts_with("| ---")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [_, check, shown] = cells.as_slice() else { panic!("not three cells: {row}") };
        assert!(quoted(check).any(is_path), "no place: {row}");
        assert!(quoted(shown).count() > 0, "no test: {row}");
        for name in quoted(shown) {
            assert!(tests.contains(name), "no test {name}: {row}");
        }
        counted += 1;
    }
    assert!(counted > 40, "{counted} attacks");
}

#[test]
fn each_row_of_a_standard_says_where() {
    let page = page();
    for part in
        page.split("\n## ").filter(|part| ["OWASP", "ASVS", "ETSI"].iter().any(|name| part.starts_with(name)))
    {
        let rows = part.lines().filter(|line| line.starts_with("| ")).skip(2);
        for row in rows {
            let place = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
            assert!(place == "none" || quoted(place).all(is_path) && quoted(place).count() > 0, "{row}");
        }
    }
}
