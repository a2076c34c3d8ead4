//! What the gateway for tests makes of renewals: who is let in by which certificate, and what a request brings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use doorward_proto::ids::KeyVersion;
use doorward_proto::key::Key;
use doorward_proto::session::{Grant, PendingKey, Session};
use doorward_proto::time::{Moment, NumericDate};
use doorward_proto::verdict::Refusal;
use rcgen::PublicKeyData as _;

use super::ca::Ca;

/// What a `renew` brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A certificate; the same one for the same key.
    Sign,
    /// Nothing, for ever.
    Nothing,
    /// A refusal.
    Refuse(Refusal),
    /// A certificate for another device.
    ForAnotherDevice,
    /// A certificate for another key.
    ForAnotherKey,
    /// A certificate that has expired.
    Expired,
    /// What is no certificate.
    Rubbish,
}

/// How a certificate is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnAway {
    /// With a problem document.
    Problem(u16, &'static str),
    /// By the end of the connection, without a word.
    HangUp,
}

pub struct Renewals {
    pub answer: Mutex<Answer>,
    /// How the certificates of the first bundles are turned away, and those that were renewed.
    pub old: Mutex<Option<TurnAway>>,
    pub new: Mutex<Option<TurnAway>>,
    /// Whether sessions by a first certificate are asked to renew.
    pub asks: AtomicBool,
    /// Whether first certificates have expired, and may still be renewed.
    pub late: AtomicBool,
    /// Whether devices are handed a second key.
    pub rekeys: AtomicBool,
    /// Those that have signed with it.
    rekeyed: Mutex<BTreeSet<usize>>,
    pub requests: AtomicUsize,
    /// How often a renewed certificate was turned away.
    pub turned_away: AtomicUsize,
    /// Of each device, how many renewals its newest proven certificate is away from its first: older ones hold no more, without
    /// any grace.
    proven: Mutex<BTreeMap<usize, usize>>,
    /// By the leaf's DER: whose, and how many renewals it is away from the first.
    leaves: Mutex<BTreeMap<Vec<u8>, (usize, usize)>>,
    /// By the public key.
    issued: Mutex<BTreeMap<Vec<u8>, String>>,
    ca: Ca,
}

impl Renewals {
    pub fn new(ca: Ca, first: BTreeMap<Vec<u8>, usize>) -> Self {
        Self {
            answer: Mutex::new(Answer::Sign),
            old: Mutex::default(),
            new: Mutex::default(),
            asks: AtomicBool::new(false),
            late: AtomicBool::new(false),
            rekeys: AtomicBool::new(false),
            rekeyed: Mutex::default(),
            requests: AtomicUsize::new(0),
            turned_away: AtomicUsize::new(0),
            proven: Mutex::default(),
            leaves: Mutex::new(first.into_iter().map(|(leaf, device)| (leaf, (device, 0))).collect()),
            issued: Mutex::default(),
            ca,
        }
    }

    /// Whose a leaf is, and how many renewals it is away from the first.
    pub fn whose(&self, leaf: &[u8]) -> Option<(usize, usize)> {
        self.leaves.lock().unwrap().get(leaf).copied()
    }

    pub fn turns_away(&self, device: usize, generation: usize) -> Option<TurnAway> {
        let given = if generation == 0 { *self.old.lock().unwrap() } else { *self.new.lock().unwrap() };
        if generation > 0 && given.is_some() {
            self.turned_away.fetch_add(1, Ordering::SeqCst);
        }
        let proven = self.proven.lock().unwrap().get(&device).copied().unwrap_or(0);
        given.or((proven > generation).then_some(TurnAway::Problem(403, "certificate-superseded")))
    }

    pub fn proven(&self, device: usize, generation: usize) {
        let mut proven = self.proven.lock().unwrap();
        let newest = proven.entry(device).or_default();
        *newest = generation.max(*newest);
    }

    /// How many renewals a device's newest proven certificate is away from its first.
    pub fn generation(&self, device: usize) -> usize {
        self.proven.lock().unwrap().get(&device).copied().unwrap_or(0)
    }

    /// A device has signed with its second key.
    pub fn rekeyed(&self, device: usize) {
        self.rekeyed.lock().unwrap().insert(device);
    }

    /// What holds for a session by this certificate, of a device and so many renewals away from its first.
    pub fn grant(
        &self,
        mut grant: Grant,
        (device, generation): (usize, usize),
        holds_second: bool,
        now: Moment,
    ) -> Grant {
        let first = generation == 0;
        let late = first && self.late.load(Ordering::SeqCst);
        let asks = first && self.asks.load(Ordering::SeqCst);
        if self.rekeys.load(Ordering::SeqCst) {
            let (version, key) = (KeyVersion::from_number(2).unwrap(), [99; 32]);
            grant.keyring.add(Key::new(version, &key), None);
            // a device that holds the second alone says so.
            if holds_second || self.rekeyed.lock().unwrap().contains(&device) {
                grant.signer = Key::new(version, &key);
            } else {
                let pending = PendingKey { version, key: key.into(), grace: Duration::from_secs(60) };
                grant.pending = Some(Box::new(pending));
            }
        }
        let renew_from = asks.then_some(NumericDate::default());
        if late {
            let ends = now.after(Duration::from_secs(600)).wall;
            let expired = NumericDate::from_seconds(1_000_000_000);
            return Grant { late, certificate_expires: expired, grace_ends: Some(ends), renew_from, ..grant };
        }
        Grant { renew_from, ..grant }
    }

    /// Answers a `renew`, as it was told to.
    pub fn answer(
        &self,
        session: &mut Session,
        device: (usize, &str),
        reference: u64,
        csr: &str,
        now: Moment,
    ) {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let answer = *self.answer.lock().unwrap();
        let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        let asked_name = request.params.distinguished_name.get(&rcgen::DnType::CommonName).unwrap();
        assert_eq!(
            *asked_name,
            rcgen::DnValue::Utf8String(device.1.to_owned()),
            "the request names its device"
        );
        let stranger = rcgen::KeyPair::generate().unwrap();
        let chain = match answer {
            Answer::Nothing => return,
            Answer::Refuse(refusal) => {
                return session.refuse_renewal(reference, refusal, "said the test", Some(0), now);
            }
            Answer::Rubbish => "no certificate".to_owned(),
            Answer::Expired => self.ca.renewed(device.1, &request.public_key, 2020).1,
            Answer::ForAnotherDevice => self.ca.renewed("another", &request.public_key, 4000).1,
            Answer::ForAnotherKey => self.ca.renewed(device.1, &stranger, 4000).1,
            Answer::Sign => self.sign(device, &request.public_key),
        };
        session.certify(reference, &chain, NumericDate::from_seconds(4_000_000_000), now);
    }

    fn sign(&self, (device, id): (usize, &str), key: &rcgen::PublicKey) -> String {
        let mut issued = self.issued.lock().unwrap();
        let earlier = issued.len();
        let chain = issued.entry(key.der_bytes().to_vec()).or_insert_with(|| {
            let (leaf, chain) = self.ca.renewed(id, key, 4000);
            self.leaves.lock().unwrap().insert(leaf, (device, earlier + 1));
            chain
        });
        chain.clone()
    }

    /// For how many keys certificates were signed.
    pub fn issued(&self) -> usize {
        self.issued.lock().unwrap().len()
    }
}
