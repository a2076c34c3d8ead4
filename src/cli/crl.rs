//! `cert crl`: a signed list of what is revoked, for those who have no registry.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use doorward_pki::crl::{self, Crl, DistributionPoint, Reason, Scope};
use doorward_pki::{Authority, CrlError};
use serde_json::json;
use time::Duration;

use super::cas::{self, Ca};
use super::failure::{Failure, Outcome};
use super::{Shared, issue, output};
use crate::home::{self, Home};
use crate::registry::{Cause, NewCrl, RevokedFilter};

/// Certificates of one query.
const PAGE: u32 = 1000;

#[derive(Args, Debug)]
pub(super) struct CrlArgs {
    /// Where to write it; an older list of this CA is replaced, nothing else is
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How many days it holds: make the next one before they are over
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
    /// Also certificates that another has replaced, in their grace and after it
    #[arg(long)]
    superseded: bool,
    /// DER instead of PEM
    #[arg(long)]
    der: bool,
    /// Where it will be had. Verifiers then use it only for certificates that name the same URL, and devices' name none
    #[arg(long, value_name = "URL")]
    url: Option<DistributionPoint>,
    /// Of the issuing CA with this key id, hex, while the home has it [default: the one that signs]
    #[arg(long, value_name = "KEYID", value_parser = super::cert::parse_key_id)]
    issuer: Option<String>,
    /// Without the issuing distribution point, for verifiers that refuse a list with it (rustls among them)
    #[arg(long, conflicts_with = "url")]
    plain: bool,
}

pub(super) async fn run(shared: &Shared, args: &CrlArgs) -> Outcome {
    // All that can be refused is refused before a number is given.
    let authority = match &args.issuer {
        Some(key_id) => cas::authority(&shared.home(), key_id, shared)?,
        None => issue::authority(&shared.home(), "issuing", shared)?,
    };
    crl::may_sign(&authority)?;
    // From the number to the file: of two at once the older list would replace the newer one.
    let _alone = cas::alone(&shared.home(), "crl.lock", "another 'cert crl' runs on this home")?;
    let above = number_at(&args.out, &authority, &shared.home())?;
    let registry = shared.registry().await?;
    let new = NewCrl {
        issuer: authority.key_id().to_owned(),
        above,
        valid: Duration::days(args.days.into()),
        superseded: args.superseded,
    };
    let numbered = registry.number_crl(&new).await?;
    let number = u64::try_from(numbered.number)
        .map_err(|_| Failure::new(format!("the registry numbers a list {}", numbered.number)))?;

    let scope = if args.plain { Scope::Unsaid } else { Scope::Users(args.url.clone()) };
    let mut list = Crl::new(number, numbered.this_update, numbered.next_update, scope);
    let mut filter = RevokedFilter {
        issuer: new.issuer,
        at: numbered.this_update,
        superseded: args.superseded,
        after: String::new(),
        limit: PAGE,
    };
    loop {
        let page = registry.revoked(&filter).await?;
        for one in &page {
            let reason = match &one.cause {
                Cause::Superseded => Reason::Superseded,
                Cause::Revoked(words) => Reason::of(words.as_deref().unwrap_or_default()),
            };
            list.enter(&one.serial, one.since, reason)?;
        }
        match page.into_iter().next_back() {
            Some(last) => filter.after = last.serial,
            None => break,
        }
    }
    let entries = list.entries();
    let der = list.sign(&authority)?;
    if number_at(&args.out, &authority, &shared.home())? >= numbered.number {
        return Err(Failure::refused(format!(
            "{} is a newer list than number {number} by now, and is not overwritten",
            args.out.display()
        )));
    }
    if args.der {
        home::write_over(&args.out, &der, home::PUBLIC)?;
    } else {
        home::write_over(&args.out, crl::to_pem(&der), home::PUBLIC)?;
    }

    let next_update = output::time(numbered.next_update);
    if shared.json {
        return output::json(&json!({
            "number": number,
            "entries": entries,
            "this_update": output::time(numbered.this_update),
            "next_update": next_update,
            "file": args.out.display().to_string(),
        }));
    }
    let certificates = if entries == 1 { "certificate" } else { "certificates" };
    output::say(format!(
        "list {number} names {entries} {certificates} and holds until {next_update}: {}",
        args.out.display()
    ));
    Ok(())
}

/// The number of the list that the file holds; 0 where there is no file. Another authority's, or no list at all, is not
/// overwritten. A registry that was restored from a backup has forgotten its last numbers: the file has not.
fn number_at(path: &Path, authority: &Authority, home: &Home) -> Result<i64, Failure> {
    let shown = path.display();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Failure::new(format!("there is no folder {}", folder.display()))
            .next("make it first; what serves the list will want to read it"));
    }
    if path.file_name().is_none() || path.is_dir() {
        return Err(Failure::new(format!("{shown} is a folder, and a list is a file")));
    }
    let foreign = || {
        Failure::refused(format!("{shown} is no revocation list of this CA, and is not overwritten"))
            .next("move it away first, or name another file")
    };
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(foreign()),
        Err(error) => return Err(Failure::new(format!("cannot read {shown}: {error}"))),
    }
    let bytes = fs::read(path).map_err(|error| Failure::new(format!("cannot read {shown}: {error}")))?;
    let Some(number) = crl::number_of(&bytes, authority) else {
        let cas = cas::read(&home.pki("issuing.crt")).unwrap_or_default();
        let signer = cas.iter().find(|ca| crl::number_by(&bytes, ca.der()).is_some());
        return Err(signer.map_or_else(foreign, |signer| of_another(path, signer, authority)));
    };
    i64::try_from(number).map_err(|_| foreign())
}

/// During a rollover there are two lists, each in a file of its own: who fetches the one file goes on to need the old CA's.
fn of_another(path: &Path, signer: &Ca, authority: &Authority) -> Failure {
    let (shown, old, new) = (path.display(), signer.key_id(), authority.key_id());
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let short = new.get(..8).unwrap_or(new);
    let own = path
        .with_file_name(format!("{stem}-{short}.{}", if extension.is_empty() { "crl" } else { &*extension }));
    Failure::refused(format!(
        "{shown} is no revocation list of this CA, {new}, but of CA {old} of this home, and is not overwritten"
    ))
    .next(format!(
        "'doorward cert crl --issuer {old} --out {shown}' goes on with that; this CA's list has a file of its own: \
         'doorward cert crl --out {}', to be named beside it where lists are served or read (crl.files)",
        own.display()
    ))
}

impl From<CrlError> for Failure {
    fn from(error: CrlError) -> Self {
        Self::new(error.to_string())
    }
}
