//! `pki rewrap`: a new master key, and every key in the registry sealed again by it, while gateways run and devices connect.
//!
//! A sealed key names its master key, so both may be in use side by side. In this order: the next master key is made; every
//! gateway that may serve holds it; all keys are sealed again, batch by batch; the registry takes no key of the old one any
//! more; the files change places. Killed anywhere and repeated, it goes on.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::IsTerminal as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use doorward_pki::seal::sealed_with;
use doorward_pki::{MasterKey, SealError};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::failure::{Failure, Outcome};
use super::{Shared, output};
use crate::home::{self, FileError, Home, SECRET};
use crate::master::{CURRENT, NEXT};
use crate::registry::Registry;
use crate::registry::custody::{Holder, KeyRow, MasterKeyUse, Resealed};
use crate::{clock, entropy};

/// Keys that are sealed again in one transaction.
const BATCH: u32 = 500;
/// Keys may be added by the old master key while all others are sealed again; so often they are looked for.
const ROUNDS: u32 = 16;
/// Between looks at which gateways hold the next master key.
const PAUSE: Duration = Duration::from_millis(250);
/// Of damaged keys so many are named.
const NAMED: usize = 10;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  doorward pki rewrap\n\n\
    Gateways on other hosts need the next master key first:\n  doorward pki rewrap --prepare\n  \
    scp doorward-home/pki/master.next.key gate-2:/var/lib/doorward/pki/\n  doorward pki rewrap\n\n\
    Gateways take it up by themselves. Killed or refused, it goes on where it stopped when it is repeated.")]
pub(super) struct Rewrap {
    /// Only make the next master key, to be copied to gateways on other hosts
    #[arg(long)]
    prepare: bool,
    /// Leave keys that are damaged as they are: no master key opens them, and their devices need new ones
    #[arg(long, conflicts_with = "prepare")]
    skip_damaged: bool,
    /// How long to wait for gateways to take up the next master key
    #[arg(long, value_name = "DUR", default_value = "15s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// The two master keys.
struct Keys {
    current: MasterKey,
    next: MasterKey,
}

/// What came of it.
#[derive(Debug, Default)]
struct Tally {
    resealed: u64,
    /// Damaged ones: how many, and the first of them.
    damaged: u64,
    named: Vec<String>,
    /// Sealed by neither.
    foreign: u64,
}

impl Rewrap {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let home = shared.home();
        if shared.is_handed_master_key()? {
            return Err(Failure::refused(
                "the master key is handed to this process from outside its home, where this command cannot replace it",
            )
            .next("run it where the master key is the file pki/master.key, without the credential and the variable"));
        }
        // Said with the words that every other command has for it.
        shared.master_keys()?;
        let _lock = hold(&home)?;
        let current = read(&home, CURRENT)?;
        let made = !home.pki(NEXT).exists();
        if made && !self.prepare {
            // Before a key is made that nobody could use.
            drop(shared.registry().await?);
        }
        let keys = Keys { current, next: next(&home)? };
        if self.prepare {
            return prepared(shared, &home, &keys, made);
        }
        let registry = shared.registry().await?;
        let (old, new) = (keys.current.id(), keys.next.id());
        let mut tally = Tally::default();
        if !is_finished(&registry.master_keys().await?, &keys)? {
            if let Some(other) = registry.begin_rewrap(&new).await? {
                return Err(Failure::refused(format!(
                    "another home has begun to seal the keys again, by master key {other}; this one's next is {new}"
                ))
                .next("repeat 'doorward pki rewrap' there, or put its pki/master.next.key in the place of this one's"));
            }
            self.wait_for_gateways(&*registry, &home, &new).await?;
            self.reseal_all(&*registry, &home, &keys, &mut tally).await?;
        }
        let kept = swap(&home, &keys)?;
        let holders = registry.master_key_holders().await?;
        if shared.json {
            return output::json(&json!({
                "state": "done", "old": old, "new": new, "resealed": tally.resealed, "damaged": tally.damaged,
                "foreign": tally.foreign, "old_key": kept,
                "gateways": holders.iter().map(|holder| &holder.gateway).collect::<Vec<_>>(),
            }));
        }
        output::say(format!(
            "master key {new} has taken the place of {old}; {} keys were sealed again",
            tally.resealed
        ));
        if tally.damaged + tally.foreign > 0 {
            output::say(format!(
                "warning: {} damaged keys and {} of other master keys were left as they are; 'doorward device rotate-key --grace 0s' \
                 gives a device a new one",
                tally.damaged, tally.foreign
            ));
        }
        output::say(format!(
            "{} opens backups of the registry from before: keep it with them, away from this machine, as long as there are any",
            kept.display()
        ));
        if !holders.is_empty() {
            output::say(
                "gateways on other hosts hold both; there, at leisure: mv pki/master.next.key pki/master.key",
            );
        }
        Ok(())
    }

