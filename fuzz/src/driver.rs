//! Mutates the seeds of each target for some seconds, on a stable toolchain and without instrumentation.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser;
use doorward_fuzz::{Hunt, TARGETS, Target, hunt};

#[derive(Parser, Debug)]
#[command(about, after_help = "Example:\n  cargo run --release -p doorward-fuzz -- envelope --seconds 60")]
struct Options {
    /// The targets [default: all]
    target: Vec<String>,
    /// How long each is tried
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// What all decisions are drawn from [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Tries this file alone, and no mutation
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

pub(crate) fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let unknown = |name: &&String| !TARGETS.iter().any(|(known, _)| known == name);
    if let Some(name) = options.target.iter().find(unknown) {
        let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        bail!("there is no target '{name}'; there are {}", names.join(", "));
    }
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut failed = Vec::new();
    for (name, target) in TARGETS {
        if !options.target.is_empty() && !options.target.iter().any(|wanted| wanted == name) {
            continue;
        }
        if let Some(file) = &options.input {
            target(&fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
            println!("{name}: {} holds", file.display());
        } else if let Some(input) = one(name, target, seed, Duration::from_secs(options.seconds))? {
            failed.push(input);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("promises that do not hold: {}; mend them, and keep each input among the seeds", failed.join(", "));
}

/// The file of an input that fails, if there is one.
fn one(name: &str, target: Target, seed: u64, within: Duration) -> anyhow::Result<Option<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let seeds = read_all(&folder.join("seeds").join(name))?;
    let how = Hunt { seed, inputs: u64::MAX >> 1, elapsed, until: elapsed() + within };
    let found = hunt(target, &seeds, how);
    println!(
        "{name}: {} seeds, {} inputs, {} outcomes told apart (--seed {seed})",
        seeds.len(),
        found.inputs,
        found.outcomes
    );
    let Some(input) = found.failure else { return Ok(None) };
    let artifacts = folder.join("artifacts").join(name);
    fs::create_dir_all(&artifacts)?;
    let file = artifacts.join(format!("failure-{seed}"));
    fs::write(&file, &input)?;
    println!(
        "{name}: FAILS with {} bytes: cargo run -p doorward-fuzz -- {name} --input {}",
        input.len(),
        file.display()
    );
    Ok(Some(file.display().to_string()))
}

fn read_all(folder: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    files
        .iter()
        .map(|file| fs::read(file).with_context(|| format!("cannot read {}", file.display())))
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "how long to go on is this program's own business")]
fn elapsed() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed()
}
