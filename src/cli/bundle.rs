//! Bundles: what a device needs, in a folder of its own.

use std::path::{Path, PathBuf};

use doorward_pki::bundle::DeviceFile;
use doorward_proto::ids::DeviceId;
use serde_json::json;
use zeroize::Zeroizing;

use super::failure::{Failure, Outcome};
use super::issue::Issuer;
use super::{Shared, device, output};
use crate::home::{self, FileError, PUBLIC, SECRET};
use crate::registry::{CertificateStatus, DeviceDetail, DeviceStatus, KeyState, Registry};

/// `device bundle`
pub(super) async fn run(shared: &Shared, id: &DeviceId, out: &Path) -> Outcome {
    let registry = shared.registry().await?;
    let device = device::find(&*registry, id).await?;
    let folder = write_again(shared, &*registry, &device, out).await?;
    if shared.json {
        return output::json(&json!({ "device": id, "bundle": folder }));
    }
    output::say(format!("the bundle of '{id}' is in {}, without its private key", folder.display()));
    Ok(())
}

/// Writes what the registry knows of a device, with its newest certificate and its newest key.
pub(super) async fn write_again(
    shared: &Shared,
    registry: &dyn Registry,
    device: &DeviceDetail,
    out: &Path,
) -> Result<PathBuf, Failure> {
    let id = &device.summary.id;
    if device.summary.status == DeviceStatus::Revoked {
        return Err(Failure::refused(format!("device '{id}' is revoked: a bundle would open nothing")));
    }
    let issuer = Issuer::read(shared)?;
    let certificate = device.certificates.iter().find(|c| c.status == CertificateStatus::Active);
    let Some(certificate) = certificate else {
        return Err(Failure::refused(format!("device '{id}' has no active certificate")));
    };
    if issuer.chain(&certificate.der).is_none() {
        return Err(Failure::new(format!(
            "the certificate of '{id}' is signed by CA {}, which is not among this home's issuing CAs",
            certificate.issuer
        ))
        .next("use the home that the device was added with"));
    }
    write_with(shared, registry, &issuer, device, (&certificate.der, None), out).await
}

/// Writes a certificate of a device, with its private key if that is here, and with the device's newest key.
pub(super) async fn write_with(
    shared: &Shared,
    registry: &dyn Registry,
    issuer: &Issuer,
    device: &DeviceDetail,
    (certificate, private_key): (&[u8], Option<&Zeroizing<String>>),
    out: &Path,
) -> Result<PathBuf, Failure> {
    let id = &device.summary.id;
    let key = device.keys.iter().rev().find(|key| matches!(key.state, KeyState::Active | KeyState::Pending));
    let Some(key) = key else {
        return Err(Failure::refused(format!("device '{id}' has no key that holds")));
    };
    let master = shared.master_keys()?;
    let hmac = master.open(id, key.version, &key.sealed).map_err(|error| {
        Failure::new(error.to_string()).next("use the home whose master.key the device was added with")
    })?;
    let file = issuer.device_file(id, &device.summary.fleet, key.version, &hmac);
    let chain = issuer.chain(certificate).ok_or_else(|| {
        Failure::new(format!("the certificate of '{id}' is signed by none of this home's issuing CAs"))
    })?;
    must_be_new(out, id)?;
    if key.state == KeyState::Pending {
        // Before it is there: a key that somebody may carry to the device is not taken back any more.
        registry.rotations().hand_out(id, key.version).await?;
    }
    write(out, &file, &chain, private_key, &issuer.ca)
}

/// Refuses a folder that is there: nothing overwrites a key.
pub(super) fn must_be_new(parent: &Path, id: &DeviceId) -> Outcome {
    let folder = parent.join(id.as_str());
    match std::fs::symlink_metadata(&folder) {
        Ok(_) => Err(Failure::from(FileError::Exists(folder))),
        Err(_) => Ok(()),
    }
}

/// Makes `PARENT/ID` whole or not at all.
pub(super) fn write(
    parent: &Path,
    file: &DeviceFile,
    chain: &str,
    private_key: Option<&Zeroizing<String>>,
    ca: &str,
) -> Result<PathBuf, Failure> {
    let folder = parent.join(file.device.as_str());
    must_be_new(parent, &file.device)?;
    home::make_folder(parent)?;
    let unfinished = parent.join(format!(".{}.{}.tmp", file.device, std::process::id()));
    let write = || -> Outcome {
        home::make_folder(&unfinished)?;
        home::write_new(&unfinished.join("device.crt"), chain, PUBLIC)?;
        home::write_new(&unfinished.join("ca.crt"), ca, PUBLIC)?;
        home::write_new(&unfinished.join("device.json"), &file.to_json()?, SECRET)?;
        if let Some(key) = private_key {
            home::write_new(&unfinished.join("device.key"), key, SECRET)?;
        }
        // An empty folder or file of that name would be replaced: it was looked for above, and nothing else makes one.
        home::rename(&unfinished, &folder)?;
        Ok(())
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_dir_all(&unfinished);
    }
    written.map(|()| folder)
}
