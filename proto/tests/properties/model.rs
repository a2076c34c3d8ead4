//! What a gateway must make of a frame, written from docs/protocol.md alone: a second opinion on every verdict.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward_proto::limits::Rate;
use doorward_proto::time::{Moment, NumericDate};
use doorward_proto::verdict::Refusal;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::json::{self, Json, Kind};

/// What the gateway knows of a session, as far as verdicts depend on it.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) device: &'static str,
    pub(crate) sid: String,
    pub(crate) max_bytes: usize,
    pub(crate) max_skew: Duration,
    /// Versions, their bytes, and when they end.
    pub(crate) keys: Vec<(u32, [u8; 32], Option<NumericDate>)>,
    pub(crate) messages: Leaky,
    pub(crate) bytes: Leaky,
    /// Why the last frame was refused, where its verdict has several reasons.
    pub(crate) why: Option<&'static str>,
    pub(crate) last: u64,
    /// Its session can do nothing but renew.
    pub(crate) late: bool,
    /// Channels below these, and no others.
    pub(crate) publish_below: &'static [&'static str],
    /// What is published has a form: see [`fits_form`].
    pub(crate) formed: bool,
}

/// A leaky bucket: what comes fills it, and it runs out at its rate.
#[derive(Debug, Clone)]
pub(crate) struct Leaky {
    rate: Rate,
    /// How long it takes to run out, as of when.
    level: Duration,
    at: Duration,
}

impl Leaky {
    pub(crate) fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, level: Duration::ZERO, at: now }
    }

    fn time_of(&self, amount: u32) -> Duration {
        Duration::from_secs(1) * amount / self.rate.per_second
    }

    fn level(&self, now: Duration) -> Duration {
        self.level.saturating_sub(now.saturating_sub(self.at))
    }

    /// What is more than it holds fits into an empty one.
    fn has_room(&self, amount: u32, now: Duration) -> bool {
        let burst = self.rate.burst;
        self.level(now) + self.time_of(amount.min(burst)) <= self.time_of(burst)
    }

    fn fill(&mut self, amount: u32, now: Duration) {
        (self.level, self.at) = (self.level(now) + self.time_of(amount), now);
    }
}

/// What a fleet of these stories asks of `data`: on `…/t`, no object.
pub(crate) fn fits_form(channel: &str, data: &str) -> bool {
    !channel.ends_with("/t") || !matches!(json::read(data), Some(Json { kind: Kind::Object(_), .. }))
}

/// What a frame must come to, up to the rules that need to know what came before it.
#[derive(Debug, PartialEq)]
pub(crate) enum Expected {
    Refused(Refusal),
    /// It passed everything that is the same for all operations.
    Operation(Operation),
}

/// What a well-formed message asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Operation {
    Publish { id: String, channel: String, data: String },
    Subscribe(String),
    Unsubscribe(String),
    Renew,
    Other,
}

/// A judgement, and the `seq` that a reject must name. `None`: no word on that, where not even JSON was read.
#[derive(Debug)]
pub(crate) struct Judgement {
    pub(crate) expected: Expected,
    pub(crate) reference: Option<Option<u64>>,
}

fn no(refusal: Refusal, reference: Option<u64>) -> Judgement {
    Judgement { expected: Expected::Refused(refusal), reference: Some(reference) }
}

/// the payload, if a key that holds has signed it.
pub(crate) fn open(
    keys: &[(u32, [u8; 32], Option<NumericDate>)],
    frame: &str,
    now: NumericDate,
) -> Result<Vec<u8>, Refusal> {
    let parts: Vec<&str> = frame.split('.').collect();
    let [header, payload, signature] = parts.as_slice() else { return Err(Refusal::BadEnvelope) };
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::BadEnvelope);
    if header.len() > 256 {
        return Err(Refusal::BadEnvelope);
    }
    let (head, body, given) = (decode(header)?, decode(payload)?, decode(signature)?);
    let version = std::str::from_utf8(&head).ok().and_then(kid).ok_or(Refusal::BadEnvelope)?;
    let holds = |(of, _, end): &&(u32, [u8; 32], Option<NumericDate>)| {
        *of == version && end.is_none_or(|end| now < end)
    };
    let (_, key, _) = keys.iter().find(holds).ok_or(Refusal::BadKey)?;
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    mac.update(format!("{header}.{payload}").as_bytes());
    if given.as_slice() == mac.finalize().into_bytes().as_slice() {
        Ok(body)
    } else {
        Err(Refusal::BadSignature)
    }
}

