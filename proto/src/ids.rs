//! Names: of devices, fleets and messages, and the rules that make text one of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a text is not a name of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not `[A-Za-z0-9][A-Za-z0-9_-]{0,63}`.
    #[error("an id is 1 to 64 of A-Z a-z 0-9 _ -, and begins with a letter or digit")]
    Id,
    /// `gateway` in any case names the gateway itself in `iss` and `aud`.
    #[error("the id 'gateway' is reserved")]
    Reserved,
    /// Not `[A-Za-z0-9._:-]{1,64}`.
    #[error("a message id is 1 to 64 of A-Z a-z 0-9 . _ : -")]
    MessageId,
    /// Not `[1-9][0-9]{0,8}`.
    #[error("a key version is a whole number from 1 to 999999999")]
    KeyVersion,
}

fn is_id(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 64
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $parse:expr) => {
        $(#[$doc])*
        ///
        /// A clone shares the text.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Reads one from text.
            ///
            /// # Errors
            /// [`NameError`] where the text breaks the kind's rule.
            pub fn new(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), NameError> = $parse;
                check(text).map(|()| Self(Arc::from(text)))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A device's id: `[A-Za-z0-9][A-Za-z0-9_-]{0,63}`, and not `gateway`.
    DeviceId,
    |text| {
        if !is_id(text) {
            Err(NameError::Id)
        } else if text.eq_ignore_ascii_case("gateway") {
            Err(NameError::Reserved)
        } else {
            Ok(())
        }
    }
);

name!(
    /// A fleet's id, of the same form as a device's.
    FleetId,
    |text| if is_id(text) { Ok(()) } else { Err(NameError::Id) }
);

impl Default for FleetId {
    /// The fleet that exists from the start.
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

name!(
    /// The id that a device gives to a message, kept over retries: `[A-Za-z0-9._:-]{1,64}`.
    MessageId,
    |text| {
        let fits = matches!(text.len(), 1..=64)
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'));
        if fits { Ok(()) } else { Err(NameError::MessageId) }
    }
);

/// The version of a device's HMAC key: a whole number from 1 to 999,999,999, written without leading zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct KeyVersion(u32);

impl KeyVersion {
    /// The version of a device's first key.
    pub const FIRST: Self = Self(1);

    /// A version from its number; `None` outside 1 to 999,999,999.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1..=999_999_999 => Some(Self(number)),
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for KeyVersion {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain =
            matches!(text.len(), 1..=9) && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        if !plain {
            return Err(NameError::KeyVersion);
        }
        text.parse().ok().and_then(Self::from_number).ok_or(NameError::KeyVersion)
    }
}

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> serde::Deserialize<'de> for KeyVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_number(u32::deserialize(deserializer)?)
            .ok_or_else(|| serde::de::Error::custom(NameError::KeyVersion))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_form() {
        for good in ["a", "0", "press-7", "A_b-9", &"x".repeat(64)] {
            assert!(DeviceId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "a b", "a/b", "a\n", "é", "a.b", &"x".repeat(65)] {
            assert_eq!(DeviceId::new(bad), Err(NameError::Id), "{bad:?}");
        }
        assert_eq!(DeviceId::new("Gateway"), Err(NameError::Reserved));
        assert!(FleetId::new("gateway").is_ok_and(|f| f.as_str() == "gateway"));
    }

    #[test]
    fn key_versions_have_one_spelling() {
        assert_eq!("1".parse(), Ok(KeyVersion::FIRST));
        assert_eq!("999999999".parse::<KeyVersion>().map(KeyVersion::get), Ok(999_999_999));
        for bad in ["", "0", "01", "+1", "1000000000", " 1", "1.0", "１"] {
            assert_eq!(bad.parse::<KeyVersion>(), Err(NameError::KeyVersion), "{bad:?}");
        }
    }

    #[test]
    fn message_ids() {
        assert!(MessageId::new("a.b:c-d_1").is_ok());
        assert_eq!(MessageId::new(""), Err(NameError::MessageId));
        assert_eq!(MessageId::new("a b"), Err(NameError::MessageId));
    }
}