    /// Nothing is sealed by a key that a gateway does not hold.
    async fn wait_for_gateways(&self, registry: &dyn Registry, home: &Home, next: &str) -> Outcome {
        let began = clock::now().monotonic;
        let mut said = false;
        loop {
            let without = without(registry, next).await?;
            if without.is_empty() {
                return Ok(());
            }
            if clock::now().monotonic.saturating_sub(began) >= self.wait {
                return Err(not_held(home, &without));
            }
            if !std::mem::replace(&mut said, true) {
                let names: Vec<_> = without.iter().map(|holder| output::plain(&holder.gateway)).collect();
                output::say(format!("waiting for {} to take up the next master key", names.join(", ")));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn reseal_all(
        &self,
        registry: &dyn Registry,
        home: &Home,
        keys: &Keys,
        tally: &mut Tally,
    ) -> Outcome {
        let bar = bar(&registry.master_keys().await?, keys);
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        for _ in 0..ROUNDS {
            (tally.damaged, tally.foreign) = (0, 0);
            tally.named.clear();
            let mut after = None;
            loop {
                let page = registry.not_sealed_by(&keys.next.id(), after.as_ref(), BATCH).await?;
                let Some(last) = page.last() else { break };
                after = Some((last.device.clone(), last.version));
                if futures_util::poll!(interrupt.as_mut()).is_ready() {
                    bar.abandon();
                    return Err(Failure::new(format!("interrupted after {} keys", tally.resealed))
                        .next("repeat the command to go on; until then gateways need both master keys"));
                }
                // One that has started since.
                let without = without(registry, &keys.next.id()).await?;
                if !without.is_empty() {
                    bar.abandon();
                    return Err(not_held(home, &without));
                }
                let resealed = reseal(keys, page, tally)?;
                let put = if resealed.is_empty() { 0 } else { registry.reseal(&resealed).await? };
                tally.resealed += put;
                bar.inc(put);
            }
            let most = if self.skip_damaged { tally.damaged } else { 0 };
            let left = registry.finish_rewrap(&keys.current.id(), &keys.next.id(), most).await?;
            if left <= most {
                bar.finish_and_clear();
                return Ok(());
            }
            if left <= tally.damaged {
                bar.abandon();
                return Err(damaged(tally));
            }
        }
        bar.abandon();
        Err(Failure::new("devices are added by the old master key faster than their keys are sealed again")
            .next("repeat the command when that is over"))
    }
}

/// Takes the home for this command.
fn hold(home: &Home) -> Result<File, Failure> {
    let path = home.state().join("rewrap.lock");
    let failed = |error: std::io::Error| Failure::new(format!("cannot use {}: {error}", path.display()));
    home::make_folder(&home.state())?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(SECRET)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::refused(format!("'pki rewrap' runs on {} already", home.path().display())))
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn read(home: &Home, name: &str) -> Result<MasterKey, Failure> {
    let path = home.pki(name);
    MasterKey::parse(&home::read_secret(&path)?)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// The next master key: the one that is there, or a new one.
fn next(home: &Home) -> Result<MasterKey, Failure> {
    let path = home.pki(NEXT);
    if !path.exists() {
        let key = MasterKey::from_bytes(entropy::random()?);
        match home::write_new(&path, key.to_file().as_bytes(), SECRET) {
            Ok(()) | Err(FileError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    read(home, NEXT)
}

fn prepared(shared: &Shared, home: &Home, keys: &Keys, made: bool) -> Outcome {
    let path = home.pki(NEXT);
    if shared.json {
        return output::json(&json!({
            "state": "prepared", "old": keys.current.id(), "new": keys.next.id(), "made": made, "next_key": path,
        }));
    }
    let words = if made { "is made" } else { "is there already" };
    output::say(format!("{} {words}: master key {}", path.display(), keys.next.id()));
    output::say(
        "copy it to the home of each gateway on another host, under the same name and with mode 0600; then: doorward pki rewrap",
    );
    Ok(())
}

/// Whether the registry takes no key of the current one any more, so that only the files are left to change places.
fn is_finished(found: &MasterKeyUse, keys: &Keys) -> Result<bool, Failure> {
    let (old, new) = (keys.current.id(), keys.next.id());
    let seals = |id: &str| found.sealed.iter().any(|(sealed_by, _)| sealed_by == id);
    if old == new {
        return Err(Failure::refused("pki/master.key and pki/master.next.key hold the same key")
            .next("remove pki/master.next.key, and repeat the command for another one"));
    }
    if found.sealed.is_empty() || seals(&new) || (seals(&old) && !found.retired.contains(&old)) {
        return Ok(found.retired.contains(&old));
    }
    let others: Vec<&str> = found.sealed.iter().map(|(id, _)| id.as_str()).collect();
    Err(Failure::refused(format!(
        "the registry's keys are sealed by master key {}, and this home has {old} and, as the next, {new}",
        others.join(" and ")
    ))
    .next("put the pki/master.key that belongs to this registry in place, and take pki/master.next.key away"))
}

/// Gateways that may serve and do not hold a master key.
async fn without(registry: &dyn Registry, id: &str) -> Result<Vec<Holder>, Failure> {
    let mut holders = registry.master_key_holders().await?;
    holders.retain(|holder| !holder.keys.as_ref().is_some_and(|keys| keys.iter().any(|key| key == id)));
    Ok(holders)
}

fn not_held(home: &Home, without: &[Holder]) -> Failure {
    let names: Vec<String> = without
        .iter()
        .map(|holder| {
            let until = output::time(holder.serves_until);
            format!(
                "'{}' (version {}, may serve until {until})",
                output::plain(&holder.gateway),
                output::plain(&holder.version)
            )
        })
        .collect();
    let path = home.pki(NEXT);
    Failure::refused(format!("these gateways do not hold the next master key: {}", names.join(", ")))
        .next(format!(
            "copy {} into the pki folder of each one's home, under the same name and with mode 0600, and repeat the command",
            path.display()
        ))
        .and_next("one that is gone for good: doorward gateway remove NAME; one of an older version: replace it first")
}

/// The keys of a page that the current master key has sealed, sealed by the next one.
fn reseal(keys: &Keys, page: Vec<KeyRow>, tally: &mut Tally) -> Result<Vec<Resealed>, Failure> {
    let mut resealed = Vec::with_capacity(page.len());
    for was in page {
        if sealed_with(&was.sealed).is_some_and(|id| id != keys.current.id()) {
            tally.foreign += 1;
            continue;
        }
        match keys.current.open(&was.device, was.version, &was.sealed) {
            Ok(key) => {
                let sealed = keys.next.seal(&was.device, was.version, &key, entropy::random()?);
                resealed.push(Resealed { was, sealed });
            }
            Err(SealError::WrongMasterKey { .. }) => tally.foreign += 1,
            Err(_) => {
                tally.damaged += 1;
                if tally.named.len() < NAMED {
                    tally.named.push(format!("{} (version {})", was.device, was.version));
                }
            }
        }
    }
    Ok(resealed)
}

fn damaged(tally: &Tally) -> Failure {
    let more = tally.damaged.saturating_sub(tally.named.len() as u64);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Failure::new(format!(
        "{} keys in the registry are damaged or belong to other devices, and no master key opens them: {}{more}; all others \
         are sealed again",
        tally.damaged,
        tally.named.join(", ")
    ))
    .next("look into who writes to the registry; to leave those as they are: doorward pki rewrap --skip-damaged")
}

/// On a terminal alone; it is quiet otherwise.
fn bar(found: &MasterKeyUse, keys: &Keys) -> ProgressBar {
    let next = keys.next.id();
    let waiting = found.sealed.iter().filter(|(id, _)| *id != next).map(|(_, count)| count).sum();
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(waiting);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} keys  {per_sec}  {eta}") {
        bar.set_style(style);
    }
    bar
}

/// The next master key becomes the current one. The old one is kept: nothing overwrites a key.
fn swap(home: &Home, keys: &Keys) -> Result<PathBuf, Failure> {
    let kept = home.pki(&format!("master.{}.old.key", keys.current.id()));
    match home::write_new(&kept, keys.current.to_file().as_bytes(), SECRET) {
        Ok(()) => {}
        // A run that was killed here has kept it.
        Err(FileError::Exists(path)) => {
            let same =
                MasterKey::parse(&home::read_secret(&path)?).is_ok_and(|key| key.id() == keys.current.id());
            if !same {
                return Err(FileError::Exists(path).into());
            }
        }
        Err(error) => return Err(error.into()),
    }
    home::rename(&home.pki(NEXT), &home.pki(CURRENT))?;
    Ok(kept)
}
