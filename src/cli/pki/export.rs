//! `pki export-root`: the root's key leaves the home.

use std::fs;
use std::path::Path;

use doorward_pki::{Authority, key_file};
use serde_json::json;

use super::super::failure::{Failure, Outcome};
use super::super::{Shared, cas, issue, output};
use crate::home::{self, FileError, PUBLIC, SECRET};

pub(super) fn run(shared: &Shared, out: &Path) -> Outcome {
    let home = shared.home();
    let _lock = cas::hold(&home)?;
    let (key, certificate) = (home.pki("root.key"), home.pki("root.crt"));
    let (key_there, certificate_there) = (out.join("root.key"), out.join("root.crt"));
    // What a run that was killed has left of it is the key as well.
    home::sweep_of(&key)?;
    let text = home::read(&certificate)?;
    if !key.exists() {
        // Done before, to this very place?
        return if key_there.exists() && home::read(&certificate_there).is_ok_and(|copy| copy == text) {
            say(shared, out, false)
        } else {
            Err(Failure::refused(format!(
                "{} does not exist: the root's key has been moved away already",
                key.display()
            )))
        };
    }
    let secret = home::read_secret(&key)?;
    // A key that is not the root's would be found out when it is needed, years later. Encrypted, without its passphrase, it
    // is moved as it is.
    if !key_file::is_encrypted(&secret) || shared.passphrase()?.is_some() {
        Authority::load(&text, &issue::open_key(&key, shared)?)
            .map_err(|error| Failure::new(format!("{}: {error}", key.display())))?;
    }
    must_be_outside(shared, out)?;
    home::make_folder(out)?;
    keep(&certificate_there, text.as_bytes(), PUBLIC)?;
    keep(&key_there, secret.as_bytes(), SECRET)?;
    // Read back, with the mode that a secret has: what is removed below is here.
    if *home::read_secret(&key_there)? != *secret || home::read(&certificate_there)? != text {
        return Err(Failure::new(format!("{} is not what was written to it", key_there.display()))
            .next("the root's key is where it was; choose a medium that keeps what it is given"));
    }
    home::remove(&key)?;
    say(shared, out, true)
}

/// Writes a file; one of this content is left by a run that was cut short.
fn keep(path: &Path, content: &[u8], mode: u32) -> Outcome {
    match home::write_new(path, content, mode) {
        Err(FileError::Exists(_)) if fs::read(path).is_ok_and(|there| there == content) => Ok(()),
        other => Ok(other?),
    }
}

fn must_be_outside(shared: &Shared, out: &Path) -> Outcome {
    let place = |path: &Path| {
        fs::canonicalize(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    };
    let absolute =
        std::path::absolute(out).map_err(|error| Failure::new(format!("{}: {error}", out.display())))?;
    // What is not there yet is made below what is.
    let there = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if place(there)?.starts_with(place(shared.home().path())?) {
        return Err(Failure::usage(format!("{} is in the home, and the key is to leave it", out.display())));
    }
    Ok(())
}

fn say(shared: &Shared, out: &Path, changed: bool) -> Outcome {
    if shared.json {
        return output::json(&json!({ "root_key": out.join("root.key"), "changed": changed }));
    }
    let done = if changed { "is now" } else { "was already" };
    output::say(format!(
        "the root's key {done} in {}, and not in the home. Keep it offline, and a second copy elsewhere: \
         'doorward pki rollover begin --root-key FILE' needs it, and nothing else does",
        out.display()
    ));
    Ok(())
}
