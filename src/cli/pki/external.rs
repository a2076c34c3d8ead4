//! `pki csr`, `pki import`: an issuing CA that is signed elsewhere.

use std::path::{Path, PathBuf};

use clap::Args;
use doorward_pki::{Authority, ExternalError, Serial, certificates_from_pem, external, key_to_pem};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use zeroize::{Zeroize as _, Zeroizing};

use super::super::cas::{self, Standing};
use super::super::failure::{Failure, Outcome};
use super::super::{Shared, issue, output};
use super::rollover;
use super::taken::Wait;
use crate::home::{self, Home, PUBLIC};
use crate::own_certificate::Pair;
use crate::registry::{DeviceFilter, DeviceStatus, Registry};
use crate::{clock, entropy, trial};

#[derive(Args, Debug)]
pub(in super::super) struct Csr {
    /// Where to write the request
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The name to ask for [default: Doorward issuing CA and eight hex digits]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl Csr {
    pub(super) fn run(&self, shared: &Shared) -> Outcome {
        let home = shared.home();
        let _lock = cas::hold(&home)?;
        if std::fs::symlink_metadata(&self.out).is_ok() {
            return Err(home::FileError::Exists(self.out.clone()).into());
        }
        // Where the CA that signs is under a passphrase, the next one is too.
        issue::authority(&home, "issuing", shared)?;
        let path = home.pki("csr.key");
        let stood = path.exists();
        let mut key = if stood {
            rcgen::KeyPair::from_pem(&issue::open_key(&path, shared)?)
                .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?
        } else {
            entropy::key_pair()?
        };
        let random = Serial::from_random(entropy::random()?).to_string();
        let name = self
            .name
            .clone()
            .unwrap_or_else(|| format!("Doorward issuing CA {}", random.get(..8).unwrap_or_default()));
        let request = external::request(&name, &key)?;
        let pem = key_to_pem(&key);
        key.zeroize();
        if !stood {
            cas::write_key(&path, &pem, shared)?;
        }
        home::write_new(&self.out, &request, PUBLIC)?;
        if shared.json {
            return output::json(&json!({ "csr": self.out, "key": path, "name": name, "new_key": !stood }));
        }
        let key = if stood { "for the key that stood in" } else { "for a new key in" };
        output::say(format!(
            "the request for '{name}', {key} {}, is {}; 'doorward pki import --cert FILE' takes what comes back",
            path.display(),
            self.out.display()
        ));
        Ok(())
    }
}

#[derive(Args, Debug)]
pub(in super::super) struct Import {
    /// The certificate of the issuing CA, PEM; of several the first
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key [default: the key of 'doorward pki csr']
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The root that has signed it, if that is not the home's [default: pki/root.crt]
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Make it trusted and no more: the old one goes on signing until this is repeated without
    #[arg(long)]
    trust_only: bool,
    #[command(flatten)]
    wait: Wait,
}

/// A CA that has passed.
struct Checked {
    der: CertificateDer<'static>,
    key: Zeroizing<String>,
    /// A root that is not the home's yet.
    foreign: Option<CertificateDer<'static>>,
}

impl Import {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let home = shared.home();
        let _lock = cas::hold(&home)?;
        let mut standing = Standing::read(shared)?;
        let der = first(&self.cert)?;
        if standing.next_key.is_none() && standing.signs().der() == &*der {
            return rollover::say(shared, &standing, false);
        }
        let checked = self.check(shared, &home, &standing, der)?;
        if checked.foreign.is_some() {
            must_have_no_devices(&*shared.registry().await?).await?;
        }

        let next = home.pki("next.key");
        let request = home.pki("csr.key");
        if standing.next_key.is_none() {
            let public = cas::public_key(&checked.key, &next)?;
            let of_request = request.exists()
                && issue::open_key(&request, shared)
                    .and_then(|pem| cas::public_key(&pem, &request))
                    .is_ok_and(|requested| requested == public);
            if of_request {
                home::rename(&request, &next)?;
            } else {
                cas::write_key(&next, &checked.key, shared)?;
            }
        }
        if let Some(root) = &checked.foreign {
            // Besides the old one: the gateway's own certificate is below that.
            let path = home.pki("root.crt");
            let own = home::read(&path)?;
            home::write_over(&path, format!("{own}{}", doorward_pki::certificate_to_pem(root)), PUBLIC)?;
        }
        let made = standing.next.is_none();
        if made {
            standing.trust(&home, checked.der.to_vec())?;
        }
        if self.trust_only {
            return rollover::say(shared, &standing, made);
        }
        rollover::move_over(shared, &mut standing, &self.wait).await
    }

