//! What every benchmark's main function is.

use std::io::Write as _;
use std::process::ExitCode;

/// Words and progress; a reader that has gone away is no failure.
pub(crate) fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// A benchmark that is a tokio program. `cargo test --all-targets` starts every target; this one is no test, and takes minutes.
#[allow(dead_code, reason = "one of the benchmarks has another frame")]
pub(crate) fn main<O: clap::Parser>(name: &str, run: impl AsyncFnOnce(O) -> anyhow::Result<()>) -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        say(&format!("this is a benchmark; run it with cargo bench --bench {name}"));
        return ExitCode::SUCCESS;
    }
    let options = O::parse();
    let _ = rlimit::increase_nofile_limit(20_000);
    end(match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(options)),
        Err(error) => Err(error.into()),
    })
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
