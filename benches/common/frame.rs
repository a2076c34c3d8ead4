//! What every benchmark's main function needs.

use std::io::Write as _;
use std::process::ExitCode;

/// Words and progress; a reader that has gone away is no failure.
pub(crate) fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// What a run comes to.
pub(crate) fn end(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("it failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