/// The key version that a header names, if it is a header.
fn kid(text: &str) -> Option<u32> {
    let Kind::Object(members) = json::read(text)?.kind else { return None };
    let one = |name: &str| {
        let mut all = members.iter().filter(|(of, _)| of == name);
        let first = all.next();
        if all.next().is_some() { Err(()) } else { Ok(first.map(|(_, value)| value)) }
    };
    let known = members.iter().all(|(name, _)| ["alg", "kid", "typ"].contains(&name.as_str()));
    let alg = one("alg").ok()??.text()? == "HS256";
    let typ = one("typ").ok()?.is_none_or(|typ| typ.text() == Some("JWT"));
    let kid = one("kid").ok()??.text()?;
    let plain =
        matches!(kid.len(), 1..=9) && !kid.starts_with('0') && kid.bytes().all(|b| b.is_ascii_digit());
    if known && alg && typ && plain { kid.parse().ok() } else { None }
}

const CLAIMS: [&str; 6] = ["iss", "aud", "sid", "seq", "iat", "op"];
const MEMBERS: [&str; 6] = ["id", "ch", "data", "at", "status", "csr"];

impl Model {
    /// The verdict on a frame, and what it uses up.
    pub(crate) fn judge(&mut self, frame: &str, now: Moment) -> Judgement {
        self.why = None;
        match open(&self.keys, frame, now.wall) {
            Ok(payload) => self.judge_payload(&payload, frame.len(), now),
            Err(refusal) => no(refusal, None),
        }
    }

