//! The gateway's own door, TLS, admission, upgrade and WebSocket with an echo in place of the session, for suites that test
//! such things (docs/conformance.md). It lives in a folder that it makes, with a PKI, a registry and one device of its own:
//! it knows no other gateway's devices, and nobody else knows its own.
//!
//!     cargo run --example ws_echo -- target/ws-echo

#![expect(clippy::print_stderr, reason = "it speaks to whoever runs it")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use clap::Parser;
use doorward::config::{Config, TlsVersion};
use doorward::gateway::Gateway;
use doorward::home::{self, Home, PUBLIC, SECRET};
use doorward::registry::{self, Access, DatabaseUrl, NewCertificate, NewDevice, Registry};
use doorward::{clock, conformance, entropy};
use doorward_pki::{Authority, Host, MasterKey, Serial, key_to_pem, profile};
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The one device that is let in.
const DEVICE: &str = "suite";

/// An echo behind the gateway's own door, for conformance suites
#[derive(Parser, Debug)]
struct Options {
    /// A folder to make: home/ for the gateway, client/ for the suite
    folder: PathBuf,
    /// The address to listen on; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9001")]
    listen: SocketAddr,
    /// The limits of a gateway's default configuration; without it they are as wide as a configuration can make them
    #[arg(long)]
    default_limits: bool,
    /// Speak TLS 1.2 too, as 'tls.min_version = "1.2"' does
    #[arg(long)]
    tls12: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_env("DOORWARD_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<()> {
    if options.folder.exists() {
        bail!("{} exists already; name a folder that does not", options.folder.display());
    }
    // Before anything is made that would be in the way of another try.
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        anyhow!("cannot listen on {}: {error}; --listen takes another address", options.listen)
    })?;
    let home = Home::new(options.folder.join("home"));
    let client = options.folder.join("client");
    for folder in [&home.pki(""), &home.state(), &client] {
        home::make_folder(folder)?;
    }
    let master = MasterKey::from_bytes(entropy::random()?);
    let registry = registry::connect(&DatabaseUrl::file(&home.database()), Access::Create)?;
    registry.migrate().await?;
    provision(&home, &client, &master, &*registry).await?;
    home::write_new(&home.config(), configuration(options)?, PUBLIC)?;

    let gateway = Gateway::new(Config::load(&home)?, home, registry, master).await?;
    let address = listener.local_addr()?;
    let stop = CancellationToken::new();
    let mut serving = tokio::spawn(conformance::serve(Arc::clone(&gateway), listener, stop.clone()));
    tokio::select! {
        () = gateway.ready() => {}
        ended = &mut serving => return Ok(ended??),
    }
    eprintln!(
        "echoing on {address}: wss://localhost:{}{}, subprotocol {}",
        address.port(),
        doorward_proto::PATH,
        doorward_proto::SUBPROTOCOL
    );
    eprintln!("the client's certificate and key, and its CA: {}", client.display());
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        ended = &mut serving => return Ok(ended??),
    }
    stop.cancel();
    Ok(serving.await??)
}

/// Makes CAs, the gateway's certificate and the one device, as `doorward init` and `doorward device add` do.
async fn provision(home: &Home, client: &Path, master: &MasterKey, registry: &dyn Registry) -> Result<()> {
    let now = clock::utc();
    let serial = || entropy::random().map(Serial::from_random);
    let root = Authority::root("Echo root CA", entropy::key_pair()?, serial()?, now)?;
    let issuing = root.issuing("Echo issuing CA", entropy::key_pair()?, serial()?, now)?;
    let hosts = ["localhost", "127.0.0.1", "::1"]
        .map(str::parse::<Host>)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let server_key = entropy::key_pair()?;
    let lifetime = profile::GATEWAY.lifetime;
    let server = issuing.issue_gateway("localhost", &hosts, &server_key, serial()?, now, lifetime)?;
    let device = DeviceId::new(DEVICE)?;
    let device_key = entropy::key_pair()?;
    let leaf = issuing.issue_device(&device, &device_key, serial()?, now, profile::DEVICE.lifetime)?;
    for (path, text, mode) in [
        (home.pki("root.crt"), root.certificate_pem(), PUBLIC),
        (home.pki("issuing.crt"), issuing.certificate_pem(), PUBLIC),
        (home.pki("gateway.crt"), format!("{}{}", server.pem(), issuing.certificate_pem()), PUBLIC),
        (home.pki("gateway.key"), key_to_pem(&server_key).to_string(), SECRET),
        (client.join("ca.crt"), root.certificate_pem(), PUBLIC),
        (client.join("device.crt"), format!("{}{}", leaf.pem(), issuing.certificate_pem()), PUBLIC),
        (client.join("device.key"), key_to_pem(&device_key).to_string(), SECRET),
    ] {
        home::write_new(&path, text, mode)?;
    }
    // No message is signed here: the key is as good as any.
    let hmac = entropy::random()?;
    let device = NewDevice {
        fleet: FleetId::new("default")?,
        certificate: NewCertificate {
            fingerprint: leaf.fingerprint,
            serial: leaf.serial.to_string(),
            issuer: issuing.key_id().to_owned(),
            der: leaf.der,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        },
        sealed_key: master.seal(&device, KeyVersion::FIRST, &hmac, entropy::random()?),
        id: device,
    };
    registry.add_devices(&[device]).await?;
    Ok(())
}

/// What a suite does is what these limits are there to stop: long messages, floods of small frames, a new connection a case,
/// handshakes that fail.
fn configuration(options: &Options) -> Result<String> {
    let mut config = Config::default();
    "echo".clone_into(&mut config.gateway.name);
    config.admin.listen = None;
    if options.tls12 {
        config.tls.min_version = TlsVersion::V1_2;
    }
    if !options.default_limits {
        let limits = &mut config.limits;
        (limits.message_bytes, limits.outgoing_bytes) = (16 << 20, 32 << 20);
        (limits.frames_per_second, limits.frames_burst) = (1_000_000, 1_000_000);
    }
    (config.limits.connects_per_minute, config.limits.connects_burst) = (1_000_000, 1_000_000);
    config.addresses.failures = 1 << 16;
    Ok(toml::to_string(&config)?)
}
