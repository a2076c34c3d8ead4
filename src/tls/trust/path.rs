//! What is kept of the chain that a session's certificate came with: enough to judge it again, and shared by all that came
//! the same way.

use std::sync::Arc;

use doorward_pki::crl::SerialBytes;
use doorward_pki::identity::{CaCertificate, CaId};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use super::super::MAX_INTERMEDIATES;

/// The most bytes of a stranger's intermediates that are kept; a usual one has 600 to 1,500.
const MAX_BYTES: usize = 8 << 10;

/// The CA that signed a leaf, and the certificates that were sent with it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Name and key of the CA.
    pub(super) signer: Option<CaId>,
    pub(super) above: Vec<CertificateDer<'static>>,
    name: [u8; 32],
}

/// Where a session's certificate comes from. Of one that says nothing, nothing is believed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub(super) path: Option<Arc<Path>>,
    pub(super) serial: Option<SerialBytes>,
}

impl Path {
    pub(super) fn new(signer: Option<CaId>, above: &[CertificateDer<'_>]) -> Self {
        let above = above.get(..MAX_INTERMEDIATES).unwrap_or(above);
        let fits = above.iter().map(|der| der.len()).sum::<usize>() <= MAX_BYTES;
        let above: Vec<_> =
            if fits { above.iter().map(|der| der.clone().into_owned()).collect() } else { Vec::new() };
        let mut name = Sha256::new();
        if let Some(id) = &signer {
            name.update(id.as_bytes());
        }
        for der in &above {
            name.update(der.len().to_be_bytes());
            name.update(der);
        }
        Self { signer, above, name: name.finalize().into() }
    }

    /// Two paths of one name are one.
    pub(super) const fn name(&self) -> [u8; 32] {
        self.name
    }

    /// The certificate of a CA among those that were sent.
    pub(super) fn find(&self, id: CaId) -> Option<(&CertificateDer<'static>, CaCertificate)> {
        self.above.iter().find_map(|der| {
            let facts = CaCertificate::parse(der).ok().filter(|facts| facts.id() == id)?;
            Some((der, facts))
        })
    }
}
