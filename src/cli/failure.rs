//! How a command fails: an exit code, what and why in one line, then what to do about it.

use std::fmt;
use std::process::ExitCode;

use crate::config::ConfigError;
use crate::entropy::NoEntropy;
use crate::gateway::StartError;
use crate::home::FileError;
use crate::own_certificate::RenewError;
use crate::registry::{DatabaseUrl, RegistryError, UrlError};
use crate::secrets::SecretError;
use crate::tls::TlsError;

use super::output;

/// What a command comes to.
pub(super) type Outcome = Result<(), Failure>;

/// A command that did not do what it was asked.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    what: String,
    next: Option<String>,
    /// It was done all the same: these words come first.
    done: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Failure {
    /// It failed (1).
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { code: 1, what: what.into(), next: None, done: false }
    }

    /// It was done, but not everybody has confirmed it (1).
    pub(super) fn unconfirmed(what: impl Into<String>) -> Self {
        Self { done: true, ..Self::new(what) }
    }

    /// The command line cannot be meant (2).
    pub(super) fn usage(what: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(what) }
    }

    /// There is no such thing (3).
    pub(super) fn missing(what: impl Into<String>) -> Self {
        Self { code: 3, ..Self::new(what) }
    }

    /// The state it is in does not allow it (4).
    pub(super) fn refused(what: impl Into<String>) -> Self {
        Self { code: 4, ..Self::new(what) }
    }

    /// The answer is no, or nobody knows: it was given on standard output, and only the exit code is left to say so.
    pub(super) fn answered(code: u8) -> Self {
        Self { code, what: String::new(), next: None, done: false }
    }

    /// What and why, without what to do about it.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// Whether the state it is in does not allow it.
    pub(super) fn is_refusal(&self) -> bool {
        self.code == 4
    }

    /// What more to do about it.
    pub(super) fn and_next(self, next: &str) -> Self {
        let next = self.next.map_or_else(|| next.to_owned(), |first| format!("{first}\n       {next}"));
        Self { next: Some(next), ..self }
    }

    /// What to do about it.
    pub(super) fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    /// The registry that a URL names cannot be used.
    pub(super) fn registry_at(url: &DatabaseUrl, error: RegistryError) -> Self {
        match error {
            RegistryError::Unavailable(_) | RegistryError::Corrupt(_) => Self::new(error.to_string())
                .next(format!("the registry is {url}; check that it runs, or name another with --database")),
            other => other.into(),
        }
    }

    /// Says so on standard error.
    pub(super) fn report(&self) -> ExitCode {
        if self.what.is_empty() {
            return ExitCode::from(self.code);
        }
        let (lead, indent) = if self.done { ("", "") } else { ("error: ", "       ") };
        output::say(format!("{lead}{}", self.what));
        if let Some(next) = &self.next {
            output::say(format!("{indent}{next}"));
        }
        ExitCode::from(self.code)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        let what = error.to_string();
        match error {
            RegistryError::NotFound { kind, .. } => {
                Self::missing(what).next(format!("'doorward {kind} list' shows those that there are"))
            }
            RegistryError::Exists { .. } | RegistryError::Refused(_) => Self::refused(what),
            RegistryError::Unavailable(_) => {
                Self::new(what).next("check that the database runs and that --database names it")
            }
            RegistryError::Forbidden(_) => Self::new(what).next(
                "connect as a role that has what it takes: doorward_operator to manage, doorward_auditor for the audit, \
                 doorward_gateway for a gateway",
            ),
            RegistryError::Unknown(_) => Self::new(what)
                .next("look whether it happened, or just repeat the command: repeating is safe"),
            _ => Self::new(what),
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let what = error.to_string();
        match error {
            FileError::Exists(_) => Self::refused(what),
            FileError::Missing(_) => Self::new(what)
                .next("'doorward init' makes what a home needs; --home or DOORWARD_HOME names another home"),
            _ => Self::new(what),
        }
    }
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Self {
        match error {
            SecretError::File(error) => error.into(),
            SecretError::Differ { .. } => Self::refused(error.to_string())
                .next("'doorward config show' says where each secret comes from"),
            other => Self::new(other.to_string()),
        }
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        let what = error.to_string();
        match error {
            TlsError::File(error) => error.into(),
            TlsError::Pair { .. } => Self::new(what).next(
                "put back the two that were made together, or move both away: 'doorward init' makes new ones",
            ),
            TlsError::Content { .. } => {
                Self::new(what).next("put the right file there, or name another under [tls] in config.toml")
            }
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::File(error) => error.into(),
            StartError::Tls(error) => error.into(),
            StartError::Registry(error) => error.into(),
            StartError::Copy(error) => Self::new(error.to_string()),
            StartError::Entropy(error) => error.into(),
            StartError::Clock(error) => error.into(),
            error @ StartError::Lists(..) => Self::new(error.to_string())
                .next("name another address as crl.listen in config.toml, or \"\" for none"),
            error @ StartError::Traces(_) => Self::new(error.to_string())
                .next("mend [traces] in config.toml; an empty traces.endpoint is none"),
        }
    }
}

impl From<RenewError> for Failure {
    fn from(error: RenewError) -> Self {
        let what = error.to_string();
        match error {
            RenewError::File(error) => error.into(),
            RenewError::Foreign(_) | RenewError::Link(_) => Self::refused(what)
                .next("renew it where it comes from; a gateway that runs takes the new files by itself"),
            RenewError::CaEnds(_) => Self::refused(what).next("make a new issuing CA first"),
            RenewError::NotAccepted(_) => Self::refused(what)
                .next("the old one stands; name hosts that this CA may sign with --host, or make an issuing CA that may"),
            _ => Self::new(what),
        }
    }
}

impl From<UrlError> for Failure {
    fn from(error: UrlError) -> Self {
        Self::usage(error.to_string())
    }
}

macro_rules! plain {
    ($($type:ty),*) => { $(
        impl From<$type> for Failure {
            fn from(error: $type) -> Self {
                Self::new(error.to_string())
            }
        }
    )* };
}

plain!(
    crate::clock::ClockError,
    ConfigError,
    NoEntropy,
    std::io::Error,
    serde_json::Error,
    doorward_pki::IssueError,
    doorward_pki::LoadError
);
