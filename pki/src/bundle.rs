//! The credential files of a device: `device.json`, and the line that the bulk file has for each device.
//!
//! Fields that this version does not know are skipped when read, so a reader of `device.json` reads a bulk line too.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

/// `device.json`: what a device needs beside its certificate and private key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFile {
    /// The device's id.
    pub device: DeviceId,
    /// Its fleet.
    pub fleet: FleetId,
    /// Where its gateway is: `wss://HOST:PORT/v1/device`.
    pub url: String,
    /// The key that signs its messages.
    pub key: HmacKeyEntry,
}

/// One line of the bulk file: [`DeviceFile`]'s fields, and the PEM files beside them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkLine {
    // Not `#[serde(flatten)]`: it would copy the secrets through a buffer that nobody wipes.
    /// The device's id.
    pub device: DeviceId,
    /// Its fleet.
    pub fleet: FleetId,
    /// Where its gateway is.
    pub url: String,
    /// The key that signs its messages.
    pub key: HmacKeyEntry,
    /// Its certificate, then the intermediate that signed it, in PEM.
    pub certificate: String,
    /// Its private key, PKCS#8 in PEM.
    pub private_key: PrivateKeyPem,
    /// What it trusts for the gateway, in PEM.
    pub ca: String,
}

/// An HMAC key and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HmacKeyEntry {
    /// The key's version.
    pub version: KeyVersion,
    /// The key.
    pub hmac: HmacKey,
}

/// A device's HMAC key: 32 bytes, as text base64url without padding. Wiped when dropped; Debug shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct HmacKey(Zeroizing<[u8; 32]>);

/// A private key's PKCS#8 PEM. Wiped when dropped; Debug shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKeyPem(Zeroizing<String>);

impl DeviceFile {
    /// The content of `device.json`, indented, with a final newline.
    ///
    /// # Errors
    /// Whatever serde_json reports; with these types, nothing.
    pub fn to_json(&self) -> serde_json::Result<Zeroizing<String>> {
        let mut json = wiped(512 + 2 * self.url.len());
        serde_json::to_writer_pretty(&mut *json, self)?;
        finished(json)
    }
}

impl BulkLine {
    /// A line of these parts.
    #[must_use]
    pub fn new(file: DeviceFile, certificate: String, private_key: PrivateKeyPem, ca: String) -> Self {
        let DeviceFile { device, fleet, url, key } = file;
        Self { device, fleet, url, key, certificate, private_key, ca }
    }

    /// What stands in `device.json`.
    #[must_use]
    pub fn device_file(&self) -> DeviceFile {
        let Self { device, fleet, url, key, .. } = self.clone();
        DeviceFile { device, fleet, url, key }
    }

    /// The line, with its newline.
    ///
    /// # Errors
    /// Whatever serde_json reports; with these types, nothing.
    pub fn to_line(&self) -> serde_json::Result<Zeroizing<String>> {
        let text = self.url.len() + self.certificate.len() + self.private_key.as_str().len() + self.ca.len();
        let mut json = wiped(512 + 2 * text);
        serde_json::to_writer(&mut *json, self)?;
        finished(json)
    }
}

impl HmacKey {
    /// The key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn from_text(text: &str) -> Option<Self> {
        // The decoder wants room for a whole number of quartets.
        let mut buffer = Zeroizing::new([0; 48]);
        let length = URL_SAFE_NO_PAD.decode_slice(text, buffer.as_mut_slice()).ok()?;
        let mut key = Self::new([0; 32]);
        (length == 32).then(|| key.0.copy_from_slice(&buffer[..32]))?;
        Some(key)
    }
}

impl PrivateKeyPem {
    /// The key in this PEM, which is not checked here.
    #[must_use]
    pub const fn new(pem: Zeroizing<String>) -> Self {
        Self(pem)
    }

    /// The PEM.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacKey(redacted)")
    }
}

impl fmt::Debug for PrivateKeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKeyPem(redacted)")
    }
}

impl Serialize for HmacKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Zeroizing::new(String::with_capacity(48));
        URL_SAFE_NO_PAD.encode_string(self.0.as_slice(), &mut text);
        serializer.serialize_str(&text)
    }
}

