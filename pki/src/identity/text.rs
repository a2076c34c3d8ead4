//! Hostile text made fit for a log line.

use x509_parser::objects::oid_registry;

use super::parse;

/// The most characters of a stranger's text that a log line shows.
const MAX_PRINTED: usize = 128;

/// `text` for a log or an error: what is not printable is escaped (a CN with a newline must not forge a log line, one
/// with a right-to-left override must not turn it round), and what is long is cut at 128 characters and ends in `…`.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    let mut length = 0;
    for character in text.chars() {
        let escaped = character.escape_debug();
        length += escaped.len();
        if length > MAX_PRINTED {
            shown.push('…');
            break;
        }
        shown.extend(escaped);
    }
    shown
}

/// The subject of the certificate that these bytes may be, made [`printable`]; for a log line about a refused peer.
#[must_use]
pub fn display_subject(der: &[u8]) -> String {
    match parse(der).map(|certificate| certificate.subject().to_string_with_registry(oid_registry())) {
        Ok(Ok(subject)) if subject.is_empty() => "(empty subject)".to_owned(),
        Ok(Ok(subject)) => printable(&subject),
        Ok(Err(_)) => "(unreadable subject)".to_owned(),
        Err(_) => "(unreadable certificate)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{authorities, device};

    #[test]
    fn plain_text_stays() {
        assert_eq!(printable("CN=press-7, O=Werk Süd"), "CN=press-7, O=Werk Süd");
    }

    #[test]
    fn nothing_hostile_reaches_the_line() {
        let shown = printable(
            "press-7\nINFO all is well\r\t\u{1b}[2J\0\u{7f}\u{85}\u{2028}\u{202e}\u{200b}\u{feff}\\\"",
        );
        assert!(shown.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{shown}");
        assert!(shown.starts_with("press-7\\nINFO"));
    }

    #[test]
    fn long_text_is_cut_between_escapes() {
        assert_eq!(printable(&"x".repeat(128)), "x".repeat(128));
        assert_eq!(printable(&"x".repeat(129)), format!("{}…", "x".repeat(128)));
        let shown = printable(&"\u{1}".repeat(10_000));
        assert!(shown.chars().count() <= MAX_PRINTED + 1 && shown.ends_with("}…"), "{shown}");
    }

    #[test]
    fn subjects() {
        let (_, issuing) = authorities();
        assert_eq!(display_subject(&device(&issuing, "press-7").der), "CN=press-7");
        assert_eq!(display_subject(b"no certificate"), "(unreadable certificate)");
    }
}
