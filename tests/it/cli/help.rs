//! Help, completions and manual pages; commands that are none.

use crate::support::command::{Desk, Ran};

/// Every command that there is.
const COMMANDS: [&str; 43] = [
    "init",
    "demo",
    "gateway run",
    "gateway renew-cert",
    "fleet add",
    "fleet list",
    "fleet show",
    "fleet policy",
    "device add",
    "device list",
    "device show",
    "device suspend",
    "device resume",
    "device revoke",
    "device bundle",
    "device kick",
    "device rotate-key",
    "device rotate-cert",
    "explain",
    "rotation list",
    "rotation show",
    "rotation stop",
    "rotation resume",
    "rotation undo",
    "cert crl",
    "pki export-root",
    "pki rollover begin",
    "pki rollover status",
    "pki rollover finish",
    "pki csr",
    "pki import",
    "session list",
    "message list",
    "event list",
    "event tail",
    "audit list",
    "audit verify",
    "audit export",
    "config check",
    "config show",
    "completions",
    "man",
    "help",
];

#[test]
fn every_command_explains_itself_with_an_example() {
    let desk = Desk::empty();
    for command in COMMANDS.iter().filter(|command| **command != "help") {
        let help = desk.run(&format!("{command} --help")).done().out;
        assert!(help.contains("Example"), "{command}: {help}");
        assert!(help.contains(&format!("doorward {command}")), "{command}: {help}");
        assert!(help.contains("--json") && help.contains("--home"), "{command}: {help}");
    }
}

#[test]
fn a_secret_in_the_environment_is_not_shown() {
    let desk = Desk::empty().told("postgres://ann:s3cret@h/d");
    let help = desk.run("--help").done();
    assert!(!help.out.contains("s3cret") && !help.err.contains("s3cret"), "{help:?}");
}

#[test]
fn completions_and_manual_pages() {
    let desk = Desk::empty();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = desk.run(&format!("completions {shell}")).done().out;
        assert!(script.contains("doorward") && script.contains("suspend"), "{shell}");
    }
    desk.run("completions tcsh").fails(2, &["bash"]);
    desk.run("man pages/man1").done();
    for command in COMMANDS.iter().filter(|command| **command != "help") {
        let page = desk.path("pages/man1").join(format!("doorward-{}.1", command.replace(' ', "-")));
        assert!(page.exists(), "{}", page.display());
    }
    desk.write("file", "");
    desk.run("man file").fails(1, &["cannot write the manual pages to file"]);
}

#[test]
fn usage_is_2() {
    let desk = Desk::new();
    for line in [
        "device",
        "device frobnicate",
        "device show",
        "device list --frobnicate",
        "gateway run --listen here",
        "device add --count 3",
        "device add press-7 --count 3 --prefix p --out f",
        "device add --count 0 --prefix p --out f",
        "device add --count 1000000 --prefix p --out f",
        "device add --count 3 --prefix p/ --out f",
        "device add --count 3 --prefix - --out f",
        "fleet policy default",
        "session",
        "device rotate-key",
        "device rotate-key press-7 --fleet default",
        "device rotate-key --fleet default --out d",
        "device rotate-key --fleet default --grace 0s",
        "device rotate-key --fleet default --grace 400d",
        "device rotate-key --fleet default --wave 0",
        "device rotate-key --fleet default --canary 101%",
        "device rotate-key --fleet default --patience 31d",
        "device rotate-key press-7 --canary 5%",
        "device rotate-cert",
        "device rotate-cert --fleet default --days 7",
        "device rotate-cert --fleet default --csr c",
        "rotation stop 1",
        "rotation show x",
    ] {
        let ran = desk.run(line);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{line}: {ran:?}");
    }
    let mut bare = std::process::Command::new(env!("CARGO_BIN_EXE_doorward"));
    assert_eq!(Ran::of(&mut bare).code, Some(2));
    let version = desk.run("--version").done().out;
    assert_eq!(version.trim(), format!("doorward {}", env!("CARGO_PKG_VERSION")));
    assert!(!desk.path("f").exists() && !desk.path("f.part").exists());
}
