//! placeholder

use super::Shared;
use super::failure::{Failure, Outcome};

#[derive(clap::Args, Debug)]
pub(super) struct Demo {}

impl Demo {
    pub(super) async fn run(&self, _: &Shared) -> Outcome {
        Err(Failure::new("placeholder"))
    }
}
