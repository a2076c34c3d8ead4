//! A real device's id in a certificate that its CA never signed.

use std::sync::Arc;
use std::time::Duration;

use doorward_client::connection::{ConnectError, Dial};
use doorward_client::{Identity, tls};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt as _;

use super::attacks::{Attacks, local};
use super::{Cast, Context};
use crate::fleet::Member;

/// For the gateway's judgement to arrive after the client's half of the handshake.
const JUDGEMENT: Duration = Duration::from_secs(2);
const EXPECTED: &str = "TLS refused, no upgrade";

pub(super) async fn attack(context: &Arc<Context>, cast: &Cast, attacks: &Arc<Attacks>) {
    for (attacker, index) in cast.hostile.iter().copied().enumerate() {
        let member = &context.members[index];
        let real = member.credentials.identity().chain();
        let ways: [(&'static str, Result<Identity, rcgen::Error>); 3] = [
            ("a certificate of another CA", foreign(member)),
            ("a certificate of a CA that bears the real one's name", impostor(member, real.get(1))),
            ("a certificate that signed itself", self_signed(member)),
        ];
        for (name, identity) in ways {
            let instead = match identity.map_err(|error| error.to_string()) {
                Ok(identity) => try_it(context, attacker, &identity).await,
                Err(error) => Some(format!("it could not be tried: {error}")),
            };
            attacks.saw(name, EXPECTED, member.id(), instead);
        }
    }
}

/// What happened instead of a refusal.
async fn try_it(context: &Context, attacker: usize, identity: &Identity) -> Option<String> {
    let config = match tls::configuration(identity) {
        Ok(config) => config,
        Err(error) => return Some(format!("it could not be tried: {error}")),
    };
    let dial: Dial = context.dial(&config, local(context, attacker));
    let mut secured = match dial.secure().await {
        Ok(secured) => secured,
        Err(ConnectError::Alert(_)) => return None,
        Err(error) => return Some(format!("it could not be tried: {error}")),
    };
    // In TLS 1.3 the alert follows the client's half. Nothing is sent meanwhile: it could turn the alert into a reset.
    match tokio::time::timeout(JUDGEMENT, secured.stream.read_u8()).await {
        // An alert, or a socket closed without a word: no way in.
        Ok(Err(_)) => return None,
        Ok(Ok(_)) => return Some("the gateway spoke".to_owned()),
        Err(_) => {}
    }
    match dial.upgrade(secured).await {
        Ok(connection) => {
            drop(connection);
            Some("the upgrade succeeded".to_owned())
        }
        Err(ConnectError::Refused(refused)) => {
            Some(format!("TLS let it through, and HTTP refused it with {}", refused.status))
        }
        Err(_) => None,
    }
}

fn leaf(member: &Member) -> Result<(CertificateParams, KeyPair), rcgen::Error> {
    let id = member.id();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, id);
    params.subject_alt_names = vec![SanType::URI(format!("urn:doorward:device:{id}").try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let mut serial = [0; 16];
    fastrand::fill(&mut serial);
    serial[0] = serial[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok((params, KeyPair::generate()?))
}

fn identity(member: &Member, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Identity {
    let private_key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Identity::new(chain, private_key, member.credentials.identity().trusted().to_vec())
}

fn foreign(member: &Member) -> Result<Identity, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "Somebody's own CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let (params, key) = leaf(member)?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(identity(member, vec![certificate.der().clone(), ca_certificate.der().clone()], &key))
}

/// The real CA's certificate follows the leaf; only the signature under the leaf is not of its key.
pub(crate) fn impostor(
    member: &Member,
    real: Option<&CertificateDer<'static>>,
) -> Result<Identity, rcgen::Error> {
    let Some(real) = real.or_else(|| member.credentials.identity().trusted().first()) else {
        return foreign(member);
    };
    let issuer = Issuer::from_ca_cert_der(real, KeyPair::generate()?)?;
    let (params, key) = leaf(member)?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(identity(member, vec![certificate.der().clone(), real.clone()], &key))
}

fn self_signed(member: &Member) -> Result<Identity, rcgen::Error> {
    let (params, key) = leaf(member)?;
    let certificate = params.self_signed(&key)?;
    Ok(identity(member, vec![certificate.der().clone()], &key))
}
