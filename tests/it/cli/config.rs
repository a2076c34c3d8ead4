//! `config check`, `config show`, and what the environment says.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::command::{Desk, Ran};

fn value<'a>(rows: &'a Value, key: &str) -> &'a Value {
    rows.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap()
}

#[test]
fn what_is_wrong_is_named_by_line() {
    let desk = Desk::new();
    assert_eq!(desk.run("config check --json").json(), json!({ "file": "home/config.toml", "ok": true }));
    for (text, words) in [
        ("[gateway]\nnmae = \"x\"\n", &["line 2", "nmae", "expected one of"][..]),
        ("[limits]\nconnections = \"many\"\n", &["line 2", "connections"]),
        ("[limits]\nconnections = 0\n", &["line 2", "limits.connections is 0", "it must be 1 to 1048576"]),
        ("[nonsense]\n", &["line 1", "nonsense"]),
        ("not toml", &["line 1"]),
        (
            "[database]\nurl = \"mysql://ann:s3cret@h/d\"\n",
            &["line 2", "database.url", "sqlite://PATH or postgres://"],
        ),
        ("[tls]\ncertificate = \"none.crt\"\n", &["home/none.crt does not exist"]),
    ] {
        fs::write(desk.home("config.toml"), text).unwrap();
        for line in ["config check", "gateway run --listen 127.0.0.1:0"] {
            let ran = desk.run(line).fails(1, words);
            assert!(!ran.err.contains("s3cret"), "{}", ran.err);
        }
    }
    desk.write("other.toml", "[gateway]\nnmae = \"x\"\n");
    desk.run("config check other.toml").fails(1, &["other.toml", "line 2"]);
    desk.run("config check missing.toml").fails(1, &["cannot read missing.toml"]);
}

#[test]
fn the_examples_are_in_order() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config");
    let desk = Desk::empty();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        desk.run(["config", "check", path.to_str().unwrap()]).done();
    }
}

#[test]
fn what_is_in_force_says_where_it_comes_from() {
    let desk = Desk::new();
    fs::write(desk.home("config.toml"), "[limits]\nconnections = 7\n").unwrap();
    let rows = desk.run("config show --json").json();
    assert_eq!(
        *value(&rows, "limits.connections"),
        json!({ "key": "limits.connections", "value": "7", "source": "file" })
    );
    assert_eq!(value(&rows, "limits.handshakes")["source"], "default");
    let at_most = |rows: &Value| -> u64 {
        let row = value(rows, "memory.at_most");
        assert_eq!(row["source"], "computed");
        row["value"].as_str().unwrap().parse().unwrap()
    };
    let of_seven = at_most(&rows);
    fs::write(desk.home("config.toml"), "[limits]\nconnections = 8\n").unwrap();
    let of_eight = at_most(&desk.run("config show --json").json());
    assert!((500_000..5_000_000).contains(&(of_eight - of_seven)), "{of_seven} {of_eight}");
    desk.run("config show").done().says(&["memory at most ", "while strangers hold every place"]);
    fs::write(desk.home("config.toml"), "[limits]\nconnections = 7\n").unwrap();
    assert_eq!(
        *value(&rows, "database.url"),
        json!({ "key": "database.url", "value": "\"sqlite://home/registry.db\"", "source": "default" })
    );
    let rows = desk.run("config show --json --database sqlite://x.db").json();
    assert_eq!(value(&rows, "database.url")["source"], "flag");
    let table = desk.run("config show").done().out;
    assert!(table.contains("limits.connections") && table.contains("file"), "{table}");
    fs::write(desk.home("config.toml"), "[database]\nurl = \"postgres://ann:s3cret@h/d\"\n").unwrap();
    let shown = desk.run("config show").done().out;
    assert!(shown.contains("postgres://ann@h/d") && !shown.contains("s3cret"), "{shown}");
    let desk = desk.told("postgres://bob:s3cret@h/d");
    let rows = desk.run("config show --json").json();
    assert_eq!(value(&rows, "database.url")["source"], "environment");
    assert!(!rows.to_string().contains("s3cret"), "{rows}");
}

#[test]
fn the_default_text_shows_every_key() {
    let desk = Desk::new();
    let rows = desk.run("config show --json").json();
    let text = fs::read_to_string(desk.home("config.toml")).unwrap();
    // Where secrets come from is said too, and is none of the file's.
    let of_file = |row: &&Value| {
        let key = row["key"].as_str().unwrap();
        !key.starts_with("secrets.") && !key.starts_with("memory.")
    };
    for row in rows.as_array().unwrap().iter().filter(of_file) {
        let key = row["key"].as_str().unwrap().split('.').nth(1).unwrap();
        assert!(text.contains(&format!("\n{key} = ")), "{key}");
    }
}

#[test]
fn a_url_that_is_none_is_a_usage_error_and_never_shown() {
    let desk = Desk::new();
    for url in [
        "mysql://ann:s3cret@h/d",
        "registry.db",
        "postgres://ann:s3cret@h:99999999/d",
        "sqlite://x?mode=rwc",
        "sqlite://",
    ] {
        let by_option = desk.run(["--database", url, "device", "list"]).fails(2, &["://"]);
        assert!(!by_option.err.contains("s3cret"), "{}", by_option.err);
    }
    let told = Desk::new().told("mysql://ann:s3cret@h/d");
    let ran = told.run("device list").fails(2, &["sqlite"]);
    assert!(!ran.err.contains("s3cret"));
    // A variable that is set to nothing says nothing.
    Desk::new().told("").run("device list").done();
}

#[test]
fn a_database_that_is_away_is_named_without_its_password() {
    let desk = Desk::new().told("postgres://ann:s3cret@127.0.0.1:1/none");
    for line in ["device list", "gateway run --listen 127.0.0.1:0"] {
        let ran = desk.run(line).fails(1, &["cannot be reached", "ann@127.0.0.1:1/none"]);
        assert!(!ran.err.contains("s3cret"), "{}", ran.err);
    }
}

#[test]
fn the_environment_names_the_home() {
    let desk = Desk::new();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_doorward"));
    command
        .args(["fleet", "list", "--json"])
        .env("DOORWARD_HOME", desk.path("home"))
        .env_remove("DATABASE_URL");
    Ran::of(&mut command).json();
}