    fn judge_payload(&mut self, payload: &[u8], length: usize, now: Moment) -> Judgement {
        let unread = Judgement { expected: Expected::Refused(Refusal::BadMessage), reference: None };
        let Some(Json { kind: Kind::Object(members), .. }) =
            std::str::from_utf8(payload).ok().and_then(json::read)
        else {
            return unread;
        };
        let all =
            |name: &'static str| members.iter().filter(move |(of, _)| of == name).map(|(_, value)| value);
        let one = |name: &'static str| all(name).next();
        let seq = one("seq").filter(|_| all("seq").count() == 1).and_then(seq);
        let twice = CLAIMS.iter().chain(&MEMBERS).any(|name| all(name).count() > 1);
        if twice || members.iter().any(|(_, value)| value.doubtful || value.depth > 64) {
            return no(Refusal::BadMessage, seq);
        }
        let (Some(iss), Some(aud)) = (one("iss").and_then(Json::text), one("aud").and_then(Json::text))
        else {
            return no(Refusal::BadMessage, seq);
        };
        if (iss, aud) != (self.device, "gateway") {
            return no(Refusal::WrongParty, seq);
        }
        match one("sid").and_then(Json::text) {
            None => return no(Refusal::BadMessage, seq),
            Some(sid) if sid != self.sid => return no(Refusal::WrongSession, seq),
            Some(_) => {}
        }
        let Some(iat) = one("iat").and_then(|value| date(value.raw)) else {
            return no(Refusal::BadMessage, seq);
        };
        if iat.abs_diff(now.wall.as_duration()) > self.max_skew {
            return no(Refusal::Stale, seq);
        }
        let Some(number) = seq else { return no(Refusal::BadMessage, None) };
        if number <= self.last {
            return no(Refusal::Replayed, seq);
        }
        self.last = number;
        if !self.take(length, now.monotonic) {
            return no(Refusal::RateLimited, seq);
        }
        let named = |(name, _): &(String, Json<'_>)| CLAIMS.iter().chain(&MEMBERS).any(|known| known == name);
        let operation = match members.iter().all(named) {
            true => operation(&one),
            false => None,
        };
        let Some(operation) = operation else { return no(Refusal::BadMessage, seq) };
        let may = match &operation {
            Operation::Publish { channel, .. } => !self.late && below(self.publish_below, channel),
            Operation::Subscribe(_) | Operation::Unsubscribe(_) => !self.late,
            Operation::Renew => true,
            Operation::Other => !self.late || one("op").and_then(Json::text) == Some("hello"),
        };
        if !may {
            return no(Refusal::Forbidden, seq);
        }
        if let Operation::Publish { channel, data, .. } = &operation
            && self.formed
            && !fits_form(channel, data)
        {
            self.why = Some("of another form");
            return no(Refusal::BadMessage, seq);
        }
        Judgement { expected: Expected::Operation(operation), reference: Some(seq) }
    }

    /// A message counts for one and for its bytes; one that is over either rate counts for nothing.
    fn take(&mut self, length: usize, now: Duration) -> bool {
        let bytes = u32::try_from(length).expect("shorter than any limit");
        self.why = match (self.bytes.has_room(bytes, now), self.messages.has_room(1, now)) {
            (true, true) => None,
            (false, _) => Some("over its bytes"),
            (true, false) => Some("over its messages"),
        };
        if self.why.is_none() {
            self.messages.fill(1, now);
            self.bytes.fill(bytes, now);
        }
        self.why.is_none()
    }
}

fn operation<'a>(one: &impl Fn(&'static str) -> Option<&'a Json<'a>>) -> Option<Operation> {
    let has = |names: &[&'static str]| MEMBERS.iter().all(|name| one(name).is_none() || names.contains(name));
    let text = |name: &'static str| one(name).and_then(Json::text);
    let id = || {
        text("id").filter(|id| {
            matches!(id.len(), 1..=64)
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
        })
    };
    match text("op")? {
        "hello" => has(&[]).then_some(Operation::Other),
        "publish" => {
            let at = one("at").is_none_or(|at| date(at.raw).is_some());
            let channel = text("ch").filter(|channel| is_filter(channel, false))?;
            let publish = Operation::Publish {
                id: id()?.into(),
                channel: channel.into(),
                data: one("data")?.raw.into(),
            };
            (has(&["id", "ch", "data", "at"]) && at).then_some(publish)
        }
        word @ ("subscribe" | "unsubscribe") => {
            let filter = text("ch").filter(|filter| is_filter(filter, true) && has(&["ch"]))?.to_owned();
            Some(if word == "subscribe" {
                Operation::Subscribe(filter)
            } else {
                Operation::Unsubscribe(filter)
            })
        }
        "result" => {
            let status = matches!(text("status")?, "ok" | "error");
            (id().is_some() && status && has(&["id", "status", "data"])).then_some(Operation::Other)
        }
        "renew" => (text("csr").is_some() && has(&["csr"])).then_some(Operation::Renew),
        _ => None,
    }
}

/// `[1-9][0-9]{0,15}`, at most 2^53-1.
fn seq(value: &Json<'_>) -> Option<u64> {
    let plain = value.raw.len() <= 16 && value.raw.bytes().all(|b| b.is_ascii_digit());
    let number = value.raw.parse().ok().filter(|_| plain && !value.raw.starts_with('0'))?;
    (number < 1 << 53).then_some(number)
}

/// `[0-9]{1,11}` with up to nine decimals.
fn date(text: &str) -> Option<Duration> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits =
        |part: &str, most| (1..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole, 11) || !digits(decimals, 9) {
        return None;
    }
    Some(Duration::new(whole.parse().ok()?, format!("{decimals:0<9}").parse().ok()?))
}

///
pub(crate) fn is_filter(text: &str, wild: bool) -> bool {
    let levels: Vec<&str> = text.split('/').collect();
    let plain = |level: &str| {
        matches!(level.len(), 1..=64)
            && level.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    let fits = |(at, level): (usize, &&str)| {
        plain(level) || wild && (*level == "+" || *level == "#" && at + 1 == levels.len())
    };
    text.len() <= 255 && levels.len() <= 8 && levels.iter().enumerate().all(fits)
}

fn below(roots: &[&str], channel: &str) -> bool {
    roots
        .iter()
        .any(|root| channel.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}
