//! `pki rollover`: a second issuing CA beside the first.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use doorward_pki::{Serial, key_to_pem};
use serde_json::{Value, json};

use super::super::cas::{self, Ca, Standing};
use super::super::failure::{Failure, Outcome};
use super::super::{Shared, cert, output};
use super::taken::{self, Wait};
use crate::home::{self, Home};
use crate::registry::IssuerUse;
use crate::{clock, entropy};

#[derive(Subcommand, Debug)]
pub(in super::super) enum Rollover {
    /// Make a new issuing CA below the root: trusted at once, and issuing moves over to it. The old one stays trusted
    #[command(
        after_help = "Example:\n  doorward pki rollover begin --root-key /media/safe/doorward-root/root.key\n\n\
        Repeated, it goes on where it was cut short, and makes no third CA. With gateways on other hosts that do\n\
        not trust the root (tls.device_cas): --trust-only first, copy pki/issuing.crt to them, then repeat it without."
    )]
    Begin(Begin),
    /// Show the CAs, and how many certificates depend on each
    #[command(after_help = "Example:\n  doorward pki rollover status --json")]
    Status,
    /// End it: the old CA is trusted no more, and its key is removed. Refused while live certificates depend on it
    #[command(after_help = "Example:\n  doorward pki rollover finish")]
    Finish,
}

#[derive(Args, Debug)]
pub(in super::super) struct Begin {
    /// The root's key, where it is kept [default: pki/root.key of the home]
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    /// The new CA's name [default: Doorward issuing CA and eight hex digits]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Make it trusted and no more: the old one goes on signing until this is repeated without
    #[arg(long)]
    trust_only: bool,
    #[command(flatten)]
    wait: Wait,
}

impl Rollover {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        match self {
            Self::Begin(begin) => begin.run(shared).await,
            Self::Status => status(shared).await,
            Self::Finish => finish(shared).await,
        }
    }
}

impl Begin {
    async fn run(&self, shared: &Shared) -> Outcome {
        let home = shared.home();
        let _lock = cas::hold(&home)?;
        let mut standing = Standing::read(shared)?;
        if standing.next_key.is_none() && standing.others().next().is_some() {
            standing.put_first(&home)?;
            return say(shared, &standing, false);
        }
        let made = standing.next.is_none();
        if made {
            self.make(shared, &mut standing)?;
        }
        if self.trust_only {
            return say(shared, &standing, made);
        }
        move_over(shared, &mut standing, &self.wait).await
    }

    /// The new CA: its key, then its certificate among those that are trusted. All that can fail for a reason other than the
    /// disk fails before the first of the two is written.
    fn make(&self, shared: &Shared, standing: &mut Standing) -> Outcome {
        let home = shared.home();
        let root = cas::root(shared, self.root_key.as_deref())?;
        let roots = cas::read(&home.pki("root.crt"))?;
        let above = roots.iter().find(|ca| ca.der() == root.certificate_der());
        let signs = standing.signs();
        if self.root_key.is_none() && above.is_some_and(|root| root.facts.subject() != signs.facts.issuer()) {
            return Err(Failure::refused(format!(
                "the CA that signs, {}, was signed elsewhere and not by the root whose key is in this home",
                signs.subject()
            ))
            .next("have the next one signed there, too ('doorward pki csr'), or name this root with --root-key FILE"));
        }
        let key = match &standing.next_key {
            Some(pem) => rcgen::KeyPair::from_pem(pem)
                .map_err(|error| Failure::new(format!("{}: {error}", home.pki("next.key").display())))?,
            None => entropy::key_pair()?,
        };
        let pem = key_to_pem(&key);
        let serial = Serial::from_random(entropy::random()?);
        let random = Serial::from_random(entropy::random()?).to_string();
        let name = self
            .name
            .clone()
            .unwrap_or_else(|| format!("Doorward issuing CA {}", random.get(..8).unwrap_or_default()));
        let issuing = root.issuing(&name, key, serial, clock::utc())?;
        if standing.next_key.is_none() {
            cas::write_key(&home.pki("next.key"), &pem, shared)?;
        }
        standing.trust(&home, issuing.certificate_der().to_vec())?;
        standing.next_key = Some(pem);
        Ok(())
    }
}

/// Issuing moves over to the next CA, once the gateway of this home lets its devices in.
pub(super) async fn move_over(shared: &Shared, standing: &mut Standing, wait: &Wait) -> Outcome {
    let home = shared.home();
    if let Some(next) = standing.next {
        wait.until_taken(&home, &standing.cas[next]).await?;
    }
    standing.move_over(&home)?;
    say(shared, standing, true)
}

