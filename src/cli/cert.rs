//! `cert list`, `cert show`, `cert revoke`, and the way to `cert crl`.

use std::time::Duration;

use clap::Subcommand;
use doorward_proto::ids::DeviceId;
use serde_json::{Value, json};

use super::device::parse_reason;
use super::failure::{Failure, Outcome};
use super::receipt::{self, Wait};
use super::{Shared, crl, output};
use crate::clock;
use crate::registry::{CertificateFilter, CertificateRecord, CertificateStatus, Done, Registry};

#[derive(Subcommand, Debug)]
pub(super) enum Cert {
    /// List certificates, those that end soonest first
    #[command(after_help = "Example:\n  doorward cert list --expiring 30d")]
    List {
        /// Of this device alone
        #[arg(long, value_name = "ID")]
        device: Option<DeviceId>,
        /// Those alone that end within this time
        #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
        expiring: Option<Duration>,
        /// Signed by the CA with this key id alone, hex
        #[arg(long, value_name = "KEYID", value_parser = parse_key_id)]
        issuer: Option<String>,
        /// Those alone by which a device may still come in: active or in their grace; not expired, or not for so long that they
        /// could not renew themselves; of a device that is not revoked
        #[arg(long)]
        live: bool,
    },
    /// Show a certificate
    #[command(after_help = "Example:\n  doorward cert show 4f0c8a1d2b3e4f5061728394a5b6c7d8")]
    Show {
        /// Its serial, in hex
        #[arg(value_parser = parse_serial)]
        serial: String,
    },
    /// Revoke a certificate and those renewed from it, for good; a session by one of them ends
    #[command(
        after_help = "Example:\n  doorward cert revoke 4f0c8a1d2b3e4f5061728394a5b6c7d8 --reason \"key exposed\""
    )]
    Revoke {
        /// Its serial, in hex
        #[arg(value_parser = parse_serial)]
        serial: String,
        /// Why, for those who ask later
        #[arg(long, value_parser = parse_reason)]
        reason: String,
        /// This one alone, not those renewed from it
        #[arg(long)]
        only: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Write a signed list (CRL, RFC 5280) of all that is revoked and not yet expired, for those who have no registry
    #[command(after_help = "Example:\n  doorward cert crl --out doorward.crl\n  \
        openssl crl -in doorward.crl -noout -text\n\n\
        It lists certificates of the issuing CA that are revoked, or whose device is. One of a suspended\n\
        device is not in it: it may be resumed before the list ends. The reason code is what the first\n\
        word of the reason names (keyCompromise, affiliationChanged, superseded, cessationOfOperation,\n\
        privilegeWithdrawn); of any other word none.")]
    Crl(crl::CrlArgs),
}

impl Cert {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        match self {
            Self::List { device, expiring, issuer, live } => {
                let filter = CertificateFilter {
                    device: device.clone(),
                    issuer: issuer.clone(),
                    live: if *live { Some(late(shared)?) } else { None },
                    ..CertificateFilter::default()
                };
                list(shared, filter, *expiring).await
            }
            Self::Show { serial } => show(shared, serial).await,
            Self::Revoke { serial, reason, only, wait } => revoke(shared, serial, reason, *only, wait).await,
            Self::Crl(args) => crl::run(shared, args).await,
        }
    }
}

/// How long after its end a certificate may still renew itself, as the home's configuration says.
pub(super) fn late(shared: &Shared) -> Result<Duration, Failure> {
    Ok(shared.config()?.certificates.renew_after_expiry.0)
}

/// As the registry keeps it: `openssl` writes it in capitals, others part its bytes by colons.
fn parse_serial(text: &str) -> Result<String, String> {
    let plain: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    if plain.len() == 32 && plain.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(plain)
    } else {
        Err("a serial is 32 hex digits; 'doorward cert list' shows them".to_owned())
    }
}

/// A key id as the registry keeps it: `openssl` writes it in capitals and parts its bytes by colons.
pub(super) fn parse_key_id(text: &str) -> Result<String, String> {
    let plain: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    if (2..=128).contains(&plain.len()) && plain.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(plain)
    } else {
        Err("a CA's key id is hex digits; 'doorward pki rollover status' shows it".to_owned())
    }
}

fn status_word(status: CertificateStatus) -> &'static str {
    match status {
        CertificateStatus::Active => "active",
        CertificateStatus::Superseded => "superseded",
        CertificateStatus::Revoked => "revoked",
    }
}

