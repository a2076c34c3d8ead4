//! Making a device's credentials: what `device add` and its bulk form have in common.

use std::fs::File;
use std::path::Path;

use doorward_pki::bundle::{DeviceFile, HmacKey, HmacKeyEntry};
use doorward_pki::{
    Authority, Certificate, IssueError, Leaf, Request, Serial, certificate_to_pem, key_file, key_to_pem,
};
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use rcgen::PublicKeyData;
use time::Duration;
use zeroize::{Zeroize, Zeroizing};

use super::cas::{self, Ca};
use super::custody::Passphrase;
use super::failure::Failure;
use super::{Shared, output};
use crate::home::{self, FileError, Home};
use crate::master::MasterKeys;
use crate::registry::{NewCertificate, NewDevice};
use crate::{clock, entropy};

/// What signs devices and seals their keys.
pub(super) struct Issuer {
    authority: Authority,
    /// All issuing CAs that are trusted, the one that signs among them.
    trusted: Vec<Ca>,
    master: MasterKeys,
    /// What devices trust for the gateway, PEM.
    pub(super) ca: String,
    url: String,
    /// Keeps the CAs as they are, until what was signed is recorded.
    _held: Option<File>,
}

/// A device's credentials, before anything of them has been written or recorded.
pub(super) struct Credentials {
    /// What the registry keeps.
    pub(super) record: NewDevice,
    /// `device.json`.
    pub(super) file: DeviceFile,
    /// Leaf, then intermediate, PEM.
    pub(super) chain: String,
    /// PKCS#8 PEM, unless the device made its key itself.
    pub(super) private_key: Option<Zeroizing<String>>,
    /// Whether the validity was cut to the CA's.
    pub(super) shortened: bool,
}

