//! How a command fails: an exit code, what and why in one line, then what to do about it.

use std::process::ExitCode;

use crate::config::ConfigError;
use crate::entropy::NoEntropy;
use crate::gateway::StartError;
use crate::home::FileError;
use crate::registry::{RegistryError, UrlError};

/// What a command comes to.
pub(super) type Outcome = Result<(), Failure>;

/// A command that did not do what it was asked.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    what: String,
    next: Option<String>,
}

impl Failure {
    /// It failed (1).
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { code: 1, what: what.into(), next: None }
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

    /// What to do about it.
    pub(super) fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    /// Says so on standard error.
    #[expect(clippy::print_stderr, reason = "the command line's own business")]
    pub(super) fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.what);
        if let Some(next) = &self.next {
            eprintln!("       {next}");
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
            RegistryError::Unknown(_) => Self::new(what)
                .next("look whether it happened, or just repeat the command: repeating is safe"),
            _ => Self::new(what),
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let code = if matches!(error, FileError::Exists(_)) { 4 } else { 1 };
        Self { code, ..Self::new(error.to_string()) }
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
    ConfigError,
    NoEntropy,
    StartError,
    std::io::Error,
    serde_json::Error,
    doorward_pki::IssueError,
    doorward_pki::LoadError
);
