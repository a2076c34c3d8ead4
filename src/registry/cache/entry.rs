//! A record as text and back.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::super::{CertificateStatus, DeviceStatus, KeyState, Record, SealedKey, Standing};

/// A record on its way to the file or from it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(super) device: DeviceId,
    pub(super) fleet: FleetId,
    /// JSON, without what stands beside it.
    pub(super) rest: String,
    pub(super) policy: Arc<str>,
    pub(super) limits: Arc<str>,
    pub(super) schemas: Arc<str>,
}

#[derive(Serialize, Deserialize)]
struct Rest {
    status: DeviceStatus,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    reason: Option<String>,
    certificate: Certificate,
    keys: Vec<Key>,
}

#[derive(Serialize, Deserialize)]
struct Certificate {
    #[serde(with = "time::serde::timestamp::milliseconds")]
    not_after: OffsetDateTime,
    status: CertificateStatus,
    #[serde(with = "time::serde::timestamp::milliseconds::option", default)]
    valid_until: Option<OffsetDateTime>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    reason: Option<String>,
    supersedes: bool,
    #[serde(with = "time::serde::timestamp::milliseconds::option", default)]
    rotate_by: Option<OffsetDateTime>,
}

#[derive(Serialize, Deserialize)]
struct Key {
    version: KeyVersion,
    sealed: String,
    state: KeyState,
    #[serde(with = "time::serde::timestamp::milliseconds::option", default)]
    grace_until: Option<OffsetDateTime>,
    grace: u64,
}

impl Entry {
    pub(crate) fn of(record: &Record) -> Self {
        let standing = record.certificate.clone();
        let key = |key: &SealedKey| Key {
            version: key.version,
            sealed: STANDARD_NO_PAD.encode(&key.sealed),
            state: key.state,
            grace_until: key.grace_until,
            grace: key.grace.as_secs(),
        };
        let rest = Rest {
            status: record.status,
            reason: record.reason.clone(),
            certificate: Certificate {
                not_after: standing.not_after,
                status: standing.status,
                valid_until: standing.valid_until,
                reason: standing.reason,
                supersedes: standing.supersedes,
                rotate_by: standing.rotate_by,
            },
            keys: record.keys.iter().map(key).collect(),
        };
        Self {
            device: record.device.clone(),
            fleet: record.fleet.clone(),
            // Never fails: strings and numbers. Were it to, an empty text is no record.
            rest: serde_json::to_string(&rest).unwrap_or_default(),
            policy: Arc::clone(&record.policy),
            limits: Arc::clone(&record.limits),
            schemas: Arc::clone(&record.schemas),
        }
    }

    /// `None` where it cannot be read: then nothing is known.
    pub(super) fn record(&self) -> Option<Record> {
        let Rest { status, reason, certificate, keys } = serde_json::from_str(&self.rest).ok()?;
        let keys = keys.into_iter().map(|key| {
            let sealed = STANDARD_NO_PAD.decode(&key.sealed).ok()?;
            Some(SealedKey {
                version: key.version,
                sealed,
                state: key.state,
                grace_until: key.grace_until,
                grace: Duration::from_secs(key.grace),
            })
        });
        Some(Record {
            device: self.device.clone(),
            fleet: self.fleet.clone(),
            status,
            reason,
            certificate: Standing {
                not_after: certificate.not_after,
                status: certificate.status,
                valid_until: certificate.valid_until,
                reason: certificate.reason,
                supersedes: certificate.supersedes,
                rotate_by: certificate.rotate_by,
            },
            keys: keys.collect::<Option<_>>()?,
            policy: Arc::clone(&self.policy),
            limits: Arc::clone(&self.limits),
            schemas: Arc::clone(&self.schemas),
        })
    }
}
