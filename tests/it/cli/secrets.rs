//! Everything is run at trace level, and all that it has said, stored and shown is searched for every secret's bytes: raw, in hex,
//! in base64 at every alignment, as a PEM body, and as a claim inside a signed message.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use doorward_client::{Credentials, Device};
use doorward_pki::{BulkLine, DeviceFile, MasterKey};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::support::command::{Desk, Ran, openssl};
use crate::support::database::Database;
use crate::support::house::{eventually, within};
use crate::support::running::Running;
use crate::whole::renewal::{asked, at_once};

use super::on_both;

const PASSPHRASE: &str = "correct-horse-battery-staple";
const WRONG: &str = "tr0ub4dor-and-three";
const PASSWORD: &str = "Pg-hunter2-of-the-registry";

/// A secret in every form that it could be found in.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let listed: Vec<String> = secret.iter().map(u8::to_string).collect();
    let mut forms = vec![
        secret.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        listed.join(", ").into_bytes(),
    ];
    for before in 0..3 {
        let padded = [vec![0; before], secret.to_vec()].concat();
        // The characters that the bytes before and after it take no part in.
        let (from, to) = ((before * 8).div_ceil(6), padded.len() * 8 / 6);
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            forms.push(engine.encode(&padded).as_bytes()[from..to].to_vec());
        }
    }
    forms
}

/// What is searched for, by name.
#[derive(Default)]
struct Secrets(BTreeMap<String, Vec<Vec<u8>>>);

impl Secrets {
    fn add(&mut self, name: &str, secret: &[u8]) {
        assert!(secret.len() >= 16, "{name} is too short to be told from other text");
        self.0.insert(name.to_owned(), forms(secret));
    }

    /// A key that travels as text in a claim, which is base64 again.
    fn add_claim(&mut self, name: &str, secret: &[u8]) {
        self.add(name, secret);
        let inner = URL_SAFE_NO_PAD.encode(secret);
        let mut all: Vec<Vec<u8>> = forms(inner.as_bytes());
        // As the bytes of a frame that somebody has printed.
        all.extend(forms(inner.as_bytes()).iter().skip(4).flat_map(|text| forms(text)).collect::<Vec<_>>());
        self.0.get_mut(name).unwrap().extend(all);
    }

    /// A private key's number, which every encoding of the key has in it.
    fn add_private_key(&mut self, name: &str, pem: &str) {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
        let der = der.secret_der();
        // ECPrivateKey (RFC 5915): version 1, then 32 bytes.
        let mark = [0x02, 0x01, 0x01, 0x04, 0x20];
        let at = der.windows(5).position(|bytes| bytes == mark).unwrap() + 5;
        self.add(name, &der[at..at + 32]);
    }

    fn search(&self) -> Search<'_> {
        let all = self.0.iter().flat_map(|(name, forms)| forms.iter().map(move |form| (name.as_str(), form)));
        let (names, forms): (Vec<_>, Vec<_>) = all.unzip();
        Search { names, forms: AhoCorasick::new(forms).unwrap() }
    }
}

/// Looks for all of them at once.
struct Search<'a> {
    names: Vec<&'a str>,
    forms: AhoCorasick,
}

impl Search<'_> {
    /// The first secret in a text, if there is one. Line ends may stand anywhere in a PEM body, escaped ones too.
    fn found_in(&self, text: &[u8]) -> Option<&str> {
        let mut joined = Vec::with_capacity(text.len());
        let mut bytes = text.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            match byte {
                b'\n' | b'\r' => {}
                b'\\' if matches!(bytes.peek(), Some(b'n' | b'r')) => drop(bytes.next()),
                other => joined.push(other),
            }
        }
        let found = self.forms.find(text).or_else(|| self.forms.find(&joined))?;
        Some(self.names[found.pattern().as_usize()])
    }
}

/// What was said, shown and stored, by where.
#[derive(Default)]
struct Seen(Vec<(String, Vec<u8>)>);

impl Seen {
    fn put(&mut self, place: &str, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.to_owned(), bytes.into()));
    }

    fn ran(&mut self, place: &str, ran: &Ran) {
        self.put(&format!("{place} (standard output)"), ran.out.as_bytes());
        self.put(&format!("{place} (standard error)"), ran.err.as_bytes());
    }

    /// Runs a command at trace level.
    fn run(&mut self, desk: &Desk, line: &str) -> Ran {
        self.run_with(desk, line, &[])
    }

    fn run_with(&mut self, desk: &Desk, line: &str, variables: &[(&str, &str)]) -> Ran {
        let mut command = desk.command(line);
        command.env("DOORWARD_LOG", "trace").env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
        command.envs(variables.iter().copied());
        let ran = Ran::of(&mut command);
        self.ran(line, &ran);
        ran
    }
}

