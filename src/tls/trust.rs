//! Whose certificates are let in: the device CAs and what their revocation lists say. Asked after every handshake, and for
//! each live session again when either has changed.
//!
//! The registry knows our own certificates one by one. This is what an external CA says of its.

mod lists;
mod path;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use doorward_pki::crl::{RevocationList, SerialBytes};
use doorward_pki::identity::{CaCertificate, CaId, Leaf, display_subject, is_signed_by, issued_by};
use doorward_proto::time::NumericDate;
use rustls::pki_types::CertificateDer;

use super::files::Content;
use super::{MAX_INTERMEDIATES, check_dates, check_intermediates};
use crate::clock;
use crate::identity::{Denied, Problem};

pub(super) use lists::load as load_lists;
use lists::{Lists, WithdrawnList};
pub(crate) use path::{Origin, Path};

/// Verdicts that are remembered: one for each chain that devices send, of which there are a few.
const MAX_VERDICTS: usize = 1024;

/// A device CA of the configuration.
pub(crate) struct TrustedCa {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) facts: CaCertificate,
}

impl TrustedCa {
    /// Its subject, fit for a log line.
    pub(crate) fn name(&self) -> String {
        display_subject(&self.der)
    }
}

/// A revocation list that counts, and where it is from.
#[derive(Clone)]
pub(crate) struct TrustedList {
    pub(crate) path: PathBuf,
    /// Of the whole file.
    content: Content,
    pub(crate) list: Arc<RevocationList>,
    /// Device CAs that the CA above them has revoked by it.
    revoked_cas: Vec<CaId>,
}

/// Paths by their names, each once, and what becomes of certificates that came by them.
type Verdicts = HashMap<[u8; 32], (Arc<Path>, Verdict)>;

/// The device CAs and their lists.
pub(crate) struct Trust {
    pub(crate) cas: Vec<TrustedCa>,
    pub(crate) lists: Vec<TrustedList>,
    /// Lists whose CAs have been withdrawn since they were read.
    withdrawn: Vec<WithdrawnList>,
    verdicts: Mutex<Verdicts>,
}

/// What becomes of certificates that came by a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// They lead to a device CA, as long as none of the certificates above them has ended, in Unix time.
    Until(i64),
    /// They lead nowhere.
    Nowhere,
    /// They lead nowhere at this moment: a certificate above them is not valid yet, or any more. The clock may be set.
    NotNow,
    /// A CA above them is revoked.
    Revoked,
}

impl Trust {
    pub(super) fn new(cas: Vec<TrustedCa>, lists: Lists) -> Self {
        Self { cas, lists: lists.trusted, withdrawn: lists.withdrawn, verdicts: Mutex::default() }
    }

