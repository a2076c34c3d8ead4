//! `tls.crls`: read and verified once, when they are loaded. rustls-webpki would verify a list's signature at each
//! handshake, and take no notice of its end.

use std::path::PathBuf;
use std::sync::Arc;

use doorward_pki::crl::{self, RevocationList};
use doorward_pki::identity::{CaCertificate, CaId, is_signed_by};
use rustls::pki_types::CertificateDer;

use super::super::TlsError;
use super::super::files::Files;
use super::{Trust, TrustedCa, TrustedList, names};
use crate::clock;
use crate::home::Home;

/// How far a list's beginning may lie ahead: clocks differ.
const AHEAD: i64 = 300;

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
) -> Result<Vec<TrustedList>, TlsError> {
    let mut all = Vec::new();
    for path in paths {
        let wrong = |reason: String| TlsError::Content { path: home.resolve(path), reason };
        let (bytes, content) = files.lists(path)?;
        let in_force = |one: &&TrustedList| one.path == *path && one.content == content;
        let stands: Vec<&TrustedList> =
            running.into_iter().flat_map(|trust| &trust.lists).filter(in_force).collect();
        if !stands.is_empty() && running.is_some_and(|trust| same(&trust.cas, cas)) {
            all.extend(stands.into_iter().cloned());
            continue;
        }
        let (lists, beside) = crl::sections(&bytes).map_err(|error| wrong(error.to_string()))?;
        let signers = signers(cas, &beside);
        for der in lists {
            let list = RevocationList::read(&der, &signers).map_err(|error| wrong(error.to_string()))?;
            if stands.is_empty() {
                check_times(&list).map_err(wrong)?;
            }
            let revoked_cas = revoked_cas(&list, cas, &signers);
            all.push(TrustedList { path: path.clone(), content, list: Arc::new(list), revoked_cas });
        }
    }
    Ok(all)
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
