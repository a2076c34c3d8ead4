//! What an error of the driver means.

use std::borrow::Cow;

use super::super::{RegistryError, SchemaError};

/// What helps where a pooler is in the way.
pub(super) const NO_POOLER: &str = "let database.url name Postgres itself";

/// What a failed statement calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The transaction lost against another: the same again.
    Again,
    /// A value in it is refused: the same without that value.
    Split,
    /// Nothing that can be done here.
    Report,
}

/// SQLSTATEs (PostgreSQL manual, appendix A).
pub(super) fn remedy(error: &sqlx::Error) -> Remedy {
    match error {
        sqlx::Error::Encode(_) => Remedy::Split,
        _ => match code(error).as_deref() {
            Some("40001" | "40P01") => Remedy::Again,
            Some(code) if matches!(code.get(..2), Some("22" | "23" | "54")) => Remedy::Split,
            _ => Remedy::Report,
        },
    }
}

/// A unique, foreign key, check or trigger's refusal: the caller finds out which.
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref(), Some("23505" | "23503"))
}

/// An error before the commit.
pub(super) fn read(error: sqlx::Error) -> RegistryError {
    use sqlx::Error as E;
    match error {
        E::Database(error) => statement(&*error),
        E::Io(error) => RegistryError::Unavailable(error.to_string()),
        E::Tls(error) => RegistryError::Unavailable(format!("TLS: {error}")),
        E::PoolTimedOut => {
            let within = super::CONNECT_WITHIN.as_secs();
            RegistryError::Unavailable(format!("no connection within {within} s; is the database running?"))
        }
        E::PoolClosed | E::WorkerCrashed => RegistryError::Unavailable("the connection is closed".to_owned()),
        E::Protocol(words) => RegistryError::Unavailable(format!("not understood: {words}")),
        E::ColumnDecode { .. } | E::Decode(_) | E::ColumnNotFound(_) | E::TypeNotFound { .. } => {
            RegistryError::Corrupt(error.to_string())
        }
        other => RegistryError::Internal(other.to_string()),
    }
}

/// An error of the commit itself: a connection that is lost then leaves open whether it happened.
pub(super) fn commit(error: sqlx::Error) -> RegistryError {
    let lost = match &error {
        sqlx::Error::Database(_) => code(&error).is_none_or(|code| code.starts_with("57P")),
        _ => true,
    };
    match read(error) {
        RegistryError::Unavailable(words) | RegistryError::Internal(words) if lost => {
            RegistryError::Unknown(words)
        }
        known => known,
    }
}

fn statement(error: &dyn sqlx::error::DatabaseError) -> RegistryError {
    let code = error.code().unwrap_or(Cow::Borrowed(""));
    let message = error.message().to_owned();
    match &*code {
        // Our own triggers.
        "DW001" => RegistryError::Refused(message),
        "42501" => RegistryError::Forbidden(message),
        // A statement that this connection has prepared is another's, or gone: it is not one session's connection.
        "26000" | "42P05" => RegistryError::Unavailable(format!(
            "{message}; is there a pooler in transaction mode? {NO_POOLER}"
        )),
        // PgBouncer's own.
        "08P01" if message.contains("startup parameter") => {
            RegistryError::Unavailable(format!("{message}; is there a pooler? {NO_POOLER}"))
        }
        // Cancelled by its timeout, a lock not had, a standby that does not take writes.
        "57014" | "55P03" | "25006" => RegistryError::Unavailable(message),
        "3F000" | "42P01" => RegistryError::Schema(SchemaError::Missing),
        // Connection, authentication, no such database, resources, shutdown, lost races, I/O.
        _ => match code.get(..2) {
            Some("08" | "28" | "3D" | "53" | "57" | "40" | "58") => RegistryError::Unavailable(message),
            _ => RegistryError::Internal(format!("{message} ({code})")),
        },
    }
}

fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code)
}
