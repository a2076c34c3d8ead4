//! `device rotate-key`, `device rotate-cert`: a new credential for a device, and how it gets there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use doorward_pki::identity::Leaf;
use doorward_pki::{Certificate, Request, key_to_pem, profile};
use doorward_proto::ids::{DeviceId, KeyVersion};
use rcgen::PublicKeyData as _;
use serde_json::json;
use zeroize::Zeroize as _;

use super::campaign::Campaign;
use super::failure::{Failure, Outcome};
use super::issue::Issuer;
use super::receipt::{self, Wait};
use super::{Shared, bundle, device, output};
use crate::master::MasterKeys;
use crate::registry::{
    Acted, CertificateRecord, CertificateStatus, Credential, DeviceDetail, DeviceStatus, KeyState, NewKey,
    Registry, RegistryError, Renewal,
};
use crate::{clock, entropy};

/// The longest grace that is taken.
const MAX_GRACE: Duration = Duration::from_secs(366 * 86_400);

#[derive(Args, Debug)]
pub(super) struct RotateKey {
    /// Its id
    #[arg(required_unless_present = "fleet")]
    id: Option<DeviceId>,
    /// How long the old key holds once the device has confirmed the new one; 0s: it is worth nothing from now on (a leaked
    /// key), and the new one travels by the bundle alone
    #[arg(long, value_name = "DUR", default_value = "7d", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// The folder in which a bundle with the new key is made
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    campaign: Campaign,
}

impl RotateKey {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        check_grace(self.grace)?;
        match (&self.id, &self.campaign.fleet) {
            (_, Some(fleet)) => self.campaign.run(shared, fleet, Credential::Key, self.grace).await,
            (Some(id), None) => self.rotate(shared, id).await,
            (None, None) => Err(Failure::usage("an id or a fleet is needed")),
        }
    }

    async fn rotate(&self, shared: &Shared, id: &DeviceId) -> Outcome {
        if self.grace.is_zero() && self.out.is_none() {
            return Err(Failure::usage(
                "with --grace 0s the new key travels by the bundle alone: say where with --out DIR",
            ));
        }
        if let Some(out) = &self.out {
            // Before anything is changed: nothing overwrites a key.
            bundle::must_be_new(out, id)?;
        }
        let registry = shared.registry().await?;
        let master = shared.master_keys()?;
        let before = device::find(&*registry, id).await?;
        must_not_be_revoked(&before)?;
        check_master(&master, &before)?;
        let pending = before.keys.iter().find(|key| key.state == KeyState::Pending);
        if let Some(pending) = pending.filter(|_| !self.grace.is_zero()) {
            let words = format!("key version {} of '{id}' is pending already", pending.version);
            return self.say(
                shared,
                id,
                pending.version,
                false,
                &words,
                self.bundle(shared, &*registry, id).await?,
            );
        }
        let key = new_key(&master, &before, self.grace)?;
        let acted = registry.add_key(id, &key).await.map_err(|error| match error {
            RegistryError::Exists { .. } => {
                Failure::new(format!("somebody else is rotating the key of '{id}' right now"))
                    .next("try again")
            }
            other => other.into(),
        })?;
        let bundle = self.bundle(shared, &*registry, id).await.map_err(|error| {
            error.and_next(&format!(
                "the key is rotated all the same; 'doorward device bundle {id} --out DIR' writes it"
            ))
        });
        if self.grace.is_zero() {
            let place = bundle
                .as_ref()
                .ok()
                .and_then(Option::as_deref)
                .map(|path| format!(", in {},", path.display()));
            let words = format!(
                "key version {} of '{id}'{} is the only one that holds",
                key.version,
                place.unwrap_or_default()
            );
            let json = shared.json.then(|| {
                json!({ "device": id, "version": key.version, "changed": true, "state": "active", "bundle": bundle.as_ref().ok() })
            });
            receipt::finish(&*registry, &acted, Some(id), &self.wait, &words, json).await?;
            return bundle.map(drop);
        }
        let words = format!("key version {} of '{id}' is pending", key.version);
        self.say(shared, id, key.version, true, &words, bundle?)
    }

    async fn bundle(
        &self,
        shared: &Shared,
        registry: &dyn Registry,
        id: &DeviceId,
    ) -> Result<Option<PathBuf>, Failure> {
        let Some(out) = &self.out else { return Ok(None) };
        let device = device::find(registry, id).await?;
        bundle::write_again(shared, registry, &device, out).await.map(Some)
    }

    fn say(
        &self,
        shared: &Shared,
        id: &DeviceId,
        version: KeyVersion,
        changed: bool,
        words: &str,
        bundle: Option<PathBuf>,
    ) -> Outcome {
        if shared.json {
            let value = json!({ "device": id, "version": version, "changed": changed, "state": "pending", "bundle": bundle });
            return output::json(&value);
        }
        let there = bundle.as_deref().map(Path::display).map(|path| format!(" or by the bundle in {path}"));
        output::say(format!(
            "{words}: the device gets it in its session{}, and the grace of the old one begins when it has signed with it",
            there.unwrap_or_default()
        ));
        Ok(())
    }
}

