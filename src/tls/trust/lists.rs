//! `tls.crls`: read and verified once, when they are loaded. rustls-webpki would verify a list's signature at each
//! handshake, and take no notice of its end.

use std::path::PathBuf;
use std::sync::Arc;

use doorward_pki::crl::{self, ReadError, RevocationList};
use doorward_pki::identity::{CaCertificate, CaId, display_subject, is_signed_by};
use rustls::pki_types::CertificateDer;
use tracing::warn;

use super::super::TlsError;
use super::super::files::{Content, Files};
use super::{Trust, TrustedCa, TrustedList, names};
use crate::clock;
use crate::home::Home;

/// How far a list's beginning may lie ahead: clocks differ.
const AHEAD: i64 = 300;

/// What the files of `tls.crls` come to.
#[derive(Default)]
pub(in crate::tls) struct Lists {
    pub(super) trusted: Vec<TrustedList>,
    /// Lists whose CAs have been withdrawn since they were read.
    pub(super) withdrawn: Vec<WithdrawnList>,
}

/// A list whose CA has been withdrawn since it was read.
pub(super) struct WithdrawnList {
    path: PathBuf,
    content: Content,
    signer: CertificateDer<'static>,
}

/// Reads the lists of the configuration. One that has ended is refused, unless it is already in force: then it goes on
/// counting, for it is the last that was said of what is revoked.
///
/// # Errors
/// [`TlsError`] naming the file.
pub(in crate::tls) fn load(
    paths: &[PathBuf],
    home: &Home,
    files: &mut Files<'_>,
    cas: &[TrustedCa],
    running: Option<&Trust>,
) -> Result<Lists, TlsError> {
    let mut all = Lists::default();
    for (place, path) in paths.iter().enumerate() {
        // Named twice, what is in force of it would be taken twice, and twice that at the next reload.
        if paths[..place].contains(path) {
            continue;
        }
        let wrong = |reason: String| TlsError::Content { path: home.resolve(path), reason };
        let (bytes, content) = files.lists(path)?;
        let in_force = |one: &&TrustedList| one.path == *path && one.content == content;
        let stands: Vec<&TrustedList> =
            running.into_iter().flat_map(|trust| &trust.lists).filter(in_force).collect();
        if !stands.is_empty() && running.is_some_and(|trust| same(&trust.cas, cas)) {
            all.trusted.extend(stands.into_iter().cloned());
            continue;
        }
        let (lists, beside) = crl::sections(&bytes).map_err(|error| wrong(error.to_string()))?;
        let signers = signers(cas, &beside);
        for der in lists {
            let list = match RevocationList::read(&der, &signers) {
                Ok(list) => list,
                Err(error @ ReadError::Issuer(_)) => {
                    let lost = running.and_then(|was| was.lost((path, content), &der, &beside, cas));
                    let signer = lost.ok_or_else(|| wrong(error.to_string()))?;
                    warn!(file = %path.display(), issuer = display_subject(&signer),
                        "this revocation list is of a CA that is trusted no more, and is left out; take it out of tls.crls, for a restart refuses it");
                    all.withdrawn.push(WithdrawnList { path: path.clone(), content, signer });
                    continue;
                }
                Err(error) => return Err(wrong(error.to_string())),
            };
            if stands.is_empty() {
                check_times(&list).map_err(wrong)?;
                check_newer(&list, path, running).map_err(wrong)?;
            }
            let revoked_cas = revoked_cas(&list, cas, &signers);
            all.trusted.push(TrustedList { path: path.clone(), content, list: Arc::new(list), revoked_cas });
        }
    }
    Ok(all)
}

impl Trust {
    /// Who has signed a list that none of the CAs has: one that was trusted before, and whose certificates lead to none of
    /// those that are now. Then it says nothing of anybody who might get in, and a CA that is to go has to go.
    fn lost(
        &self,
        (path, content): (&PathBuf, Content),
        der: &[u8],
        beside: &[CertificateDer<'static>],
        cas: &[TrustedCa],
    ) -> Option<CertificateDer<'static>> {
        let known = self.withdrawn.iter().filter(|one| one.path == *path && one.content == content);
        let mut before: Vec<_> = known.map(|one| one.signer.clone()).collect();
        before.extend(signers(&self.cas, beside));
        let list = RevocationList::read(der, &before).ok()?;
        let mut signed = before
            .into_iter()
            .filter(|der| CaCertificate::parse(der).is_ok_and(|facts| facts.id() == list.issuer));
        let signer = signed.next()?;
        let leads_here = |der: &[u8]| cas.iter().any(|ca| is_signed_by(der, &ca.der));
        (!leads_here(&signer) && !signed.any(|der| leads_here(&der))).then_some(signer)
    }
}

