//! JSON Schemas for what the devices of a fleet publish: a channel filter and a schema each (drafts 4 to 2020-12).
//!
//! A schema is an operator's, and is judged when it is set. What it costs a message is bounded there: its size, its depth, how
//! often it refers to itself; nothing outside it is ever read, and its patterns run in linear time.

use std::collections::BTreeMap;

use doorward_proto::channel::{ChannelError, Filter};
use doorward_proto::schema::Schemas;
use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

/// The most schemas of a fleet.
pub const MAX_SCHEMAS: usize = 16;
/// The most bytes of all of them: they are read with each record of a device.
pub const MAX_BYTES: usize = 32 << 10;
/// How deep a schema may be nested.
const MAX_DEPTH: usize = 32;
/// The most values of a schema in which each reference stands for what it refers to.
const MAX_VALUES: usize = 4096;
/// The most bytes that a pattern may take when it is compiled.
const MAX_PATTERN: usize = 256 << 10;
/// What a device is told at most, in characters.
const MAX_WORDS: usize = 240;

/// Keywords that say where a schema is, or which of several is meant: there is one, and it is here.
const ELSEWHERE: [&str; 8] = [
    "$id",
    "id",
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveRef",
    "$recursiveAnchor",
    "$vocabulary",
];

/// Why a text is no schema, or no set of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// Not a JSON object of schemas.
    #[error("not schemas by channel filter: {0}")]
    Form(#[from] serde_json::Error),
    /// A filter that is none.
    #[error("'{filter}': {reason}")]
    Filter {
        /// The filter.
        filter: String,
        /// The rule it breaks.
        reason: ChannelError,
    },
    /// Not a schema, or one that costs too much.
    #[error("at '{place}': {reason}")]
    Schema {
        /// A JSON Pointer into the schema (RFC 6901).
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// More than the limits allow.
    #[error("a fleet has at most {MAX_SCHEMAS} schemas, of {MAX_BYTES} bytes together")]
    TooLarge,
}

/// The schemas of a fleet, ready for use.
#[derive(Debug, Default)]
pub struct SchemaSet(Vec<(Filter, Validator)>);

impl SchemaSet {
    /// Reads them from the JSON object of schemas by filter that the registry keeps.
    ///
    /// # Errors
    /// [`SchemaError`] naming the place.
    pub fn parse(text: &str) -> Result<Self, SchemaError> {
        if text.len() > MAX_BYTES {
            return Err(SchemaError::TooLarge);
        }
        let all: BTreeMap<String, Value> = serde_json::from_str(text)?;
        if all.len() > MAX_SCHEMAS {
            return Err(SchemaError::TooLarge);
        }
        let one = |(filter, schema): (String, Value)| {
            let read = Filter::new(&filter).map_err(|reason| SchemaError::Filter { filter, reason })?;
            Ok((read, compile(&schema)?))
        };
        all.into_iter().map(one).collect::<Result<_, SchemaError>>().map(Self)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Schemas for SchemaSet {
    fn check(&self, channel: &str, data: &str) -> Result<(), String> {
        let mut fits = self.0.iter().filter(|(filter, _)| filter.matches(channel)).peekable();
        if fits.peek().is_none() {
            return Ok(());
        }
        let data: Value = serde_json::from_str(data).map_err(|error| error.to_string())?;
        for (filter, schema) in fits {
            if let Err(error) = schema.validate(&data) {
                let place = error.instance_path().to_string();
                // The value itself is left out: the device knows what it has sent.
                let words = format!(
                    "'data' does not fit the schema for '{filter}', at '{place}': {}",
                    error.masked()
                );
                return Err(words.chars().take(MAX_WORDS).collect());
            }
        }
        Ok(())
    }
}

/// A schema that may be used.
///
/// # Errors
/// [`SchemaError::Schema`] naming the place.
pub fn compile(schema: &Value) -> Result<Validator, SchemaError> {
    let mut budget = MAX_VALUES;
    Walk { root: schema, budget: &mut budget }.visit(schema, "", &mut Vec::new(), 0)?;
    jsonschema::options()
        .offline()
        .with_pattern_options(PatternOptions::regex().size_limit(MAX_PATTERN).dfa_size_limit(MAX_PATTERN))
        .build(schema)
        .map_err(|error| {
            let reason: String = error.to_string().chars().take(MAX_WORDS).collect();
            SchemaError::Schema { place: error.instance_path().to_string(), reason }
        })
}

/// Goes through a schema as a validator would, each reference followed.
struct Walk<'a> {
    root: &'a Value,
    budget: &'a mut usize,
}

impl<'a> Walk<'a> {
    fn visit(
        &mut self,
        value: &'a Value,
        place: &str,
        followed: &mut Vec<&'a str>,
        depth: usize,
    ) -> Result<(), SchemaError> {
        let no =
            |reason: &str| Err(SchemaError::Schema { place: place.to_owned(), reason: reason.to_owned() });
        if depth > MAX_DEPTH {
            return no("nested more than 32 deep");
        }
        *self.budget = match self.budget.checked_sub(1) {
            Some(left) => left,
            None => return no("more than 4096 values, each reference counted as what it refers to"),
        };
        match value {
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.visit(item, &format!("{place}/{at}"), followed, depth + 1)?;
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    let below = format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"));
                    // The name of a property may be any; a keyword that is none does nothing.
                    if ELSEWHERE.contains(&name.as_str()) && member.is_string() {
                        let reason = format!(
                            "'{name}' is not taken: a schema is one document, and refers to itself by '#/…'"
                        );
                        return Err(SchemaError::Schema { place: below, reason });
                    }
                    if let ("$ref", Value::String(to)) = (name.as_str(), member) {
                        self.follow(to, &below, followed, depth)?;
                    }
                    self.visit(member, &below, followed, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn follow(
        &mut self,
        to: &'a str,
        place: &str,
        followed: &mut Vec<&'a str>,
        depth: usize,
    ) -> Result<(), SchemaError> {
        let no = |reason: String| Err(SchemaError::Schema { place: place.to_owned(), reason });
        let Some(pointer) = to.strip_prefix('#') else {
            return no(format!("'{to}' is another document, and none is ever fetched"));
        };
        if followed.contains(&to) || pointer.is_empty() {
            return no(format!("'{to}' leads back to itself: what a message may cost would have no bound"));
        }
        // What validates decodes it (RFC 6901 §6), and would look at another place than this one.
        if pointer.contains('%') {
            return no(format!("'{to}' has a percent sign: name what it leads to without"));
        }
        let Some(target) = self.root.pointer(pointer) else {
            return no(format!("'{to}' leads nowhere"));
        };
        followed.push(to);
        self.visit(target, pointer, followed, depth + 1)?;
        followed.pop();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_place_that_does_not_fit_is_named() {
        let set = SchemaSet::parse(
            r##"{"devices/+/t":{"$ref":"#/$defs/reading","$defs":{"reading":{"type":"object","required":["c"],
                "properties":{"c":{"type":"array","items":{"type":"number"}},"unit":{"pattern":"^[A-Z]$"}}}}},
                "devices/#":{"type":["object","number"]}}"##,
        )
        .unwrap();
        let check = |channel: &str, data: &str| set.check(channel, data).err();
        assert_eq!(check("devices/a/t", r#"{"c":[1,2.5],"unit":"K"}"#), None);
        assert_eq!(check("fleets/a", "\"anything\""), None, "no schema is for it");
        assert_eq!(check("devices/a/x", "1"), None);
        let words = check("devices/a/t", r#"{"c":[1,"warm"]}"#).unwrap();
        assert!(words.contains("the schema for 'devices/+/t', at '/c/1': "), "{words}");
        assert!(!words.contains("warm"), "{words}");
        assert!(check("devices/a/t", r#"{"unit":"K"}"#).unwrap().contains("at ''"));
        assert!(check("devices/a/t", r#"{"c":[],"unit":"kelvin"}"#).unwrap().contains("at '/unit'"));
        assert!(check("devices/a/x", "\"x\"").unwrap().contains("the schema for 'devices/#'"));
    }

    #[test]
    fn a_broken_schema_is_refused_with_its_place() {
        let deep = (0..40).fold(json!({}), |inner, _| json!({ "not": inner }));
        for (schema, place, words) in [
            (json!({ "properties": { "a": { "type": "nummer" } } }), "/properties/a/type", "nummer"),
            (json!({ "minimum": "1" }), "/minimum", "number"),
            (json!([]), "", ""),
            (
                json!({ "properties": { "a": { "$ref": "https://example.com/a.json" } } }),
                "/properties/a/$ref",
                "fetched",
            ),
            (json!({ "$ref": "other.json#/a" }), "/$ref", "another document"),
            (json!({ "$ref": "#" }), "/$ref", "leads back to itself"),
            (json!({ "$ref": "#/$defs/none" }), "/$ref", "leads nowhere"),
            (json!({ "$id": "https://example.com/" }), "/$id", "one document"),
            (json!({ "$schema": "https://example.com/mine" }), "", ""),
            (deep, "", "nested more than 32 deep"),
            (json!({ "pattern": "(a" }), "/pattern", ""),
            // No engine for this runs in linear time.
            (json!({ "pattern": "(?=a)b" }), "/pattern", ""),
            (json!({ "pattern": "(a{1000}){1000}" }), "/pattern", ""),
        ] {
            let SchemaError::Schema { place: found, reason } = compile(&schema).unwrap_err() else {
                panic!("{schema}")
            };
            assert!(found.starts_with(place) && reason.contains(words), "{schema}: at '{found}': {reason}");
        }
    }

    #[test]
    fn references_that_grow_without_end_are_refused() {
        // Two of the one below, forty times.
        let mut defs = serde_json::Map::new();
        defs.insert("0".to_owned(), json!({ "type": "number" }));
        for n in 1..20 {
            let below = json!({ "$ref": format!("#/$defs/{}", n - 1) });
            defs.insert(n.to_string(), json!({ "allOf": [below, below] }));
        }
        let schema = json!({ "$ref": "#/$defs/19", "$defs": defs });
        assert!(
            matches!(compile(&schema), Err(SchemaError::Schema { reason, .. }) if reason.contains("4096 values")
            || reason.contains("32 deep"))
        );
        let knot = json!({ "$ref": "#/$defs/a", "$defs": {
            "a": { "properties": { "x": { "$ref": "#/$defs/b" } } }, "b": { "items": { "$ref": "#/$defs/a" } } } });
        assert!(
            matches!(compile(&knot), Err(SchemaError::Schema { reason, .. }) if reason.contains("leads back"))
        );
    }

    #[test]
    fn a_set_has_a_bound() {
        assert!(SchemaSet::parse("{}").unwrap().is_empty());
        assert!(matches!(SchemaSet::parse(r##"{"#/a":{}}"##), Err(SchemaError::Filter { .. })));
        let many: BTreeMap<String, Value> = (0..17).map(|n| (n.to_string(), json!({}))).collect();
        assert!(matches!(SchemaSet::parse(&json!(many).to_string()), Err(SchemaError::TooLarge)));
        let long = json!({ "a": { "description": "x".repeat(MAX_BYTES) } });
        assert!(matches!(SchemaSet::parse(&long.to_string()), Err(SchemaError::TooLarge)));
    }
}
