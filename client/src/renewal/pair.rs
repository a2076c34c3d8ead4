//! A certificate with its key: the one that holds, and the one that is to.

use std::sync::Arc;

use doorward_pki::{Leaf, printable};
use doorward_proto::ids::DeviceId;
use doorward_proto::time::NumericDate;
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;

use super::options::Named;
use crate::credentials::{Identity, MAX_FILE_BYTES, NewKey, certificates};
use crate::tls;

/// A pair as it is shown to the gateway. Each has a TLS configuration of its own: a ticket of one would bring back the
/// session of the other.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) identity: Arc<Identity>,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) leaf: Option<Leaf>,
}

impl Pair {
    pub(super) fn new(identity: Arc<Identity>, tls: Arc<ClientConfig>) -> Self {
        // One that cannot be read is renewed when the gateway asks, and not before.
        let leaf = identity.chain().first().and_then(|der| Leaf::parse(der).ok());
        Self { identity, tls, leaf }
    }

    pub(super) fn named(&self) -> Option<Named> {
        self.leaf.as_ref().map(named)
    }

    /// When it is renewed though nobody asked: between two thirds and five sixths of its lifetime, so that a fleet whose
    /// certificates were issued in one hour does not renew in one hour.
    pub(super) fn renew_from(&self) -> Option<NumericDate> {
        let leaf = self.leaf.as_ref()?;
        let lifetime = i128::from(leaf.not_after()) - i128::from(leaf.not_before());
        let place = leaf.fingerprint().as_bytes().first().copied().unwrap_or(0);
        // 256 places in the sixth of the lifetime that follows its first four.
        let from = i128::from(leaf.not_before()) + lifetime * (4 * 256 + i128::from(place)) / (6 * 256);
        i64::try_from(from).ok().map(NumericDate::from_seconds)
    }
}

/// A new pair that has come and has still to be let in.
#[derive(Debug)]
pub(super) struct Granted {
    /// As it is stored: PEM, leaf first.
    pub(super) chain: String,
    pub(super) pair: Pair,
    pub(super) named: Named,
}

impl Granted {
    /// A pair as it was stored.
    pub(super) fn stored(
        key: &NewKey,
        chain: Vec<CertificateDer<'static>>,
        current: &Pair,
    ) -> Result<Self, String> {
        let text: String = chain.iter().map(|der| doorward_pki::certificate_to_pem(der)).collect();
        let trusted = current.identity.trusted().to_vec();
        let identity = Arc::new(Identity::new(chain, key.to_private_key(), trusted));
        let tls = tls::configuration(&identity).map_err(|error| error.to_string())?;
        let pair = Pair::new(identity, tls);
        let named = pair.named().ok_or("it cannot be read")?;
        Ok(Self { chain: text, pair, named })
    }

    /// A pair whose certificate has just come, after the checks that the device can make of it. The gateway is trusted to
    /// answer for the device; a mistake of an issuer's must still not cost the device its place.
    pub(super) fn checked(
        key: &NewKey,
        chain: &str,
        device: &DeviceId,
        current: &Pair,
        time: NumericDate,
    ) -> Result<Self, String> {
        let granted = Self::stored(key, certificates(chain.as_bytes())?, current)?;
        granted.fault(key, device, current, time).map_or(Ok(granted), Err)
    }

    fn fault(&self, key: &NewKey, device: &DeviceId, current: &Pair, time: NumericDate) -> Option<String> {
        let leaf = self.pair.leaf.as_ref()?;
        let is_current = current.identity.chain().first() == self.pair.identity.chain().first();
        // The key takes its room in the file, too.
        let fits = u64::try_from(self.chain.len()).is_ok_and(|bytes| bytes < MAX_FILE_BYTES / 2);
        match leaf.common_name() {
            _ if leaf.public_key() != key.public_key() => Some("it is for another key".to_owned()),
            _ if is_current => Some("it is the one that the device has".to_owned()),
            Err(error) => Some(error.to_string()),
            Ok(name) if name != device.as_str() => Some(format!("it is for '{}'", printable(name))),
            Ok(_) if NumericDate::from_seconds(leaf.not_after()) <= time => {
                Some("it has expired already".to_owned())
            }
            Ok(_) if !fits => Some("its chain is too long to be kept".to_owned()),
            Ok(_) => leaf.fit_for_device().err().map(|unfit| unfit.to_string()),
        }
    }
}

fn named(leaf: &Leaf) -> Named {
    Named { serial: leaf.serial().into(), until: NumericDate::from_seconds(leaf.not_after()) }
}
