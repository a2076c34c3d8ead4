//! What is secret is its owner's alone, whatever the umask; and a secret that is open is refused.

use std::process::{Command, Stdio};

use crate::support::command::{Desk, Ran, chmod};
use crate::support::running::Running;

/// What anybody may read, by the ends of the names.
const PUBLIC: [&str; 6] =
    [".crt", ".crl", "config.toml", "state/id", "state/audit-heads", "state/device-cas"];

/// The same command under an umask that forbids nothing, or everything but what its owner needs.
fn under(umask: &str, command: &Command) -> Command {
    let mut lowered = Command::new("sh");
    lowered.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(command.get_program());
    lowered.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(folder) = command.get_current_dir() {
        lowered.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => lowered.env(name, value),
            None => lowered.env_remove(name),
        };
    }
    lowered
}

#[test]
fn whatever_the_umask_what_is_secret_is_its_owners_alone() {
    for umask in ["000", "077"] {
        let desk = Desk::empty();
        desk.write("passphrase", "correct horse battery\n");
        let run = |line: &str| {
            let line = format!("{line} --passphrase-file passphrase");
            Ran::of(&mut under(umask, &desk.command(&line))).done()
        };
        run("init --host localhost");
        run("device add a");
        run("device add b --out elsewhere");
        run("device add --count 3 --prefix p- --out bulk.jsonl");
        run("device rotate-key a --out key");
        run("device rotate-cert a --out cert");
        run("device bundle b --out bundle");
        run("device revoke b --reason x");
        run("cert crl --out list.crl");
        let gateway = Running::spawn(&mut under(umask, &desk.command("gateway run --listen 127.0.0.1:0")));
        run("pki rewrap");
        run("pki rewrap --prepare");
        gateway.ended_by("TERM");
        let modes = desk.modes(".");
        assert!(modes.len() > 40, "{modes:#?}");
        for line in modes {
            let (mode, name) = line.split_once(' ').unwrap();
            let public = PUBLIC.iter().any(|end| name.ends_with(end));
            let folder = desk.path(name).is_dir();
            let right: &[&str] = match (folder, public) {
                (true, _) => &["700"],
                // What is public may be as closed as its owner's umask wants it.
                (false, true) => &["644", "600"],
                (false, false) => &["600"],
            };
            assert!(right.contains(&mode), "umask {umask}: {line}");
        }
    }
}

#[test]
fn a_secret_that_others_may_read_is_refused_with_the_command_that_mends_it() {
    let desk = Desk::empty();
    desk.write("passphrase", "correct horse battery\n");
    desk.run("init --passphrase-file passphrase").done();
    desk.run("pki rewrap --prepare").done();
    for (file, line) in [
        ("passphrase", "device add a --passphrase-file passphrase"),
        ("home/pki/issuing.key", "device add a --passphrase-file passphrase"),
        ("home/pki/issuing.key", "issuer run --passphrase-file passphrase"),
        ("home/pki/master.key", "pki rewrap"),
        ("home/pki/master.next.key", "pki rewrap"),
        ("home/pki/master.next.key", "gateway run --listen 127.0.0.1:0"),
        ("home/pki/gateway.key", "gateway run --listen 127.0.0.1:0"),
    ] {
        for mode in [0o640, 0o604, 0o620] {
            chmod(&desk.path(file), mode);
            desk.run(line).fails(1, &[&format!("{mode:04o}"), &format!("chmod 600 {file}")]);
        }
        chmod(&desk.path(file), 0o400);
        assert_ne!(desk.run("config check").code, Some(1), "{file}: closer than needed is as good");
        chmod(&desk.path(file), 0o600);
    }
    // One that has no end is none.
    chmod(&desk.home("pki/master.next.key"), 0o600);
    std::fs::remove_file(desk.home("pki/master.next.key")).unwrap();
    std::fs::write(desk.home("pki/master.next.key"), vec![b'A'; 2 << 20]).unwrap();
    chmod(&desk.home("pki/master.next.key"), 0o600);
    desk.run("pki rewrap").fails(1, &["master.next.key", "larger than any secret"]);
}
