//! `init`: a home with its PKI, configuration and registry. What exists stands; what is missing is made.

use std::path::PathBuf;

use clap::Args;
use doorward_pki::authority::HostError;
use doorward_pki::seal::MasterKey;
use doorward_pki::{Authority, Host, Serial, key_file, key_to_pem, profile};
use serde_json::json;
use zeroize::Zeroizing;

use super::custody::Passphrase;
use super::failure::{Failure, Outcome};
use super::{Shared, issue, output};
use crate::config::{self, Config};
use crate::home::{self, FileError, Home, PUBLIC, SECRET};
use crate::master;
use crate::registry::{self, Access, DatabaseUrl, DeviceFilter, Done, RegistryError};
use crate::secrets::Origin;
use crate::{clock, entropy};

/// What `--passphrase-file` is for.
const CA_KEYS: [&str; 2] = ["root.key", "issuing.key"];

#[derive(Args, Debug, Default)]
#[command(after_help = "Example:\n  doorward init --host gate.example.com --host 10.0.0.7")]
pub(super) struct Init {
    /// A name or address that devices reach the gateway by [default: localhost, 127.0.0.1, ::1 and this host's name]
    #[arg(long = "host", value_name = "NAME_OR_IP", value_parser = parse_host)]
    hosts: Vec<Host>,
}

pub(super) fn parse_host(text: &str) -> Result<Host, HostError> {
    text.parse()
}

/// What was made and what stood.
#[derive(Debug, Default)]
pub(super) struct Report {
    made: Vec<PathBuf>,
    stands: Vec<PathBuf>,
    /// Whether the registry holds devices of another home.
    foreign: bool,
    /// Whether there is a passphrase for the CA keys.
    encrypted: bool,
    /// Where the master key comes from, if not from the home.
    handed: Option<Origin>,
}

