//! Whose certificates a configuration lets in, asked without a connection.

use std::sync::Arc;

use doorward_pki::identity::Leaf;
use doorward_proto::time::NumericDate;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier as _;

use super::files::Files;
use super::{DeviceVerifier, TlsError, Trust, trust};
use crate::config::Config;
use crate::home::Home;
use crate::identity::Denied;

/// What handshakes of this configuration judge by, and what is asked after them.
pub(crate) struct Door {
    verifier: DeviceVerifier,
    trust: Trust,
}

impl Door {
    /// Reads the device CAs and their lists, as a gateway does that starts now.
    pub(crate) fn load(config: &Config, home: &Home) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut files = Files::new(home);
        let (verifier, cas) = DeviceVerifier::load(config, home, &mut files, &provider)?;
        let lists = trust::load_lists(&config.tls.crls, home, &mut files, &cas, None)?;
        Ok(Self { verifier, trust: Trust::new(cas, lists) })
    }

    /// What a handshake with this chain, leaf first, would say: the words of its refusal.
    pub(crate) fn shake_hands(&self, chain: &[CertificateDer<'_>], now: NumericDate) -> Result<(), String> {
        let (leaf, above) = chain.split_first().ok_or("there is no certificate")?;
        let now = UnixTime::since_unix_epoch(now.as_duration());
        self.verifier.verify_client_cert(leaf, above, now).map(drop).map_err(|error| error.to_string())
    }

    /// What is asked after every handshake of where the certificate comes from.
    pub(crate) fn judge_origin(
        &self,
        leaf: &Leaf,
        chain: &[CertificateDer<'_>],
        now: NumericDate,
    ) -> Result<(), Denied> {
        self.trust.judge(&self.trust.origin(leaf, chain), now)
    }

    /// The names of the CAs that are trusted, fit for a person.
    pub(crate) fn cas(&self) -> String {
        let names: Vec<String> = self.trust.cas.iter().map(trust::TrustedCa::name).collect();
        names.join("; ")
    }
}
