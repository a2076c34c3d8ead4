//! A second reader of strict JSON, written from the rules alone and sharing nothing with the one that is judged by it.

/// A value, with the text that it was written as.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Json<'a> {
    pub(crate) raw: &'a str,
    pub(crate) kind: Kind<'a>,
    /// How deep it is nested: a scalar is 0.
    pub(crate) depth: usize,
    /// A member twice, U+0000, or a number beyond a double stands somewhere in it.
    pub(crate) doubtful: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind<'a> {
    Null,
    Bool,
    Number,
    Text(String),
    Array,
    Object(Vec<(String, Json<'a>)>),
}

impl Json<'_> {
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// One value and nothing else but white space around it; `None` where the grammar of RFC 8259 does not hold, or a surrogate
/// stands alone.
pub(crate) fn read(text: &str) -> Option<Json<'_>> {
    read_all(text).filter(|(_, alone)| !alone).map(|(value, _)| value)
}

/// The same by the grammar alone, and whether a surrogate stands alone somewhere (RFC 8259 §8.2 leaves open what that means).
pub(crate) fn read_all(text: &str) -> Option<(Json<'_>, bool)> {
    let mut reader = Reader { text, at: 0, alone: false };
    reader.space();
    let value = reader.value(0)?;
    reader.space();
    (reader.at == text.len()).then_some((value, reader.alone))
}

/// Nobody nests deeper, and a test's stack has an end.
const DEEPEST: usize = 2000;

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// There was a surrogate that stands alone.
    alone: bool,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.peek() == Some(wanted)).then(|| self.at += 1)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.text[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn value(&mut self, level: usize) -> Option<Json<'a>> {
        if level > DEEPEST {
            return None;
        }
        let begin = self.at;
        let (mut depth, mut doubtful) = (0, false);
        let kind = match self.peek()? {
            b'n' => self.word("null").map(|()| Kind::Null)?,
            b't' => self.word("true").map(|()| Kind::Bool)?,
            b'f' => self.word("false").map(|()| Kind::Bool)?,
            b'"' => {
                let text = self.string()?;
                doubtful = text.contains('\0');
                Kind::Text(text)
            }
            b'[' => {
                self.items(b'[', b']', |reader| {
                    let item = reader.value(level + 1)?;
                    depth = depth.max(item.depth);
                    doubtful |= item.doubtful;
                    Some(())
                })?;
                depth += 1;
                Kind::Array
            }
            b'{' => {
                let mut members: Vec<(String, Json<'a>)> = Vec::new();
                self.items(b'{', b'}', |reader| {
                    let name = reader.string()?;
                    reader.space();
                    reader.take(b':')?;
                    reader.space();
                    let value = reader.value(level + 1)?;
                    depth = depth.max(value.depth);
                    doubtful |= value.doubtful || name.contains('\0');
                    members.push((name, value));
                    Some(())
                })?;
                depth += 1;
                let mut names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
                names.sort_unstable();
                doubtful |= names.windows(2).any(|two| two[0] == two[1]);
                Kind::Object(members)
            }
            _ => {
                self.number()?;
                doubtful = self.text[begin..self.at].parse::<f64>().is_ok_and(f64::is_infinite);
                Kind::Number
            }
        };
        Some(Json { raw: &self.text[begin..self.at], kind, depth, doubtful })
    }

    fn items(&mut self, open: u8, close: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.take(open)?;
        self.space();
        if self.take(close).is_some() {
            return Some(());
        }
        loop {
            self.space();
            item(self)?;
            self.space();
            if self.take(close).is_some() {
                return Some(());
            }
            self.take(b',')?;
        }
    }

    fn digits(&mut self) -> Option<()> {
        let begin = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        (self.at > begin).then_some(())
    }

    fn number(&mut self) -> Option<()> {
        let _ = self.take(b'-');
        if self.take(b'0').is_none() {
            self.digits()?;
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
    }

    fn string(&mut self) -> Option<String> {
        self.take(b'"')?;
        let mut text = String::new();
        loop {
            let c = self.text[self.at..].chars().next()?;
            self.at += c.len_utf8();
            match c {
                '"' => return Some(text),
                '\\' => {
                    let escape = self.peek()?;
                    self.at += 1;
                    text.push(match escape {
                        b'"' | b'\\' | b'/' => char::from(escape),
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        b'u' => self.escaped()?,
                        _ => return None,
                    });
                }
                c if c < ' ' => return None,
                c => text.push(c),
            }
        }
    }

    fn escaped(&mut self) -> Option<char> {
        let first = self.hex()?;
        if let Some(c) = char::from_u32(first) {
            return Some(c);
        }
        let behind = self.at;
        if first < 0xDC00 && self.word("\\u").is_some() {
            let second = self.hex()?;
            if (0xDC00..0xE000).contains(&second) {
                return char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00));
            }
            // It stands for itself.
            self.at = behind;
        }
        self.alone = true;
        Some(char::REPLACEMENT_CHARACTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_reader_knows_the_grammar() {
        for good in [" {} ", "[]", "-0.5e+3", "\"\\u00e9\\ud83d\\ude00\\/\"", "{\"a\":[1,{\"b\":null}]}"] {
            assert!(read(good).is_some_and(|value| !value.doubtful), "{good}");
        }
        for doubtful in ["{\"a\":1,\"\\u0061\":2}", "[\"\\u0000\"]", "1e999", "[-1e999]", "{\"\\u0000\":1}"] {
            assert!(read(doubtful).is_some_and(|value| value.doubtful), "{doubtful}");
        }
        for bad in [
            "",
            "01",
            "1.",
            ".5",
            "+1",
            "[1,]",
            "{,}",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\ud800\\u0041\"",
            "\"\u{1}\"",
            "1 2",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(read("[[1],2]").map(|value| value.depth), Some(2));
    }
}