impl Serialize for PrivateKeyPem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HmacKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_str(SecretText)?;
        Self::from_text(&text)
            .ok_or_else(|| D::Error::custom("an HMAC key is 32 bytes in base64url without padding"))
    }
}

impl<'de> Deserialize<'de> for PrivateKeyPem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(SecretText).map(Self)
    }
}

/// Takes a text into memory that is wiped. serde's own errors would quote what was found instead.
struct SecretText;

impl Visitor<'_> for SecretText {
    type Value = Zeroizing<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret as text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Zeroizing::new(text.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(Zeroizing::new(text))
    }
}

/// A buffer large enough that writing does not move it, which would leave a copy behind.
fn wiped(capacity: usize) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(Vec::with_capacity(capacity))
}

fn finished(mut json: Zeroizing<Vec<u8>>) -> serde_json::Result<Zeroizing<String>> {
    json.push(b'\n');
    match String::from_utf8(std::mem::take(&mut *json)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            error.into_bytes().zeroize();
            Err(serde_json::Error::custom("not UTF-8"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::device_id;

    fn device_file() -> DeviceFile {
        DeviceFile {
            device: device_id("press-7"),
            fleet: FleetId::new("default").unwrap(),
            url: "wss://gw.example:8443/v1/device".to_owned(),
            key: HmacKeyEntry { version: KeyVersion::FIRST, hmac: HmacKey::new([0xfb; 32]) },
        }
    }

    fn line() -> BulkLine {
        let key = PrivateKeyPem::new(Zeroizing::new("-----BEGIN PRIVATE KEY-----\nSECRET\n".to_owned()));
        BulkLine::new(device_file(), "leaf\nintermediate\n".to_owned(), key, "ca\n".to_owned())
    }

    #[test]
    fn device_json_has_its_form() {
        let json = device_file().to_json().unwrap();
        let expected = serde_json::json!({
            "device": "press-7",
            "fleet": "default",
            "url": "wss://gw.example:8443/v1/device",
            "key": { "version": 1, "hmac": "-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s" },
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), expected);
        assert!(json.ends_with("}\n"));
        assert_eq!(serde_json::from_str::<DeviceFile>(&json).unwrap(), device_file());
    }

    #[test]
    fn a_bulk_line_is_that_object_and_more() {
        let text = line().to_line().unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(text.ends_with("}\n"));
        let read: BulkLine = serde_json::from_str(&text).unwrap();
        assert_eq!(read, line());
        assert_eq!(read.device_file(), device_file());
        assert_eq!(serde_json::from_str::<DeviceFile>(&text).unwrap(), device_file());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["private_key"], "-----BEGIN PRIVATE KEY-----\nSECRET\n");
        assert_eq!((&value["certificate"], &value["ca"]), (&"leaf\nintermediate\n".into(), &"ca\n".into()));
    }

    #[test]
    fn a_bad_key_is_refused_and_not_repeated() {
        let json = device_file().to_json().unwrap();
        for bad in [
            "",
            "AAAA",
            "-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s=",
            "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s",
        ] {
            let altered = json.replace("-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s", bad);
            let error = serde_json::from_str::<DeviceFile>(&altered).unwrap_err().to_string();
            assert!(error.starts_with("an HMAC key is 32 bytes") && !error.contains("v7"), "{error}");
        }
        assert!(serde_json::from_str::<DeviceFile>(&json.replace("press-7", "press 7")).is_err());
        assert!(serde_json::from_str::<DeviceFile>(&json.replace(": 1,", ": 0,")).is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", line());
        assert!(shown.contains("press-7") && shown.contains("redacted"));
        for secret in ["SECRET", "251", "fb", "-_v7"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }

    #[test]
    fn nothing_moves_while_it_is_written() {
        let long = "\n".repeat(4_000);
        let line = BulkLine { certificate: long.clone(), ca: long, ..line() };
        let capacity = 512 + 2 * (line.url.len() + 8_000 + line.private_key.as_str().len());
        assert!(line.to_line().unwrap().len() <= capacity);
    }
}
