//! The device's side of a renewal: two pairs are kept until the new one has been let in, and then one.
//!
//! A [`Renewal`] decides and stores; it opens no connection and reads no clock. Whoever runs the sessions tells it what
//! happens, connects with [`Renewal::tls`], and does what [`Renewal::poll`] and [`Renewal::certificate`] say.
//!
//! | | on disk | ends by |
//! | --- | --- | --- |
//! | asked | the old pair; the new key | `certificate`, or a refusal: asked again, later, with the same key |
//! | unproven | the old pair; the new pair | `welcome` by the new one; or it is given up |
//! | done | the new pair | |
//!
//! Each change of the disk is one rename, and each state is found again after a crash. While neither pair is let in, the
//! device shows them by turns and throws neither away.

mod cause;
mod options;
mod pair;

use std::sync::Arc;
use std::time::Duration;

use doorward_proto::downlink::{Certificate, Rotate, Welcome};
use doorward_proto::ids::DeviceId;
use doorward_proto::time::NumericDate;
use doorward_proto::verdict::Refusal;
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

pub use cause::Cause;
pub use options::{CertificateStatus, Named, Renew, RenewalOptions, RenewalState, Steps};
use pair::{Granted, Pair};

use crate::credentials::{Credentials, Identity, NewKey, Store};
use crate::tls;

/// A key that was refused this often is thrown away, whatever the reason was said to be: perhaps it is the reason.
const KEY_TRIES: u32 = 4;

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Hand this request to [`doorward_proto::link::Link::renew`].
    Ask(String),
    /// End the session, and connect at once: [`Renewal::tls`] is another now.
    Reconnect,
}

#[derive(Debug)]
enum Next {
    None,
    /// The gateway has heard of this key, or will.
    Asked(NewKey),
    Unproven(Box<Unproven>),
}

#[derive(Debug)]
struct Unproven {
    key: NewKey,
    granted: Granted,
    /// It was turned away; whether that was its fault is known when the old one is let in.
    failed: Option<Arc<str>>,
    failures: u32,
    /// When to show it again, while the old one is in.
    again: Option<Duration>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Renewal {
    device: DeviceId,
    options: RenewalOptions,
    renews: bool,
    store: Option<Store>,
    current: Pair,
    next: Next,
    /// The certificate that the bundle's folder had when it was last read or written: another one was put there by somebody.
    in_folder: Option<CertificateDer<'static>>,
    /// The new pair is the one to be shown.
    shows_next: bool,
    /// The new pair has been let in and could not be put in the old one's place: both are still on the disk.
    unplaced: Option<(NewKey, String)>,
    in_session: bool,
    /// Somebody has asked for a renewal, or it was time to: that does not end with a session.
    wanted: bool,
    asked: bool,
    ask_at: Option<Duration>,
    refusals: u32,
    not_before: Duration,
    status: watch::Sender<CertificateStatus>,
}

impl Renewal {
    /// Takes up what an earlier run has left. `tls` is the configuration of these credentials.
    #[must_use]
    pub fn open(credentials: &Credentials, tls: Arc<ClientConfig>, options: RenewalOptions) -> Self {
        let folder = credentials.folder().filter(|_| options.renew == Renew::Stored);
        let store = folder.map(|folder| Store::open(folder, options.steps.clone()));
        let renews = store.is_some() || options.renew == Renew::InMemory;
        let current = Pair::new(credentials.shared_identity(), tls);
        let status = CertificateStatus {
            current: current.named(),
            renewed: 0,
            failed: 0,
            renewal: RenewalState::None,
        };
        let in_folder = current.identity.chain().first().cloned();
        let mut renewal = Self {
            in_folder,
            device: credentials.device().clone(),
            options,
            renews,
            store,
            current,
            next: Next::None,
            shows_next: false,
            unplaced: None,
            in_session: false,
            wanted: false,
            asked: false,
            ask_at: None,
            refusals: 0,
            not_before: Duration::ZERO,
            status: watch::Sender::new(status),
        };
        renewal.take_up();
        renewal
    }

