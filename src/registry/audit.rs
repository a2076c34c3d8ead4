//! The audit: who did what when, as a chain of hashes. What both registries store, and how it is verified.
//!
//! `hash = SHA-256(hash of the row before || body)`, 32 zero bytes before the first. A chain finds a row that was changed,
//! removed or moved; against an owner of the database who computes all of it anew only a head that was noted elsewhere
//! helps.

use std::fmt;
use std::str::FromStr;

use doorward_proto::ids::DeviceId;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A hash of the chain.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct AuditHash([u8; 32]);

impl AuditHash {
    /// From a column of the registry.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash of a row that comes after this one.
    #[must_use]
    pub fn then(&self, body: &[u8]) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(body).finalize().into())
    }
}

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The end of the chain: how many rows, and the hash of the last. Written `COUNT:HASH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuditHead {
    /// How many rows have a hash.
    pub count: i64,
    /// The last one's.
    pub hash: AuditHash,
}

impl fmt::Display for AuditHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.count, self.hash)
    }
}

impl FromStr for AuditHead {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (count, hash) = text.split_once(':')?;
            let count = count.parse().ok().filter(|count| *count >= 0)?;
            if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            let mut bytes = [0; 32];
            for (place, byte) in bytes.iter_mut().enumerate() {
                *byte = u8::from_str_radix(hash.get(2 * place..2 * place + 2)?, 16).ok()?;
            }
            Some(Self { count, hash: AuditHash(bytes) })
        };
        read().ok_or("a head is COUNT:HASH, as 'audit verify' prints it: a number and 64 hex digits")
    }
}

/// A row of the audit.
#[derive(Debug, Clone)]
pub struct AuditRow {
    /// Its place in the chain, from 1.
    pub id: i64,
    /// When it was done.
    pub at: OffsetDateTime,
    /// The exact JSON text, as bytes: whoever has the file of a SQLite registry can put there what is no UTF-8.
    pub body: Vec<u8>,
    /// `None`: written by hand in SQLite, and no command has sealed it yet.
    pub hash: Option<AuditHash>,
}

/// Which rows of the audit.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Those whose body has this id in it; whether it is the act's device, the body says.
    pub naming: Option<DeviceId>,
    /// Done at or after.
    pub since: Option<OffsetDateTime>,
    /// After this row.
    pub after: i64,
    /// How many at most.
    pub limit: u32,
}

/// The first row that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Its place is empty.
    #[error("audit row {0} is missing: it was removed")]
    Missing(i64),
    /// Its hash is not that of its body after the row before.
    #[error("audit row {0} does not fit: it was changed, or has taken another's place")]
    Changed(i64),
    /// Its time beside the body is another than in it.
    #[error("audit row {0} does not fit: its column 'at' was changed and says another time than its body")]
    Time(i64),
    /// A row without a hash stands before one that has one.
    #[error("audit row {0} does not fit: its hash was removed")]
    Unsealed(i64),
    /// It stands after the head.
    #[error("audit row {0} does not fit: it stands after the registry's own head of the chain")]
    Beyond(i64),
    /// The chain is whole, the head is not the chain's.
    #[error("audit row {0} does not fit: the registry's own head of the chain has another hash")]
    Head(i64),
    /// Rows that a head noted elsewhere has counted.
    #[error("audit row {0} is missing: the head that was given counts {1} rows")]
    Cut(i64, i64),
    /// Another chain than the one whose head was noted.
    #[error(
        "audit row {0} does not fit: the head that was given has another hash; the chain up to it was made anew"
    )]
    Rewritten(i64),
}

/// A chain that is being verified, row by row.
#[derive(Debug, Default)]
pub struct Chain {
    head: AuditHead,
    unsealed: i64,
}

impl Chain {
    /// The head of what was taken.
    #[must_use]
    pub fn head(&self) -> AuditHead {
        self.head
    }

    /// How many rows were taken, sealed or not.
    #[must_use]
    pub fn rows(&self) -> i64 {
        self.head.count + self.unsealed
    }

    /// How many of them have no hash yet.
    #[must_use]
    pub fn unsealed(&self) -> i64 {
        self.unsealed
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// [`Misfit`] for a row that is not the next one of this chain.
    pub fn take(&mut self, row: &AuditRow) -> Result<(), Misfit> {
        let due = self.rows() + 1;
        if row.id != due {
            return Err(Misfit::Missing(due));
        }
        let Some(hash) = row.hash else {
            self.unsealed += 1;
            return Ok(());
        };
        if self.unsealed > 0 {
            return Err(Misfit::Unsealed(self.head.count + 1));
        }
        if self.head.hash.then(&row.body) != hash {
            return Err(Misfit::Changed(row.id));
        }
        if time_of(&row.body) != Some(row.at) {
            return Err(Misfit::Time(row.id));
        }
        self.head = AuditHead { count: row.id, hash };
        Ok(())
    }

    /// Judges the end of the chain by the registry's own head, which was read before the last rows were.
    ///
    /// # Errors
    /// [`Misfit`] where they disagree.
    pub fn end(&self, head: &AuditHead) -> Result<(), Misfit> {
        let ours = &self.head;
        if head.count > ours.count && self.unsealed > 0 {
            Err(Misfit::Unsealed(ours.count + 1))
        } else if head.count > ours.count {
            Err(Misfit::Missing(ours.count + 1))
        } else if head.count < ours.count {
            Err(Misfit::Beyond(head.count + 1))
        } else if head.hash != ours.hash {
            Err(Misfit::Head(ours.count))
        } else {
            Ok(())
        }
    }
}

fn time_of(body: &[u8]) -> Option<OffsetDateTime> {
    #[derive(Deserialize)]
    struct Body<'a> {
        at: &'a str,
    }
    OffsetDateTime::parse(serde_json::from_slice::<Body<'_>>(body).ok()?.at, &Rfc3339).ok()
}

/// Who runs this program, as the operating system says. An operator who wants to can say something else: it is a claim.
pub(super) fn os_user() -> String {
    whoami::username().ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const AT: OffsetDateTime = datetime!(2027-03-01 12:00 UTC);

    fn rows(count: i64) -> Vec<AuditRow> {
        let mut hash = AuditHash::default();
        (1..=count)
            .map(|id| {
                let body = format!(r#"{{"at":"2027-03-01T12:00:00.000Z","n":{id}}}"#).into_bytes();
                hash = hash.then(&body);
                AuditRow { id, at: AT, body, hash: Some(hash) }
            })
            .collect()
    }

    fn verify(rows: &[AuditRow]) -> Result<AuditHead, Misfit> {
        let mut chain = Chain::default();
        rows.iter().try_for_each(|row| chain.take(row)).map(|()| chain.head())
    }

    #[test]
    fn a_chain_names_the_first_row_that_does_not_fit() {
        let whole = rows(5);
        let head = verify(&whole).unwrap();
        assert_eq!(head.count, 5);
        let with = |edit: &dyn Fn(&mut Vec<AuditRow>)| {
            let mut edited = whole.clone();
            edit(&mut edited);
            verify(&edited)
        };
        assert_eq!(with(&|rows| rows[2].body.push(b' ')), Err(Misfit::Changed(3)));
        assert_eq!(with(&|rows| rows[2].hash = rows[1].hash), Err(Misfit::Changed(3)));
        assert_eq!(with(&|rows| drop(rows.remove(2))), Err(Misfit::Missing(3)));
        assert_eq!(with(&|rows| rows.swap(1, 3)), Err(Misfit::Missing(2)));
        let renumbered = |rows: &mut Vec<AuditRow>| {
            rows.swap(1, 3);
            (rows[1].id, rows[3].id) = (2, 4);
        };
        assert_eq!(with(&renumbered), Err(Misfit::Changed(2)));
        assert_eq!(with(&|rows| rows[3].at += time::Duration::SECOND), Err(Misfit::Time(4)));
        assert_eq!(with(&|rows| rows[3].hash = None), Err(Misfit::Unsealed(4)));
        // The last ones may wait for a hash.
        let waiting = with(&|rows| (rows[3].hash, rows[4].hash) = (None, None)).unwrap();
        assert_eq!(waiting.count, 3);
    }

    #[test]
    fn the_registrys_own_head_must_be_the_chains() {
        let mut chain = Chain::default();
        rows(3).iter().for_each(|row| chain.take(row).unwrap());
        let head = chain.head();
        assert_eq!(chain.end(&head), Ok(()));
        assert_eq!(chain.end(&AuditHead { count: 4, ..head }), Err(Misfit::Missing(4)));
        assert_eq!(chain.end(&AuditHead { count: 2, ..head }), Err(Misfit::Beyond(3)));
        let other = AuditHash::default();
        assert_eq!(chain.end(&AuditHead { hash: other, ..head }), Err(Misfit::Head(3)));
    }

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let head = verify(&rows(2)).unwrap();
        assert_eq!(head.to_string().parse(), Ok(head));
        for bad in [
            "",
            "2",
            "2:",
            "2:00",
            &format!("-1:{}", head.hash),
            &format!("2:{}é", &head.hash.to_string()[2..]),
        ] {
            assert!(bad.parse::<AuditHead>().is_err(), "{bad}");
        }
    }

    /// As docs/operations.md says it, so that others compute the same.
    #[test]
    fn the_hash_is_what_is_documented() {
        let first = AuditHash::default().then(b"{}");
        let mut bytes = vec![0; 32];
        bytes.extend(b"{}");
        assert_eq!(first.as_bytes().as_slice(), Sha256::digest(&bytes).as_slice());
    }
}
