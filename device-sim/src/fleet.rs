//! The devices: a bulk file, a folder of bundles, or credentials that are there already.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doorward_client::Credentials;
use doorward_client::tls::{self, TlsError, Trust};
use rustls::ClientConfig;
use zeroize::Zeroizing;

/// A line is a few KiB; one that is longer is not of a bulk file.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Why a fleet cannot be loaded. It never quotes the file's content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// A file or folder cannot be read.
    #[error("{}: {error}; --devices takes a bulk file (.jsonl) or a folder of bundle folders", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// One device's credentials cannot be used.
    #[error("{place}: {reason}")]
    Device {
        /// The line or folder.
        place: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// There is nothing in it.
    #[error("{} holds no device; 'doorward device add --count N --out FILE.jsonl' makes some", .0.display())]
    Empty(PathBuf),
}

/// Loads all devices of a bulk file, or of a folder of bundle folders in the order of their names.
///
/// # Errors
/// [`FleetError`] naming the line or folder.
pub fn load(path: &Path) -> Result<Vec<Credentials>, FleetError> {
    let fleet = if path.is_dir() { load_folder(path)? } else { load_lines(path)? };
    if fleet.is_empty() { Err(FleetError::Empty(path.to_owned())) } else { Ok(fleet) }
}

fn load_lines(path: &Path) -> Result<Vec<Credentials>, FleetError> {
    let read = |error| FleetError::Read { path: path.to_owned(), error };
    let mut file = std::io::BufReader::new(std::fs::File::open(path).map_err(read)?);
    let mut fleet = Vec::new();
    let mut line = Zeroizing::new(String::new());
    for number in 1_u64.. {
        line.clear();
        let length = std::io::Read::take(&mut file, MAX_LINE_BYTES).read_line(&mut line).map_err(read)?;
        if length == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        fleet.push(Credentials::from_line(&line).map_err(|error| FleetError::Device {
            place: format!("{} line {number}", path.display()),
            reason: error.to_string(),
        })?);
    }
    Ok(fleet)
}

fn load_folder(path: &Path) -> Result<Vec<Credentials>, FleetError> {
    let read = |error| FleetError::Read { path: path.to_owned(), error };
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        let folder = entry.map_err(read)?.path();
        if folder.join("device.json").is_file() {
            folders.push(folder);
        }
    }
    folders.sort();
    // A single bundle is a fleet of one.
    if folders.is_empty() && path.join("device.json").is_file() {
        folders.push(path.to_owned());
    }
    let load = |folder: &PathBuf| {
        Credentials::load(folder).map_err(|error| FleetError::Device {
            place: folder.display().to_string(),
            reason: error.to_string(),
        })
    };
    folders.iter().map(load).collect()
}

/// A device, ready to connect.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) credentials: Credentials,
    pub(crate) tls: Arc<ClientConfig>,
}

impl Member {
    pub(crate) fn id(&self) -> &str {
        self.credentials.device().as_str()
    }
}

/// TLS configurations for all, with the trusted certificates read once for those that have the same.
pub(crate) fn members(fleet: Vec<Credentials>) -> Result<Vec<Member>, (String, TlsError)> {
    let mut last: Option<(Credentials, Trust)> = None;
    let mut members = Vec::with_capacity(fleet.len());
    for credentials in fleet {
        let of = |error| (credentials.device().to_string(), error);
        let trusted = credentials.identity().trusted();
        let trust = match &last {
            Some((like, trust)) if like.identity().trusted() == trusted => trust.clone(),
            _ => Trust::new(trusted).map_err(of)?,
        };
        let tls = tls::configuration_trusting(credentials.identity(), &trust).map_err(of)?;
        last = Some((credentials.clone(), trust));
        members.push(Member { credentials, tls });
    }
    Ok(members)
}