impl Report {
    /// Writes a file that is not there.
    fn write(
        &mut self,
        path: PathBuf,
        mode: u32,
        text: impl FnOnce() -> Result<Zeroizing<String>, Failure>,
    ) -> Outcome {
        if path.exists() {
            self.stands.push(path);
            return Ok(());
        }
        match home::write_new(&path, &text()?, mode) {
            Ok(()) => self.made.push(path),
            // Another 'init' was quicker, and its file is the one that stands.
            Err(FileError::Exists(_)) => self.stands.push(path),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Init {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let (report, migrated, url) = self.make(shared).await?;
        let home = shared.home();
        if shared.json {
            return output::json(&json!({
                "home": home.path(), "made": report.made, "stands": report.stands, "registry": url.to_string(),
                "registry_changed": migrated == Done::Changed,
            }));
        }
        for path in &report.made {
            output::say(format!("made    {}", path.display()));
        }
        for path in &report.stands {
            output::say(format!("stands  {}", path.display()));
        }
        let words = if migrated == Done::Changed { "made   " } else { "stands " };
        output::say(format!("{words} the registry's schema at {url}"));
        if !self.hosts.is_empty() && report.stands.contains(&home.pki("gateway.crt")) {
            output::say(
                "the gateway's certificate stands for the hosts it was made for; --host changed nothing",
            );
        }
        let made_ca_key = CA_KEYS.iter().any(|name| report.made.contains(&home.pki(name)));
        if report.encrypted && !made_ca_key {
            output::say("the CA keys stand as they are; the passphrase (--passphrase-file) changed nothing");
        }
        if shared.database().is_some() && Config::load(&home)?.database.url.is_empty() {
            output::say(
                "config.toml does not name this registry: give --database or DATABASE_URL to every command, or set database.url",
            );
        }
        if let Some(origin) = &report.handed {
            output::say(format!("the master key is that of {origin}; the home needs none of its own"));
        }
        if report.foreign {
            output::say(
                "the registry holds devices already, of another home: this one's master.key does not open their keys",
            );
        }
        if report.made.is_empty() && migrated == Done::Already {
            output::say("nothing had to be made");
        } else if !report.encrypted && report.made.contains(&home.pki("root.key")) {
            output::say(
                "keep pki/root.key away from this machine ('doorward pki export-root --out DIR'), or encrypt the CA keys with --passphrase-file",
            );
        }
        Ok(())
    }

    /// Makes what is missing.
    pub(super) async fn make(&self, shared: &Shared) -> Result<(Report, Done, DatabaseUrl), Failure> {
        clock::check()?;
        let home = shared.home();
        let hosts = if self.hosts.is_empty() { default_hosts() } else { self.hosts.clone() };
        let mut report = Report::default();
        // Nothing is begun with a passphrase that cannot be read.
        let passphrase = shared.passphrase()?;
        report.encrypted = passphrase.is_some();
        for folder in [home.path().to_owned(), home.path().join("pki"), home.state()] {
            home::make_folder(&folder)?;
        }
        report.write(home.config(), PUBLIC, || Ok(Zeroizing::new(config_text(&self.hosts))))?;
        let config = Config::load(&home)?;
        let url = shared.database_url(&config)?;
        refuse_lost(&home)?;
        make_pki(&home, &hosts, shared, passphrase.as_ref().map(Passphrase::as_slice), &mut report)?;
        let migrated = make_registry(shared, &home, &url, &mut report).await?;
        Ok((report, migrated, url))
    }
}

/// What was made together stands or is lost together. A run that was cut short leaves no such gaps: its files are made
/// in one order, keys before certificates, CAs before what they sign.
fn refuse_lost(home: &Home) -> Outcome {
    let there = |name: &str| home.pki(name).exists();
    let lost = |name: &str, next: &str| {
        Err(Failure::refused(format!(
            "{} is missing, and what was made after it is there; a new one would not go with that",
            home.pki(name).display()
        ))
        .next(next))
    };
    let backup = "put it back from where it is kept";
    if there("issuing.crt") && !there("root.crt") && !there("root.key") {
        return lost("root.crt", backup);
    }
    if there("gateway.crt") && !there("issuing.crt") {
        return lost("issuing.crt", "put it back: it is the second certificate in pki/gateway.crt");
    }
    if there("gateway.crt") && !there("gateway.key") {
        return lost(
            "gateway.key",
            "put it back, or move pki/gateway.crt away too: 'doorward init' makes both anew",
        );
    }
    Ok(())
}

/// The registry's schema, and the key that wraps what is kept in it.
async fn make_registry(
    shared: &Shared,
    home: &Home,
    url: &DatabaseUrl,
    report: &mut Report,
) -> Result<Done, Failure> {
    let failed = |error: RegistryError| {
        Failure::registry_at(url, error).and_next("the home itself is made; repeat 'doorward init' to go on")
    };
    let registry = registry::connect(url, Access::Create).map_err(failed)?;
    let migrated = registry.migrate().await.map_err(failed)?;
    if shared.is_handed_master_key()? {
        report.handed = shared.master_keys()?.origin();
        return Ok(migrated);
    }
    let master = home.pki(master::CURRENT);
    if !master.exists() {
        let one = DeviceFilter { limit: 1, ..DeviceFilter::default() };
        report.foreign = !registry.devices(&one).await.map_err(failed)?.is_empty();
        if report.foreign && report.stands.contains(&home.pki("gateway.crt")) {
            return Err(Failure::refused(format!(
                "{} is missing, and the registry at {url} holds devices whose keys it wraps",
                master.display()
            ))
            .next("put it back from your backup: a new one opens none of those keys"));
        }
    }
    report.write(master, SECRET, || Ok(MasterKey::from_bytes(entropy::random()?).to_file()))?;
    Ok(migrated)
}

fn default_hosts() -> Vec<Host> {
    let own = gethostname::gethostname();
    let mut hosts = vec![
        Host::Dns("localhost".to_owned()),
        Host::Ip(std::net::Ipv4Addr::LOCALHOST.into()),
        Host::Ip(std::net::Ipv6Addr::LOCALHOST.into()),
    ];
    // A host's name that no certificate can carry is left out: it was not asked for.
    if let Some(Ok(host)) = own.to_str().map(str::parse::<Host>)
        && !hosts.contains(&host)
    {
        hosts.push(host);
    }
    hosts
}

/// The default configuration, with the URL of the first host that was named.
fn config_text(hosts: &[Host]) -> String {
    let host = match hosts.first() {
        Some(Host::Ip(std::net::IpAddr::V6(address))) => format!("[{address}]"),
        Some(host) => host.to_string(),
        None => return config::DEFAULT_TEXT.to_owned(),
    };
    config::DEFAULT_TEXT.replace("wss://localhost:8443/", &format!("wss://{host}:8443/"))
}

fn make_pki(
    home: &Home,
    hosts: &[Host],
    shared: &Shared,
    passphrase: Option<&[u8]>,
    report: &mut Report,
) -> Outcome {
    let now = clock::utc();
    // A key is written before its certificate: a run that was cut short leaves a key that the next one goes on with.
    let make_key = |report: &mut Report, name: &str, ca: bool| -> Result<rcgen::KeyPair, Failure> {
        let path = home.pki(name);
        let passphrase = passphrase.filter(|_| ca);
        report.write(path.clone(), SECRET, || {
            let pem = key_to_pem(&entropy::key_pair()?);
            let Some(passphrase) = passphrase else { return Ok(pem) };
            key_file::encrypt(&pem, passphrase, entropy::random()?, entropy::random()?)
                .map_err(|error| Failure::new(format!("{}: {error}", path.display())))
        })?;
        let pem = issue::open_key(&path, shared)?;
        rcgen::KeyPair::from_pem(&pem).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    };
    let serial = || -> Result<Serial, Failure> { Ok(Serial::from_random(entropy::random()?)) };

    let certificate = |name: &str| home.pki(name);
    let issuing_missing = !certificate("issuing.crt").exists();
    if !certificate("root.crt").exists() {
        let key = make_key(report, "root.key", true)?;
        let root = Authority::root("Doorward root CA", key, serial()?, now)?;
        report.write(certificate("root.crt"), PUBLIC, || Ok(Zeroizing::new(root.certificate_pem())))?;
    } else {
        report.stands.push(certificate("root.crt"));
        // The root may have been moved away, which is what an offline root is for.
        report.stands.extend(Some(home.pki("root.key")).filter(|path| path.exists()));
    }
    if issuing_missing {
        // The root first: where its passphrase is missing or wrong, no key is made with another or none.
        let root = issue::authority(home, "root", shared)?;
        let key = make_key(report, "issuing.key", true)?;
        // Two homes' issuing CAs are told apart by name, too.
        let name = format!("Doorward issuing CA {}", serial()?.to_string().get(..8).unwrap_or_default());
        let issuing = root.issuing(&name, key, serial()?, now)?;
        report.write(certificate("issuing.crt"), PUBLIC, || Ok(Zeroizing::new(issuing.certificate_pem())))?;
    } else {
        report.stands.push(certificate("issuing.crt"));
        report.stands.extend(Some(home.pki("issuing.key")).filter(|path| path.exists()));
    }
    if !certificate("gateway.crt").exists() {
        let issuing = issue::authority(home, "issuing", shared)?;
        let key = make_key(report, "gateway.key", false)?;
        let name = hosts.first().map(Host::to_string).unwrap_or_default();
        let leaf = issuing.issue_gateway(&name, hosts, &key, serial()?, now, profile::GATEWAY.lifetime)?;
        let chain = format!("{}{}", leaf.pem(), issuing.certificate_pem());
        report.write(certificate("gateway.crt"), PUBLIC, || Ok(Zeroizing::new(chain)))?;
    } else {
        report.stands.push(certificate("gateway.crt"));
        report.stands.push(home.pki("gateway.key"));
    }
    Ok(())
}
