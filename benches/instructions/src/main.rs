//! How many instructions the session core takes for a message. Time differs from run to run on a shared machine; instructions,
//! counted by valgrind on a processor that it makes up, differ by next to nothing. That processor has no instructions for
//! SHA-256, as real ones have, and would spend most of them there: what is signed and verified is left out.
//!
//! `cargo run --release -p doorward-instructions` fails where a kind of message takes over 5 % more than `baseline.txt` says;
//! with `--write` it writes that file anew, which goes into the change that made the difference.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use doorward_proto::key::{Key, Keyring};
use doorward_proto::limits::{Limits, Rate};
use doorward_proto::link::{Bounds, Link, Outgoing};
use doorward_proto::policy::{DEFAULT, Policy};
use doorward_proto::session::{Durable, Grant, Output, Receipt, Session, Settings};
use doorward_proto::time::{Moment, NumericDate};
use doorward_proto::verdict::Verdict;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// What is counted.
const KINDS: [&str; 4] = ["publish", "forged", "ack-of-1", "ack-of-16"];
/// More than the baseline by this is a regression.
const MOST: f64 = 1.05;
/// Messages of the two runs of which the difference is counted: what starting takes is in both.
const RUNS: [usize; 2] = [320, 960];
/// The JSON text of a publish, in bytes.
const PAYLOAD: usize = 128;
const NOON: i64 = 1_790_000_000;

struct Kept(Receipt);

impl Durable for Kept {
    fn into_receipt(self) -> Receipt {
        self.0
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match *words {
        [] => compare(false),
        ["--write"] => compare(true),
        // What valgrind runs.
        ["--do", kind, many] => work(kind, many, false),
        ["--do", kind, many, "--signatures"] => work(kind, many, true),
        _ => Err(anyhow::anyhow!("usage: cargo run --release -p doorward-instructions [-- --write]")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "instructions: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(write: bool) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.txt");
    let baseline = std::fs::read_to_string(&file).unwrap_or_default();
    let known = |kind: &str| -> Option<u64> {
        baseline.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' ')?.trim().parse().ok())
    };
    let mut out = std::io::stdout().lock();
    let (mut counted, mut over) = (String::new(), Vec::new());
    for kind in KINDS {
        let a_message = count(kind)?;
        writeln!(counted, "{kind} {a_message}")?;
        let Some(was) = known(kind) else {
            ensure!(write, "{}: nothing is known of {kind}; write it anew with --write", file.display());
            continue;
        };
        let ratio = a_message as f64 / was as f64;
        writeln!(
            out,
            "{kind:<10} {a_message:>7} instructions a message, {was:>7} in the baseline: {ratio:.3}"
        )?;
        if ratio > MOST {
            over.push(kind);
        } else if ratio < 2.0 - MOST {
            writeln!(
                out,
                "           it takes less: write the baseline anew with --write, so that it stays so"
            )?;
        }
    }
    if write {
        std::fs::write(&file, &counted).with_context(|| file.display().to_string())?;
    } else if !over.is_empty() {
        bail!(
            "{} takes over 5 % more than {} says; find out why, or write it anew with --write and say why in the change",
            over.join(", "),
            file.display()
        );
    }
    Ok(())
}

/// Instructions of one message of a kind: of what both halves do, less what comes before, the device's half at least, and less
/// one more signature over each frame that is counted.
fn count(kind: &str) -> Result<u64> {
    let before = match kind {
        "publish" | "forged" => "device",
        _ => "publish",
    };
    let (all, before) = (one(kind, &[])?, one(before, &[])?);
    let signatures = one(kind, &["--signatures"])?.checked_sub(all).context("signing takes nothing")?;
    all.checked_sub(before + signatures)
        .with_context(|| format!("{kind} takes less than what comes before it"))
}

fn one(kind: &str, more: &[&str]) -> Result<u64> {
    let [few, many] = RUNS;
    let difference = run(kind, many, more)?.checked_sub(run(kind, few, more)?).context("more took less")?;
    Ok(difference / (many - few) as u64)
}