#[derive(Args, Debug)]
pub(super) struct RotateCert {
    /// Its id
    #[arg(required_unless_present = "fleet")]
    id: Option<DeviceId>,
    /// Days that the new certificate is valid
    #[arg(long, value_name = "D", conflicts_with = "fleet", default_value_t = profile::DEVICE.lifetime.whole_days(), value_parser = clap::value_parser!(i64).range(1..=36_500))]
    days: i64,
    /// A certificate signing request with a new key: the device keeps its private key to itself
    #[arg(long, value_name = "FILE", conflicts_with = "fleet")]
    csr: Option<PathBuf>,
    /// How long the old certificate holds once a session by the new one has been proven; 0s: it is worth nothing from now on
    #[arg(long, value_name = "DUR", conflicts_with = "fleet", default_value = "7d", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// The folder in which the bundle's folder is made [default: HOME/devices]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    campaign: Campaign,
}

impl RotateCert {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        check_grace(self.grace)?;
        match (&self.id, &self.campaign.fleet) {
            (_, Some(fleet)) => {
                self.campaign.run(shared, fleet, Credential::Certificate, Duration::ZERO).await
            }
            (Some(id), None) => self.rotate(shared, id).await,
            (None, None) => Err(Failure::usage("an id or a fleet is needed")),
        }
    }

    async fn rotate(&self, shared: &Shared, id: &DeviceId) -> Outcome {
        let out = self.out.clone().unwrap_or_else(|| shared.home().devices());
        // Before anything is signed: nothing overwrites a key.
        bundle::must_be_new(&out, id)
            .map_err(|error| error.and_next("or name another folder with --out DIR"))?;
        let registry = shared.registry().await?;
        let issuer = Issuer::load(shared)?;
        let device = device::find(&*registry, id).await?;
        must_not_be_revoked(&device)?;
        let lifetime = time::Duration::days(self.days);
        let (certificate, private_key) = match &self.csr {
            Some(path) => {
                let request = device::read_request(path, id)?;
                if device.certificates.iter().any(|known| has_key(&known.der, &request)) {
                    return Err(Failure::new(format!(
                        "{}: its key is that of a certificate that '{id}' has had already",
                        path.display()
                    ))
                    .next("make a new key for the request: a renewal that keeps its key protects nothing"));
                }
                (issuer.certify(id, lifetime, &request)?, None)
            }
            None => {
                let mut key = entropy::key_pair()?;
                let private_key = key_to_pem(&key);
                let certificate = issuer.certify(id, lifetime, &key);
                key.zeroize();
                (certificate?, Some(private_key))
            }
        };
        // The bundle first: a certificate whose private key is nowhere would be of no use to anybody.
        let credential = (certificate.der.as_ref(), private_key.as_ref());
        let folder = bundle::write_with(shared, &*registry, &issuer, &device, credential, &out).await?;
        let now = clock::utc();
        let holds = |known: &&CertificateRecord| {
            known.not_after > now
                && match known.status {
                    CertificateStatus::Active => true,
                    CertificateStatus::Superseded => known.valid_until.is_some_and(|until| until > now),
                    CertificateStatus::Revoked => false,
                }
        };
        let from = device.certificates.iter().find(holds).map(|known| known.fingerprint);
        let renewal = Renewal { from, grace: self.grace };
        let added = registry.add_certificate(id, &issuer.certificate_record(&certificate), &renewal).await;
        let acted = added.map_err(|error| {
            let unknown = matches!(error, RegistryError::Unknown(_));
            let failure = Failure::from(error);
            if unknown {
                // It may be recorded: its private key stays where it is.
                return failure.and_next(&format!(
                    "'doorward device show {id}' tells whether {} is of use",
                    folder.display()
                ));
            }
            let _ = std::fs::remove_dir_all(&folder);
            failure
        })?;
        // It is recorded: a CA may go while this waits for gateways.
        drop(issuer);
        self.say(shared, &*registry, id, &certificate, &acted, &folder).await
    }

    async fn say(
        &self,
        shared: &Shared,
        registry: &dyn Registry,
        id: &DeviceId,
        certificate: &Certificate,
        acted: &Acted,
        folder: &Path,
    ) -> Outcome {
        let (serial, expires) = (&certificate.serial, output::time(certificate.not_after));
        let json = json!({
            "device": id, "serial": serial.to_string(), "expires": expires, "bundle": folder, "changed": true,
        });
        let words = format!("'{id}' has a new certificate {serial} until {expires}, in {}", folder.display());
        if self.grace.is_zero() {
            let words = format!("{words}; its others are worth nothing any more");
            return receipt::finish(
                registry,
                acted,
                Some(id),
                &self.wait,
                &words,
                shared.json.then_some(json),
            )
            .await;
        }
        if shared.json {
            return output::json(&json);
        }
        output::say(format!(
            "{words}; the grace of the old one begins with the first proven session by the new one"
        ));
        Ok(())
    }
}