/// Files that are meant to hold secrets; all others are searched.
fn is_meant_to(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.ends_with(".key")
        || ["device.json", "bulk.jsonl", "passphrase", "wrong"].contains(&name)
        || name.ends_with(".jsonl")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Every secret of the desk's files.
fn collect(desk: &Desk, secrets: &mut Secrets, round: &str) {
    for path in files(&desk.path(".")) {
        let name = format!("{} {round}", path.strip_prefix(desk.path(".")).unwrap().display());
        let text = || fs::read_to_string(&path).unwrap();
        match path.file_name().unwrap().to_str().unwrap() {
            file if file.starts_with("master.") => {
                use base64::engine::general_purpose::URL_SAFE_NO_PAD as line;
                assert!(MasterKey::parse(&text()).is_ok());
                secrets.add(&name, &line.decode(text().trim()).unwrap());
            }
            file @ ("root.key" | "issuing.key") => {
                let (opened, pem) =
                    openssl(desk, &format!("pkcs8 -in home/pki/{file} -passin file:passphrase"));
                assert!(opened, "{pem}");
                secrets.add_private_key(&name, &pem);
            }
            file if file.ends_with(".key") => secrets.add_private_key(&name, &text()),
            "device.json" => {
                let device: DeviceFile = serde_json::from_str(&text()).unwrap();
                secrets.add_claim(&name, device.key.hmac.as_bytes());
            }
            file if file.ends_with(".jsonl") => {
                for line in text().lines() {
                    let line: BulkLine = serde_json::from_str(line).unwrap();
                    secrets.add_claim(&format!("{name} hmac {}", line.device), line.key.hmac.as_bytes());
                    secrets
                        .add_private_key(&format!("{name} key {}", line.device), line.private_key.as_str());
                }
            }
            _ => {}
        }
    }
}

/// Each act of an operator that touches a secret, while a device is connected.
async fn everything(database: &Database, desk: &Desk, seen: &mut Seen, secrets: &mut Secrets) {
    let with = "--passphrase-file passphrase";
    let mut run = desk.gateway_command("gateway run --listen 127.0.0.1:0 --passphrase-file passphrase");
    run.env("DOORWARD_LOG", "trace");
    let gateway = Running::spawn(&mut run);
    seen.put("the gateway before it listened", gateway.said.as_bytes());
    seen.put("the gateway's arguments", gateway.arguments());
    seen.run(desk, &format!("device add a {with}")).done();
    let credentials = Credentials::load(desk.home("devices/a")).unwrap().with_url(&gateway.url());
    let device = Device::connect(credentials, at_once()).unwrap();
    within("an ack", device.publish("devices/a/t", &1)).await.unwrap();
    // The new key travels in the session.
    seen.run(desk, &format!("device rotate-key a --out rotated {with}")).done();
    for n in 0..5 {
        within("an ack", device.publish("devices/a/t", &n)).await.unwrap();
    }
    collect(desk, secrets, "before it is renewed");
    let mut issuer = desk.command("issuer run --passphrase-file passphrase");
    issuer.env("DOORWARD_LOG", "trace").stdout(Stdio::null());
    let mut issuer = issuer.stderr(fs::File::create(desk.path("issuer.log")).unwrap()).spawn().unwrap();
    asked(database, "a").await;
    eventually("a certificate of its own", async || device.certificate().borrow().renewed == 1).await;
    issuer.kill().unwrap();
    issuer.wait().unwrap();
    for line in [
        "device add --count 3 --prefix p- --out bulk.jsonl",
        "device add --count 3 --prefix p- --out bulk.jsonl",
        "device add b --json",
        "device bundle a --out bundle",
        "device rotate-cert a --out renewed",
        "device rotate-key b --grace 0s --out leaked",
        "cert crl --out list.crl",
        "init",
        "device add a",
    ] {
        seen.run(desk, &format!("{line} {with}"));
    }
    collect(desk, secrets, "before rewrap");
    for line in [
        "device suspend b --reason repair",
        "device resume b",
        "device show a --json",
        "device list --json",
        "cert list --json",
        "fleet list --json",
        "session list --json",
        "message list --json",
        "gateway list --json",
        "config show --json",
        "config check",
        "pki rewrap --prepare --json",
        "pki rewrap",
        "device bundle b --out bundle --passphrase-file passphrase",
        "pki rewrap --json",
        "device kick a",
        "audit list --json",
        "audit verify --json",
        "device revoke b --reason stolen",
    ] {
        let ran = seen.run(desk, line);
        assert_eq!(ran.code, Some(0), "{line}: {ran:?}");
    }
    drop(device);
    seen.put("the gateway", gateway.ended_by("TERM"));
}

/// Each failure that has a secret at hand when it finds words.
fn failures(desk: &Desk, seen: &mut Seen) {
    let other = MasterKey::from_bytes([0x5a; 32]).to_file();
    let other_variable = [("DOORWARD_MASTER_KEY", other.trim())];
    for (line, variables) in [
        ("device add x", &[][..]),
        ("device add x --passphrase-file wrong", &[]),
        ("device add x --passphrase-file passphrase", &[("DOORWARD_CA_PASSPHRASE", WRONG)]),
        ("device add x --passphrase-file passphrase", &other_variable),
        ("gateway run --listen 127.0.0.1:0", &other_variable),
        ("config show", &other_variable),
        ("issuer run --passphrase-file wrong", &[]),
        ("issuer run", &[("DOORWARD_CA_PASSPHRASE", WRONG)]),
    ] {
        let ran = seen.run_with(desk, line, variables);
        assert!(ran.code != Some(0) || line == "config show", "{ran:?}");
    }
    let url = format!("postgres://ann:{PASSWORD}@127.0.0.1:1/nothing");
    for line in ["device list", "gateway run --listen 127.0.0.1:0", "config show", "init"] {
        seen.run_with(desk, line, &[("DATABASE_URL", &url)]);
    }
    seen.run_with(desk, "device list", &[("DATABASE_URL", &format!("mysql://ann:{PASSWORD}@h/d"))]);
    seen.run_with(desk, "device list", &[("DATABASE_URL", &format!("postgres://ann:{PASSWORD}@h:port/d"))]);
    // Pairs and files that do not go together.
    for (name, from) in [
        ("pki/gateway.key", "devices/a/device.key"),
        ("pki/issuing.key", "devices/a/device.key"),
        ("pki/master.key", "devices/a/device.json"),
        ("pki/issuing.key", "pki/master.key"),
        ("pki/gateway.key", "pki/master.key"),
    ] {
        let whole = fs::read(desk.home(name)).unwrap();
        fs::copy(desk.home(from), desk.home(name)).unwrap();
        for line in [
            "config check",
            "device add x --passphrase-file passphrase",
            "gateway run --listen 127.0.0.1:0 --passphrase-file passphrase",
        ] {
            // Where what was put there is not looked at, a gateway would run.
            if !(line.starts_with("gateway") && name == "pki/issuing.key") {
                seen.run(desk, line);
            }
        }
        fs::write(desk.home(name), whole).unwrap();
    }
    let bulk = fs::read_to_string(desk.path("bulk.jsonl")).unwrap();
    fs::write(desk.path("broken.jsonl"), bulk.replacen("\"fleet\"", "\"fleeet\"", 1)).unwrap();
    seen.run(desk, "device add --count 3 --prefix p- --out broken.jsonl --passphrase-file passphrase");
    fs::remove_file(desk.path("broken.jsonl")).unwrap();
}

/// What the database holds.
fn dump(database: &Database, seen: &mut Seen) {
    let url = database.url.to_string();
    if let Some(file) = url.strip_prefix("sqlite://") {
        for end in ["", "-wal"] {
            let bytes = fs::read(format!("{file}{end}")).unwrap_or_default();
            assert!(end == "-wal" || bytes.starts_with(b"SQLite format 3"), "{file}");
            seen.put(&format!("{file}{end}"), bytes);
        }
        return;
    }
    let program =
        fs::read_dir("/usr/lib/postgresql").unwrap().next().unwrap().unwrap().path().join("bin/pg_dump");
    let output = Command::new(program).arg(url).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("COPY doorward.hmac_keys"));
    seen.put("pg_dump", output.stdout);
}

