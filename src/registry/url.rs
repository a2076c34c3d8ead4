//! Where the registry is: `sqlite://PATH` or `postgres://…`.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// A database's URL, checked. Displayed without its password.
#[derive(Clone)]
pub struct DatabaseUrl {
    target: Target,
    shown: String,
}

#[derive(Clone)]
pub(super) enum Target {
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
}

/// Why a text is not the URL of a registry. No variant repeats the text: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("a database is sqlite://PATH or postgres://USER@HOST/DATABASE, and this is neither")]
    Scheme,
    /// `sqlite://` alone, or a database in memory, which no second command would find.
    #[error(
        "sqlite:// needs the path of a file: sqlite:///var/lib/doorward/registry.db or sqlite://registry.db"
    )]
    Path,
    /// A `?` in a SQLite URL.
    #[error("sqlite://PATH takes no options; leave out the '?' and what follows")]
    Options,
    /// The driver cannot read it.
    #[error(
        "this postgres:// URL cannot be read ({0}); the form is postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full"
    )]
    Postgres(String),
}

impl DatabaseUrl {
    /// Reads a URL. A Postgres that is not on this host is asked for its certificate (`verify-full`) unless the URL
    /// itself says another `sslmode`: a driver's usual `prefer` falls back to plain text without a word.
    ///
    /// # Errors
    /// [`UrlError`] for any other form.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if let Some(path) = text.strip_prefix("sqlite://") {
            return Self::sqlite(path);
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Self::postgres(text);
        }
        Err(UrlError::Scheme)
    }

    /// The URL of a SQLite file.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self { target: Target::Sqlite(path.to_owned()), shown: format!("sqlite://{}", path.display()) }
    }

    /// The file, for SQLite.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.target {
            Target::Sqlite(path) => Some(path),
            Target::Postgres(_) => None,
        }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    fn sqlite(path: &str) -> Result<Self, UrlError> {
        if path.contains('?') {
            return Err(UrlError::Options);
        }
        if path.is_empty() || path.ends_with('/') || path == ":memory:" {
            return Err(UrlError::Path);
        }
        Ok(Self::file(Path::new(path)))
    }

    fn postgres(text: &str) -> Result<Self, UrlError> {
        let mut options =
            PgConnectOptions::from_str(text).map_err(|error| UrlError::Postgres(reason(&error)))?;
        let explicit = pairs(text).any(|(key, _)| matches!(key, "sslmode" | "ssl-mode"));
        if !explicit && !is_local(&options) {
            options = options.ssl_mode(PgSslMode::VerifyFull);
        }
        Ok(Self {
            target: Target::Postgres(Box::new(options.disable_statement_logging())),
            shown: redact(text),
        })
    }
}

impl FromStr for DatabaseUrl {
    type Err = UrlError;
    fn from_str(text: &str) -> Result<Self, UrlError> {
        Self::parse(text)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shown)
    }
}

/// The driver's words, which name the part that is wrong, without the wrapping ones.
fn reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Configuration(source) => source.to_string(),
        _ => "it is not a URL".to_owned(),
    }
}

fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    options.get_socket().is_some()
        || host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn pairs(url: &str) -> impl Iterator<Item = (&str, &str)> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    query.split('#').next().unwrap_or("").split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn redact(url: &str) -> String {
    let (base, _) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = base.split_once("://").unwrap_or(("postgres", base));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (user.split(':').next().unwrap_or(""), host),
        None => ("", authority),
    };
    let mut shown = format!("{scheme}://{user}{}{host}/{path}", if user.is_empty() { "" } else { "@" });
    let public = pairs(url)
        .filter(|(key, _)| matches!(*key, "host" | "port" | "user" | "dbname" | "sslmode" | "ssl-mode"));
    for (separator, (key, value)) in std::iter::once('?').chain(std::iter::repeat('&')).zip(public) {
        shown.push(separator);
        shown.extend([key, "=", value]);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(text: &str) -> String {
        match DatabaseUrl::parse(text).unwrap().target {
            Target::Postgres(options) => format!("{:?}", options.get_ssl_mode()),
            Target::Sqlite(_) => "sqlite".to_owned(),
        }
    }

    #[test]
    fn two_forms_and_no_third() {
        let path = |text| DatabaseUrl::parse(text).unwrap().path().unwrap().to_owned();
        assert_eq!(path("sqlite:///var/lib/r.db"), Path::new("/var/lib/r.db"));
        assert_eq!(path("sqlite://home/r.db"), Path::new("home/r.db"));
        for bad in ["", "registry.db", "sqlite:registry.db", "mysql://h/d", "SQLITE://x", "postgres:h"] {
            assert_eq!(DatabaseUrl::parse(bad).unwrap_err(), UrlError::Scheme, "{bad}");
        }
        for bad in ["sqlite://", "sqlite://:memory:", "sqlite:///tmp/"] {
            assert_eq!(DatabaseUrl::parse(bad).unwrap_err(), UrlError::Path, "{bad}");
        }
        assert_eq!(DatabaseUrl::parse("sqlite://r.db?mode=rwc").unwrap_err(), UrlError::Options);
        assert!(matches!(DatabaseUrl::parse("postgres://h:notaport/d"), Err(UrlError::Postgres(_))));
    }

    #[test]
    fn a_password_is_never_shown() {
        for url in [
            "postgres://ann:s3cret@db.example:5433/reg?sslmode=require",
            "postgresql://ann:s3c%2Fret@db.example/reg?password=s3cret&application_name=s3cret",
            "postgres://ann:s3@cret@db.example/reg",
        ] {
            let url = DatabaseUrl::parse(url).unwrap();
            assert!(!format!("{url} {url:?}").contains("s3"), "{url}");
            assert!(url.to_string().contains("ann@db.example"), "{url}");
        }
        let error = DatabaseUrl::parse("postgres://ann:s3cret@h:99999999/d").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
    }

    #[test]
    fn a_remote_server_shows_its_certificate() {
        for remote in [
            "postgres://db.example/r",
            "postgres://10.0.0.7/r",
            "postgres://localhost.example/r",
            "postgres://localhost/r?host=db.example",
            "postgres://localhost/r?hostaddr=10.0.0.7",
        ] {
            assert_eq!(mode(remote), "VerifyFull", "{remote}");
        }
        for local in [
            "postgres://localhost/r",
            "postgres://127.0.0.3/r",
            "postgres://[::1]/r",
            "postgres://%2Frun%2Fpg/r",
        ] {
            assert_eq!(mode(local), "Prefer", "{local}");
        }
        assert_eq!(mode("postgres://db.example/r?sslmode=disable"), "Disable");
        assert_eq!(mode("postgres://db.example/r?ssl-mode=require"), "Require");
    }
}
