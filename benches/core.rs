//! What the parts cost by themselves, without a socket: the session core, issuing, and the store on SQLite.
//!
//! `cargo bench --bench core`. Each figure is the time of one thread.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use criterion::{BatchSize, Criterion, Throughput};
use doorward::registry::{
    Access, Batch, Claim, DatabaseUrl, NewCertificate, NewDevice, NewMessage, Registry, connect,
};
use doorward::{clock, entropy};
use doorward_pki::{
    Authority, BulkLine, DeviceFile, HmacKey, HmacKeyEntry, MasterKey, PrivateKeyPem, Serial, key_to_pem,
    profile,
};
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion, MessageId};
use doorward_proto::key::{Key, Keyring};
use doorward_proto::limits::{Limits, Rate};
use doorward_proto::link::{Bounds, Link, Outgoing};
use doorward_proto::policy::{DEFAULT, Policy};
use doorward_proto::session::{Accepted, Durable, Grant, Output, Receipt, Session, Settings};
use doorward_proto::time::{Moment, NumericDate};
use doorward_proto::verdict::Verdict;
use tokio::runtime::Runtime;

/// The JSON text of a publish, in bytes.
const PAYLOAD: usize = 128;
/// The most messages that one iteration prepares: criterion asks for as many inputs as it likes.
const WINDOW: usize = 64;
/// Devices of one transaction of the bulk command.
const BULK: usize = 500;
/// Any time does: both halves are handed it.
const NOON: i64 = 1_790_000_000;

/// Stands in for the store, which is measured by itself below.
struct Kept(Receipt);

impl Durable for Kept {
    fn into_receipt(self) -> Receipt {
        self.0
    }
}

/// Both halves of a session, past their `welcome`.
struct Pair {
    session: Session,
    link: Link,
}

fn now() -> Moment {
    Moment { monotonic: Duration::from_secs(1000), wall: NumericDate::from_seconds(NOON) }
}

fn data() -> String {
    format!("{{\"v\":\"{}\"}}", "x".repeat(PAYLOAD - 8))
}

/// A rate that is never reached: a limit is not what is measured.
fn limits() -> Limits {
    Limits {
        max_message_bytes: 64 << 10,
        max_skew: Duration::from_secs(60),
        heartbeat: Duration::from_secs(30),
        rate: Rate { per_second: 1_000_000, burst: 1_000_000 },
        bytes: Rate { per_second: 1 << 30, burst: 1 << 30 },
        strikes: usize::MAX,
        ..Limits::default()
    }
}

fn device() -> Result<DeviceId> {
    DeviceId::new("press-000001").context("a device id")
}

impl Pair {
    fn new() -> Result<Self> {
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
            limits: limits(),
            certificate_expires: NumericDate::from_seconds(NOON + 86_400),
            grace_ends: None,
            renew_from: None,
            rotate_by: None,
            late: false,
            pending: None,
        };
        let settings = Arc::new(Settings::new("bench".into()));
        let session = Session::open(grant, settings, [9; 16], now());
        let link =
            Link::new(device()?, keyring, Bounds { outbox: WINDOW, window: WINDOW, ..Bounds::default() });
        let mut pair = Self { session, link };
        pair.deliver()?;
        Ok(pair)
    }

    /// Carries the gateway's frames over.
    fn deliver(&mut self) -> Result<()> {
        while let Some(output) = self.session.poll() {
            if let Output::Send(frame) = output {
                self.link.receive(&frame, now())?;
            }
        }
        while self.link.poll().is_some() {}
        Ok(())
    }

    /// A signed publish, ready to be received.
    fn frame(&mut self, number: usize) -> Result<String> {
        let id = (number as u128).to_be_bytes();
        let publish = Outgoing::new(id, "devices/press-000001/t", &data()).map_err(anyhow::Error::msg)?;
        self.link.publish(publish)?;
        self.link.transmit(now()).context("a frame")
    }

    /// So many publishes received, and their receipts.
    fn accepted(&mut self, many: usize) -> Result<Vec<Accepted>> {
        let mut all = Vec::with_capacity(many);
        for number in 0..many {
            let frame = self.frame(number)?;
            anyhow::ensure!(
                self.session.receive(&frame, now()) == Verdict::Accepted,
                "a publish was refused"
            );
        }
        while let Some(output) = self.session.poll() {
            if let Output::Store(accepted) = output {
                all.push(accepted);
            }
        }
        Ok(all)
    }
}

