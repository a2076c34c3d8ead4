//! What each kind of certificate says: one table, and the parameters made from it.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::serial::Serial;

/// How far a certificate's validity begins before it was issued. A device whose clock is a little behind would
/// otherwise refuse its own gateway, or be refused, in the first minutes.
pub const BACKDATE: Duration = Duration::minutes(5);

/// A kind of certificate. Everything that does not depend on whom it is for stands here.
#[derive(Debug)]
pub struct Profile {
    /// The kind's name, for messages.
    pub name: &'static str,
    /// For a CA how many CAs may follow below it (`pathLenConstraint`, RFC 5280 §4.2.1.9); `None`: not a CA.
    pub ca_path_len: Option<u8>,
    /// Key usage (RFC 5280 §4.2.1.3), critical.
    pub key_usages: &'static [KeyUsagePurpose],
    /// Extended key usage (RFC 5280 §4.2.1.12). A CA has none: it would bind what lies below it.
    pub extended_key_usages: &'static [ExtendedKeyUsagePurpose],
    /// How long it is valid from its issuing on, where nothing else is asked for.
    pub lifetime: Duration,
}

/// The offline root: signs issuing CAs and its CRL.
pub const ROOT: Profile = Profile {
    name: "root CA",
    ca_path_len: Some(1),
    key_usages: &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign],
    extended_key_usages: &[],
    lifetime: Duration::days(3652),
};

/// The issuing CA: signs devices and gateways and its CRL, and no further CA.
pub const ISSUING: Profile = Profile {
    name: "issuing CA",
    ca_path_len: Some(0),
    key_usages: &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign],
    extended_key_usages: &[],
    lifetime: Duration::days(1826),
};

/// A gateway: a TLS server, and never a client.
pub const GATEWAY: Profile = Profile {
    name: "gateway",
    ca_path_len: None,
    key_usages: &[KeyUsagePurpose::DigitalSignature],
    extended_key_usages: &[ExtendedKeyUsagePurpose::ServerAuth],
    lifetime: Duration::days(365),
};

/// A device: a TLS client, and never a server, so that a stolen device cannot play the gateway.
pub const DEVICE: Profile = Profile {
    name: "device",
    ca_path_len: None,
    key_usages: &[KeyUsagePurpose::DigitalSignature],
    extended_key_usages: &[ExtendedKeyUsagePurpose::ClientAuth],
    lifetime: Duration::days(365),
};

impl Profile {
    /// The parameters of one certificate of this kind. Every field is set: rcgen's defaults are a validity to the year
    /// 4096, no AKI, and a serial derived from the key, which a renewal would repeat.
    pub(crate) fn params(
        &self,
        common_name: &str,
        alternative_names: Vec<SanType>,
        serial: Serial,
        (not_before, not_after): (OffsetDateTime, OffsetDateTime),
    ) -> CertificateParams {
        let mut params = self.request_params(common_name);
        params.subject_alt_names = alternative_names;
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.not_before = not_before;
        params.not_after = not_after;
        params.use_authority_key_identifier_extension = true;
        params
    }

    /// What a request for one of this kind asks for: its name and what it is to be good for. Serial, validity and AKI are
    /// for who signs to say.
    pub(crate) fn request_params(&self, common_name: &str) -> CertificateParams {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, common_name);
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.is_ca = match self.ca_path_len {
            Some(below) => IsCa::Ca(BasicConstraints::Constrained(below)),
            None => IsCa::ExplicitNoCa,
        };
        params.key_usages = self.key_usages.to_vec();
        params.extended_key_usages = self.extended_key_usages.to_vec();
        params
    }
}
