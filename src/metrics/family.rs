//! Counters that an enum labels: as many as the enum has values, each there from the start at 0. No peer can make more.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use doorward_proto::close::Close;
use doorward_proto::verdict::Refusal;

use crate::identity::Problem;
use crate::registry::{EventKind, Fate};

/// The values of a label.
pub(crate) trait Label: Copy + PartialEq + 'static {
    /// Every value.
    const ALL: &'static [Self];

    /// The value as it is shown.
    fn label(self) -> &'static str;
}

/// A counter for each value of a label.
#[derive(Debug)]
pub(crate) struct PerLabel<L> {
    counts: Box<[AtomicU64]>,
    of: PhantomData<L>,
}

impl<L: Label> Default for PerLabel<L> {
    fn default() -> Self {
        Self { counts: L::ALL.iter().map(|_| AtomicU64::new(0)).collect(), of: PhantomData }
    }
}

impl<L: Label> PerLabel<L> {
    fn of(&self, value: L) -> Option<&AtomicU64> {
        L::ALL.iter().position(|one| *one == value).and_then(|at| self.counts.get(at))
    }

    /// One more of these.
    pub(crate) fn add(&self, value: L) {
        if let Some(count) = self.of(value) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many of these.
    pub(crate) fn get(&self, value: L) -> u64 {
        self.of(value).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How many in all.
    pub(crate) fn sum(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Each value with its count.
    pub(crate) fn each(&self) -> impl Iterator<Item = (L, u64)> {
        L::ALL.iter().zip(&self.counts).map(|(value, count)| (*value, count.load(Ordering::Relaxed)))
    }
}

impl Label for Problem {
    const ALL: &'static [Self] = &Self::ALL;

    fn label(self) -> &'static str {
        self.label()
    }
}

impl Label for Refusal {
    const ALL: &'static [Self] = &Self::ALL;

    fn label(self) -> &'static str {
        self.as_str()
    }
}

impl Label for Close {
    const ALL: &'static [Self] = &Self::ALL;

    fn label(self) -> &'static str {
        self.label()
    }
}

impl Label for EventKind {
    const ALL: &'static [Self] = &Self::ALL;

    fn label(self) -> &'static str {
        self.as_str()
    }
}

impl Label for Fate {
    const ALL: &'static [Self] = &[Self::Stored, Self::Duplicate, Self::Fenced, Self::Unstorable];

    fn label(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Fenced => "fenced",
            Self::Unstorable => "unstorable",
        }
    }
}

/// Why a connection was closed without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Early {
    /// There are as many as `limits.connections` allows.
    OverLimit,
    /// No certificate can be judged by this clock.
    ClockBehind,
    /// It was not through in `limits.handshake_timeout`.
    HandshakeTimeout,
    /// The peer went away between TLS and its request.
    Gone,
}

impl Label for Early {
    const ALL: &'static [Self] = &[Self::OverLimit, Self::ClockBehind, Self::HandshakeTimeout, Self::Gone];

    fn label(self) -> &'static str {
        match self {
            Self::OverLimit => "over_limit",
            Self::ClockBehind => "clock_behind",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Gone => "gone",
        }
    }
}

/// Why a connection ended before TLS was done: an operator looks at another place for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsRefusal {
    /// No certificate was shown.
    NoCertificate,
    /// Of a CA that is not trusted here.
    UnknownCa,
    /// The leaf, or a CA above it, is not valid at this time.
    Dates,
    /// Revoked by a list.
    Revoked,
    /// Whatever else is wrong with a certificate.
    BadCertificate,
    /// The peer has refused us: it does not trust this gateway's certificate, most likely.
    ByPeer,
    /// What it sent is no TLS, or none that is spoken here.
    Protocol,
    /// It went away.
    Gone,
}

impl Label for TlsRefusal {
    const ALL: &'static [Self] = &[
        Self::NoCertificate,
        Self::UnknownCa,
        Self::Dates,
        Self::Revoked,
        Self::BadCertificate,
        Self::ByPeer,
        Self::Protocol,
        Self::Gone,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::UnknownCa => "unknown_ca",
            Self::Dates => "dates",
            Self::Revoked => "revoked",
            Self::BadCertificate => "bad_certificate",
            Self::ByPeer => "by_peer",
            Self::Protocol => "protocol",
            Self::Gone => "gone",
        }
    }
}

impl TlsRefusal {
    /// What a handshake's error comes down to.
    pub(crate) fn of(error: &std::io::Error) -> Self {
        use rustls::{CertificateError, Error};
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            None => Self::Gone,
            Some(Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(Error::InvalidCertificate(why)) => match why {
                CertificateError::UnknownIssuer => Self::UnknownCa,
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Dates,
                CertificateError::Revoked => Self::Revoked,
                _ => Self::BadCertificate,
            },
            Some(Error::AlertReceived(_)) => Self::ByPeer,
            Some(_) => Self::Protocol,
        }
    }
}