/// What a rollover has come to.
pub(super) fn say(shared: &Shared, standing: &Standing, changed: bool) -> Outcome {
    let (signs, next) = (standing.signs(), standing.next.map(|next| &standing.cas[next]));
    let old: Vec<&str> =
        if next.is_some() { Vec::new() } else { standing.others().map(Ca::key_id).collect() };
    if shared.json {
        return output::json(&json!({
            "changed": changed, "signs": signs.key_id(), "until": output::time(signs.not_after()),
            "next": next.map(Ca::key_id), "old": old,
        }));
    }
    let already = if changed { "" } else { "it was so already: " };
    match next {
        Some(next) => output::say(format!(
            "{already}CA {} is trusted, until {}, and signs nothing yet; CA {} goes on signing\n\
             gateways on other hosts have to get and read the new pki/issuing.crt; then 'doorward pki rollover begin' moves issuing over",
            next.key_id(),
            output::time(next.not_after()),
            signs.key_id()
        )),
        None if old.is_empty() => output::say(format!(
            "{already}CA {} signs, until {}, and is the only one",
            signs.key_id(),
            output::time(signs.not_after())
        )),
        None => output::say(format!(
            "{already}CA {} signs from now on, until {}; CA {} stays trusted until 'doorward pki rollover finish'\n\
             a gateway on another host lets the new one's devices in once it has got and read the new pki/issuing.crt, or if it trusts the root\n\
             revocation lists: 'doorward cert crl --issuer {} --out FILE' goes on with the old CA's in its file; the new one's list needs a file of its own",
            signs.key_id(),
            output::time(signs.not_after()),
            old.join(", "),
            old.first().copied().unwrap_or("KEYID")
        )),
    }
    Ok(())
}

async fn status(shared: &Shared) -> Outcome {
    let home = shared.home();
    let all = cas::read(&home.pki("issuing.crt"))?;
    let signing = signing(&home, shared, &all)?;
    let roots = cas::read(&home.pki("root.crt"))?;
    let registry = shared.registry().await?;
    let uses = registry.issuers(cert::late(shared)?).await?;
    let serving: Vec<_> =
        registry.gateways(None).await?.into_iter().filter(|gateway| gateway.may_serve).collect();
    let waiting = home.pki("next.key").exists();
    let role = |place: usize, ca: &Ca| match () {
        () if place == signing => "signs",
        // Of the same key, renewed.
        () if ca.facts.public_key_info() == all[signing].facts.public_key_info() => "signs",
        () if waiting => "next",
        () => "old",
    };
    let used = |ca: &Ca| use_of(&uses, ca.key_id());
    let here = taken::by_gateway(&home);
    let taken = |ca: &Ca| here.as_ref().map(|trusted| taken::lets_in(trusted, ca, &roots));
    if shared.json {
        let row = |ca: &Ca, role: &str, used: Option<(u64, u64)>| {
            json!({
                "key_id": ca.key_id(), "subject": ca.subject(), "role": role, "from": output::time(ca.not_before()),
                "until": output::time(ca.not_after()), "live": used.map(|used| used.0), "expired": used.map(|used| used.1),
            })
        };
        let rows: Vec<Value> = all
            .iter()
            .enumerate()
            .map(|(place, ca)| {
                let mut row = row(ca, role(place, ca), Some(used(ca)));
                row["taken"] = json!(taken(ca));
                row
            })
            .collect();
        return output::json(&json!({
            "authorities": rows,
            "roots": roots.iter().map(|ca| row(ca, "root", None)).collect::<Vec<_>>(),
            "unknown": unknown(&uses, &all).map(|used| json!({ "key_id": used.issuer, "live": used.live })).collect::<Vec<_>>(),
            "root_key": home.pki("root.key").exists(),
            "under_way": waiting || all.len() > 1 || !cas::old_keys(&home)?.is_empty(),
            "gateways": serving.iter().map(|gateway| &gateway.name).collect::<Vec<_>>(),
        }));
    }
    let mut table = output::table(["KEY ID", "ROLE", "FROM", "UNTIL", "LIVE", "EXPIRED", "SUBJECT"]);
    for (place, ca) in all.iter().enumerate() {
        let (live, expired) = used(ca);
        table.add_row(cells(ca, role(place, ca), &live.to_string(), &expired.to_string()));
    }
    for root in &roots {
        table.add_row(cells(root, "root", "-", "-"));
    }
    output::print_table(&table, "there is no CA")?;
    for words in all.iter().chain(&roots).filter_map(Ca::ending) {
        output::say(format!("warning: {words}"));
    }
    warn_of_unknown(&uses, &all);
    if waiting {
        output::say("a rollover has begun; 'doorward pki rollover begin' goes on with it");
    } else if all.len() > 1 {
        output::say(
            "a rollover is under way; 'doorward pki rollover finish' ends it once nothing depends on the old CA",
        );
    }
    if all.iter().any(|ca| taken(ca) == Some(false)) {
        output::say(
            "the gateway that runs on this home has not read pki/issuing.crt since it changed (SIGHUP)",
        );
    }
    if all.len() > 1 && !serving.is_empty() {
        let names: Vec<String> = serving.iter().map(|gateway| output::plain(&gateway.name)).collect();
        output::say(format!(
            "gateways that serve: {}; each has to have read pki/issuing.crt since it changed",
            names.join(", ")
        ));
    }
    Ok(())
}

