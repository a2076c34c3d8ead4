//! From HTTP to WebSocket: one request, judged in the order of docs/protocol.md §1, answered with 101 or with a problem
//! document (RFC 9457).

use std::str::FromStr;

use doorward_proto::ids::KeyVersion;
use doorward_proto::{PATH, SUBPROTOCOL};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::identity::{Denied, Problem};

/// The longest request head. A device's is about 300 bytes.
const MAX_HEAD: usize = 8 << 10;
/// The most header lines.
const MAX_HEADERS: usize = 48;
/// The most pieces that a head may come in. Each is parsed with what came before: one that drips costs the square of its length.
const MAX_PIECES: usize = 1024;

/// What matters of a request.
#[derive(Debug)]
pub(crate) struct Request {
    path: String,
    query: Option<String>,
    origin: Option<String>,
    upgrade: bool,
    version: Option<String>,
    key: Option<String>,
    subprotocol: bool,
}

/// A request that may be upgraded.
#[derive(Debug)]
pub(crate) struct Wanted {
    accept: String,
    /// The key version that the gateway is asked to sign with.
    pub(crate) key: Option<KeyVersion>,
}

/// Why no request came.
#[derive(Debug)]
pub(crate) enum HeadError {
    /// The peer went away, or the network did.
    Io(std::io::Error),
    /// What came is no request.
    Malformed(&'static str),
}

/// Reads a request's head; what came after it stays in `rest`.
pub(crate) async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    rest: &mut Vec<u8>,
) -> Result<Request, HeadError> {
    let mut head = Vec::with_capacity(1024);
    for _ in 0..MAX_PIECES {
        if stream.read_buf(&mut head).await.map_err(HeadError::Io)? == 0 {
            return Err(HeadError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(&head) {
            Ok(httparse::Status::Complete(length)) => {
                let request = Request::read(&parsed)?;
                rest.extend_from_slice(head.get(length..).unwrap_or_default());
                return Ok(request);
            }
            Ok(httparse::Status::Partial) if head.len() >= MAX_HEAD => {
                return Err(HeadError::Malformed("the request's head is longer than 8 KiB"));
            }
            Ok(httparse::Status::Partial) => {}
            Err(httparse::Error::TooManyHeaders) => {
                return Err(HeadError::Malformed("the request has more than 48 header lines"));
            }
            Err(_) => return Err(HeadError::Malformed("the request is not well-formed HTTP/1.1")),
        }
    }
    Err(HeadError::Malformed("the request comes in more than 1024 pieces"))
}

impl Request {
    fn read(parsed: &httparse::Request<'_, '_>) -> Result<Self, HeadError> {
        if parsed.version != Some(1) {
            return Err(HeadError::Malformed("the request is not HTTP/1.1"));
        }
        if parsed.method != Some("GET") {
            return Err(HeadError::Malformed("the method is not GET (RFC 6455 §4.1)"));
        }
        let target = parsed.path.unwrap_or_default();
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let named = |name: &'static str| {
            parsed.headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value)
        };
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(|text| text.trim().to_owned());
        // A header that may stand once and stands twice is read differently by different readers.
        let one = |name: &'static str| {
            let mut all = named(name);
            let first = all.next().map(text).transpose();
            match (first, all.next()) {
                (Ok(value), None) => Ok(value),
                _ => Err(HeadError::Malformed("a header stands twice or is not text")),
            }
        };
        let lists = |name: &'static str, wanted: &str| {
            named(name)
                .flat_map(|value| value.split(|b| *b == b','))
                .any(|item| item.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
        };
        if one("host")?.is_none() {
            return Err(HeadError::Malformed("the request names no host (RFC 9112 §3.2)"));
        }
        if named("content-length").any(|v| v.trim_ascii() != b"0")
            || named("transfer-encoding").next().is_some()
        {
            return Err(HeadError::Malformed("the request has a body"));
        }
        Ok(Self {
            path: path.to_owned(),
            query,
            origin: one("origin")?,
            upgrade: lists("upgrade", "websocket") && lists("connection", "upgrade"),
            version: one("sec-websocket-version")?,
            key: one("sec-websocket-key")?,
            // Subprotocol names are compared to the letter (RFC 6455 §1.9).
            subprotocol: named("sec-websocket-protocol")
                .flat_map(|value| value.split(|b| *b == b','))
                .any(|item| item.trim_ascii() == SUBPROTOCOL.as_bytes()),
        })
    }

    /// Everything that is judged after the identity: Origin, path, query, upgrade and version, subprotocol.
    pub(crate) fn judge(self, origins: &[String]) -> Result<Wanted, Denied> {
        if let Some(origin) = &self.origin
            && !origins.contains(origin)
        {
            return Err(Denied::new(
                Problem::Origin,
                "the Origin header is not one that this gateway lets in; devices send none",
            ));
        }
        if self.path != PATH {
            return Err(Denied::new(Problem::NotFound, format!("devices connect to {PATH}")));
        }
        let key = self.query.as_deref().map(read_query).transpose()?.flatten();
        if !self.upgrade {
            return Err(Denied::new(
                Problem::UpgradeRequired,
                "this is a WebSocket endpoint: ask for an upgrade to websocket",
            ));
        }
        if self.version.as_deref() != Some("13") {
            return Err(Denied::new(
                Problem::UpgradeRequired,
                "WebSocket version 13 is spoken here (RFC 6455)",
            ));
        }
        let malformed = |detail: &str| Denied::new(Problem::Malformed, detail);
        let Some(nonce) = self.key.filter(|key| is_nonce(key)) else {
            return Err(malformed("Sec-WebSocket-Key is missing or not 16 bytes in base64"));
        };
        if !self.subprotocol {
            return Err(malformed("Sec-WebSocket-Protocol does not offer doorward.v1.jws"));
        }
        Ok(Wanted { accept: derive_accept_key(nonce.as_bytes()), key })
    }
}