fn has_key(der: &[u8], request: &Request) -> bool {
    Leaf::parse(der).is_ok_and(|leaf| leaf.public_key() == request.der_bytes())
}

fn check_grace(grace: Duration) -> Outcome {
    if grace > MAX_GRACE {
        return Err(Failure::usage("a grace is at most 366d"));
    }
    if !grace.is_zero() && grace < Duration::from_secs(1) {
        return Err(Failure::usage("a grace is 0s, or at least 1s: it is kept in seconds"));
    }
    Ok(())
}

fn must_not_be_revoked(device: &DeviceDetail) -> Outcome {
    if device.summary.status == DeviceStatus::Revoked {
        let id = &device.summary.id;
        return Err(Failure::refused(format!(
            "device '{id}' is revoked: a new credential would open nothing"
        )));
    }
    Ok(())
}

/// With another master key the device's other keys would be lost to the gateway.
fn check_master(master: &MasterKeys, device: &DeviceDetail) -> Outcome {
    let sealed = device.keys.iter().rev().find(|key| key.state != KeyState::Retired);
    let Some(key) = sealed else { return Ok(()) };
    check_sealed(master, &device.summary.id, key.version, &key.sealed)
}

pub(super) fn check_sealed(
    master: &MasterKeys,
    id: &DeviceId,
    version: KeyVersion,
    sealed: &[u8],
) -> Outcome {
    master.open(id, version, sealed).map(drop).map_err(|error| {
        Failure::new(error.to_string()).next("use the home whose master.key the device was added with")
    })
}

fn new_key(master: &MasterKeys, device: &DeviceDetail, grace: Duration) -> Result<NewKey, Failure> {
    let id = &device.summary.id;
    let newest = device.keys.iter().map(|key| key.version.get()).max().unwrap_or(0);
    let version = KeyVersion::from_number(newest + 1)
        .ok_or_else(|| Failure::new(format!("'{id}' has had as many key versions as there are")))?;
    seal_new(master, id, version, grace)
}

pub(super) fn seal_new(
    master: &MasterKeys,
    id: &DeviceId,
    version: KeyVersion,
    grace: Duration,
) -> Result<NewKey, Failure> {
    let bytes = zeroize::Zeroizing::new(entropy::random::<32>()?);
    let sealed = master.seal(id, version, &bytes, entropy::random()?);
    Ok(NewKey { version, sealed, grace })
}