fn cells(ca: &Ca, role: &str, live: &str, expired: &str) -> [String; 7] {
    let (from, until) = (output::time(ca.not_before()), output::time(ca.not_after()));
    [ca.key_id().to_owned(), role.to_owned(), from, until, live.to_owned(), expired.to_owned(), ca.subject()]
}

/// By the keys, if they can be read; else by the files.
fn signing(home: &Home, shared: &Shared, all: &[Ca]) -> Result<usize, Failure> {
    let key = home.pki("issuing.key");
    let readable = key.exists()
        && (shared.passphrase()?.is_some()
            || !doorward_pki::key_file::is_encrypted(&home::read_secret(&key)?));
    if readable { Ok(Standing::read(shared)?.signing) } else { Ok(cas::signing_by_files(home, all)) }
}

fn use_of(uses: &[IssuerUse], key_id: &str) -> (u64, u64) {
    uses.iter().find(|used| used.issuer == key_id).map_or((0, 0), |used| (used.live, used.expired))
}

/// Whose live certificates the registry has, and that this home does not know: nobody comes in by those here.
fn unknown<'a>(uses: &'a [IssuerUse], all: &'a [Ca]) -> impl Iterator<Item = &'a IssuerUse> {
    uses.iter().filter(|used| used.live > 0 && !all.iter().any(|ca| ca.key_id() == used.issuer))
}

fn warn_of_unknown(uses: &[IssuerUse], all: &[Ca]) {
    for IssuerUse { issuer, live, .. } in unknown(uses, all) {
        output::say(format!(
            "warning: {live} live certificates in the registry are of CA {}, which this home does not know: gateways with \
             its CAs refuse them; 'doorward cert list --issuer {issuer} --live' shows them",
            output::plain(issuer)
        ));
    }
}

async fn finish(shared: &Shared) -> Outcome {
    let home = shared.home();
    let _lock = cas::hold(&home)?;
    let standing = Standing::read(shared)?;
    if standing.next_key.is_some() {
        return Err(Failure::refused("a rollover has begun, and issuing has not moved over yet")
            .next("'doorward pki rollover begin' goes on with it"));
    }
    let signs = standing.signs();
    // Those that are trusted, and what a finish that was cut short has left of one.
    let mut old: Vec<String> = standing.others().map(|ca| ca.key_id().to_owned()).collect();
    let left = cas::old_keys(&home)?;
    old.extend(
        left.into_iter()
            .filter(|id| id != signs.key_id() && !standing.cas.iter().any(|ca| ca.key_id() == id)),
    );
    let uses = shared.registry().await?.issuers(cert::late(shared)?).await?;
    if old.is_empty() {
        warn_of_unknown(&uses, &standing.cas);
        return done(shared, signs, &[], 0);
    }
    let expired = old.iter().map(|id| use_of(&uses, id).1).sum();
    if let Some((id, live)) = old.iter().map(|id| (id, use_of(&uses, id).0)).find(|(_, live)| *live > 0) {
        let certificates = if live == 1 { "certificate depends" } else { "certificates depend" };
        return Err(Failure::refused(format!("{live} live {certificates} on CA {id}")).next(format!(
            "'doorward cert list --issuer {id} --live' shows them; rotate or revoke them, or wait for their end"
        )));
    }
    let own = signs.facts.public_key_info();
    cas::write(&home, standing.cas.iter().filter(|ca| ca.facts.public_key_info() == own))?;
    let mut removed = Vec::new();
    for id in &old {
        let key = cas::old_key(&home, id);
        if key.exists() {
            home::remove(&key)?;
        }
        removed.push(id.as_str());
    }
    warn_of_unknown(&uses, &standing.cas);
    done(shared, signs, &removed, expired)
}

fn done(shared: &Shared, signs: &Ca, removed: &[&str], expired: u64) -> Outcome {
    if shared.json {
        return output::json(&json!({
            "changed": !removed.is_empty(), "signs": signs.key_id(), "removed": removed, "expired": expired,
        }));
    }
    if removed.is_empty() {
        output::say(format!("CA {} is the only one; there is nothing to finish", signs.key_id()));
        return Ok(());
    }
    output::say(format!(
        "CA {} is trusted no more and its key is removed; CA {} is the only one. Every gateway has to read the new \
         pki/issuing.crt (SIGHUP)",
        removed.join(", "),
        signs.key_id()
    ));
    if expired > 0 {
        output::say(format!(
            "{expired} devices have an expired certificate of it and no other; what they bring is not known any more"
        ));
    }
    Ok(())
}
