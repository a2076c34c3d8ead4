//! Serial numbers of certificates.

use std::fmt;
use std::str::FromStr;

use crate::hex;

/// A certificate's serial number: 16 bytes, positive, with 126 random bits.
///
/// RFC 5280 §4.1.2.2 wants serials unique per issuer, positive and of at most 20 bytes; the CA/Browser Forum wants
/// 64 random bits, so that nobody can foresee what will be signed. The top bits are always `01`: the number is
/// positive and its DER form always 16 bytes, hence the bytes in a certificate, in a CRL and here are the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial([u8; 16]);

/// Why a text is not a serial number that this system gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a serial number is 32 of 0-9 a-f and begins with 4, 5, 6 or 7; `doorward cert list` shows them")]
pub struct SerialError;

impl Serial {
    /// The serial made of 16 random bytes.
    #[must_use]
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Self(bytes)
    }

    /// The bytes, as they stand in the certificate.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for Serial {
    type Err = SerialError;
    fn from_str(text: &str) -> Result<Self, SerialError> {
        hex::decode(text).map(Self).filter(|serial| serial.0[0] & 0xc0 == 0x40).ok_or(SerialError)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Serial {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Serial {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_positive_and_of_one_length_whatever_the_bytes() {
        for first in 0..=u8::MAX {
            let mut bytes = [0xab; 16];
            bytes[0] = first;
            let serial = Serial::from_random(bytes);
            assert_eq!(serial.as_bytes()[0] & 0xc0, 0x40, "{first:#x}");
            assert_eq!(&serial.as_bytes()[1..], &bytes[1..]);
            assert_eq!(serial.to_string().parse(), Ok(serial));
        }
    }

    #[test]
    fn has_one_spelling() {
        let text = "40abababababababababababababab0f";
        assert_eq!(text.parse::<Serial>().map(|s| s.to_string()).as_deref(), Ok(text));
        assert_eq!(serde_json::to_string(&text.parse::<Serial>().unwrap()).unwrap(), format!("\"{text}\""));
        assert!(serde_json::from_str::<Serial>("\"40\"").is_err());
        for bad in ["", "40", &text.to_uppercase(), &text.replace("40", "80"), &text.replace("40", "00"), " "]
        {
            assert_eq!(bad.parse::<Serial>(), Err(SerialError), "{bad}");
        }
    }
}
