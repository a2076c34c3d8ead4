//! The configuration and the files that it names, read again: all of it is taken, or nothing. Live sessions go on, but
//! for those whose certificates are trusted no more.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::{info, warn};

use super::live::Live;
use super::mailbox::Ending;
use super::reading::ReadingError;
use super::watch::{Stamps, stamps};
use super::{Gateway, trusted};
use crate::clock;
use crate::config::{self, Config, ConfigError, Taken};
use crate::home::{self, FileError, Home};
use crate::own_certificate::Pair;
use crate::tls::{self, TlsError, Trust};

/// Why the configuration was not taken again.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Its text.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The files that it names.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It takes device CAs away, and has not stood for long.
    #[error("it would take away {0}, and with it end the sessions of its devices")]
    Loses(String),
    /// Reading it did not come to an end.
    #[error(transparent)]
    Reading(#[from] ReadingError),
    /// The configuration is something else than a file, or what a renewal has left cannot be put in place.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What a reload has taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// The keys and files that have changed, and count from now on.
    pub changed: Vec<String>,
    /// The keys that have changed and take effect at the next start.
    pub waiting: Vec<String>,
    /// Live sessions that have ended by it.
    pub ended: usize,
}

/// What was looked at last, for whoever looks whether it has changed.
#[derive(Debug, Default)]
pub(super) struct LookedAt {
    pub(super) stamps: Stamps,
    /// Named already: said once, and not at each reload.
    waiting: Vec<String>,
}

impl LookedAt {
    pub(super) fn new(config: &Config, home: &Home) -> Self {
        Self { stamps: stamps(&watched(config, home)), waiting: Vec::new() }
    }
}

impl Gateway {
    /// Reads the configuration and its files again. What is broken is refused, and the old state stands.
    ///
    /// # Errors
    /// [`ReloadError`] naming the file.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        self.read_again(false).await
    }

    /// The same. Warily, what takes a device CA away is refused as well: half of a file that somebody is writing can look
    /// like that, and each session that ends by it is gone.
    async fn read_again(&self, warily: bool) -> Result<Reloaded, ReloadError> {
        let mut looked_at = self.looked_at.lock().await;
        let running = self.live();
        let (home, before) = (self.home.clone(), Arc::clone(&running));
        let reading = move || {
            // Before anything is read: what is written meanwhile is a change.
            let mut seen = stamps(&watched(&before.config, &home));
            let (named, read) = read(&home, &before);
            // Also where it is refused: a file that it would have needed may be mended.
            seen.add(&named);
            (seen, read)
        };
        let (seen, read) = self.reading.take(reading).await?;
        looked_at.stamps = seen;
        let (live, changed, waiting) = read?;
        looked_at.waiting.clone_from(&waiting);
        if changed.is_empty() {
            return Ok(Reloaded { waiting, ..Reloaded::default() });
        }
        if warily && let Some(lost) = lost(running.trust(), live.trust()) {
            return Err(ReloadError::Loses(lost));
        }
        self.sink.set_patience(live.patience());
        self.granter.set_own(live.own());
        let taken = Arc::new(live);
        self.live.store(Arc::clone(&taken));
        // What was counted by the old rates would weigh more, or less, by the new ones.
        let now = clock::now().monotonic;
        self.addresses.rebase(&running.config.addresses, &taken.config.addresses, now);
        // Who could not be let in before may be let in now, and need not wait for the end of a block.
        self.addresses.forgive();
        trusted::note(&self.home, taken.tls.trust.cas.iter().map(|ca| &*ca.der));
        Ok(Reloaded { changed, waiting, ended: self.judge_origins() })
    }

    /// The same at a signal, with a line in the log.
    pub async fn hang_up(&self) {
        match self.reload().await {
            Ok(reloaded) => say(&reloaded, true),
            Err(error) => warn!(%error, "configuration and certificates stand as they were"),
        }
    }

    /// The same when a file has changed. `true`: it was taken, or nothing had really changed. What has stood for as long as
    /// it takes to complain of it takes device CAs away, too.
    pub(super) async fn files_changed(&self, complain: bool) -> bool {
        let named = self.looked_at.lock().await.waiting.clone();
        match self.read_again(!complain).await {
            Ok(reloaded) => {
                if !reloaded.changed.is_empty() || reloaded.waiting != named {
                    say(&reloaded, reloaded.waiting != named);
                }
                true
            }
            Err(error) => {
                if complain {
                    warn!(
                        %error,
                        "a file has changed, and is not taken: configuration and certificates stand as they were"
                    );
                }
                false
            }
        }
    }

    /// Judges each live session's certificate by what is trusted now, and tells those that stay to go by what is configured
    /// now. Who is being admitted is judged again, too. How many have ended.
    fn judge_origins(&self) -> usize {
        let (live, now) = (self.live(), clock::now());
        let mut ended = 0;
        for handle in self.sessions.all_changed() {
            match live.trust().judge(&handle.origin, now.wall) {
                Ok(()) => handle.mailbox.put_reconfigured(),
                Err(denied) => {
                    info!(
                        connection = %handle.id, device = %handle.device, reason = denied.problem.label(),
                        detail = denied.detail, "the session ends"
                    );
                    handle.mailbox.put_ending(Ending::now(denied.problem.close()));
                    ended += 1;
                }
            }
        }
        ended
    }
}

