//! `examples/ws_echo.rs`: what conformance suites are pointed at is the gateway's own door, and nothing is left open for them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;

use doorward_proto::ids::DeviceId;
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

use super::frames::{CLOSE, CONTINUE, FIN, PING, TEXT, frame};
use crate::support::device::{Answer, Device, TLS13, UPGRADE, ask, problem_of, secure};
use crate::support::house::{Credentials, authorities, certify, within};

const BINARY: u8 = 2;

/// The example's process, and the folder that it has made.
struct Echo {
    child: Child,
    /// Kept open: it may have more to say.
    _said: BufReader<ChildStderr>,
    address: String,
    folder: TempDir,
}

fn command(folder: &Path) -> Command {
    // Examples are built with the tests, beside the binary.
    let built = Path::new(env!("CARGO_BIN_EXE_doorward")).parent().unwrap().join("examples/ws_echo");
    let mut command = Command::new(built);
    command.arg(folder).args(["--listen", "127.0.0.1:0"]).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Echo {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = command(&folder.path().join("echo")).args(more).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        lines.read_line(&mut said).unwrap();
        let address = said.strip_prefix("echoing on ").and_then(|rest| rest.split(": ").next());
        let address = address.unwrap_or_else(|| panic!("it does not listen: {said}")).to_owned();
        Self { child, _said: lines, address, folder }
    }

    fn client(&self, name: &str) -> PathBuf {
        self.folder.path().join("echo/client").join(name)
    }

    /// What it has for a suite.
    fn credentials(&self) -> Credentials {
        let chain = CertificateDer::pem_file_iter(self.client("device.crt")).unwrap();
        Credentials {
            id: DeviceId::new("suite").unwrap(),
            chain: chain.collect::<Result<_, _>>().unwrap(),
            key: PrivateKeyDer::from_pem_file(self.client("device.key")).unwrap(),
            hmac: [0; 32],
        }
    }

    async fn dial(&self, credentials: Option<&Credentials>) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.client("ca.crt")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(TLS13)
            .unwrap()
            .with_root_certificates(roots);
        let config = match credentials {
            Some(c) => builder.with_client_auth_cert(c.chain.clone(), c.key.clone_key()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        secure(TcpStream::connect(&self.address).await?, Arc::new(config)).await
    }

    /// A request's answer that is no upgrade.
    async fn ask(&self, credentials: Option<&Credentials>, request: &str) -> std::io::Result<Answer> {
        ask(&mut self.dial(credentials).await?, request).await
    }

    async fn connect(&self) -> Device {
        let credentials = self.credentials();
        let stream = self.dial(Some(&credentials)).await.unwrap();
        Device::upgrade_on(stream, &credentials, UPGRADE).await.unwrap()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn send(device: &mut Device, bytes: &[u8]) {
    let stream = device.ws.get_mut();
    within("sending bytes", async {
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
    })
    .await;
}

async fn hear(device: &mut Device) -> Message {
    within("what comes back", device.ws.next()).await.unwrap().unwrap()
}

#[tokio::test]
async fn who_would_not_get_a_session_gets_no_echo() {
    let echo = Echo::start(&[]);
    let alert = echo.ask(None, UPGRADE).await.expect_err("without a certificate").to_string();
    assert!(alert.contains("CertificateRequired"), "{alert}");
    let (_, elsewhere) = authorities("Echo issuing CA");
    let stranger = certify(&elsewhere, "suite", |_| {});
    let alert = echo.ask(Some(&stranger), UPGRADE).await.expect_err("of another CA").to_string();
    assert!(alert.contains("DecryptError"), "{alert}");
    let known = echo.credentials();
    for (request, status, problem) in [
        (UPGRADE.replace("/v1/device", "/"), 404, "not-found"),
        (UPGRADE.replace("Sec-WebSocket-Protocol: doorward.v1.jws\r\n", ""), 400, "malformed"),
        (UPGRADE.replace("Host: localhost", "Host: localhost\r\nOrigin: https://e.example"), 403, "origin"),
    ] {
        let answer = echo.ask(Some(&known), &request).await.unwrap();
        assert_eq!((answer.status, problem_of(&answer)), (status, problem.to_owned()));
    }
}

#[tokio::test]
async fn what_is_sent_comes_back() {
    let echo = Echo::start(&[]);
    let mut device = echo.connect().await;
    for message in [
        Message::text(""),
        Message::text("κόσμε"),
        Message::binary([0xfe; 126].to_vec()),
        // Over what a gateway takes by default.
        Message::binary(vec![7; 1 << 20]),
    ] {
        within("sending", device.ws.send(message.clone())).await.unwrap();
        assert_eq!(hear(&mut device).await, message);
    }
    // In parts, with a ping between them, of which one cuts a character in two.
    let parts = [
        frame(TEXT, &[0xce]),
        frame(CONTINUE, &[0xba]),
        frame(FIN | PING, b"there?"),
        frame(CONTINUE, b""),
        frame(FIN | CONTINUE, b"!"),
    ];
    send(&mut device, &parts.concat()).await;
    assert_eq!(hear(&mut device).await, Message::Pong(b"there?".to_vec().into()));
    assert_eq!(hear(&mut device).await, Message::text("κ!"));
    send(&mut device, &frame(FIN | CLOSE, &[0x0b, 0xb8, b'o', b'k'])).await;
    let Message::Close(Some(close)) = hear(&mut device).await else { panic!("a close") };
    assert_eq!(u16::from(close.code), 3000);
}

#[tokio::test]
async fn what_breaks_a_rule_is_closed_as_a_session_is() {
    let echo = Echo::start(&["--default-limits"]);
    for (bytes, code, rule) in [
        (frame(FIN | 0x40 | TEXT, b"hi"), 1002, "a reserved bit"),
        (frame(FIN | 3, b"hi"), 1002, "a reserved opcode"),
        (frame(PING, b"hi"), 1002, "a ping in fragments"),
        (frame(FIN | PING, &[0; 126]), 1002, "a long ping"),
        (frame(FIN | CONTINUE, b"hi"), 1002, "a continuation of nothing"),
        ([frame(BINARY, b"a"), frame(FIN | TEXT, b"b")].concat(), 1002, "a message within a message"),
        (frame(FIN | TEXT, &[0xed, 0xa0, 0x80]), 1007, "a surrogate"),
        (frame(TEXT, &[0xff]), 1007, "text that cannot become UTF-8 any more"),
        (frame(FIN | CLOSE, &[0x03, 0xed]), 1002, "a close with a code that never travels"),
        (frame(FIN | CLOSE, &[0x03, 0xe8, 0xff]), 1007, "a close whose words are not UTF-8"),
        ([frame(BINARY, &[0; 40_000]), frame(FIN, &[0; 30_000])].concat(), 1009, "a long message"),
        (frame(FIN | PING, b"").repeat(10_000), 4008, "a flood"),
    ] {
        let mut device = echo.connect().await;
        // A gateway that has closed meanwhile takes no more.
        let sent = async { device.ws.get_mut().write_all(&bytes).await };
        let _ = within("sending bytes", sent).await;
        let code_heard = loop {
            match hear(&mut device).await {
                Message::Pong(_) => {}
                Message::Close(frame) => break frame.map(|frame| u16::from(frame.code)),
                other => panic!("{rule}: {other:?}"),
            }
        };
        assert_eq!(code_heard, Some(code), "{rule}");
    }
}

#[tokio::test]
async fn who_is_revoked_is_echoed_no_more() {
    let echo = Echo::start(&[]);
    let mut device = echo.connect().await;
    let mut revoke = Command::new(env!("CARGO_BIN_EXE_doorward"));
    revoke.arg("--home").arg(echo.folder.path().join("echo/home")).env_remove("DATABASE_URL");
    let revoked = revoke.args(["device", "revoke", "suite", "--reason", "lost"]).output().unwrap();
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    let Message::Close(Some(close)) = hear(&mut device).await else { panic!("a close") };
    assert_eq!(u16::from(close.code), 4003);
    let answer = echo.ask(Some(&echo.credentials()), UPGRADE).await.unwrap();
    assert_eq!((answer.status, problem_of(&answer)), (403, "device-revoked".to_owned()));
}

#[test]
fn it_makes_its_own_folder_and_touches_none_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let ended = command(folder.path()).output().unwrap();
    let words = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success() && words.contains("exists already; name a folder"), "{words}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
