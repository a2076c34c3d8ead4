//! `doorward`: the gateway and the operator's command line in one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    doorward::cli::main()
}
