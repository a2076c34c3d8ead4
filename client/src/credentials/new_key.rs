//! A key that the device makes for a new certificate.

use doorward_proto::ids::DeviceId;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// A P-256 key. Its PKCS#8 bytes are wiped when it is dropped; rcgen's own are not.
pub(crate) struct NewKey(Zeroizing<KeyPair>);

impl NewKey {
    pub(crate) fn generate() -> Result<Self, String> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
        key.map(|key| Self(Zeroizing::new(key))).map_err(|error| format!("no key can be made: {error}"))
    }

    /// One that was stored; `None` where the bytes are no P-256 key in PKCS#8.
    pub(crate) fn from_der(der: &PrivateKeyDer<'_>) -> Option<Self> {
        let PrivateKeyDer::Pkcs8(pkcs8) = der else { return None };
        let key = KeyPair::from_pkcs8_der_and_sign_algo(pkcs8, &rcgen::PKCS_ECDSA_P256_SHA256);
        key.ok().map(|key| Self(Zeroizing::new(key)))
    }

    pub(crate) fn to_pem(&self) -> Zeroizing<String> {
        doorward_pki::key_to_pem(&self.0)
    }

    pub(crate) fn to_private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialized_der()).clone_key().into()
    }

    pub(crate) fn is(&self, key: &PrivateKeyDer<'_>) -> bool {
        self.0.serialized_der() == key.secret_der()
    }

    /// The bits of the public half.
    pub(crate) fn public_key(&self) -> &[u8] {
        self.0.der_bytes()
    }

    /// A request for a certificate of this device's (PKCS#10 in PEM): its name and the proof that it holds the key. All else is
    /// the issuer's to decide.
    pub(crate) fn request(&self, device: &DeviceId) -> Result<String, String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, device.as_str());
        let request = params.serialize_request(&*self.0).and_then(|request| request.pem());
        request.map_err(|error| format!("no certificate request can be made: {error}"))
    }
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NewKey(redacted)")
    }
}
