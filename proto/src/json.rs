//! Strict JSON (RFC 8259, and I-JSON, RFC 7493, where it is stricter): what two parsers could read differently is
//! refused.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// How deep `data` may be nested; a scalar is 0.
pub(crate) const MAX_DEPTH: usize = 64;

/// Checks one value of a document that `serde_json` has already split: no member twice, no U+0000, no lone surrogate,
/// no number beyond a double, nested at most [`MAX_DEPTH`] deep.
pub(crate) fn check(raw: &RawValue) -> Result<(), serde_json::Error> {
    let text = raw.get();
    let plain = match text.as_bytes() {
        // What the splitter saw as a string without escapes has nothing left to hide: it refuses control characters.
        [b'"', inner @ .., b'"'] => !inner.contains(&b'\\'),
        [b'0'..=b'9' | b'-', ..] => text.len() < 300 && !text.contains(['e', 'E']),
        _ => false,
    };
    if plain {
        return Ok(());
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Strict { depth: 0 }.deserialize(&mut deserializer)?;
    deserializer.end()
}

/// The text of a JSON string, borrowed where it has no escapes; `None` for any other value.
pub(crate) fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    match raw.get().as_bytes() {
        [b'"', inner @ .., b'"'] if !inner.contains(&b'\\') => {
            let text = raw.get();
            Some(Cow::Borrowed(&text[1..text.len() - 1]))
        }
        [b'"', ..] => serde_json::from_str::<String>(raw.get()).ok().map(Cow::Owned),
        _ => None,
    }
}

/// Hands each member of an object to `visit`, in order; the text must be that object and nothing else.
pub(crate) fn members<'a>(
    text: &'a str,
    visit: impl FnMut(Cow<'a, str>, &'a RawValue) -> Result<(), &'static str>,
) -> Result<(), serde_json::Error> {
    struct Members<F>(F);
    impl<'de, F> Visitor<'de> for Members<F>
    where
        F: FnMut(Cow<'de, str>, &'de RawValue) -> Result<(), &'static str>,
    {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
            while let Some(Name(name)) = members.next_key()? {
                let value = members.next_value()?;
                (self.0)(name, value).map_err(de::Error::custom)?;
            }
            Ok(())
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.deserialize_map(Members(visit))?;
    deserializer.end()
}

/// A member's name, borrowed where it has no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> de::Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member's name")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!("nested more than {MAX_DEPTH} deep")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

fn no_nul<E: de::Error>(text: &str) -> Result<(), E> {
    if text.contains('\0') { Err(E::custom("U+0000 in a string")) } else { Ok(()) }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    /// Always finite: `serde_json` refuses a number beyond a double.
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        no_nul(text)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        while items.next_element_seed(deeper)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        let mut names = BTreeSet::new();
        while let Some(Name(name)) = members.next_key()? {
            no_nul(&name)?;
            if !names.insert(name) {
                return Err(de::Error::custom("a member twice"));
            }
            members.next_value_seed(deeper)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict(text: &str) -> bool {
        serde_json::from_str::<&RawValue>(text).is_ok_and(|raw| check(raw).is_ok())
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        for good in [
            "null",
            "1",
            "-0.5e-3",
            "\"a\\u00e9\\ud83d\\ude00\"",
            "[{\"a\":1},{\"a\":1}]",
            "1e308",
            &deep(64),
        ] {
            assert!(strict(good), "{good}");
        }
        for bad in [
            "{\"a\":1,\"a\":1}",
            "[[{\"a\":1,\"\\u0061\":2}]]",
            "\"\\u0000\"",
            "{\"\\u0000\":1}",
            "[\"\\ud800\"]",
            "\"\\udc00x\"",
            "1e999",
            "[-1e999]",
            "NaN",
            "01",
            "\"\u{1}\"",
            "[1,]",
            &deep(65),
            &deep(10_000),
            &"9".repeat(400),
        ] {
            assert!(!strict(bad), "{bad}");
        }
    }

    #[test]
    fn many_members_cost_no_square() {
        let members: Vec<String> = (0..8000).map(|n| format!("\"k{n}\":1")).collect();
        assert!(strict(&format!("{{{}}}", members.join(","))));
    }
}
