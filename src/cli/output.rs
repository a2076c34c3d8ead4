//! How results look: a table for people, one JSON value for programs.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::failure::{Failure, Outcome};

/// A word to the person at the terminal. Where nobody listens the command goes on: `eprintln!` would panic.
pub(super) fn say(words: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", words.as_ref());
}

/// A result on standard output. A reader that has gone away is no failure of ours.
pub(super) fn print(text: &str) -> Outcome {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|error| Failure::new(format!("cannot write to standard output: {error}"))),
    }
}

/// One JSON value on standard output.
pub(super) fn json(value: &impl Serialize) -> Outcome {
    print(&serde_json::to_string_pretty(value)?)
}

/// A table with these columns.
pub(super) fn table<const N: usize>(columns: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

/// A table on standard output, or, where it is empty, a word instead.
pub(super) fn print_table(table: &Table, empty: &str) -> Outcome {
    if table.row_iter().next().is_none() {
        say(empty);
        return Ok(());
    }
    let text = table.to_string();
    let lines: Vec<&str> =
        text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    print(&lines.join("\n"))
}

/// A time as RFC 3339, in UTC, to the millisecond at most.
pub(super) fn time(time: OffsetDateTime) -> String {
    let millis = time.millisecond();
    let time = time.to_offset(time::UtcOffset::UTC).replace_millisecond(millis).unwrap_or(time);
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

/// A time that there may not be.
pub(super) fn maybe_time(when: Option<OffsetDateTime>) -> String {
    when.map_or_else(|| "-".to_owned(), time)
}

/// Text of somebody else's, safe on a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

/// A time that a person gives: RFC 3339, or how long ago (`90s`, `2h`, `7d`).
pub(super) fn parse_since(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text)
        .map_err(|_| "a time is RFC 3339 (2026-11-21T03:00:00Z), or how long ago (90s, 2h, 7d)".to_owned())?;
    crate::clock::utc()
        .checked_sub(ago.try_into().map_err(|_| "too long ago")?)
        .ok_or_else(|| "too long ago".to_owned())
}
