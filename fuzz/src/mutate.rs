//! A hunt without instrumentation: seeds are cut, spliced and scribbled on, and what comes to something new is kept and
//! mutated further.

use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use crate::{Outcome, Target};

/// The longest input that is tried.
const MOST_BYTES: usize = 8192;
/// Inputs that are mutated further, besides the seeds.
const MOST_KEPT: usize = 2048;
/// One input may take so long, on a machine that does other things too.
const SLOW: Duration = Duration::from_secs(10);
/// Tries to make a finding shorter.
const SHORTENINGS: usize = 2000;

/// Pieces that parsers look for.
const WORDS: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\u0000",
    "\\ud800",
    ".",
    "=",
    "/",
    "#",
    "+",
    "\r\n\r\n",
    "\r\n",
    "null",
    "true",
    "1e999",
    "-1",
    "0",
    "9007199254740991",
    "9007199254740992",
    "\"op\":\"publish\"",
    "\"op\":\"hello\"",
    "\"seq\":2",
    "\"iat\":1763724000",
    "\"kid\":\"1\"",
    "HS256",
    "${device}",
    "${fleet}",
    "publish",
    "subscribe",
    "\u{202e}",
    "\u{0}",
    "Host: y\r\n",
    "Sec-WebSocket-Version: 13\r\n",
    "-----BEGIN CERTIFICATE REQUEST-----",
    "= \"30s\"",
    "[limits]\n",
];

/// How a target is to be tried.
#[derive(Debug, Clone, Copy)]
pub struct Hunt {
    /// What all decisions are drawn from.
    pub seed: u64,
    /// At most so many inputs, the seeds not counted.
    pub inputs: u64,
    /// How much time has passed: asked now and then.
    pub elapsed: fn() -> Duration,
    /// At most until then.
    pub until: Duration,
}

/// What a hunt has come to.
#[derive(Debug)]
pub struct Found {
    /// Inputs that were tried.
    pub inputs: u64,
    /// Outcomes that were told apart.
    pub outcomes: usize,
    /// An input that a promise does not hold for, as short as it could be made.
    pub failure: Option<Vec<u8>>,
}

/// Tries the seeds, then what mutation makes of them.
#[must_use]
pub fn hunt(target: Target, seeds: &[Vec<u8>], how: Hunt) -> Found {
    let mut random = fastrand::Rng::with_seed(how.seed);
    let mut kept: Vec<Vec<u8>> = seeds.to_vec();
    kept.push(Vec::new());
    let mut seen: BTreeSet<Outcome> = BTreeSet::new();
    let mut inputs = 0;
    for input in &kept {
        match run(target, input, how.elapsed) {
            Some(outcome) => seen.insert(outcome),
            None => return Found { inputs, outcomes: seen.len(), failure: Some(input.clone()) },
        };
        inputs += 1;
    }
    let most = inputs + how.inputs;
    while inputs < most && (inputs % 16 != 0 || (how.elapsed)() < how.until) {
        inputs += 1;
        let input = mutate(&mut random, &kept);
        match run(target, &input, how.elapsed) {
            Some(outcome) if seen.insert(outcome) && kept.len() < MOST_KEPT + seeds.len() => kept.push(input),
            Some(_) => {}
            None => {
                let input = shorten(target, input, &mut random, how.elapsed);
                return Found { inputs, outcomes: seen.len(), failure: Some(input) };
            }
        }
    }
    Found { inputs, outcomes: seen.len(), failure: None }
}

/// `None` for a promise that does not hold, a crash, or an input that takes too long.
fn run(target: Target, input: &[u8], elapsed: fn() -> Duration) -> Option<Outcome> {
    let began = elapsed();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| target(input))).ok();
    outcome.filter(|_| elapsed() - began < SLOW)
}

fn mutate(random: &mut fastrand::Rng, kept: &[Vec<u8>]) -> Vec<u8> {
    let mut input = kept[random.usize(..kept.len())].clone();
    for _ in 0..1 << random.u32(..4) {
        let at = random.usize(..=input.len());
        let length = 1 << random.u32(1..8);
        let end = (at + random.usize(..length)).min(input.len());
        match random.u32(..10) {
            0 if at < input.len() => input[at] ^= 1 << random.u32(..8),
            1 if at < input.len() => input[at] = random.u8(..),
            2 => input.insert(at, random.u8(..)),
            3 => drop(input.drain(at..end)),
            // Twice, or somewhere else.
            4 => {
                let piece = input[at..end].to_vec();
                let to = random.usize(..=input.len());
                input.splice(to..to, piece);
            }
            5 | 6 => {
                let word = WORDS[random.usize(..WORDS.len())];
                let end = if random.bool() { at } else { end };
                input.splice(at..end, word.bytes());
            }
            // A piece of another one.
            7 => {
                let other = &kept[random.usize(..kept.len())];
                let from = random.usize(..=other.len());
                let to = (from + random.usize(..256)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            8 => input.splice(at..at, (0..random.usize(..64)).map(|_| b'x')).for_each(drop),
            _ => input.extend((0..random.usize(..64)).map(|_| random.u8(..))),
        }
    }
    input.truncate(MOST_BYTES);
    input
}

/// Leaves out what is not needed to fail.
fn shorten(
    target: Target,
    mut input: Vec<u8>,
    random: &mut fastrand::Rng,
    elapsed: fn() -> Duration,
) -> Vec<u8> {
    // One failure has been said; a thousand more say nothing.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    for _ in 0..SHORTENINGS {
        let at = random.usize(..input.len().max(1));
        let end = (at + 1 + random.usize(..(input.len() / 4).max(1))).min(input.len());
        let mut shorter = input.clone();
        shorter.drain(at.min(end)..end);
        if shorter.len() < input.len() && run(target, &shorter, elapsed).is_none() {
            input = shorter;
        }
    }
    panic::set_hook(hook);
    input
}
