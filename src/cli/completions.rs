//! `completions` and `man`: what shells and `man` know of the command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::failure::{Failure, Outcome};
use super::{Cli, output};

#[derive(Args, Debug)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Args, Debug)]
pub(super) struct Man {
    /// The folder, which is made if need be
    dir: PathBuf,
}

impl Completions {
    pub(super) fn run(&self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "doorward", &mut script);
        output::print(String::from_utf8_lossy(&script).trim_end())
    }
}

impl Man {
    pub(super) fn run(&self) -> Outcome {
        let failed =
            |error| Failure::new(format!("cannot write the manual pages to {}: {error}", self.dir.display()));
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        clap_mangen::generate_to(Cli::command(), &self.dir).map_err(failed)?;
        output::say(format!("the manual pages are in {}", self.dir.display()));
        Ok(())
    }
}