fn run(kind: &str, many: usize, more: &[&str]) -> Result<u64> {
    let this = std::env::current_exe()?;
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(this)
        .args(["--do", kind, &many.to_string()])
        .args(more)
        .output()
        .context("valgrind cannot be run; install it (apt-get install valgrind)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{kind}: {said}");
    let refs =
        said.lines().find_map(|line| line.split_once("I refs:").or_else(|| line.split_once("I   refs:")));
    let (_, refs) = refs.with_context(|| format!("valgrind says no 'I refs': {said}"))?;
    refs.trim().replace(',', "").parse().with_context(|| format!("valgrind says {refs:?}"))
}

/// So many messages, made by the device's half; received, and acked so many at a time, as the kind says. With `signatures`
/// each frame that the kind is about is signed once more.
fn work(kind: &str, many: &str, signatures: bool) -> Result<()> {
    let many = many.parse()?;
    let key = Hmac::<Sha256>::new_from_slice(&[7; 32])?;
    let sign = |frame: &str| {
        if signatures && let Some((text, _)) = frame.rsplit_once('.') {
            black_box(key.clone().chain_update(text).finalize());
        }
    };
    let acks = kind.starts_with("ack");
    let (mut session, mut link) = pair()?;
    let gathered = if kind == "ack-of-16" { 16 } else { 1 };
    let mut receipts = Vec::new();
    for number in 0..many {
        let frame = publish(&mut link, number)?;
        let frame = match kind {
            "device" => continue,
            "forged" => forged(frame),
            _ => frame,
        };
        let verdict = session.receive(&frame, now());
        if !acks {
            sign(&frame);
        }
        ensure!((verdict == Verdict::Accepted) == (kind != "forged"), "{verdict:?}");
        while let Some(output) = session.poll() {
            match output {
                Output::Store(accepted) => receipts.push(accepted.into_parts().1),
                Output::Send(reject) => sign(&reject),
                _ => {}
            }
        }
        if acks && receipts.len() == gathered {
            receipts.drain(..).for_each(|receipt| session.settle(Kept(receipt)));
            session.flush(now());
            let Some(Output::Send(ack)) = session.poll() else { bail!("no ack") };
            sign(&ack);
        }
    }
    Ok(())
}

fn publish(link: &mut Link, number: usize) -> Result<String> {
    let data = format!("{{\"v\":\"{}\"}}", "x".repeat(PAYLOAD - 8));
    let id = (number as u128).to_be_bytes();
    link.publish(Outgoing::new(id, "devices/press-000001/t", &data).map_err(anyhow::Error::msg)?)?;
    link.transmit(now()).context("a frame")
}

fn forged(mut frame: String) -> String {
    // The signature's first character: its last one has bits that no byte takes.
    let at = frame.rfind('.').map_or(0, |dot| dot + 1);
    let other = if frame.get(at..=at) == Some("A") { "B" } else { "A" };
    frame.replace_range(at..=at, other);
    frame
}

fn now() -> Moment {
    Moment { monotonic: Duration::from_secs(1000), wall: NumericDate::from_seconds(NOON) }
}

/// Both halves of a session, past their `welcome`. No limit is ever reached.
fn pair() -> Result<(Session, Link)> {
    let device = || DeviceId::new("press-000001").context("a device id");
    let key = Key::new(KeyVersion::FIRST, &[7; 32]);
    let mut keyring = Keyring::default();
    keyring.add(key.clone(), None);
    let grant = Grant {
        device: device()?,
        fleet: FleetId::default(),
        keyring: keyring.clone(),
        signer: key,
        policy: Arc::new(Policy::parse(DEFAULT)?),
        schemas: None,
        limits: Limits {
            rate: Rate { per_second: 1_000_000, burst: 1_000_000 },
            bytes: Rate { per_second: 1 << 30, burst: 1 << 30 },
            strikes: usize::MAX,
            outgoing_bytes: 1 << 30,
            ..Limits::default()
        },
        certificate_expires: NumericDate::from_seconds(NOON + 86_400),
        grace_ends: None,
        renew_from: None,
        rotate_by: None,
        late: false,
        pending: None,
    };
    let mut session = Session::open(grant, Arc::new(Settings::new("bench".into())), [9; 16], now());
    let most = 2 * RUNS.into_iter().sum::<usize>();
    let mut link = Link::new(device()?, keyring, Bounds { outbox: most, window: most, ..Bounds::default() });
    while let Some(output) = session.poll() {
        if let Output::Send(frame) = output {
            link.receive(&frame, now())?;
        }
    }
    while link.poll().is_some() {}
    Ok((session, link))
}
