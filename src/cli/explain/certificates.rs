//! Each certificate of the device, judged as if it came to the door now.

use std::time::Duration;

use doorward_pki::Leaf;
use doorward_proto::time::NumericDate;
use rustls::pki_types::CertificateDer;

use crate::clock;
use crate::identity::{self, Denied, Problem};
use crate::registry::{CertificateRecord, CertificateStatus, DeviceStatus, Record};
use crate::tls::Door;

/// A certificate, and what becomes of who shows it. The device's own status is asked apart from it.
pub(super) struct Judged {
    pub(super) row: CertificateRecord,
    /// What admission would be told; `None`: nobody has recorded it any more.
    pub(super) record: Option<Record>,
    pub(super) refusal: Option<Refusal>,
    /// Whether it has expired and lets its device in for nothing but a renewal.
    pub(super) late: bool,
    /// When the gateway begins to ask for a renewal.
    pub(super) asks_from: Option<NumericDate>,
}

/// Where a certificate is refused.
pub(super) enum Refusal {
    /// In the handshake, by an alert.
    InTls(String),
    /// In words.
    Denied(Denied),
}

impl Refusal {
    pub(super) fn words(&self) -> String {
        match self {
            Self::InTls(words) => format!("the handshake refuses it: {words}"),
            Self::Denied(denied) => denied.detail.clone(),
        }
    }
}

impl Judged {
    pub(super) fn new(
        row: &CertificateRecord,
        record: Option<Record>,
        door: Option<&Door>,
        above: &[CertificateDer<'static>],
        now: NumericDate,
        late: Duration,
    ) -> Self {
        let leaf = Leaf::parse(&row.der);
        let refusal = match &leaf {
            Ok(leaf) => judge(row, leaf, record.as_ref(), door, above, now, late).err(),
            Err(error) => Some(Refusal::Denied(Denied::new(Problem::CertificateUnfit, error.to_string()))),
        };
        let asks_from = leaf.ok().map(|leaf| identity::asks_from(&leaf, &row.fingerprint));
        let late = now >= clock::numeric(row.not_after);
        Self { row: row.clone(), record, late: late && refusal.is_none(), refusal, asks_from }
    }
}

/// The gateway's own judgements, in its order.
fn judge(
    row: &CertificateRecord,
    leaf: &Leaf,
    record: Option<&Record>,
    door: Option<&Door>,
    above: &[CertificateDer<'static>],
    now: NumericDate,
    late: Duration,
) -> Result<(), Refusal> {
    let mut chain = vec![CertificateDer::from(row.der.clone())];
    chain.extend(above.iter().filter(|ca| doorward_pki::identity::is_signed_by(&row.der, ca)).cloned());
    if let Some(door) = door {
        door.shake_hands(&chain, now).map_err(Refusal::InTls)?;
    }
    // The device's status is another question: what the certificate is worth once that is mended.
    let at_work = record.map(|record| {
        let mut record = Record { status: DeviceStatus::Active, ..record.clone() };
        record.end_by(clock::date(NumericDate::from_seconds(leaf.not_after())));
        record
    });
    identity::judge(leaf, at_work.as_ref(), now, late).map_err(Refusal::Denied)?;
    door.map_or(Ok(()), |door| door.judge_origin(leaf, &chain, now)).map_err(Refusal::Denied)
}

/// The one that counts first: one that is let in and may publish, then one that is let in to renew, then the one whose refusal
/// is worth mending. Among equals the newest.
pub(super) fn best_first(certificates: &mut [Judged]) {
    certificates.sort_by_key(|judged| {
        let standing = match (&judged.refusal, judged.late, judged.row.status) {
            (None, false, CertificateStatus::Active) => 0,
            (None, false, _) => 1,
            (None, true, _) => 2,
            (Some(_), _, CertificateStatus::Active) => 3,
            (Some(_), _, CertificateStatus::Superseded) => 4,
            (Some(_), _, CertificateStatus::Revoked) => 5,
        };
        (standing, std::cmp::Reverse(judged.row.not_before))
    });
}
