//! House rules that fail the build: what comes in, which way dependencies point, how long a file gets, and that what is
//! written elsewhere about the repository is true of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// The folders of source.
const SOURCE: [&str; 7] =
    ["src", "proto/src", "pki/src", "client/src", "device-sim/src", "fuzz/src", "benches/instructions/src"];
/// A file that has grown past this many lines has usually become two things.
const MOST_LINES: usize = 500;
/// Which crates of ours a crate may depend on. Nobody that is shipped depends on the root.
const MAY_DEPEND: [(&str, &[&str]); 7] = [
    ("doorward-proto", &[]),
    ("doorward-pki", &["doorward-proto"]),
    ("doorward-client", &["doorward-proto", "doorward-pki"]),
    ("device-sim", &["doorward-proto", "doorward-pki", "doorward-client"]),
    ("doorward", &["doorward-proto", "doorward-pki", "doorward-client", "device-sim"]),
    ("doorward-fuzz", &["doorward-proto", "doorward-pki", "doorward"]),
    ("doorward-instructions", &["doorward-proto"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn cargo(arguments: &[&str]) -> (bool, String, String) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(arguments).arg("--locked").current_dir(root()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// What `cargo metadata` says of this machine's build: nothing has to be fetched for another's.
fn metadata() -> Value {
    let rustc = Command::new("rustc").arg("-vV").current_dir(root()).output().unwrap();
    let words = String::from_utf8(rustc.stdout).unwrap();
    let host = words.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let (done, out, err) = cargo(&["metadata", "--format-version", "1", "--filter-platform", host]);
    assert!(done, "{err}");
    serde_json::from_str(&out).unwrap()
}

static METADATA: LazyLock<Value> = LazyLock::new(metadata);

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn deny() -> toml::Table {
    toml::from_str(&read("deny.toml")).unwrap()
}

/// The versions of each crate that is compiled into what is shipped, or builds it. `cargo tree` knows which optional
/// crates are in fact used; the graph in `cargo metadata` holds some that never are.
fn shipped() -> BTreeMap<String, BTreeSet<String>> {
    let (done, out, err) =
        cargo(&["tree", "--workspace", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
    assert!(done, "{err}");
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, version) in out.lines().filter_map(|line| line.split_once(" v")) {
        let version = version.split(' ').next().unwrap();
        versions.entry(name.to_owned()).or_default().insert(version.to_owned());
    }
    versions
}

/// Whether a licence expression (SPDX; `/` is an older OR) is satisfied by a set of licences.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut place = 0;
    let verdict = any_of(&words, &mut place, allowed);
    assert_eq!(place, words.len(), "not a licence expression: {expression}");
    verdict
}

fn any_of(words: &[&str], place: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut verdict = all_of(words, place, allowed);
    while words.get(*place) == Some(&"OR") {
        *place += 1;
        verdict |= all_of(words, place, allowed);
    }
    verdict
}

fn all_of(words: &[&str], place: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut verdict = licence(words, place, allowed);
    while words.get(*place) == Some(&"AND") {
        *place += 1;
        verdict &= licence(words, place, allowed);
    }
    verdict
}

fn licence(words: &[&str], place: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let word = *words.get(*place).expect("a licence");
    *place += 1;
    if word == "(" {
        let verdict = any_of(words, place, allowed);
        assert_eq!(words.get(*place), Some(&")"), "{words:?}");
        *place += 1;
        return verdict;
    }
    if words.get(*place) == Some(&"WITH") {
        let exception = words.get(*place + 1).expect("an exception");
        *place += 2;
        return allowed.contains(&format!("{word} WITH {exception}"));
    }
    allowed.contains(word)
}

/// Files below a folder, without what is built, fetched or not ours to read.
fn files_below(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().unwrap();
            let skipped = ["target", ".git", ".venv", "doorward-home", "__pycache__", "node_modules"];
            if kind.is_dir() && !skipped.iter().any(|skipped| name == *skipped) {
                folders.push(path);
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn a_licence_expression_is_read_as_spdx_says() {
    let allowed: BTreeSet<String> =
        ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for (expression, verdict) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("MIT AND ISC", true),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("(GPL-3.0 OR MIT) AND GPL-2.0", false),
        ("ISC AND (GPL-3.0 OR MIT)", true),
        ("Apache-2.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
    ] {
        assert_eq!(satisfied(expression, &allowed), verdict, "{expression}");
    }
}

#[test]
fn every_licence_is_one_that_we_take() {
    let deny = deny();
    let allow = deny["licenses"]["allow"].as_array().unwrap();
    let allowed: BTreeSet<String> = allow.iter().map(|value| value.as_str().unwrap().to_owned()).collect();
    let refused: Vec<String> = list(&METADATA["packages"])
        .iter()
        .filter(|package| !satisfied(text(&package["license"]).trim(), &allowed))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "not in deny.toml's [licenses] allow: {refused:#?}");
}

#[test]
fn a_crate_in_two_versions_is_borne_for_a_reason() {
    let mut versions = shipped();
    assert!(versions.len() > 50, "{versions:?}");
    versions.retain(|_, versions| versions.len() > 1);

    let deny = deny();
    let mut skipped: BTreeSet<String> = BTreeSet::new();
    for skip in deny["bans"]["skip"].as_array().unwrap() {
        let reason = skip.get("reason").and_then(|reason| reason.as_str()).unwrap_or_default();
        assert!(!reason.is_empty(), "a skip needs its reason: {skip}");
        skipped.insert(skip["crate"].as_str().unwrap().to_owned());
    }
    for (name, versions) in versions {
        let left: Vec<String> =
            versions.into_iter().filter(|version| !skipped.remove(&format!("{name}@{version}"))).collect();
        assert_eq!(left.len(), 1, "{name} is there as {left:?}: deny.toml's [bans] skip names all but one");
    }
    assert!(skipped.is_empty(), "skips in deny.toml that are no longer needed: {skipped:?}");
}

#[test]
fn banned_crates_are_not_compiled() {
    let deny = deny();
    let banned: Vec<&str> =
        deny["bans"]["deny"].as_array().unwrap().iter().map(|ban| ban["name"].as_str().unwrap()).collect();
    assert!(["ring", "openssl-sys", "native-tls"].iter().all(|name| banned.contains(name)));
    for name in banned {
        // Not in the graph at all is an error, in it but never built prints nothing.
        let (_, out, _) = cargo(&["tree", "--workspace", "--edges", "all", "--invert", name]);
        assert_eq!(out.trim(), "", "{name} is compiled");
    }
}

#[test]
fn the_pure_crates_can_do_no_io() {
    for manifest in ["proto/Cargo.toml", "pki/Cargo.toml"] {
        let manifest_text: toml::Table = toml::from_str(&read(manifest)).unwrap();
        let tables = ["dependencies", "build-dependencies", "target"];
        for table in tables.iter().filter_map(|name| manifest_text.get(*name)?.as_table()) {
            for name in table.keys() {
                let banned =
                    ["tokio", "rustls", "sqlx", "socket2", "mio", "hyper", "futures"].iter().any(|banned| {
                        *name == **banned
                            || name.starts_with(&format!("{banned}-")) && name != "rustls-pki-types"
                    });
                assert!(!banned, "{manifest} names {name}");
            }
        }
    }
}

#[test]
fn dependencies_point_one_way() {
    let ours: BTreeSet<&str> = MAY_DEPEND.iter().map(|(name, _)| *name).collect();
    let mut seen = BTreeSet::new();
    let members: BTreeSet<&str> = list(&METADATA["workspace_members"]).iter().map(text).collect();
    for package in list(&METADATA["packages"]).iter().filter(|p| members.contains(text(&p["id"]))) {
        let name = text(&package["name"]);
        seen.insert(name);
        let (_, allowed) = MAY_DEPEND.iter().find(|(of, _)| *of == name).expect("a crate of this list");
        for dependency in list(&package["dependencies"]).iter().filter(|d| text(&d["kind"]) != "dev") {
            let on = text(&dependency["name"]);
            assert!(!ours.contains(on) || allowed.contains(&on), "{name} depends on {on}");
        }
    }
    assert_eq!(seen, ours, "the crates of the workspace");
}

#[test]
fn no_file_has_become_two_things() {
    for path in SOURCE.iter().flat_map(|folder| files_below(folder)) {
        if path.extension().is_none_or(|end| end != "rs") {
            continue;
        }
        let lines = read(&path).lines().count();
        assert!(lines <= MOST_LINES, "{} has {lines} lines, of at most {MOST_LINES}", shown(&path));
    }
}

#[test]
fn nothing_that_is_shipped_leads_to_the_echo() {
    // Who may name the module that the example uses, and the room that it serves into.
    for (name, may) in [
        ("conformance", &["src/lib.rs"][..]),
        ("echo", &["src/conformance.rs", "src/connection/echo.rs", "src/connection.rs"]),
    ] {
        let names_it = |path: &PathBuf| {
            let file_text = read(path);
            let code = file_text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let mut words = code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
            path.extension().is_some_and(|end| end == "rs") && words.any(|word| word == name)
        };
        let found: Vec<String> =
            files_below("src").into_iter().filter(names_it).map(|path| shown(&path)).collect();
        assert_eq!(found, may, "files of what is shipped that name '{name}'");
    }
}

#[test]
fn migrations_are_paired() {
    let names = |kind: &str| -> Vec<String> {
        files_below(&format!("migrations/{kind}"))
            .iter()
            .map(|path| shown(path)[11 + kind.len()..].to_owned())
            .collect()
    };
    let (postgres, sqlite) = (names("postgres"), names("sqlite"));
    assert_eq!(postgres, sqlite);
    for (place, name) in postgres.iter().enumerate() {
        assert!(name.trim_start_matches('/').starts_with(&format!("{:04}_", place + 1)), "{name}");
    }
}

#[test]
fn links_lead_somewhere() {
    let mut pages: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .iter()
        .map(|name| root().join(name))
        .filter(|path| path.exists())
        .collect();
    pages.extend(
        files_below("docs").into_iter().filter(|path| path.extension().is_some_and(|end| end == "md")),
    );
    let mut broken = Vec::new();
    for page in pages {
        let page_text = read(&page);
        for target in page_text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let leads = path.exists()
                && (anchor.is_empty() || path.is_dir() || anchors(&read(&path)).contains(anchor));
            if !leads {
                broken.push(format!("{}: {target}", shown(&page)));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The names that a page's headings can be linked by.
fn anchors(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            heading
                .chars()
                .filter_map(|c| match c {
                    ' ' => Some('-'),
                    c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                    _ => None,
                })
                .collect()
        })
        .collect()
}

#[test]
fn the_text_names_no_package_registry() {
    // In pieces: this file is searched too.
    let hosts = [
        ["index.crates", ".io"],
        ["static.crates", ".io"],
        ["pypi", ".org"],
        ["files.pythonhosted", ".org"],
        ["registry.npmjs", ".org"],
        ["deb.debian", ".org"],
    ]
    .map(|pieces| pieces.concat());
    let mut named = Vec::new();
    for path in files_below("") {
        // A lock file's sources are the tool's own words.
        let Ok(file_text) = fs::read_to_string(&path) else { continue };
        named.extend(
            hosts
                .iter()
                .filter(|host| file_text.contains(host.as_str()))
                .map(|host| format!("{}: {host}", shown(&path))),
        );
    }
    assert!(named.is_empty(), "{named:#?}");
}

#[test]
fn every_rule_that_is_cited_exists() {
    let protocol = read("docs/protocol.md");
    let defined: BTreeSet<&str> = protocol
        .lines()
        .filter_map(|line| line.trim_start_matches(['|', ' ', '-']).strip_prefix("**")?.split("**").next())
        .filter(|name| rules(name).count() == 1)
        .collect();
    assert!(defined.len() > 20, "{defined:?}");
    let mut missing = Vec::new();
    let folders = SOURCE.into_iter().chain([
        "tests",
        "proto/tests",
        "pki/tests",
        "client/tests",
        "device-sim/tests",
        "docs",
        "examples",
    ]);
    for path in folders.flat_map(files_below) {
        let Ok(file_text) = fs::read_to_string(&path) else { continue };
        for rule in rules(&file_text).filter(|rule| !defined.contains(rule)) {
            missing.push(format!("{}: {rule}", shown(&path)));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The numbers of rules in a text: the letter, a hyphen, digits, and no word before.
fn rules(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("R-").filter_map(move |(at, _)| {
        let before = text[..at].chars().next_back();
        let digits = text[at + 2..].bytes().take_while(u8::is_ascii_digit).count();
        let free = before.is_none_or(|c| !c.is_alphanumeric() && c != '-' && c != '_');
        (free && digits > 0).then(|| &text[at..at + 2 + digits])
    })
}