    /// Where a certificate comes from that a handshake has verified: what a session keeps of its chain.
    pub(crate) fn origin(&self, leaf: &Leaf, chain: &[CertificateDer<'_>]) -> Origin {
        let Some((der, above)) = chain.split_first() else { return Origin::default() };
        let is_above = |ca: &&TrustedCa| {
            ca.facts.subject() == leaf.issuer()
                && !matches!((leaf.issuer_key_id(), ca.facts.key_id()), (Some(said), Some(is)) if said != is)
        };
        let direct: Vec<&TrustedCa> = self.cas.iter().filter(is_above).collect();
        let signer = match direct.as_slice() {
            [] => issued_by(der, above.get(..MAX_INTERMEDIATES).unwrap_or(above)).map(|facts| facts.id()),
            [one] => Some(one.facts.id()),
            several => {
                let several: Vec<_> = several.iter().map(|ca| ca.der.clone()).collect();
                issued_by(der, &several).map(|facts| facts.id())
            }
        };
        let (path, _) = self.known(Arc::new(Path::new(signer, above)));
        Origin { path: Some(path), serial: SerialBytes::from_hex(leaf.serial()) }
    }

    /// Judges where a certificate comes from.
    pub(crate) fn judge(&self, origin: &Origin, now: NumericDate) -> Result<(), Denied> {
        let untrusted = || {
            let detail = "this certificate leads to no device CA that is trusted now";
            Denied::new(Problem::CertificateUnknown, detail)
        };
        let revoked = |detail: &str| Denied::new(Problem::CertificateRevoked, detail);
        let (Some(path), Some(serial)) = (&origin.path, &origin.serial) else { return Err(untrusted()) };
        match self.known(Arc::clone(path)).1 {
            Verdict::Until(end) if seconds(now) <= end => {}
            Verdict::Until(_) | Verdict::Nowhere | Verdict::NotNow => return Err(untrusted()),
            Verdict::Revoked => return Err(revoked("a CA above this certificate is on a revocation list")),
        }
        let listed =
            |one: &TrustedList| path.signer == Some(one.list.issuer) && one.list.serials.contains(serial);
        if self.lists.iter().any(listed) {
            return Err(revoked("this certificate is on its CA's revocation list"));
        }
        Ok(())
    }

    /// The one path of this name, and its verdict.
    fn known(&self, path: Arc<Path>) -> (Arc<Path>, Verdict) {
        let mut known = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((path, verdict)) = known.get(&path.name()) {
            return (Arc::clone(path), *verdict);
        }
        let verdict = self.follow(&path, seconds(clock::now().wall));
        if verdict == Verdict::NotNow {
            return (path, verdict);
        }
        if known.len() >= MAX_VERDICTS {
            known.clear();
        }
        known.insert(path.name(), (Arc::clone(&path), verdict));
        (path, verdict)
    }

    /// Climbs from the CA that signed a leaf to one that is trusted. Its constraints were the handshake's to ask, and are the
    /// next one's again.
    fn follow(&self, path: &Path, now: i64) -> Verdict {
        let Some(mut id) = path.signer else { return Verdict::Nowhere };
        let (mut until, mut nowhere) = (i64::MAX, Verdict::Nowhere);
        for _ in 0..=MAX_INTERMEDIATES {
            if self.lists.iter().any(|one| one.revoked_cas.contains(&id)) {
                return Verdict::Revoked;
            }
            for ca in self.cas.iter().filter(|ca| ca.facts.id() == id) {
                if check_dates(&ca.facts, now).is_ok() {
                    return Verdict::Until(until.min(ca.facts.not_after()));
                }
                nowhere = Verdict::NotNow;
            }
            let Some((der, facts)) = path.find(id) else { return nowhere };
            if check_dates(&facts, now).is_err() {
                return Verdict::NotNow;
            }
            if check_intermediates(std::slice::from_ref(der), now).is_err() {
                return nowhere;
            }
            until = until.min(facts.not_after());
            let cas = self.cas.iter().map(|ca| &ca.der).chain(&path.above);
            let Some(above) =
                cas.filter(|ca| is_signed_by(der, ca)).find_map(|ca| CaCertificate::parse(ca).ok())
            else {
                return nowhere;
            };
            if self.lists.iter().any(|one| one.list.issuer == above.id() && names(&one.list, der)) {
                return Verdict::Revoked;
            }
            id = above.id();
        }
        nowhere
    }
}

/// Whether a list names a certificate, if it is of its issuer's.
fn names(list: &RevocationList, der: &[u8]) -> bool {
    let serial = Leaf::parse(der).ok().and_then(|read| SerialBytes::from_hex(read.serial()));
    serial.is_some_and(|serial| list.serials.contains(&serial))
}

fn seconds(now: NumericDate) -> i64 {
    i64::try_from(now.as_duration().as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use doorward_pki::{Authority, Serial};
    use time::Duration;

    use super::*;
    use crate::entropy;

    #[test]
    fn what_fails_on_dates_alone_is_asked_again() {
        for (begins, verdict, known) in [
            (clock::utc(), "Until", 1),
            // By a clock that is behind. It will be set, and the same chain comes again.
            (clock::utc() + Duration::DAY, "NotNow", 0),
        ] {
            let serial = Serial::from_random(entropy::random().unwrap());
            let root = Authority::root("Root", entropy::key_pair().unwrap(), serial, begins).unwrap();
            let der = CertificateDer::from(root.certificate_der().to_vec());
            let facts = CaCertificate::parse(&der).unwrap();
            let id = facts.id();
            let trust = Trust::new(vec![TrustedCa { der, facts }], Lists::default());
            for signer in [Some(id), None] {
                trust.known(Arc::new(Path::new(signer, &[])));
            }
            let (_, said) = trust.known(Arc::new(Path::new(Some(id), &[])));
            assert!(format!("{said:?}").starts_with(verdict), "{said:?}");
            assert_eq!(trust.verdicts.lock().unwrap().len(), known + 1, "besides the one that leads nowhere");
        }
    }
}
