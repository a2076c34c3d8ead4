//! The log of a program that goes on: lines on standard error, for people or for programs.

use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use super::failure::{Failure, Outcome};

/// What is logged.
const FILTER: &str = "DOORWARD_LOG";
/// How: `text` or `json`.
const FORMAT: &str = "DOORWARD_LOG_FORMAT";

/// Structured lines on standard error.
pub(super) fn start() -> Outcome {
    let filter = match std::env::var(FILTER) {
        // The libraries below speak of their own connections; what concerns an operator, the gateway says itself.
        Err(_) => EnvFilter::new("info,sqlx=warn,rustls=warn"),
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| {
            Failure::usage(format!("{FILTER} is '{text}', which is no log filter: {error}"))
        })?,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match std::env::var(FORMAT).unwrap_or_default().as_str() {
        "" | "text" => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        // One object a line, its members those of the text.
        "json" => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        other => return Err(Failure::usage(format!("{FORMAT} is '{other}'; it is text or json"))),
    };
    let log = tracing_subscriber::registry().with(lines).with(filter).with(filter_fn(shows_no_secret));
    log.try_init().map_err(|error| Failure::new(format!("cannot log: {error}")))
}

/// At trace level the WebSocket library shows each frame byte by byte, and a `rekey` has a device's new key in it. No filter
/// brings that back.
fn shows_no_secret(metadata: &Metadata<'_>) -> bool {
    let frames = ["tungstenite", "tokio_tungstenite"].iter().any(|name| metadata.target().starts_with(name));
    !frames || *metadata.level() < Level::TRACE
}