/// A CA of the home, ready to sign.
pub(super) fn authority(home: &Home, name: &str, shared: &Shared) -> Result<Authority, Failure> {
    // What it signs by a clock that is wrong would be wrong for years.
    clock::check()?;
    let path = home.pki(&format!("{name}.crt"));
    let certificate = home::read(&path)?;
    let key = open_key(&home.pki(&format!("{name}.key")), shared)?;
    Authority::load(&certificate, &key).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// A private key of the home, decrypted where it is encrypted.
pub(super) fn open_key(path: &Path, shared: &Shared) -> Result<Zeroizing<String>, Failure> {
    let text = home::read_secret(path).map_err(irreplaceable)?;
    let passphrase = if key_file::is_encrypted(&text) { shared.passphrase()? } else { None };
    key_file::open(&text, passphrase.as_ref().map(Passphrase::as_slice)).map_err(|error| {
        let failure = Failure::new(format!("{}: {error}", path.display()));
        match &passphrase {
            Some(passphrase) => failure.next(format!("it was taken from {}", passphrase.origin)),
            None => failure,
        }
    })
}

/// A key that is missing is not made anew: what it has signed or sealed would be lost.
pub(super) fn irreplaceable(error: FileError) -> Failure {
    match error {
        FileError::Missing(_) => Failure::new(error.to_string()).next(
            "put it back from where it is kept; 'doorward init' goes on with a home that was never finished",
        ),
        other => other.into(),
    }
}

impl Issuer {
    /// To sign: as long as it lives no CA of the home comes or goes.
    pub(super) fn load(shared: &Shared) -> Result<Self, Failure> {
        let held = cas::share(&shared.home())?;
        Ok(Self { _held: Some(held), ..Self::read(shared)? })
    }

    /// As it is now; whoever signs by it holds the CAs himself.
    pub(super) fn read(shared: &Shared) -> Result<Self, Failure> {
        let home = shared.home();
        let authority = authority(&home, "issuing", shared)?;
        if let Some(words) = cas::ending("the issuing CA", authority.not_after()) {
            output::say(format!("warning: {words}; 'doorward pki rollover begin' makes another"));
        }
        Ok(Self {
            authority,
            trusted: cas::read(&home.pki("issuing.crt"))?,
            master: shared.master_keys()?,
            ca: home::read(&home.pki("root.crt"))?,
            url: shared.config()?.gateway.url,
            _held: None,
        })
    }

    /// Credentials with a key made here.
    pub(super) fn issue(
        &self,
        id: &DeviceId,
        fleet: &FleetId,
        lifetime: Duration,
    ) -> Result<Credentials, Failure> {
        let mut key = entropy::key_pair()?;
        let private_key = key_to_pem(&key);
        let credentials = self.issue_for(id, fleet, lifetime, &key, Some(private_key));
        key.zeroize();
        credentials
    }

    /// Credentials for a key that the device keeps to itself.
    pub(super) fn issue_csr(
        &self,
        request: &Request,
        fleet: &FleetId,
        lifetime: Duration,
    ) -> Result<Credentials, Failure> {
        self.issue_for(request.device(), fleet, lifetime, request, None)
    }

    fn issue_for(
        &self,
        id: &DeviceId,
        fleet: &FleetId,
        lifetime: Duration,
        key: &impl PublicKeyData,
        private_key: Option<Zeroizing<String>>,
    ) -> Result<Credentials, Failure> {
        let certificate = self.certify(id, lifetime, key)?;
        let hmac = Zeroizing::new(entropy::random::<32>()?);
        let sealed_key = self.master.seal(id, KeyVersion::FIRST, &hmac, entropy::random()?);
        Ok(Credentials {
            record: NewDevice {
                id: id.clone(),
                fleet: fleet.clone(),
                certificate: self.certificate_record(&certificate),
                sealed_key,
            },
            file: self.device_file(id, fleet, KeyVersion::FIRST, &hmac),
            chain: format!("{}{}", certificate.pem(), self.authority.certificate_pem()),
            private_key,
            shortened: certificate.shortened,
        })
    }

    /// A certificate for a device's key.
    pub(super) fn certify(
        &self,
        id: &DeviceId,
        lifetime: Duration,
        key: &impl PublicKeyData,
    ) -> Result<Certificate, Failure> {
        let serial = Serial::from_random(entropy::random()?);
        self.authority.issue_device(id, key, serial, clock::utc(), lifetime).map_err(|error| match error {
            IssueError::IssuerExpired(_) => Failure::refused(error.to_string())
                .next("'doorward pki rollover begin' makes a new issuing CA"),
            other => other.into(),
        })
    }

    /// The registry's row of a certificate that this issuer signed.
    pub(super) fn certificate_record(&self, certificate: &Certificate) -> NewCertificate {
        NewCertificate {
            fingerprint: certificate.fingerprint,
            serial: certificate.serial.to_string(),
            issuer: self.authority.key_id().to_owned(),
            der: certificate.der.clone(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        }
    }

    /// `device.json`.
    pub(super) fn device_file(
        &self,
        device: &DeviceId,
        fleet: &FleetId,
        version: KeyVersion,
        hmac: &[u8; 32],
    ) -> DeviceFile {
        DeviceFile {
            device: device.clone(),
            fleet: fleet.clone(),
            url: self.url.clone(),
            key: HmacKeyEntry { version, hmac: HmacKey::new(*hmac) },
        }
    }

    /// The registry's copy of a device, from a line that an interrupted run has left: its key sealed again.
    pub(super) fn seal(&self, id: &DeviceId, hmac: &[u8; 32]) -> Result<Vec<u8>, Failure> {
        Ok(self.master.seal(id, KeyVersion::FIRST, hmac, entropy::random()?))
    }

    /// `device.crt`: a leaf, then the intermediate that signed it, which may be one that signs no more. `None`: it is signed
    /// by a CA that is not trusted here.
    pub(super) fn chain(&self, leaf: &[u8]) -> Option<String> {
        let signer = Leaf::parse(leaf).ok()?.issuer_key_id().map(str::to_owned);
        let signer = if signer.as_deref() == Some(self.key_id()) {
            self.authority.certificate_pem()
        } else {
            self.trusted.iter().find(|ca| ca.facts.key_id() == signer.as_deref())?.pem()
        };
        Some(format!("{}{signer}", certificate_to_pem(leaf)))
    }

    /// Whether the issuing CA with this key id is trusted here.
    pub(super) fn trusts(&self, key_id: &str) -> bool {
        self.trusted.iter().any(|ca| ca.facts.key_id() == Some(key_id)) || self.key_id() == key_id
    }

    /// The key id of the CA that signs.
    pub(super) fn key_id(&self) -> &str {
        self.authority.key_id()
    }
}
