//! What comes over the wire: what an honest device says, and everything that is nearly that.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::time::Duration;

use doorward_proto::time::NumericDate;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::super::choices::Choices;
use super::super::support::{DEVICE, key};
use super::{Play, stranger};

const OPERATIONS: [&str; 14] = [
    r#""op":"hello""#,
    r#""op":"publish","id":"a","ch":"devices/press-7/t","data":1"#,
    r#""op":"publish","id":"b","ch":"devices/press-7/t","data":{"x":[1,2,"ü"]},"at":1.5"#,
    r#""op":"publish","id":"c","ch":"devices/press-8/t","data":null"#,
    r#""op":"publish","id":"c","ch":"devices/press-7","data":"\u0041\ud83d\ude00""#,
    r#""op":"subscribe","ch":"devices/press-7/#""#,
    r#""op":"subscribe","ch":"fleets/hall/+""#,
    r##""op":"subscribe","ch":"#""##,
    r#""op":"unsubscribe","ch":"fleets/hall/+""#,
    r#""op":"result","id":"c1","status":"ok""#,
    r#""op":"result","id":"c1","status":"error","data":[]"#,
    r#""op":"renew","csr":"-----BEGIN""#,
    r#""op":"reboot""#,
    r#""op":"publish","id":"a b","ch":"devices//t","data":1"#,
];

const MORE: [&str; 12] = [
    r#","more":1"#,
    r#","op":"hello""#,
    r#","s\u0065q":1"#,
    r#","data":{"a":1,"\u0061":2}"#,
    r#","data":"\u0000""#,
    r#","data":"\ud800""#,
    r#","data":1e999"#,
    r#","status":null"#,
    r#","at":1e3"#,
    r#","csr":7"#,
    r#","":0"#,
    r#","x":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]"#,
];

const HEADERS: [&str; 10] = [
    r#"{"kid":"1","alg":"HS256"}"#,
    r#" {"typ":"JWT","\u0061lg":"HS256","kid":"1"} "#,
    r#"{"alg":"none","kid":"1"}"#,
    r#"{"alg":"HS512","kid":"1"}"#,
    r#"{"alg":"HS256","kid":1}"#,
    r#"{"alg":"HS256","kid":"01"}"#,
    r#"{"alg":"HS256","kid":"1","kid":"1"}"#,
    r#"{"alg":"HS256","kid":"1","jku":"x"}"#,
    r#"{"alg":"HS256","kid":"1","typ":"jwt"}"#,
    r#"["HS256","1"]"#,
];

impl Play {
    /// A frame: what it says, whose key signs it, and what becomes of it on the way.
    pub(super) fn frame(&mut self, choices: &mut Choices<'_>) -> String {
        let mut text = self.text(choices);
        if choices.below(16) == 1 {
            splice(&mut text, choices);
        }
        let mut frame = match choices.below(24) {
            0 => key(2).sign(&text),
            1 => stranger(1).sign(&text),
            2 => stranger(9).sign(&text),
            3 => {
                let header = choices.one_of(&HEADERS);
                signed(header.as_bytes(), &text)
            }
            4 => {
                let header = choices.piece();
                signed(header, &text)
            }
            _ => key(1).sign(&text),
        };
        match choices.below(32) {
            0 => {
                let mut bytes = frame.into_bytes();
                splice(&mut bytes, choices);
                frame = String::from_utf8_lossy(&bytes).into_owned();
            }
            1 => frame.push_str(choices.one_of(&["=", ".", "A", " ", "\n"])),
            2 => frame.truncate(frame.len() / 2),
            3 => frame = "x".repeat(3000),
            4 => frame = frame.replacen('.', "..", 1),
            _ => {}
        }
        frame
    }

    fn text(&self, choices: &mut Choices<'_>) -> Vec<u8> {
        let (mut iss, mut aud, mut sid) = (DEVICE, "gateway", self.model.sid.as_str());
        let mut seq = (self.model.last + 1 + u64::try_from(choices.below(3)).unwrap_or(0)).to_string();
        let mut iat = self.now.wall.to_string();
        let operation = choices.one_of(&OPERATIONS);
        let mut more = "";
        let skew = self.model.max_skew;
        match choices.below(32) {
            0 => iss = choices.one_of(&["press-8", "gateway", "", "Press-7"]),
            1 => aud = choices.one_of(&["press-7", "Gateway", ""]),
            2 => sid = choices.one_of(&["", "AAAA", "c2lkLW9mLWFub3RoZXItc2Vzc2lvbg"]),
            3 | 4 => {
                let last = self.model.last;
                let near = [last, last.saturating_sub(1), 0, 1, (1 << 53) - 1, 1 << 53, last + (1 << 20)];
                seq = choices.one_of(&near).to_string();
                seq.push_str(choices.one_of(&["", "", "", ".0", "e0"]));
            }
            5 | 6 => {
                let off = skew + Duration::from_millis(choices.one_of(&[0, 1, 1_000, 3_600_000]));
                let wall = self.now.wall.as_duration();
                let off = if choices.below(2) == 0 { wall.saturating_sub(off) } else { wall + off };
                iat = NumericDate::since_epoch(off).to_string();
            }
            7 => iat = choices.one_of(&["-1", "1e9", "99999999999.9", "0.1234567890", "\"now\""]).to_owned(),
            8..=10 => more = choices.one_of(&MORE),
            11 => return [b"{".as_slice(), choices.piece(), b"}"].concat(),
            _ => {}
        }
        let space = choices.one_of(&["", "", "", " ", "\t\n"]);
        format!(
            r#"{space}{{"iss":"{iss}",{space}"aud":"{aud}","sid":"{sid}","seq":{seq},"iat":{iat},{operation}{more}}}{space}"#
        )
        .into_bytes()
    }
}

/// By the device's own key, whatever the header says.
pub(crate) fn signed(header: &[u8], payload: &[u8]) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let mut mac = Hmac::<Sha256>::new_from_slice(&[1; 32]).expect("any length");
    mac.update(text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// Puts bytes in the place of others.
fn splice(text: &mut Vec<u8>, choices: &mut Choices<'_>) {
    let at = usize::from(choices.byte()) * 4 % (text.len() + 1);
    let end = (at + choices.below(4)).min(text.len());
    text.splice(at..end, choices.piece().iter().copied());
}