/// Refuses a list that says less than what is known: whom the newer one names would be let in again.
fn check_newer(list: &RevocationList, path: &PathBuf, running: Option<&Trust>) -> Result<(), String> {
    let of_issuer = || {
        let lists = running.into_iter().flat_map(|running| &running.lists);
        lists.filter(|one| one.list.issuer == list.issuer)
    };
    // Where there are several of one issuer, each follows its own.
    let before = of_issuer().filter(|one| one.path == *path).map(|one| one.list.this_update).max();
    let Some(in_force) = before.or_else(|| of_issuer().map(|one| one.list.this_update).max()) else {
        return Ok(());
    };
    if list.this_update >= in_force {
        return Ok(());
    }
    Err(format!(
        "the list of '{}' of {} (thisUpdate) is older than the one in force, of {}; fetch the newer one",
        list.issuer_name,
        clock::rfc3339(list.this_update),
        clock::rfc3339(in_force)
    ))
}

/// Device CAs that a list names, if it is that of the CA above them. A CA that is its own root is not revoked by itself:
/// nobody could believe that list.
fn revoked_cas(list: &RevocationList, cas: &[TrustedCa], signers: &[CertificateDer<'static>]) -> Vec<CaId> {
    let is_issuer = |der: &&CertificateDer<'static>| {
        CaCertificate::parse(der).is_ok_and(|facts| facts.id() == list.issuer)
    };
    let issuers: Vec<_> = signers.iter().filter(is_issuer).collect();
    let revoked = |ca: &&TrustedCa| {
        ca.facts.id() != list.issuer
            && names(list, &ca.der)
            && issuers.iter().any(|issuer| is_signed_by(&ca.der, issuer))
    };
    cas.iter().filter(revoked).map(|ca| ca.facts.id()).collect()
}

fn same(some: &[TrustedCa], others: &[TrustedCa]) -> bool {
    some.iter().map(|ca| &ca.der).eq(others.iter().map(|ca| &ca.der))
}

/// Whose lists are believed: the device CAs', and those of certificates beside a list that have signed a device CA or were
/// signed by one. What a trusted CA signs devices may come by, and who has signed it may withdraw that.
fn signers(cas: &[TrustedCa], beside: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
    let related = |der: &&CertificateDer<'static>| {
        CaCertificate::parse(der).is_ok_and(|facts| facts.is_ca())
            && cas.iter().any(|ca| is_signed_by(&ca.der, der) || is_signed_by(der, &ca.der))
    };
    cas.iter().map(|ca| &ca.der).chain(beside.iter().filter(related)).cloned().collect()
}

fn check_times(list: &RevocationList) -> Result<(), String> {
    let now = clock::utc().unix_timestamp();
    let (name, next) = (&list.issuer_name, &list.next_update);
    if list.next_update <= now {
        let ended = clock::rfc3339(*next);
        return Err(format!("the list of '{name}' ended at {ended} (nextUpdate); fetch the newer one"));
    }
    if list.this_update > now + AHEAD {
        let begins = clock::rfc3339(list.this_update);
        return Err(format!("the list of '{name}' begins at {begins} (thisUpdate); is the clock right?"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use doorward_pki::crl::{Crl, Scope};
    use doorward_pki::{Authority, Serial};

    use super::*;
    use crate::entropy;

    #[test]
    fn a_file_that_is_named_twice_counts_once_however_often_it_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let (home, now) = (Home::new(folder.path()), clock::utc());
        let key = entropy::key_pair().unwrap();
        let root =
            Authority::root("Root", key, Serial::from_random(entropy::random().unwrap()), now).unwrap();
        let list = Crl::new(1, now, now + time::Duration::DAY, Scope::Unsaid).sign(&root).unwrap();
        std::fs::write(folder.path().join("a.crl"), list).unwrap();
        let cas = || {
            let der = CertificateDer::from(root.certificate_der().to_vec());
            vec![TrustedCa { facts: CaCertificate::parse(&der).unwrap(), der }]
        };
        let paths = ["a.crl".into(), "a.crl".into()];
        let mut running: Option<Trust> = None;
        for _ in 0..6 {
            let lists = load(&paths, &home, &mut Files::new(&home), &cas(), running.as_ref()).unwrap();
            assert_eq!((lists.trusted.len(), lists.withdrawn.len()), (1, 0));
            running = Some(Trust::new(cas(), lists));
        }
    }
}
