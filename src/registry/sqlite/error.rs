//! What an error of the driver means.

use super::super::{RegistryError, SchemaError};

// Result codes (sqlite.org/rescode.html). The low byte of an extended code is the primary one.
const ERROR: i32 = 1;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const TOOBIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const NOTADB: i32 = 26;
const CONSTRAINT_TRIGGER: i32 = 1811;

/// Whether a value in the statement is refused, rather than the statement. A trigger's refusal is not meant.
pub(super) fn is_content(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Encode(_) => true,
        _ => matches!(code(error).map(|code| code & 0xff), Some(TOOBIG | CONSTRAINT | MISMATCH)),
    }
}

/// A constraint's or a trigger's refusal: the caller finds out which.
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code & 0xff == CONSTRAINT)
}

/// An error before the commit.
pub(super) fn read(error: sqlx::Error) -> RegistryError {
    use sqlx::Error as E;
    if let (Some(code), Some(words)) =
        (code(&error), error.as_database_error().map(|error| error.message().to_owned()))
    {
        return statement(code, words);
    }
    match error {
        E::Io(error) => RegistryError::Unavailable(error.to_string()),
        E::PoolTimedOut => RegistryError::Unavailable("other work has held the database for 5 s".to_owned()),
        E::PoolClosed | E::WorkerCrashed => RegistryError::Unavailable("the database is closed".to_owned()),
        E::ColumnDecode { .. } | E::Decode(_) | E::ColumnNotFound(_) => {
            RegistryError::Corrupt(error.to_string())
        }
        other => RegistryError::Internal(other.to_string()),
    }
}

/// An error of the commit itself. What the disk did with a failed write is open until the file is next read.
pub(super) fn commit(error: sqlx::Error) -> RegistryError {
    let open = code(&error).is_none_or(|code| code & 0xff == IOERR);
    match read(error) {
        RegistryError::Unavailable(words) | RegistryError::Internal(words) if open => {
            RegistryError::Unknown(words)
        }
        known => known,
    }
}

fn statement(code: i32, words: String) -> RegistryError {
    match code & 0xff {
        _ if code == CONSTRAINT_TRIGGER => RegistryError::Refused(words),
        BUSY | LOCKED => RegistryError::Unavailable("the database is locked by another process".to_owned()),
        ERROR if words.starts_with("no such table") => RegistryError::Schema(SchemaError::Missing),
        CORRUPT | NOTADB => RegistryError::Corrupt(words),
        ERROR | TOOBIG | CONSTRAINT | MISMATCH => RegistryError::Internal(format!("{words} ({code})")),
        // Full, read-only, cannot be opened, out of memory, interrupted, input or output.
        _ => RegistryError::Unavailable(words),
    }
}

fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}