fn is_nonce(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok_and(|bytes| bytes.len() == 16)
}

/// `key=VERSION`, once, or nothing.
fn read_query(query: &str) -> Result<Option<KeyVersion>, Denied> {
    if query.is_empty() {
        return Ok(None);
    }
    match query.split_once('=') {
        Some(("key", version)) => KeyVersion::from_str(version)
            .map(Some)
            .map_err(|error| Denied::new(Problem::Malformed, format!("the parameter 'key': {error}"))),
        _ => Err(Denied::new(Problem::Malformed, "the one query parameter is 'key', a key version")),
    }
}

/// Answers 101.
pub(crate) async fn accept(stream: &mut (impl AsyncWrite + Unpin), wanted: &Wanted) -> std::io::Result<()> {
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n",
        wanted.accept
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await
}

/// Answers with a problem document. `instance` is the connection's correlation id.
pub(crate) async fn refuse(
    stream: &mut (impl AsyncWrite + Unpin),
    denied: &Denied,
    instance: &str,
    retry_after: Option<u64>,
) -> std::io::Result<()> {
    let status = denied.problem.status();
    let reason = match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        _ => "Service Unavailable",
    };
    let body = serde_json::json!({
        "type": format!("urn:doorward:problem:{}", denied.problem.label()),
        "title": reason,
        "status": status,
        "detail": denied.detail,
        "instance": instance,
    })
    .to_string();
    let mut more = String::new();
    if status == 426 {
        more.push_str("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n");
    }
    if let Some(seconds) = retry_after {
        more.push_str(&format!("Retry-After: {seconds}\r\n"));
    }
    let connection = if status == 426 { "Upgrade, close" } else { "close" };
    let answer = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
         Connection: {connection}\r\nCache-Control: no-store\r\n{more}\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /v1/device HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: a, doorward.v1.jws\r\n\r\n";

    fn judge(head: &str) -> Result<Wanted, (Problem, String)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut rest = Vec::new();
        match runtime.block_on(read_head(&mut head.as_bytes(), &mut rest)) {
            Ok(request) => request.judge(&[]).map_err(|denied| (denied.problem, denied.detail)),
            Err(HeadError::Malformed(why)) => Err((Problem::Malformed, why.to_owned())),
            Err(HeadError::Io(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn a_good_request_is_answered_as_in_rfc_6455() {
        assert_eq!(judge(GOOD).unwrap().accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let with_key = judge(&GOOD.replace("/v1/device", "/v1/device?key=2")).unwrap();
        assert_eq!(with_key.key.map(KeyVersion::get), Some(2));
    }

    /// What comes byte by byte.
    struct Dripping<'a>(&'a [u8]);

    impl AsyncRead for Dripping<'_> {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            if let Some((first, rest)) = self.0.split_first() {
                buffer.put_slice(&[*first]);
                self.0 = rest;
            }
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_head_may_drip_and_not_for_ever() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = |head: &str| {
            runtime.block_on(read_head(&mut Dripping(head.as_bytes()), &mut Vec::new())).map(drop)
        };
        read(GOOD).unwrap();
        let long = GOOD.replace("Host: x", &format!("Host: x\r\nX-Padding: {}", "x".repeat(1000)));
        let error = read(&long).unwrap_err();
        assert!(matches!(error, HeadError::Malformed(why) if why.contains("1024 pieces")), "{error:?}");
    }

    #[test]
    fn each_check_refuses_in_its_turn() {
        let other = |from: &str, to: &str| judge(&GOOD.replace(from, to)).unwrap_err().0;
        assert_eq!(other("GET", "POST"), Problem::Malformed);
        assert_eq!(other("HTTP/1.1", "HTTP/1.0"), Problem::Malformed);
        assert_eq!(other("Host: x\r\n", ""), Problem::Malformed);
        assert_eq!(other("Host: x", "Host: x\r\nHost: y"), Problem::Malformed);
        assert_eq!(other("Host: x", "Host: x\r\nContent-Length: 5"), Problem::Malformed);
        assert_eq!(other("Host: x", "Host: x\r\nOrigin: https://e.example"), Problem::Origin);
        assert_eq!(other("/v1/device", "/v2/device"), Problem::NotFound);
        assert_eq!(other("/v1/device", "/v1/device?key=0"), Problem::Malformed);
        assert_eq!(other("/v1/device", "/v1/device?token=1"), Problem::Malformed);
        assert_eq!(other("/v1/device", "/v1/device?key=1&key=2"), Problem::Malformed);
        assert_eq!(other("Upgrade: WebSocket\r\n", ""), Problem::UpgradeRequired);
        assert_eq!(other("Version: 13", "Version: 8"), Problem::UpgradeRequired);
        assert_eq!(other("dGhlIHNhbXBsZSBub25jZQ==", "short"), Problem::Malformed);
        assert_eq!(other("doorward.v1.jws", "mqtt"), Problem::Malformed);
        assert_eq!(other("doorward.v1.jws", "Doorward.v1.jws"), Problem::Malformed);
        let long = format!("Host: x\r\nX-Padding: {}", "x".repeat(9000));
        assert_eq!(other("Host: x", &long), Problem::Malformed);
    }
}
