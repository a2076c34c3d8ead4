//! `device rotate-key`: a new HMAC key for a device, and how it gets there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use doorward_pki::MasterKey;
use doorward_proto::ids::{DeviceId, KeyVersion};
use serde_json::json;

use super::failure::{Failure, Outcome};
use super::receipt::{self, Wait};
use super::{Shared, bundle, device, issue, output};
use crate::entropy;
use crate::registry::{DeviceDetail, DeviceStatus, KeyState, NewKey, Registry, RegistryError};

/// The longest grace that is taken.
const MAX_GRACE: Duration = Duration::from_secs(366 * 86_400);

#[derive(Args, Debug)]
pub(super) struct RotateKey {
    /// Its id
    id: DeviceId,
    /// How long the old key holds once the device has confirmed the new one; 0s: it is worth nothing from now on (a leaked
    /// key), and the new one travels by the bundle alone
    #[arg(long, value_name = "DUR", default_value = "7d", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// The folder in which a bundle with the new key is made
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    wait: Wait,
}

impl RotateKey {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let id = &self.id;
        if self.grace > MAX_GRACE {
            return Err(Failure::usage("a grace is at most 366d"));
        }
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
        let master = issue::master_key(&shared.home())?;
        let before = device::find(&*registry, id).await?;
        if before.summary.status == DeviceStatus::Revoked {
            return Err(Failure::refused(format!("device '{id}' is revoked: a key would open nothing")));
        }
        check_master(&master, &before)?;
        let pending = before.keys.iter().find(|key| key.state == KeyState::Pending);
        if let Some(pending) = pending.filter(|_| !self.grace.is_zero()) {
            let words = format!("key version {} of '{id}' is pending already", pending.version);
            return self.say(shared, pending.version, false, &words, self.bundle(shared, &*registry).await?);
        }
        let key = new_key(&master, &before, self.grace)?;
        let acted = registry.add_key(id, &key).await.map_err(|error| match error {
            RegistryError::Exists { .. } => {
                Failure::new(format!("somebody else is rotating the key of '{id}' right now"))
                    .next("try again")
            }
            other => other.into(),
        })?;
        let bundle = self.bundle(shared, &*registry).await.map_err(|error| {
            error.and_next(&format!(
                "the key is rotated all the same; 'doorward device bundle {id} --out DIR' writes it"
            ))
        });
        if self.grace.is_zero() {
            let words = format!("key version {} of '{id}' is the only one that holds", key.version);
            let json = shared.json.then(|| {
                json!({ "device": id, "version": key.version, "changed": true, "state": "active", "bundle": bundle.as_ref().ok() })
            });
            receipt::finish(&*registry, &acted, Some(id), &self.wait, &words, json).await?;
            return bundle.map(drop);
        }
        let words = format!("key version {} of '{id}' is pending", key.version);
        self.say(shared, key.version, true, &words, bundle?)
    }

    async fn bundle(&self, shared: &Shared, registry: &dyn Registry) -> Result<Option<PathBuf>, Failure> {
        let Some(out) = &self.out else { return Ok(None) };
        let device = device::find(registry, &self.id).await?;
        bundle::write_again(shared, &device, out).map(Some)
    }

    fn say(
        &self,
        shared: &Shared,
        version: KeyVersion,
        changed: bool,
        words: &str,
        bundle: Option<PathBuf>,
    ) -> Outcome {
        let id = &self.id;
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

/// With another master key the device's other keys would be lost to the gateway.
fn check_master(master: &MasterKey, device: &DeviceDetail) -> Outcome {
    let sealed = device.keys.iter().rev().find(|key| key.state != KeyState::Retired);
    let Some(key) = sealed else { return Ok(()) };
    master.open(&device.summary.id, key.version, &key.sealed).map(drop).map_err(|error| {
        Failure::new(error.to_string()).next("use the home whose master.key the device was added with")
    })
}

fn new_key(master: &MasterKey, device: &DeviceDetail, grace: Duration) -> Result<NewKey, Failure> {
    let id = &device.summary.id;
    let newest = device.keys.iter().map(|key| key.version.get()).max().unwrap_or(0);
    let version = KeyVersion::from_number(newest + 1)
        .ok_or_else(|| Failure::new(format!("'{id}' has had as many key versions as there are")))?;
    let bytes = zeroize::Zeroizing::new(entropy::random::<32>()?);
    let sealed = master.seal(id, version, &bytes, entropy::random()?);
    Ok(NewKey { version, sealed, grace })
}