fn as_json(device: &DeviceId, certificate: &CertificateRecord) -> Value {
    json!({
        "serial": certificate.serial,
        "device": device,
        "status": status_word(certificate.status),
        "reason": certificate.reason,
        "not_before": output::time(certificate.not_before),
        "not_after": output::time(certificate.not_after),
        "valid_until": certificate.valid_until.map(output::time),
        "fingerprint": certificate.fingerprint.to_string(),
        "issuer": certificate.issuer,
    })
}

async fn list(shared: &Shared, filter: CertificateFilter, expiring: Option<Duration>) -> Outcome {
    let registry = shared.registry().await?;
    if let Some(id) = &filter.device
        && registry.device(id).await?.is_none()
    {
        return Err(Failure::missing(format!("there is no device '{id}'"))
            .next("'doorward device list' shows those that there are"));
    }
    let too_long = || Failure::usage("--expiring is too long");
    let expiring_before = expiring
        .map(|within| {
            let within = time::Duration::try_from(within).map_err(|_| too_long())?;
            clock::utc().checked_add(within).ok_or_else(too_long)
        })
        .transpose()?;
    let filter = CertificateFilter { expiring_before, ..filter };
    let found = registry.certificates(&filter).await?;
    if shared.json {
        return output::json(&found.iter().map(|(device, c)| as_json(device, c)).collect::<Vec<_>>());
    }
    let mut table = output::table(["SERIAL", "DEVICE", "STATUS", "UNTIL", "GRACE UNTIL", "REASON"]);
    for (device, certificate) in &found {
        table.add_row([
            certificate.serial.clone(),
            device.to_string(),
            status_word(certificate.status).to_owned(),
            output::time(certificate.not_after),
            output::maybe_time(certificate.valid_until),
            output::plain(certificate.reason.as_deref().unwrap_or("-")),
        ]);
    }
    output::print_table(&table, "there is no such certificate")
}

/// The one certificate with this serial.
async fn find(registry: &dyn Registry, serial: &str) -> Result<(DeviceId, CertificateRecord), Failure> {
    let filter = CertificateFilter { serial: Some(serial.to_owned()), ..CertificateFilter::default() };
    let mut found = registry.certificates(&filter).await?;
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => Err(Failure::missing(format!("there is no certificate with the serial {serial}"))
            .next("'doorward cert list' shows those that there are")),
        (Some(_), false) => Err(Failure::refused(format!(
            "several authorities have issued a certificate with the serial {serial}"
        ))
        .next("revoke the device, or the row by its fingerprint in SQL")),
    }
}

async fn show(shared: &Shared, serial: &str) -> Outcome {
    let (device, certificate) = find(&*shared.registry().await?, serial).await?;
    if shared.json {
        return output::json(&as_json(&device, &certificate));
    }
    output::print(&format!(
        "serial       {}\ndevice       {device}\nstatus       {}\nreason       {}\nvalid        {} to {}\n\
         grace until  {}\nfingerprint  {}\nissuer       {}",
        certificate.serial,
        status_word(certificate.status),
        output::plain(certificate.reason.as_deref().unwrap_or("-")),
        output::time(certificate.not_before),
        output::time(certificate.not_after),
        output::maybe_time(certificate.valid_until),
        certificate.fingerprint,
        certificate.issuer,
    ))
}

async fn revoke(shared: &Shared, serial: &str, reason: &str, only: bool, wait: &Wait) -> Outcome {
    let registry = shared.registry().await?;
    let (device, certificate) = find(&*registry, serial).await?;
    let revoked = registry.revoke_certificate(&certificate.fingerprint, reason, only).await?;
    let others = revoked.serials.iter().filter(|other| *other != serial).count();
    let words = match (revoked.acted.done, others) {
        (Done::Already, _) => format!("certificate {serial} of device '{device}' was revoked already"),
        (_, 0) => format!("certificate {serial} of device '{device}' is revoked for good"),
        (_, n) => {
            format!("certificate {serial} of device '{device}' and {n} renewed from it are revoked for good")
        }
    };
    let json = shared.json.then(|| {
        let changed = revoked.acted.done == Done::Changed;
        json!({ "serial": serial, "device": device, "changed": changed, "revoked": revoked.serials })
    });
    receipt::finish(&*registry, &revoked.acted, Some(&device), wait, &words, json).await
}