/// What an input could not be made of ends the run: no figure is better than a wrong one.
fn sure<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "the benchmark cannot go on: {error:#}");
            std::process::exit(1);
        }
    }
}

fn session(c: &mut Criterion) {
    let mut group = c.benchmark_group("session");
    group.throughput(Throughput::Elements(1));
    group.bench_function("receive a publish, accepted", |b| {
        b.iter_batched(
            || {
                let mut pair = sure(Pair::new());
                let frame = sure(pair.frame(0));
                (pair.session, frame)
            },
            |(mut session, frame)| {
                let verdict = session.receive(black_box(&frame), now());
                let outputs = (session.poll(), session.poll());
                // Handed back, so that dropping it is not measured.
                (session, frame, verdict, outputs)
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("receive a forged publish, refused", |b| {
        b.iter_batched(
            || {
                let mut pair = sure(Pair::new());
                let mut frame = sure(pair.frame(0));
                // The signature's first character: its last one has bits that no byte takes.
                let at = frame.rfind('.').map_or(0, |dot| dot + 1);
                let other = if frame.get(at..=at) == Some("A") { "B" } else { "A" };
                frame.replace_range(at..=at, other);
                (pair.session, frame)
            },
            |(mut session, frame)| {
                let verdict = session.receive(black_box(&frame), now());
                let output = session.poll();
                (session, frame, verdict, output)
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("sign an ack of 64", |b| {
        b.iter_batched(
            || {
                let mut pair = sure(Pair::new());
                for accepted in sure(pair.accepted(WINDOW)) {
                    pair.session.settle(Kept(accepted.into_parts().1));
                }
                pair.session
            },
            |mut session| {
                session.flush(now());
                let ack = session.poll();
                (session, ack)
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("link: sign a publish", |b| {
        b.iter_batched(
            || {
                let mut pair = sure(Pair::new());
                let publish = Outgoing::new([1; 16], "devices/press-000001/t", &data());
                let publish = sure(publish.map_err(anyhow::Error::msg));
                sure(pair.link.publish(publish).map_err(Into::into));
                pair.link
            },
            |mut link| {
                let frame = link.transmit(now());
                (link, frame)
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// A root and an issuing CA.
fn authority() -> Result<Authority> {
    let serial = || Ok::<_, anyhow::Error>(Serial::from_random(entropy::random()?));
    let root = Authority::root("Bench root CA", entropy::key_pair()?, serial()?, clock::utc())?;
    Ok(root.issuing("Bench issuing CA", entropy::key_pair()?, serial()?, clock::utc())?)
}

/// What the bulk command makes for a device: its line of the file, and its rows.
fn issue(authority: &Authority, master: &MasterKey, id: &DeviceId) -> Result<(String, NewDevice)> {
    let key = entropy::key_pair()?;
    let serial = Serial::from_random(entropy::random()?);
    let certificate = authority.issue_device(id, &key, serial, clock::utc(), profile::DEVICE.lifetime)?;
    let hmac: [u8; 32] = entropy::random()?;
    let file = DeviceFile {
        device: id.clone(),
        fleet: FleetId::default(),
        url: "wss://localhost:8443/v1/device".to_owned(),
        key: HmacKeyEntry { version: KeyVersion::FIRST, hmac: HmacKey::new(hmac) },
    };
    let chain = format!("{}{}", certificate.pem(), authority.certificate_pem());
    let line = BulkLine::new(file, chain, PrivateKeyPem::new(key_to_pem(&key)), authority.certificate_pem());
    let record = NewDevice {
        id: id.clone(),
        fleet: FleetId::default(),
        certificate: NewCertificate {
            fingerprint: certificate.fingerprint,
            serial: certificate.serial.to_string(),
            issuer: authority.key_id().to_owned(),
            der: certificate.der.clone(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        },
        sealed_key: master.seal(id, KeyVersion::FIRST, &hmac, entropy::random()?),
    };
    Ok((line.to_line()?.to_string(), record))
}

fn pki(c: &mut Criterion) {
    let authority = sure(authority());
    let id = sure(device());
    let mut group = c.benchmark_group("pki");
    group.throughput(Throughput::Elements(1));
    group.bench_function("issue a device: key and certificate", |b| {
        b.iter(|| {
            let key = sure(entropy::key_pair().map_err(Into::into));
            let serial = Serial::from_random(sure(entropy::random().map_err(Into::into)));
            let certificate =
                authority.issue_device(&id, &key, serial, clock::utc(), profile::DEVICE.lifetime);
            sure(certificate.map_err(Into::into))
        });
    });
    group.finish();
}

/// A registry in a file below the system's temporary folder, whose disk is part of what is measured.
fn registry(runtime: &Runtime, folder: &Path) -> Result<Arc<dyn Registry>> {
    let url = DatabaseUrl::parse(&format!("sqlite://{}", folder.join("registry.db").display()))?;
    let _inside = runtime.enter();
    let registry = connect(&url, Access::Create)?;
    runtime.block_on(registry.migrate())?;
    Ok(registry)
}

/// The publishes of a transaction, each under an id of its own.
fn batch(device: &DeviceId, session: &Arc<str>, many: usize) -> Result<Batch> {
    let text = data();
    let message = |_| {
        let id = u128::from_be_bytes(entropy::random()?);
        Ok(NewMessage {
            device: device.clone(),
            session: Arc::clone(session),
            id: MessageId::new(&format!("{id:032x}"))?,
            channel: "devices/press-000001/t".into(),
            data: text.as_str().into(),
            at_ms: None,
            received_ms: NOON * 1000,
        })
    };
    Ok(Batch { messages: (0..many).map(message).collect::<Result<_>>()?, ..Batch::default() })
}

fn store(c: &mut Criterion) {
    let runtime = sure(Runtime::new().map_err(Into::into));
    let folder = sure(tempfile::tempdir().map_err(Into::into));
    let registry = sure(registry(&runtime, folder.path()));
    let authority = sure(authority());
    let master = MasterKey::from_bytes(sure(entropy::random().map_err(Into::into)));

    let id = sure(device());
    let session: Arc<str> = "bench".into();
    let claim = Claim {
        device: id.clone(),
        session: Arc::clone(&session),
        gateway: "bench".into(),
        peer: "127.0.0.1:1".to_owned(),
        at: clock::utc(),
        late: false,
    };
    let (_, record) = sure(issue(&authority, &master, &id));
    let claimed = Batch { claims: vec![claim], ..Batch::default() };
    sure(runtime.block_on(registry.add_devices(&[record])).map_err(Into::into));
    sure(runtime.block_on(registry.write(&claimed)).map_err(Into::into));

    let mut group = c.benchmark_group("sqlite");
    group.sample_size(20);
    for many in [128, 1024] {
        group.throughput(Throughput::Elements(many as u64));
        group.bench_function(format!("write a batch of {many}"), |b| {
            b.iter_batched(
                || sure(batch(&id, &session, many)),
                |batch| {
                    let fates = sure(runtime.block_on(registry.write(&batch)).map_err(Into::into));
                    (batch, fates)
                },
                BatchSize::PerIteration,
            );
        });
    }
    let mut next = 0_u32;
    group.sample_size(10);
    group.throughput(Throughput::Elements(BULK as u64));
    group.bench_function(format!("issue and register {BULK} devices"), |b| {
        b.iter(|| {
            let mut lines = String::new();
            let mut records = Vec::with_capacity(BULK);
            for _ in 0..BULK {
                next += 1;
                let id = sure(DeviceId::new(&format!("bulk-{next:06}")).map_err(Into::into));
                let (line, record) = sure(issue(&authority, &master, &id));
                lines.push_str(&line);
                records.push(record);
            }
            sure(runtime.block_on(registry.add_devices(&records)).map_err(Into::into));
            lines
        });
    });
    group.finish();
}

fn main() {
    // Short: what is sought is the size of each part, and a change of some percent.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .sample_size(50)
        .configure_from_args();
    session(&mut criterion);
    pki(&mut criterion);
    store(&mut criterion);
    criterion.final_summary();
}
