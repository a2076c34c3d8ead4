//! Making a span. Words come from this program; what others have said is cleaned and cut.

use std::time::Duration;

use doorward_proto::time::Moment;

use super::wire::{AnyValue, Code, KeyValue, Kind, Link, Span, Status, Value};
use crate::entropy;

/// A text of an attribute is cut here: a channel or a reason is whatever somebody has written.
const MOST_WORDS: usize = 200;

/// Which span of which trace (W3C Trace Context §3.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context {
    trace: u128,
    span: u64,
}

impl Context {
    /// The first span of a new trace; `None` where the operating system gives no random bytes.
    pub(super) fn root() -> Option<Self> {
        let trace = u128::from_be_bytes(entropy::random().ok()?);
        Some(Self { trace: trace.max(1), span: span_id() })
    }

    /// Another span of the same trace.
    pub(super) fn child(self) -> Self {
        Self { span: span_id(), ..self }
    }

    fn link(self) -> Link {
        Link { trace_id: self.trace.to_be_bytes().into(), span_id: self.span.to_be_bytes().into() }
    }
}

/// Unique within a trace is enough; zero is none.
fn span_id() -> u64 {
    fastrand::u64(1..)
}

/// What turns the times of a trace, on the monotonic clock, into those of the day: read once, so that a clock that is set
/// meanwhile bends no span.
#[derive(Debug, Clone, Copy)]
pub(super) struct Epoch(Duration);

impl Epoch {
    pub(super) fn of(now: Moment) -> Self {
        Self(now.wall.as_duration().saturating_sub(now.monotonic))
    }

    fn nanos(self, time: Duration) -> u64 {
        u64::try_from((self.0 + time).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// From when to when, on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) epoch: Epoch,
    pub(super) began: Duration,
    pub(super) ended: Duration,
}

impl Span {
    /// The first of its trace: what somebody from outside has brought about.
    pub(super) fn root(context: Context, name: &str, times: Times) -> Self {
        Self::new(context, name, Kind::Server, times)
    }

    /// A part of another.
    pub(super) fn part(of: Context, name: &str, times: Times) -> Self {
        let parent_span_id = of.span.to_be_bytes().into();
        Self { parent_span_id, ..Self::new(of.child(), name, Kind::Internal, times) }
    }

    /// The gateway's own doing, for many at once.
    pub(super) fn own(context: Context, name: &str, times: Times) -> Self {
        Self::new(context, name, Kind::Internal, times)
    }

    fn new(context: Context, name: &str, kind: Kind, times: Times) -> Self {
        let Times { epoch, began, ended } = times;
        let Link { trace_id, span_id } = context.link();
        Self {
            trace_id,
            span_id,
            name: name.to_owned(),
            kind: kind.into(),
            start_time_unix_nano: epoch.nanos(began),
            end_time_unix_nano: epoch.nanos(ended.max(began)),
            ..Self::default()
        }
    }

    /// With a text, cleaned and cut.
    pub(super) fn with(mut self, key: &str, text: &str) -> Self {
        self.attributes.push(attribute(key, Value::Text(clean(text))));
        self
    }

    /// With a number.
    pub(super) fn with_number(mut self, key: &str, number: impl TryInto<i64>) -> Self {
        let number = number.try_into().unwrap_or(i64::MAX);
        self.attributes.push(attribute(key, Value::Number(number)));
        self
    }

    /// With a yes or no.
    pub(super) fn with_flag(mut self, key: &str, flag: bool) -> Self {
        self.attributes.push(attribute(key, Value::Flag(flag)));
        self
    }

    /// It has failed: a word of this program, and more words for people.
    pub(super) fn failed(mut self, label: &str, detail: &str) -> Self {
        self.status = Some(Status { message: clean(detail), code: Code::Error.into() });
        self.with("error.type", label)
    }

    /// Others have to do with it.
    pub(super) fn linked(mut self, to: impl IntoIterator<Item = Context>) -> Self {
        self.links.extend(to.into_iter().map(Context::link));
        self
    }
}

/// An attribute of a program or a span.
pub(super) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

/// What others have said, without what moves a terminal's cursor, and no longer than a line or two.
pub(super) fn clean(text: &str) -> String {
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).take(MOST_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn times() -> Times {
        let now = Moment {
            monotonic: 5 * SECOND,
            wall: doorward_proto::time::NumericDate::since_epoch(1000 * SECOND),
        };
        Times { epoch: Epoch::of(now), began: 6 * SECOND, ended: 8 * SECOND }
    }

    #[test]
    fn a_part_belongs_to_its_whole_and_times_are_those_of_the_day() {
        let context = Context::root().unwrap();
        let whole = Span::root(context, "whole", times());
        let part = Span::part(context, "part", Times { ended: SECOND, ..times() });
        assert_eq!((&part.trace_id, &part.parent_span_id), (&whole.trace_id, &whole.span_id));
        assert_ne!(part.span_id, whole.span_id);
        assert_eq!((whole.trace_id.len(), whole.span_id.len(), whole.parent_span_id.len()), (16, 8, 0));
        let (from, to) = (whole.start_time_unix_nano, whole.end_time_unix_nano);
        assert_eq!((from, to), (1_001_000_000_000, 1_003_000_000_000));
        assert_eq!(part.start_time_unix_nano, part.end_time_unix_nano, "no span ends before it begins");
    }

    #[test]
    fn what_others_have_said_is_cleaned_and_cut() {
        assert_eq!(clean("a\r\n\u{1b}[2Jb"), "a\u{fffd}\u{fffd}\u{fffd}[2Jb");
        assert_eq!(clean(&"ü".repeat(10_000)).chars().count(), MOST_WORDS);
    }
}
