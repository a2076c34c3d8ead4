//! The envelope: a compact JWS with HS256 (RFC 7515 §7.1, RFC 7518 §3.2), and the proof that its signature fits.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::ids::KeyVersion;
use crate::json;
use crate::key::{KEY_BYTES, Key};
use crate::verdict::Refusal;

/// A header is about forty bytes; more than this is somebody else's protocol.
const MAX_HEADER_BYTES: usize = 256;

/// A message split into its parts, nothing of it believed but the header's form.
#[derive(Debug)]
pub(crate) struct Envelope<'a> {
    version: KeyVersion,
    signed: &'a str,
    payload: Vec<u8>,
    signature: [u8; KEY_BYTES],
    /// A signature of another length never fits; it is refused where signatures are, in its turn.
    whole: bool,
}

/// A payload whose signature fits a key of the device. There is no other way to make one than
/// [`Envelope::verify`].
#[derive(Debug)]
pub(crate) struct Verified {
    payload: Vec<u8>,
}

impl<'a> Envelope<'a> {
    /// Three base64url parts (R-10; RFC 4648 §5: no padding, no stray bits), the first of them the header (R-11).
    pub(crate) fn split(text: &'a str) -> Result<Self, &'static str> {
        let (signed, signature) = text.rsplit_once('.').ok_or("not three parts joined by '.'")?;
        let (header, payload) = signed.split_once('.').ok_or("not three parts joined by '.'")?;
        if payload.contains('.') {
            return Err("not three parts joined by '.'");
        }
        if header.len() > MAX_HEADER_BYTES {
            return Err("the header is too long");
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part);
        let header = decode(header).map_err(|_| "the header is not unpadded base64url")?;
        let payload = decode(payload).map_err(|_| "the payload is not unpadded base64url")?;
        let given = decode(signature).map_err(|_| "the signature is not unpadded base64url")?;
        let version = read_header(&header)?;
        let mut signature = [0; KEY_BYTES];
        let whole = given.len() == KEY_BYTES;
        if whole {
            signature.copy_from_slice(&given);
        }
        Ok(Self { version, signed, payload, signature, whole })
    }

    /// Which key version it says it was signed with.
    pub(crate) fn version(&self) -> KeyVersion {
        self.version
    }

    /// The check of the signature, in constant time.
    pub(crate) fn verify(self, key: &Key) -> Result<Verified, Refusal> {
        // R-12, RFC 8725 §3.1: the algorithm is ours, the header's word for it was only compared.
        if self.whole && key.version() == self.version && key.verifies(self.signed, &self.signature) {
            Ok(Verified { payload: self.payload })
        } else {
            Err(Refusal::BadSignature)
        }
    }
}

impl Verified {
    /// The payload as text.
    pub(crate) fn text(&self) -> Result<&str, &'static str> {
        std::str::from_utf8(&self.payload).map_err(|_| "the payload is not UTF-8")
    }
}

fn read_header(bytes: &[u8]) -> Result<KeyVersion, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the header is not UTF-8")?;
    let (mut alg, mut kid, mut typ) = (None, None, None);
    json::members(text, |name, value| {
        let place = match &*name {
            "alg" => &mut alg,
            "kid" => &mut kid,
            "typ" => &mut typ,
            _ => return Err("another member"),
        };
        if place.replace(value).is_some() { Err("a member twice") } else { Ok(()) }
    })
    .map_err(|_| "the header is not a JSON object of 'alg', 'kid' and perhaps 'typ'")?;
    if alg.and_then(json::string).as_deref() != Some("HS256") {
        return Err("'alg' is not HS256");
    }
    if typ.is_some_and(|typ| json::string(typ).as_deref() != Some("JWT")) {
        return Err("'typ' is not JWT");
    }
    kid.and_then(json::string)
        .and_then(|kid| kid.parse().ok())
        .ok_or("'kid' is not a key version as a string")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new(KeyVersion::FIRST, &[7; 32])
    }

    #[test]
    fn what_was_signed_verifies_and_nothing_else() {
        let text = key().sign(b"{}");
        assert_eq!(Envelope::split(&text).unwrap().verify(&key()).unwrap().text(), Ok("{}"));
        let other = Key::new(KeyVersion::FIRST, &[8; 32]);
        assert_eq!(Envelope::split(&text).unwrap().verify(&other).unwrap_err(), Refusal::BadSignature);
        let renumbered = Key::new(KeyVersion::from_number(2).unwrap(), &[7; 32]);
        assert_eq!(Envelope::split(&text).unwrap().verify(&renumbered).unwrap_err(), Refusal::BadSignature);
    }

    /// Each single-character change of a message is refused: no second spelling of the same bytes exists.
    #[test]
    fn no_character_can_be_changed() {
        let text = key().sign(br#"{"op":"hello"}"#);
        for at in 0..text.len() {
            for byte in [b'A', b'B', b'_', b'.', b'=', b'+', b' '] {
                let mut changed = text.clone().into_bytes();
                if changed[at] == byte {
                    continue;
                }
                changed[at] = byte;
                let changed = String::from_utf8(changed).unwrap();
                assert!(Envelope::split(&changed).map_or(true, |e| e.verify(&key()).is_err()), "{at} {byte}");
            }
        }
    }
}