fn say(reloaded: &Reloaded, with_waiting: bool) {
    let changed = match reloaded.changed.as_slice() {
        [] => "nothing".to_owned(),
        changed => changed.join(", "),
    };
    let ended = reloaded.ended;
    if reloaded.waiting.is_empty() || !with_waiting {
        info!(changed, sessions_ended = ended, "configuration and certificates read again");
    } else {
        warn!(
            changed,
            sessions_ended = ended,
            keys = reloaded.waiting.join(", "),
            "configuration and certificates read again; these keys have changed too, and take effect at the next start"
        );
    }
}

/// A device CA that is trusted, and would not be any more. One that was renewed with its key is the same.
fn lost(running: &Trust, new: &Trust) -> Option<String> {
    let stays = |id| new.cas.iter().any(|other| other.facts.id() == id);
    running.cas.iter().find(|ca| !stays(ca.facts.id())).map(|ca| format!("device CA '{}'", ca.name()))
}

/// The files that a configuration depends on.
pub(super) fn watched(config: &Config, home: &Home) -> BTreeSet<PathBuf> {
    let tls = &config.tls;
    let named = [&tls.certificate, &tls.key].into_iter().chain(&tls.device_cas).chain(&tls.crls);
    std::iter::once(home.config()).chain(named.map(|path| home.resolve(path))).collect()
}

type Read = (Live, Vec<String>, Vec<String>);

/// Reads everything; also which files that took.
fn read(home: &Home, running: &Live) -> (BTreeSet<PathBuf>, Result<Read, ReloadError>) {
    let load = || -> Result<Config, ReloadError> {
        home::must_be_file(&home.config())?;
        Ok(Config::load_again(home)?)
    };
    let new = match load() {
        Ok(new) => new,
        Err(error) => return (BTreeSet::new(), Err(error)),
    };
    let taken = config::take(&running.config, &new);
    (watched(&taken.config, home), read_files(home, running, taken))
}

fn read_files(home: &Home, running: &Live, taken: Taken) -> Result<Read, ReloadError> {
    let Taken { config, mut changed, waiting } = taken;
    let mut tls = tls::load(&config, home, Some(&running.tls));
    // Two halves: a renewal that was cut short is finished.
    if matches!(tls, Err(TlsError::Pair { .. })) && Pair::of(&config.tls, home).recover()? {
        tls = tls::load(&config, home, Some(&running.tls));
    }
    let tls = tls?;
    for (path, content) in &tls.files {
        let was = running.tls.files.iter().find(|(other, _)| other == path);
        let shown = path.display().to_string();
        if was.is_none_or(|(_, was)| was != content) && !changed.contains(&shown) {
            changed.push(shown);
        }
    }
    let same = tls.files == running.tls.files && !changed.iter().any(|key| key.starts_with("tls."));
    // Tickets die with what they were given by: not for another limit.
    let tls = if same { Arc::clone(&running.tls) } else { Arc::new(tls) };
    Ok((Live::new(config, tls), changed, waiting))
}