    /// All that can be refused.
    fn check(
        &self,
        shared: &Shared,
        home: &Home,
        standing: &Standing,
        der: CertificateDer<'static>,
    ) -> Result<Checked, Failure> {
        let named = |error: &dyn std::fmt::Display| Failure::new(format!("{}: {error}", self.cert.display()));
        let foreign = self.root_of(home, &der)?;
        let key = self.find_key(shared, home, &der)?;
        let pem = doorward_pki::certificate_to_pem(&der);
        let authority = Authority::load(&pem, &key).map_err(|error| named(&error))?;
        let public = cas::public_key(&key, &self.cert)?;
        let trusted = standing.cas.iter().find(|ca| ca.facts.public_key_info() == public);
        if standing.signs().facts.public_key_info() == public {
            return Err(Failure::refused(format!(
                "{}: its key is the one that signs already",
                self.cert.display()
            ))
            .next("'doorward pki csr' makes a key for a new issuing CA"));
        }
        let others = standing.others().any(|ca| ca.facts.public_key_info() != public);
        if others
            || trusted.is_some_and(|ca| ca.der() != &*der)
            || (trusted.is_some() && standing.next.is_none())
        {
            return Err(Failure::refused("another rollover is under way")
                .next("'doorward pki rollover status' shows how far it is; finish that one first"));
        }
        if let Some(next) = &standing.next_key
            && cas::public_key(next, &home.pki("next.key"))? != public
        {
            return Err(Failure::refused(
                "another rollover has begun: pki/next.key is the key of another CA",
            )
            .next("'doorward pki rollover begin' goes on with that; finish it first"));
        }
        if trusted.is_none() && standing.cas.iter().any(|ca| ca.key_id() == authority.key_id()) {
            return Err(Failure::refused(format!(
                "{}: another CA with another key has its key id, {}",
                self.cert.display(),
                authority.key_id()
            ))
            .next("have it signed with a subject key identifier of its own"));
        }
        self.try_out(shared, home, &authority, foreign.as_ref())?;
        if doorward_pki::crl::may_sign(&authority).is_err() {
            output::say(
                "warning: this CA may not sign revocation lists (cRLSign is missing in its key usage): 'cert crl' will refuse",
            );
        }
        if let Some(words) = cas::ending(&format!("CA {}", authority.key_id()), authority.not_after()) {
            output::say(format!("warning: {words}"));
        }
        Ok(Checked { der, key, foreign })
    }

    /// Whether its certificates would be of use to this home's gateway and devices.
    fn try_out(
        &self,
        shared: &Shared,
        home: &Home,
        authority: &Authority,
        foreign: Option<&CertificateDer<'static>>,
    ) -> Outcome {
        let mut roots = all(&home.pki("root.crt"))?;
        roots.extend(foreign.cloned());
        let mut hosts = Pair::of(&shared.config()?.tls, home).hosts();
        if hosts.is_empty() {
            hosts.extend("localhost".parse());
        }
        trial::try_out(authority, &roots, &hosts).map_err(|error| {
            Failure::new(format!("{}: {error}", self.cert.display())).next(
                "nothing is changed; have it signed without what forbids that ('doorward pki csr' asks for what is needed)",
            )
        })
    }

    /// Finds the root above it: one of the home's, or the given one, which is told if the home's devices do not trust it.
    fn root_of(
        &self,
        home: &Home,
        der: &CertificateDer<'static>,
    ) -> Result<Option<CertificateDer<'static>>, Failure> {
        let now = clock::utc();
        let named = |error: ExternalError| Failure::new(format!("{}: {error}", self.cert.display()));
        let path = home.pki("root.crt");
        let own = all(&path)?;
        let below_own = external::check(der, &own, now);
        let Some(given) = &self.root else {
            return below_own.map(|_| None).map_err(|error| {
                let unknown = matches!(error, ExternalError::NotSigned { .. });
                let failure = named(error);
                if unknown {
                    failure.next("name the root that has signed it with --root FILE")
                } else {
                    failure
                }
            });
        };
        let given = all(given)?;
        let place = external::check(der, &given, now).map_err(named)?;
        if below_own.is_ok() {
            return Ok(None);
        }
        // A root renewed with its key is the one that devices trust.
        let facts = |der: &CertificateDer<'_>| doorward_pki::CaCertificate::parse(der).ok();
        let root = &given[place];
        let same = |known: &&CertificateDer<'static>| match (facts(known), facts(root)) {
            (Some(known), Some(root)) => {
                known.subject() == root.subject() && known.public_key_info() == root.public_key_info()
            }
            _ => false,
        };
        Ok(own.iter().find(same).is_none().then(|| root.clone()))
    }

    /// The private key that goes with it.
    fn find_key(
        &self,
        shared: &Shared,
        home: &Home,
        der: &CertificateDer<'static>,
    ) -> Result<Zeroizing<String>, Failure> {
        if let Some(path) = &self.key {
            return issue::open_key(path, shared);
        }
        let facts = doorward_pki::CaCertificate::parse(der)
            .map_err(|error| Failure::new(format!("{}: {error}", self.cert.display())))?;
        for name in ["next.key", "csr.key", "issuing.key"] {
            let path = home.pki(name);
            if path.exists() {
                let pem = issue::open_key(&path, shared)?;
                if cas::public_key(&pem, &path)? == facts.public_key_info() {
                    return Ok(pem);
                }
            }
        }
        Err(Failure::new(format!(
            "{}: its private key is not in this home ('doorward pki csr' makes one, pki/csr.key)",
            self.cert.display()
        ))
        .next("give its key with --key FILE"))
    }
}

/// Who trusts the home's root for the gateway would not trust a gateway whose certificate is below another one, and the
/// gateway's next certificate will be.
async fn must_have_no_devices(registry: &dyn Registry) -> Outcome {
    for status in [DeviceStatus::Active, DeviceStatus::Suspended] {
        let one = DeviceFilter { status: Some(status), limit: 1, ..DeviceFilter::default() };
        if let Some(device) = registry.devices(&one).await?.first() {
            return Err(Failure::refused(format!(
                "devices such as '{}' trust the present root alone for the gateway, and would be locked out once the \
                 gateway's certificate is below another one",
                device.id
            ))
            .next(
                "have the issuing CA signed by the present root, or begin with an external root in a home without devices",
            ));
        }
    }
    Ok(())
}

/// The certificates of a file.
fn all(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let found = certificates_from_pem(&home::read(path)?).filter(|all| !all.is_empty());
    found.ok_or_else(|| Failure::new(format!("{}: no readable certificate in PEM", path.display())))
}

fn first(path: &Path) -> Result<CertificateDer<'static>, Failure> {
    Ok(all(path)?.swap_remove(0))
}