async fn no_secret_is_said_shown_or_stored(database: Database, desk: Desk) {
    let url = database.url.to_string().replacen("postgres@", &format!("postgres:{PASSWORD}@"), 1);
    // A home of its own, with a passphrase from the start.
    drop(desk);
    let desk = Desk::empty().told(&url);
    desk.write("passphrase", format!("{PASSPHRASE}\n"));
    desk.write("wrong", format!("{WRONG}\n"));
    let (mut seen, mut secrets) = (Seen::default(), Secrets::default());
    for (name, text) in [("passphrase", PASSPHRASE), ("wrong passphrase", WRONG), ("password", PASSWORD)] {
        secrets.add(name, text.as_bytes());
    }
    seen.run(&desk, "init --passphrase-file passphrase").done();
    everything(&database, &desk, &mut seen, &mut secrets).await;
    failures(&desk, &mut seen);
    collect(&desk, &mut secrets, "at the end");
    for path in files(&desk.path(".")).iter().filter(|path| !is_meant_to(path)) {
        seen.put(&path.display().to_string(), fs::read(path).unwrap());
    }
    dump(&database, &mut seen);

    let search = secrets.search();
    // It can be found: what holds a secret on purpose is seen to.
    let meant: Vec<_> = files(&desk.path(".")).into_iter().filter(|path| is_meant_to(path)).collect();
    assert!(meant.len() > 15 && secrets.0.len() > 25, "{meant:?}");
    for path in meant {
        let encrypted = ["root.key", "issuing.key"].contains(&path.file_name().unwrap().to_str().unwrap());
        let found = search.found_in(&fs::read(&path).unwrap());
        assert_eq!(found.is_none(), encrypted, "{}", path.display());
    }
    let bytes: usize = seen.0.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes > 100_000, "{bytes} bytes are not all of it");
    for (place, bytes) in &seen.0 {
        if let Some(secret) = search.found_in(bytes) {
            panic!("{secret} is in {place}");
        }
    }
}

on_both!(no_secret_is_said_shown_or_stored);
