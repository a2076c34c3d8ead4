//! Channels, which messages are published to, and filters, which subscriptions and policies match them with.

use std::fmt;
use std::str::FromStr;

/// The most levels of a channel or filter.
pub const MAX_LEVELS: usize = 8;
/// The most bytes of a channel or filter.
pub const MAX_BYTES: usize = 255;

/// Why a text is no channel or filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a {what} is one to {MAX_LEVELS} levels of 1 to 64 of A-Z a-z 0-9 _ - joined by '/', at most {MAX_BYTES} bytes{more}"
)]
pub struct ChannelError {
    what: &'static str,
    more: &'static str,
}

const NOT_A_CHANNEL: ChannelError = ChannelError { what: "channel", more: "" };
const NOT_A_FILTER: ChannelError =
    ChannelError { what: "channel filter", more: "; '+' stands for one level, a final '#' for the rest" };

fn is_level(level: &str) -> bool {
    matches!(level.len(), 1..=64)
        && level.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Whether a text is a channel: one to eight levels of `[A-Za-z0-9_-]{1,64}` joined by `/`, at most 255 bytes.
///
/// # Errors
/// [`ChannelError`] with the rule in words.
pub fn check_channel(text: &str) -> Result<(), ChannelError> {
    let fits =
        text.len() <= MAX_BYTES && text.split('/').count() <= MAX_LEVELS && text.split('/').all(is_level);
    if fits { Ok(()) } else { Err(NOT_A_CHANNEL) }
}

/// One level of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level<'a> {
    /// This text alone.
    Exact(&'a str),
    /// `+`: any one level.
    One,
    /// `#`: all the rest, and the parent level itself (MQTT 5.0 §4.7.1.2).
    Rest,
}

impl<'a> Level<'a> {
    fn read(text: &'a str) -> Self {
        match text {
            "+" => Self::One,
            "#" => Self::Rest,
            exact => Self::Exact(exact),
        }
    }
}

/// A channel filter: a channel in which levels may be `+`, and the last one `#`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Filter(Box<str>);

impl Filter {
    /// Reads one from text.
    ///
    /// # Errors
    /// [`ChannelError`] with the rule in words.
    pub fn new(text: &str) -> Result<Self, ChannelError> {
        let levels = text.split('/').count();
        let fits = text.len() <= MAX_BYTES
            && levels <= MAX_LEVELS
            && text.split('/').enumerate().all(|(at, level)| match level {
                "+" => true,
                "#" => at + 1 == levels,
                exact => is_level(exact),
            });
        if fits { Ok(Self(text.into())) } else { Err(NOT_A_FILTER) }
    }

    /// The filter as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it matches a channel.
    #[must_use]
    pub fn matches(&self, channel: &str) -> bool {
        covers(self.levels(), channel.split('/').map(Level::Exact))
    }

    pub(crate) fn levels(&self) -> impl Iterator<Item = Level<'_>> {
        self.0.split('/').map(Level::read)
    }
}

impl FromStr for Filter {
    type Err = ChannelError;
    fn from_str(text: &str) -> Result<Self, ChannelError> {
        Self::new(text)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Whether every channel that `narrow` matches is matched by `wide` too.
pub(crate) fn covers<'a>(
    mut wide: impl Iterator<Item = Level<'a>>,
    mut narrow: impl Iterator<Item = Level<'a>>,
) -> bool {
    loop {
        match (wide.next(), narrow.next()) {
            (Some(Level::Rest), _) | (None, None) => return true,
            (Some(Level::One), Some(Level::Exact(_) | Level::One)) => {}
            (Some(Level::Exact(w)), Some(Level::Exact(n))) if w == n => {}
            _ => return false,
        }
    }
}

/// Whether some channel is matched by both.
pub(crate) fn overlap<'a>(
    mut one: impl Iterator<Item = Level<'a>>,
    mut other: impl Iterator<Item = Level<'a>>,
) -> bool {
    loop {
        match (one.next(), other.next()) {
            (Some(Level::Rest), _) | (_, Some(Level::Rest)) | (None, None) => return true,
            (None, _) | (_, None) => return false,
            (Some(Level::Exact(a)), Some(Level::Exact(b))) if a != b => return false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_have_a_narrow_grammar() {
        for good in ["a", "devices/press-7/temp_1", "1/2/3/4/5/6/7/8", &"x".repeat(64)] {
            assert_eq!(check_channel(good), Ok(()), "{good}");
        }
        let long = [&*"x".repeat(64); 4].join("/");
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "a b",
            "a/+",
            "#",
            "a.b",
            "1/2/3/4/5/6/7/8/9",
            &"x".repeat(65),
            &long,
            "ä",
        ] {
            assert_eq!(check_channel(bad), Err(NOT_A_CHANNEL), "{bad:?}");
        }
    }

    #[test]
    fn filters_match_as_in_mqtt() {
        let matches = |filter: &str, channel: &str| Filter::new(filter).unwrap().matches(channel);
        assert!(matches("#", "a/b"));
        assert!(matches("a/#", "a"));
        assert!(matches("a/#", "a/b/c"));
        assert!(matches("a/+/c", "a/b/c"));
        assert!(!matches("a/+", "a"));
        assert!(!matches("a/+", "a/b/c"));
        assert!(!matches("a/#", "ab"));
        assert!(!matches("a", "A"));
        for bad in ["", "a/#/b", "a+", "#a", "a//b", "1/2/3/4/5/6/7/8/9"] {
            assert_eq!(Filter::new(bad), Err(NOT_A_FILTER), "{bad:?}");
        }
    }

    /// Every filter against every channel of a small alphabet: what `covers` and `overlap` say is what matching says.
    #[test]
    fn covering_and_overlapping_agree_with_matching() {
        fn texts(alphabet: &[&str], most: usize) -> Vec<String> {
            let mut all: Vec<String> = alphabet.iter().map(|&level| level.to_owned()).collect();
            let mut last = all.clone();
            for _ in 1..most {
                last = last
                    .iter()
                    .flat_map(|head| alphabet.iter().map(move |l| format!("{head}/{l}")))
                    .collect();
                all.extend(last.iter().cloned());
            }
            all
        }
        let channels = texts(&["a", "b", "c"], 4);
        let filters: Vec<Filter> =
            texts(&["a", "b", "+", "#"], 3).iter().filter_map(|t| Filter::new(t).ok()).collect();
        for one in &filters {
            for two in &filters {
                let both = channels.iter().any(|c| one.matches(c) && two.matches(c));
                assert_eq!(overlap(one.levels(), two.levels()), both, "{one} {two}");
                let all = channels.iter().filter(|c| two.matches(c)).all(|c| one.matches(c));
                if covers(one.levels(), two.levels()) {
                    assert!(all, "{one} covers {two}");
                } else {
                    // It may err on the safe side, and does where "+/#" and "#" are one and the same.
                    assert!(!all || two.as_str().contains('#'), "{one} does not cover {two}");
                }
            }
        }
    }
}
