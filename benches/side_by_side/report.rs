//! The figures as a table: medians, and the spread over the rounds.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::drive::{Handshake, Load};
use crate::server::Cores;

const BEGIN: &str = "<!-- figures: benches/run.sh --write -->";
const END: &str = "<!-- end of figures -->";

/// One server in one round.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Round {
    pub(crate) load: [Load; crate::WINDOWS.len()],
    pub(crate) handshake: Handshake,
}

#[derive(Debug, Default)]
struct Side {
    memory_kib: f64,
    rounds: Vec<Round>,
}

/// Everything measured.
#[derive(Debug)]
pub(crate) struct Figures {
    how: String,
    gateway: Side,
    bare: Side,
    issued: Vec<f64>,
}

impl Figures {
    pub(crate) fn new(connections: u32, seconds: u64, rounds: u32, issue: u32, cores: Cores) -> Self {
        let cores = match cores {
            Cores::Apart => "servers and driver on a core each",
            Cores::Shared => "servers and driver on the same cores",
        };
        let how = format!(
            "{connections} connections to each server, {rounds} rounds in turns, {seconds} s a measurement, {issue} devices \
             issued a round; {cores}; SQLite. Medians, with the least and the most."
        );
        Self { how, gateway: Side::default(), bare: Side::default(), issued: Vec::new() }
    }

    fn side(&mut self, gateway: bool) -> &mut Side {
        if gateway { &mut self.gateway } else { &mut self.bare }
    }

    pub(crate) fn memory(&mut self, gateway: bool, kib: f64) {
        self.side(gateway).memory_kib = kib;
    }

    pub(crate) fn add(&mut self, gateway: bool, round: Round) {
        self.side(gateway).rounds.push(round);
    }

    pub(crate) fn issued(&mut self, per_second: f64) {
        self.issued.push(per_second);
    }

    pub(crate) fn table(&self) -> String {
        let mut table =
            format!("{}\n\n| | gateway | bare sink | ratio |\n| --- | --- | --- | --- |\n", self.how);
        let mut row = |name: &str, digits: usize, of: &dyn Fn(&Round) -> f64| {
            let [gateway, bare] =
                [&self.gateway, &self.bare].map(|side| side.rounds.iter().map(of).collect::<Vec<_>>());
            let ratio = median(&gateway) / median(&bare);
            let _ = writeln!(
                table,
                "| {name} | {} | {} | {ratio:.2} |",
                spread(&gateway, digits),
                spread(&bare, digits)
            );
        };
        for (index, window) in crate::WINDOWS.into_iter().enumerate() {
            let load = move |round: &Round| round.load.get(index).copied().unwrap_or_default();
            row(&format!("server CPU per message, {window} under way, µs"), 1, &move |round| {
                load(round).cpu_us
            });
            row(&format!("messages a second, {window} under way"), 0, &move |round| load(round).per_second);
        }
        row("full handshakes per CPU second", 0, &|round| 1e6 / round.handshake.full_us);
        row("resumed handshakes per CPU second", 0, &|round| 1e6 / round.handshake.resumed_us);
        let (gateway, bare) = (self.gateway.memory_kib, self.bare.memory_kib);
        let _ = writeln!(
            table,
            "| resident memory per idle session, KiB | {gateway:.1} | {bare:.1} | {:.2} |",
            gateway / bare
        );
        let _ = writeln!(table, "| devices issued in bulk, a second | {} | | |", spread(&self.issued, 0));
        table
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    let lower = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN);
    f64::midpoint(lower, upper)
}

fn spread(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.digits$} ({least:.digits$} to {most:.digits$})", median(values))
}

/// Puts the table between the marks.
pub(crate) fn write(file: &Path, table: &str) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let (head, rest) =
        text.split_once(BEGIN).with_context(|| format!("{} has no line {BEGIN}", file.display()))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("{} has no line {END}", file.display()))?;
    Ok(std::fs::write(file, format!("{head}{BEGIN}\n{}\n\n{END}{tail}", table.trim_end()))?)
}
