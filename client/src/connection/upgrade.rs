//! The upgrade request and its answer (RFC 6455 §4.1).
//!
//! tungstenite's own client hands over as much of a refusal's body as came with the head; the problem document may
//! come later, and `device-revoked` stands in it. So the answer is read here, to its end and no further.

use std::time::Duration;

use doorward_proto::SUBPROTOCOL;
use doorward_proto::ids::KeyVersion;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::error::{ConnectError, Phase, Problem, RefusedUpgrade};
use crate::target::Target;

const MAX_HEAD: usize = 16 * 1024;
const MAX_BODY: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// Sends the request and judges the answer. Gives what came after it: the first bytes of the first frame.
pub(super) async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    target: &Target,
    key: Option<KeyVersion>,
) -> Result<Vec<u8>, ConnectError> {
    let io = |error| ConnectError::from_io(Phase::Upgrade, error);
    let nonce = generate_key();
    let query = key.map(|version| format!("?key={version}")).unwrap_or_default();
    let request = format!(
        "GET {path}{query} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n",
        path = target.path(),
        host = target.authority(),
    );
    stream.write_all(request.as_bytes()).await.map_err(io)?;
    stream.flush().await.map_err(io)?;

    let mut bytes = Vec::with_capacity(1024);
    loop {
        if let Some(head) = Head::parse(&bytes)? {
            if head.status == 101 {
                head.check(&nonce)?;
                return Ok(bytes.split_off(head.length));
            }
            let body = read_body(stream, bytes.split_off(head.length), head.content_length).await;
            let problem = head.is_problem.then(|| serde_json::from_slice::<Problem>(&body).ok()).flatten();
            let (status, retry_after) = (head.status, head.retry_after);
            return Err(ConnectError::Refused(Box::new(RefusedUpgrade { status, problem, retry_after })));
        }
        if bytes.len() >= MAX_HEAD {
            return Err(ConnectError::Protocol(format!("its answer's head is longer than {MAX_HEAD} bytes")));
        }
        if stream.read_buf(&mut bytes).await.map_err(io)? == 0 {
            return Err(ConnectError::Network {
                phase: Phase::Upgrade,
                error: std::io::ErrorKind::UnexpectedEof.into(),
            });
        }
    }
}

/// As much as comes: a refusal without its words is still a refusal.
async fn read_body<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut body: Vec<u8>,
    length: Option<usize>,
) -> Vec<u8> {
    let wanted = length.unwrap_or(MAX_BODY).min(MAX_BODY);
    while body.len() < wanted {
        if !matches!(stream.read_buf(&mut body).await, Ok(1..)) {
            break;
        }
    }
    body.truncate(wanted);
    body
}

/// What of the answer's head matters.
struct Head {
    length: usize,
    status: u16,
    content_length: Option<usize>,
    retry_after: Option<Duration>,
    is_problem: bool,
    upgrade: bool,
    connection: bool,
    extensions: bool,
    accept: Option<String>,
    protocol: Option<String>,
}

impl Head {
    /// `None` until all of it has come.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, ConnectError> {
        let no = |error: httparse::Error| ConnectError::Protocol(format!("its answer is not HTTP: {error}"));
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = response.parse(bytes).map_err(no)? else {
            return Ok(None);
        };
        let text = |name: &str| {
            let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok().map(str::trim)
        };
        let has = |name: &str, word: &str| {
            text(name).is_some_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(word)))
        };
        let problem = "application/problem+json";
        Ok(Some(Self {
            length,
            status: response.code.unwrap_or(0),
            content_length: text("content-length").and_then(|text| text.parse().ok()),
            retry_after: text("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs),
            is_problem: text("content-type").is_some_and(|kind| {
                kind.get(..problem.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(problem))
            }),
            upgrade: has("upgrade", "websocket"),
            connection: has("connection", "upgrade"),
            extensions: text("sec-websocket-extensions").is_some_and(|list| !list.is_empty()),
            accept: text("sec-websocket-accept").map(str::to_owned),
            protocol: text("sec-websocket-protocol").map(str::to_owned),
        }))
    }

    /// RFC 6455 §4.1: what a client must see before it believes a 101.
    fn check(&self, nonce: &str) -> Result<(), ConnectError> {
        let no = |what: &str| Err(ConnectError::Protocol(format!("its 101 {what}")));
        if !self.upgrade || !self.connection {
            return no("does not upgrade to websocket");
        }
        if self.accept.as_deref() != Some(&derive_accept_key(nonce.as_bytes())) {
            return no("has another Sec-WebSocket-Accept than this request asks for");
        }
        if self.extensions {
            return no("names extensions that nobody asked for");
        }
        if self.protocol.as_deref() != Some(SUBPROTOCOL) {
            return no("does not echo the subprotocol doorward.v1.jws");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(parts: &[&str]) -> Result<Vec<u8>, ConnectError> {
        let target = Target::parse("wss://localhost").unwrap();
        let (mut device, mut gateway) = tokio::io::duplex(4096);
        let parts: Vec<String> = parts.iter().map(|&part| part.to_owned()).collect();
        let server = tokio::spawn(async move {
            let mut request = vec![0; 4096];
            let read = gateway.read(&mut request).await.unwrap();
            let request = String::from_utf8(request[..read].to_vec()).unwrap();
            let nonce =
                request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap().to_owned();
            for part in parts {
                let part = part.replace("ACCEPT", &derive_accept_key(nonce.as_bytes()));
                gateway.write_all(part.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let result = upgrade(&mut device, &target, None).await;
        server.await.unwrap();
        result
    }

    const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                          Sec-WebSocket-Accept: ACCEPT\r\n";

    #[tokio::test]
    async fn an_upgrade_keeps_the_first_frames_bytes() {
        let protocol = "Sec-WebSocket-Protocol: doorward.v1.jws\r\n\r\nframe";
        assert_eq!(answered(&[SWITCH, protocol]).await.unwrap(), b"frame");
    }

    #[tokio::test]
    async fn an_upgrade_that_is_not_ours_is_refused() {
        for rest in [
            "\r\n",
            "Sec-WebSocket-Protocol: other\r\n\r\n",
            "Sec-WebSocket-Protocol: doorward.v1.jws\r\nSec-WebSocket-Extensions: x\r\n\r\n",
        ] {
            assert!(matches!(answered(&[SWITCH, rest]).await, Err(ConnectError::Protocol(_))), "{rest}");
        }
        let other = SWITCH.replace("ACCEPT", "AAAA");
        assert!(matches!(
            answered(&[&other, "Sec-WebSocket-Protocol: doorward.v1.jws\r\n\r\n"]).await,
            Err(ConnectError::Protocol(_))
        ));
        assert!(matches!(answered(&["SSH-2.0\r\n\r\n"]).await, Err(ConnectError::Protocol(_))));
        assert!(matches!(answered(&[]).await, Err(ConnectError::Network { .. })));
    }

    #[tokio::test]
    async fn a_refusal_is_read_to_its_end() {
        let body = r#"{"type":"urn:doorward:problem:device-revoked","title":"revoked","status":403,"detail":"d","instance":"i"}"#;
        let head = format!(
            "HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\nRetry-After: 7\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let (first, second) = body.split_at(20);
        let error = answered(&[&head, first, second]).await.unwrap_err();
        let ConnectError::Refused(refused) = error else { panic!("{error}") };
        assert!(refused.is_final());
        assert_eq!(refused.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(refused.problem.as_ref().map(Problem::word), Some("device-revoked"));
        let error = answered(&["HTTP/1.1 403 Forbidden\r\n\r\n"]).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused(refused) if !refused.is_final()));
    }
}