    fn take_up(&mut self) {
        let Some(found) = self.store.as_ref().and_then(Store::read) else { return };
        if found.chain.is_empty() {
            self.next = Next::Asked(found.key);
            self.say(RenewalState::Asked);
            return;
        }
        let is_current = found.chain.first() == self.current.identity.chain().first();
        // One that cannot be used is worth no more than no certificate: its key is asked for again.
        match Granted::stored(&found.key, found.chain, &self.current) {
            Ok(granted) if is_current => self.place(found.key, granted.chain),
            Ok(granted) => self.unproven(found.key, granted),
            Err(_) => self.next = Next::Asked(found.key),
        }
    }

    /// What to connect with next.
    #[must_use]
    pub fn tls(&self) -> &Arc<ClientConfig> {
        match &self.next {
            Next::Unproven(next) if self.shows_next => &next.granted.pair.tls,
            _ => &self.current.tls,
        }
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.current.identity)
    }

    /// Whether there is a new pair that has still to be let in: a refusal is not the last word then.
    #[must_use]
    pub fn is_unproven(&self) -> bool {
        matches!(self.next, Next::Unproven(_))
    }

    /// Whether the gateway has been asked in this session and has not answered.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// The certificate that holds and what becomes of its renewal, to be read and watched.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<CertificateStatus> {
        self.status.subscribe()
    }

    /// The gateway has let in what was shown. `time` is the gateway's, `now` the monotonic clock's.
    pub fn welcomed(&mut self, welcome: &Welcome, time: NumericDate, now: Duration) {
        (self.in_session, self.asked, self.ask_at) = (true, false, None);
        if self.shows_next {
            self.proven();
        } else {
            self.place_again();
            self.old_one_is_in(now);
        }
        self.ask_at = self.first_ask(welcome, time, now).map(|at| at.max(self.not_before));
    }

    fn first_ask(&self, welcome: &Welcome, time: NumericDate, now: Duration) -> Option<Duration> {
        if !self.renews || matches!(self.next, Next::Unproven(_)) {
            return None;
        }
        if welcome.certificate_expires <= time {
            // It has come late, and can do nothing else.
            return Some(now);
        }
        let soonest = now + self.options.spread.mul_f64(fastrand::f64());
        if self.wanted || matches!(self.next, Next::Asked(_)) {
            return Some(soonest);
        }
        let wait = self.current.renew_from()?.as_duration().saturating_sub(time.as_duration());
        Some(soonest.max(now.saturating_add(wait)))
    }

    /// The gateway asks for a renewal.
    pub fn rotate(&mut self, rotate: &Rotate, time: NumericDate, now: Duration) {
        let open = self.renews && !self.asked && !matches!(self.next, Next::Unproven(_));
        if !open || rotate.what != "certificate" {
            return;
        }
        // Half of what is left is for the answer.
        let left = rotate.by.as_duration().saturating_sub(time.as_duration()) / 2;
        let at = now + self.options.spread.min(left).mul_f64(fastrand::f64());
        let at = at.max(self.not_before);
        self.ask_at = Some(self.ask_at.map_or(at, |planned| planned.min(at)));
        self.wanted = true;
    }

    /// When [`Renewal::poll`] has something to do, on the monotonic clock.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match &self.next {
            _ if !self.in_session => None,
            Next::Unproven(next) => next.again,
            _ => self.ask_at,
        }
    }

    /// What is due.
    pub fn poll(&mut self, now: Duration) -> Option<Act> {
        if self.deadline().is_none_or(|at| now < at) {
            return None;
        }
        if matches!(self.next, Next::Unproven(_)) {
            return Some(self.show_next());
        }
        match self.request() {
            Ok(request) => {
                (self.wanted, self.asked, self.ask_at) = (true, true, None);
                self.say(RenewalState::Asked);
                self.options.steps.say("asked");
                Some(Act::Ask(request))
            }
            Err(why) => {
                self.refused(&why, now);
                None
            }
        }
    }

    /// The request, made with a key that is durable: a gateway that has heard of it may sign it, and this device must
    /// still have it then.
    fn request(&mut self) -> Result<String, String> {
        self.place_again();
        if self.unplaced.is_some() {
            // A new key would take the place of the only pair on the disk that is let in.
            return Err("the pair before it has no room in the bundle's folder yet".to_owned());
        }
        if let Next::Asked(key) = &self.next {
            return key.request(&self.device);
        }
        let key = NewKey::generate()?;
        let request = key.request(&self.device)?;
        if let Some(store) = &self.store {
            store.keep_key(&key).map_err(|error| error.to_string())?;
        }
        self.next = Next::Asked(key);
        Ok(request)
    }

    /// A certificate has come.
    pub fn certificate(&mut self, new: &Certificate, time: NumericDate, now: Duration) -> Option<Act> {
        self.options.steps.say("certificate came");
        let key = match std::mem::replace(&mut self.next, Next::None) {
            Next::Asked(key) => key,
            other => {
                // Nobody has asked for it.
                self.next = other;
                return None;
            }
        };
        self.asked = false;
        match Granted::checked(&key, &new.chain, &self.device, &self.current, time) {
            Ok(granted) => {
                let stored =
                    self.store.as_ref().map_or(Ok(()), |store| store.keep_pair(&key, &granted.chain));
                if let Err(error) = stored {
                    // The same key brings the same chain another time.
                    self.next = Next::Asked(key);
                    self.refused(&error.to_string(), now);
                    return None;
                }
                self.unproven(key, granted);
                Some(self.show_next())
            }
            Err(fault) => {
                // The same key would bring the same chain. It has never proven anything: nothing is lost with it.
                self.discard();
                self.refused(&format!("the certificate that came cannot be used: {fault}"), now);
                None
            }
        }
    }

    /// The gateway has refused to renew.
    pub fn not_renewed(&mut self, refusal: Option<Refusal>, detail: &str, now: Duration) {
        self.asked = false;
        let tries = self.refusals.saturating_add(1);
        let worn = refusal == Some(Refusal::BadMessage) || tries.is_multiple_of(KEY_TRIES);
        if worn && matches!(self.next, Next::Asked(_)) {
            // A key that will not do now will not do later.
            self.next = Next::None;
            self.discard();
        }
        let word = refusal.map_or("unknown", Refusal::as_str);
        self.refused(
            &format!("the gateway refused it as '{word}': {}", doorward_pki::printable(detail)),
            now,
        );
    }

    /// A session, or the attempt at one, is over. `true` where the certificate was the reason and the next attempt shows
    /// another one: what the gateway said of coming back was said of the one before.
    pub fn ended(&mut self, cause: Cause, words: &str) -> bool {
        let was_in = std::mem::take(&mut self.in_session);
        (self.asked, self.ask_at) = (false, None);
        let Next::Unproven(next) = &mut self.next else { return false };
        let showed_next = self.shows_next;
        if was_in {
            // Of the old one: it holds no more, or there was a time to try the new one again.
            self.shows_next |= cause == Cause::Certificate;
        } else if cause != Cause::Other {
            if self.shows_next && cause != Cause::Away {
                next.failed = Some(words.into());
            }
            self.shows_next = !self.shows_next;
        }
        cause == Cause::Certificate && self.shows_next != showed_next
    }

    /// Takes another pair from the bundle's folder, if somebody has put one there since: `None` where nobody has.
    pub fn reload(&mut self, credentials: &Credentials) -> Option<Credentials> {
        let fresh = Credentials::load(credentials.folder()?).ok()?;
        let leaf = fresh.identity().chain().first();
        let is_next = |next: &Unproven| next.granted.pair.identity.chain().first() == leaf;
        let known = self.in_folder.as_ref() == leaf
            || self.current.identity.chain().first() == leaf
            || matches!(&self.next, Next::Unproven(next) if is_next(next));
        if known || fresh.device() != &self.device {
            return None;
        }
        let tls = tls::configuration(fresh.identity()).ok()?;
        if self.unplaced.take().is_some() {
            // What could not be put in its place is not put over what somebody has put there since.
            self.discard();
        }
        self.in_folder = leaf.cloned();
        self.current = Pair::new(fresh.shared_identity(), tls);
        (self.in_session, self.asked, self.ask_at, self.shows_next) = (false, false, None, false);
        self.status.send_modify(|status| status.current = self.current.named());
        Some(fresh)
    }

    fn unproven(&mut self, key: NewKey, granted: Granted) {
        self.say(RenewalState::Unproven(granted.named.clone()));
        self.next =
            Next::Unproven(Box::new(Unproven { key, granted, failed: None, failures: 0, again: None }));
        self.shows_next = true;
    }

    fn show_next(&mut self) -> Act {
        self.shows_next = true;
        self.options.steps.say("showing the new one");
        Act::Reconnect
    }

    /// The new pair is the one that holds.
    fn proven(&mut self) {
        self.shows_next = false;
        let next = match std::mem::replace(&mut self.next, Next::None) {
            Next::Unproven(next) => next,
            other => {
                self.next = other;
                return;
            }
        };
        self.options.steps.say("the new one is let in");
        let Unproven { key, granted: Granted { chain, pair, named }, .. } = *next;
        self.current = pair;
        (self.wanted, self.refusals, self.not_before) = (false, 0, Duration::ZERO);
        self.place(key, chain);
        self.status.send_modify(|status| {
            status.renewed += 1;
            status.current = Some(named);
        });
    }

    /// Puts the pair that was let in where the old one was. Where that fails it is tried again with the next session, and
    /// both are found by the next run.
    fn place(&mut self, key: NewKey, chain: String) {
        let placed = self.store.as_ref().map_or(Ok(()), |store| store.promote(&key, &chain));
        match placed {
            Ok(()) => {
                self.in_folder = self.current.identity.chain().first().cloned();
                self.say(RenewalState::None);
            }
            Err(error) => {
                self.say(RenewalState::Refused(error.to_string().into()));
                self.unplaced = Some((key, chain));
            }
        }
    }

    fn place_again(&mut self) {
        if let Some((key, chain)) = self.unplaced.take() {
            self.place(key, chain);
        }
    }

    /// The old pair was let in. If the new one was turned away before, that was its own fault.
    fn old_one_is_in(&mut self, now: Duration) {
        let Next::Unproven(next) = &mut self.next else { return };
        let failed = next.failed.take();
        if failed.is_some() {
            next.failures += 1;
        }
        let wait = self.options.wait(next.failures.saturating_sub(1), fastrand::f64());
        next.again = Some(now + wait);
        let Some(why) = failed.filter(|_| next.failures >= self.options.give_up_after) else { return };
        let serial = Arc::clone(&next.granted.named.serial);
        self.next = Next::None;
        self.discard();
        self.not_before = now + self.options.wait(u32::MAX, fastrand::f64());
        self.status.send_modify(|status| status.failed += 1);
        self.say(RenewalState::GivenUp(format!("certificate {serial} is not let in: {why}").into()));
    }

    fn discard(&self) {
        // One that stays is tried again by the next run, and given up again.
        let _ = self.store.as_ref().map(Store::discard);
    }

    fn refused(&mut self, why: &str, now: Duration) {
        self.not_before = now + self.options.wait(self.refusals, fastrand::f64());
        self.refusals = self.refusals.saturating_add(1);
        self.ask_at = Some(self.not_before);
        self.status.send_modify(|status| status.failed += 1);
        self.say(RenewalState::Refused(why.into()));
    }

    fn say(&self, renewal: RenewalState) {
        self.status.send_if_modified(|status| {
            let is_new = status.renewal != renewal;
            status.renewal = renewal;
            is_new
        });
    }
}

#[cfg(test)]
mod tests;
