//! A device made by hand: its TLS, its upgrade request and its messages are as good or as odd as a test wants.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward::clock;
use doorward_proto::ids::KeyVersion;
use doorward_proto::key::Key;
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::house::{Credentials, House, within};

/// A good upgrade request.
pub(crate) const UPGRADE: &str = "GET /v1/device HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: doorward.v1.jws\r\n\r\n";

pub(crate) const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// A response that is no upgrade.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&str| line.split(':').next().is_some_and(|n| n.eq_ignore_ascii_case(name));
        Some(self.head.lines().find(named)?.split_once(':')?.1.trim())
    }

    /// The problem document.
    pub(crate) fn problem(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no problem document: {self:?}"))
    }
}

/// What a device offers in TLS.
pub(crate) fn tls(
    house: &House,
    credentials: Option<&Credentials>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(house.root.certificate_der().to_vec().into()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match credentials {
        Some(c) => builder.with_client_auth_cert(c.chain.clone(), c.key.clone_key()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// TCP and TLS. A refusal of the certificate comes with the first read in TLS 1.3.
pub(crate) async fn dial(house: &House, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(house.address).await?;
    secure(tcp, config).await
}

/// TCP from an address of 127.0.0.0/8.
pub(crate) async fn tcp_from(house: &House, source: [u8; 4]) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(house.address).await
}

/// TLS on a connection that is there.
pub(crate) async fn secure(tcp: TcpStream, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    within("the TLS handshake", TlsConnector::from(config).connect(name, tcp)).await
}

/// Sends a request and reads to the end.
pub(crate) async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> io::Result<Answer> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut text = String::new();
    within("the answer", stream.read_to_string(&mut text)).await?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// A new connection's answer to a request.
pub(crate) async fn request(house: &House, credentials: &Credentials, request: &str) -> io::Result<Answer> {
    let mut stream = dial(house, Arc::new(tls(house, Some(credentials), TLS13))).await?;
    ask(&mut stream, request).await
}

/// The refusal of a good request.
pub(crate) async fn refused(house: &House, credentials: &Credentials) -> Answer {
    request(house, credentials, UPGRADE).await.unwrap()
}

/// The last part of the problem's type.
pub(crate) fn problem_of(answer: &Answer) -> String {
    answer.problem()["type"].as_str().unwrap().strip_prefix("urn:doorward:problem:").unwrap().to_owned()
}

/// What came.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A message of the gateway, verified.
    Message(Value),
    /// A close frame's code, or no close frame.
    Closed(Option<u16>),
}

/// A device with a WebSocket.
pub(crate) struct Device {
    pub(crate) ws: WebSocketStream<TlsStream<TcpStream>>,
    pub(crate) credentials: Credentials,
    pub(crate) sid: Value,
    /// The last `seq` that was used.
    pub(crate) seq: u64,
    pub(crate) signer: Key,
    heard: u64,
    /// The keys that the gateway may sign with.
    verifiers: Vec<(KeyVersion, hmac::Key)>,
}

impl Device {
    /// Upgraded; nothing has been read yet.
    pub(crate) async fn upgrade(house: &House, credentials: &Credentials, request: &str) -> Self {
        let stream = dial(house, Arc::new(tls(house, Some(credentials), TLS13))).await.unwrap();
        Self::upgrade_on(stream, credentials, request).await.unwrap()
    }

    /// Welcomed and proven, on a connection that is there.
    pub(crate) async fn prove_on(
        house: &House,
        tcp: TcpStream,
        credentials: &Credentials,
    ) -> io::Result<Self> {
        let stream = secure(tcp, Arc::new(tls(house, Some(credentials), TLS13))).await?;
        let mut device = Self::upgrade_on(stream, credentials, UPGRADE).await?;
        device.expect("welcome").await;
        device.hello().await;
        Ok(device)
    }

    /// Upgraded on a stream that is there; the error has the words of the refusal.
    pub(crate) async fn upgrade_on(
        mut stream: TlsStream<TcpStream>,
        credentials: &Credentials,
        request: &str,
    ) -> io::Result<Self> {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = within("the answer to the upgrade", stream.read_u8()).await?;
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        if !head.starts_with("HTTP/1.1 101 ") {
            let mut body = String::new();
            within("the refusal's words", stream.read_to_string(&mut body)).await?;
            return Err(io::Error::other(head + &body));
        }
        let accept = derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert!(head.contains(&format!("Sec-WebSocket-Accept: {accept}\r\n")), "{head}");
        assert!(head.contains("Sec-WebSocket-Protocol: doorward.v1.jws\r\n"), "{head}");
        let ws = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
        Ok(Self {
            ws,
            credentials: credentials.clone(),
            sid: Value::Null,
            seq: 0,
            signer: credentials.signer(),
            heard: 0,
            verifiers: vec![(
                credentials.signer().version(),
                hmac::Key::new(hmac::HMAC_SHA256, &credentials.hmac),
            )],
        })
    }

    /// Upgraded and welcomed; not proven.
    pub(crate) async fn connect(house: &House, credentials: &Credentials) -> Self {
        let mut device = Self::upgrade(house, credentials, UPGRADE).await;
        device.expect("welcome").await;
        device
    }

    /// Welcomed and proven.
    pub(crate) async fn prove(house: &House, credentials: &Credentials) -> Self {
        let mut device = Self::connect(house, credentials).await;
        device.hello().await;
        device
    }

    /// `hello`, acked.
    pub(crate) async fn hello(&mut self) {
        let seq = self.say(json!({ "op": "hello" })).await;
        self.acked(seq).await;
    }

    /// The claims of the next message, with an operation's members.
    pub(crate) fn claims(&mut self, members: Value) -> Value {
        self.seq += 1;
        let mut claims = json!({
            "iss": self.credentials.id, "aud": "gateway", "sid": self.sid, "seq": self.seq, "iat": clock::now().wall,
        });
        let Value::Object(members) = members else { panic!("members are an object") };
        claims.as_object_mut().unwrap().extend(members);
        claims
    }

    /// Signs and sends an operation; its `seq`.
    pub(crate) async fn say(&mut self, members: Value) -> u64 {
        let claims = self.claims(members);
        self.send(&claims.to_string()).await;
        self.seq
    }

    /// Signs and sends a payload.
    pub(crate) async fn send(&mut self, payload: &str) {
        let frame = self.signer.sign(payload.as_bytes());
        self.send_frame(Message::text(frame)).await;
    }

    /// Sends a frame. A gateway that has closed meanwhile is for the reader to find out.
    pub(crate) async fn send_frame(&mut self, frame: Message) {
        let _ = within("sending a frame", self.ws.send(frame)).await;
    }

    /// Publishes on a channel of this device's own; the `seq`.
    pub(crate) async fn publish(&mut self, id: &str, data: Value) -> u64 {
        let members = self.to_publish(id, data);
        self.say(members).await
    }

    pub(crate) fn to_publish(&self, id: &str, data: Value) -> Value {
        let ch = format!("devices/{}/t", self.credentials.id);
        json!({ "op": "publish", "id": id, "ch": ch, "data": data })
    }

    /// Many messages in one write.
    pub(crate) async fn say_at_once(&mut self, all: Vec<Value>) {
        for members in all {
            let claims = self.claims(members);
            let frame = self.signer.sign(claims.to_string().as_bytes());
            within("queueing a frame", self.ws.feed(Message::text(frame))).await.unwrap();
        }
        within("sending frames", self.ws.flush()).await.unwrap();
    }

    /// The next message, or the end.
    pub(crate) async fn next(&mut self) -> Heard {
        loop {
            let frame = within("a frame of the gateway", self.ws.next()).await;
            return match frame {
                Some(Ok(Message::Text(text))) => Heard::Message(self.verify(&text)),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(frame))) => {
                    self.hang_up().await;
                    Heard::Closed(frame.map(|frame| frame.code.into()))
                }
                Some(Ok(other)) => panic!("the gateway sends text alone, and this is {other:?}"),
                Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) | None => Heard::Closed(None),
                Some(Err(error)) => panic!("the connection broke: {error}"),
            };
        }
    }

    /// Answers a close and closes, as RFC 6455 §7.1.1 wants it.
    async fn hang_up(&mut self) {
        let goodbye = async {
            while let Some(Ok(_)) = self.ws.next().await {}
            let _ = self.ws.get_mut().shutdown().await;
        };
        within("the end of the connection", goodbye).await;
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn hears_nothing(&mut self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.next()).await.is_err()
    }

    /// The next message, which has this `op`.
    pub(crate) async fn expect(&mut self, op: &str) -> Value {
        match self.next().await {
            Heard::Message(message) if message["op"] == op => message,
            other => panic!("expected '{op}', and this came: {other:?}"),
        }
    }

    /// Reads acks until one covers `seq`. That its certificate grows old it may be told meanwhile.
    pub(crate) async fn acked(&mut self, seq: u64) {
        loop {
            let ack = match self.next().await {
                Heard::Message(message) if message["op"] == "rotate" => continue,
                Heard::Message(message) if message["op"] == "ack" => message,
                other => panic!("expected 'ack', and this came: {other:?}"),
            };
            if ranges(&ack).iter().any(|(first, last)| (*first..=*last).contains(&seq)) {
                return;
            }
        }
    }

    /// The next message is a reject: its `ref`, `error` and `retry_after`.
    pub(crate) async fn rejected(&mut self) -> (Value, String, Value) {
        let reject = self.expect("reject").await;
        assert!(reject["detail"].as_str().is_some_and(|words| !words.is_empty()), "{reject}");
        (reject["ref"].clone(), reject["error"].as_str().unwrap().to_owned(), reject["retry_after"].clone())
    }

    /// Reads to the close frame: its code, and the messages before it.
    pub(crate) async fn until_closed(&mut self) -> (Option<u16>, Vec<Value>) {
        let mut messages = Vec::new();
        loop {
            match self.next().await {
                Heard::Message(message) => messages.push(message),
                Heard::Closed(code) => return (code, messages),
            }
        }
    }

    /// The session ends with a `bye` and this code; the `retry_after`.
    pub(crate) async fn closed_with_bye(&mut self, code: u16) -> Value {
        let (closed, messages) = self.until_closed().await;
        assert_eq!(closed, Some(code), "{messages:?}");
        let bye = messages.last().unwrap_or_else(|| panic!("no bye before {code}"));
        assert_eq!(bye["op"], "bye", "the last message before {code}");
        assert!(bye["reason"].as_str().is_some_and(|words| !words.is_empty()), "{bye}");
        bye["retry_after"].clone()
    }

    /// What a device checks, by means of its own.
    fn verify(&mut self, frame: &str) -> Value {
        let (signed, signature) = frame.rsplit_once('.').unwrap();
        let (header, payload) = signed.split_once('.').unwrap();
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
        let header: Value = serde_json::from_slice(&decode(header)).unwrap();
        let kid: KeyVersion = header["kid"].as_str().unwrap().parse().unwrap();
        assert_eq!(header, json!({ "alg": "HS256", "kid": kid.to_string() }));
        let held = self.verifiers.iter().find(|(version, _)| *version == kid);
        let (_, key) = held.unwrap_or_else(|| panic!("signed with key {kid}, which is not expected"));
        hmac::verify(key, signed.as_bytes(), &decode(signature)).expect("the gateway's signature fits");
        let message: Value = serde_json::from_slice(&decode(payload)).unwrap();
        assert_eq!((&message["iss"], &message["aud"]), (&json!("gateway"), &json!(self.credentials.id)));
        let seq = message["seq"].as_u64().unwrap();
        assert!(seq > self.heard, "seq {seq} after {}", self.heard);
        self.heard = seq;
        if self.sid.is_null() {
            assert_eq!(message["op"], "welcome", "the first message");
            self.sid = message["sid"].clone();
        }
        assert_eq!(message["sid"], self.sid);
        message
    }

    /// Verifies with another of the device's keys, and signs with it.
    pub(crate) fn use_key(&mut self, key: Key, bytes: &[u8; 32]) {
        self.verifiers.clear();
        self.hold_key(key, bytes);
    }

    /// Signs with another of the device's keys; the gateway may, and may still use those before.
    pub(crate) fn hold_key(&mut self, key: Key, bytes: &[u8; 32]) {
        self.verifiers.push((key.version(), hmac::Key::new(hmac::HMAC_SHA256, bytes)));
        self.signer = key;
    }
}

/// The ranges of an ack.
pub(crate) fn ranges(ack: &Value) -> Vec<(u64, u64)> {
    serde_json::from_value(ack["acks"].clone()).unwrap()
}
