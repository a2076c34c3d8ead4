//! One connection of the gateway for tests.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward_client::clock;
use doorward_proto::close::Close;
use doorward_proto::downlink::Message as Published;
use doorward_proto::ids::FleetId;
use doorward_proto::key::Keyring;
use doorward_proto::limits::{Limits, Rate};
use doorward_proto::policy::Policy;
use doorward_proto::session::{Durable, Grant, Output, Receipt, Session};
use doorward_proto::time::{Moment, NumericDate};
use doorward_proto::verdict::{Refusal, Verdict};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::renewal::TurnAway;
use super::{Fault, Shared};

const POLICY: &str = r#"{"allow":[{"actions":["publish"],"channels":["devices/${device}/#"]},
    {"actions":["subscribe"],"channels":["devices/${device}/#","fleets/${fleet}/#"]}]}"#;

/// The test's store keeps everything in memory: durable enough for a test.
struct Kept(Receipt);

impl Durable for Kept {
    fn into_receipt(self) -> Receipt {
        self.0
    }
}

/// Frames from a peer; a message of more than this is too big.
const LONGEST: usize = 64 * 1024;
/// A peer that takes nothing for so long is too slow.
const TOO_SLOW: Duration = Duration::from_secs(1);

pub async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let patience = match shared.setup.fault {
        Fault::WaitForHandshakes => Duration::from_secs(3600),
        _ => shared.setup.handshake_within,
    };
    if let Ok(Some(serving)) = tokio::time::timeout(patience, admit(tcp, acceptor, shared)).await {
        serving.run().await;
    }
}

async fn admit(tcp: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) -> Option<Serving> {
    let tls = acceptor.accept(tcp).await.ok()?;
    let leaf = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let known = shared.renewals.whose(&leaf);
    let anybody = (shared.setup.fault == Fault::AnyCertificate).then_some((0, 0));
    let (device, generation) = known.or(anybody)?;
    let turns_away = shared.renewals.turns_away(device, generation);
    let again = shared.unproven.lock().unwrap().contains_key(shared.records[device].id.as_str());
    if turns_away == Some(TurnAway::HangUp) || again && shared.setup.fault == Fault::OnceOnly {
        return None;
    }
    let revoked = shared.revoked.lock().unwrap().contains(shared.records[device].id.as_str());
    let mut holds_second = false;
    #[expect(clippy::result_large_err, reason = "tungstenite's own type")]
    let judge = |request: &Request, mut response: Response| {
        let refuse = |status: u16, word: &str| {
            let mut response = ErrorResponse::new(Some(format!(
                r#"{{"type":"urn:doorward:problem:{word}","title":"{word}","status":{status},"detail":"said the test","instance":"i-1"}}"#
            )));
            *response.status_mut() = status.try_into().unwrap();
            let headers = response.headers_mut();
            headers.insert("content-type", "application/problem+json".parse().unwrap());
            if !word.starts_with("certificate-") {
                headers.insert("retry-after", "1".parse().unwrap());
            }
            Err(response)
        };
        if revoked {
            return refuse(403, "device-revoked");
        }
        if let Some(TurnAway::Problem(status, word)) = turns_away {
            return refuse(status, word);
        }
        if request.uri().path() != doorward_proto::PATH {
            return refuse(404, "not-found");
        }
        holds_second = request.uri().query() == Some("key=2");
        let protocol = request.headers().get("sec-websocket-protocol").and_then(|value| value.to_str().ok());
        if protocol != Some(doorward_proto::SUBPROTOCOL) {
            return refuse(400, "malformed");
        }
        response.headers_mut().insert("sec-websocket-protocol", doorward_proto::SUBPROTOCOL.parse().unwrap());
        Ok(response)
    };
    let longest = if shared.setup.fault == Fault::AnySize { 64 << 20 } else { LONGEST };
    let config = WebSocketConfig::default().max_message_size(Some(longest)).max_frame_size(Some(longest));
    let socket = tokio_tungstenite::accept_hdr_async_with_config(tls, judge, Some(config)).await.ok()?;
    Some(Serving::new(socket, shared, (device, generation), holds_second))
}

struct Serving {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    shared: Arc<Shared>,
    device: usize,
    generation: usize,
    id: String,
    grant: Grant,
    session: Session,
    number: usize,
    messages: usize,
    subscribed: Vec<doorward_proto::channel::Filter>,
}

impl Serving {
    fn new(
        socket: WebSocketStream<TlsStream<TcpStream>>,
        shared: Arc<Shared>,
        by: (usize, usize),
        holds_second: bool,
    ) -> Self {
        let (device, generation) = by;
        let record = &shared.records[device];
        let mut keyring = Keyring::default();
        keyring.add(record.key.clone(), None);
        let setup = &shared.setup;
        let grant = Grant {
            device: record.id.clone(),
            fleet: FleetId::new("hall").unwrap(),
            keyring,
            signer: record.key.clone(),
            policy: Arc::new(Policy::parse(POLICY).unwrap()),
            schemas: None,
            limits: Limits {
                max_message_bytes: 64 * 1024,
                max_skew: Duration::from_secs(60),
                heartbeat: setup.heartbeat,
                rate: setup.rate,
                // Nobody is held back by it: what is done about readers who do not read has to do without.
                bytes: Rate { per_second: 64 << 20, burst: 1 << 30 },
                ..Limits::default()
            },
            certificate_expires: NumericDate::from_seconds(4_000_000_000),
            grace_ends: None,
            renew_from: None,
            rotate_by: None,
            late: false,
            pending: None,
        };
        let now = clock::now();
        let grant = shared.renewals.grant(grant, by, holds_second, now);
        let session =
            Session::open(grant.clone(), Arc::clone(&shared.settings), fastrand::u128(..).to_be_bytes(), now);
        let id = record.id.to_string();
        let number = shared.sessions.fetch_add(1, Ordering::SeqCst) + 1;
        // The newer unproven session wins.
        shared.unproven.lock().unwrap().insert(id.clone(), number);
        if shared.setup.fault == Fault::UnprovenTakesOver {
            shared.generations.lock().unwrap().insert(id.clone(), number);
        }
        Self {
            socket,
            shared,
            device,
            generation,
            id,
            grant,
            session,
            number,
            messages: 0,
            subscribed: Vec::new(),
        }
    }

    async fn run(mut self) {
        let mut orders = self.shared.orders.subscribe();
        let mut rotations = self.shared.rotations.subscribe();
        let mut published = self.shared.published.subscribe();
        let mut tick = tokio::time::interval(Duration::from_millis(if self.shared.setup.devices > 100 {
            2000
        } else {
            50
        }));
        loop {
            if !self.outputs(false).await {
                let _ = self.socket.flush().await;
                // As the peer's close comes back, so that ours is not lost to a reset.
                let drained = async { while let Some(Ok(_)) = self.socket.next().await {} };
                let _ = tokio::time::timeout(Duration::from_secs(2), drained).await;
                return;
            }
            match tokio::time::timeout(TOO_SLOW, self.socket.flush()).await {
                Ok(Ok(())) => {}
                Err(_) if self.shared.setup.fault == Fault::WaitForReaders => {
                    // For as long as it likes, and with all that it is owed in memory.
                    let _ = self.socket.flush().await;
                    return std::future::pending().await;
                }
                Ok(Err(_)) | Err(_) => return,
            }
            tokio::select! {
                frame = self.socket.next() => match frame {
                    Some(Ok(Message::Text(text))) => self.frame(&text).await,
                    Some(Err(WsError::Capacity(_))) => {
                        let (code, reason) = (Close::TooBig.code().into(), Close::TooBig.reason().into());
                        let _ = self.socket.close(Some(CloseFrame { code, reason })).await;
                        // Bytes left unread would turn the close into a reset.
                        let unread = async {
                            let mut bytes = vec![0; 64 * 1024];
                            while self.socket.get_mut().read(&mut bytes).await.is_ok_and(|count| count > 0) {}
                        };
                        let _ = tokio::time::timeout(Duration::from_secs(2), unread).await;
                        return;
                    }
                    Some(Ok(Message::Close(_))) | None | Some(Err(_)) => return,
                    Some(Ok(_)) => self.session.heard(clock::now()),
                },
                Ok((device, close)) = orders.recv() => if device == self.id {
                    self.session.end(close, Some(0).filter(|_| close == Close::GoingAway), clock::now());
                },
                Ok(message) = published.recv(), if !self.subscribed.is_empty() => {
                    if self.subscribed.iter().any(|filter| filter.matches(&message.ch)) {
                        self.session.deliver(&message, clock::now());
                    }
                }
                Ok(()) = rotations.recv() => {
                    let renew_from = Some(NumericDate::default());
                    self.session.update(Grant { renew_from, ..self.grant.clone() }, clock::now());
                }
                _ = tick.tick() => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        let now = clock::now();
        let superseded =
            self.shared.generations.lock().unwrap().get(&self.id).is_some_and(|n| *n > self.number);
        if superseded && (self.session.is_proven() || self.shared.setup.fault == Fault::UnprovenTakesOver) {
            self.session.end(Close::Superseded, None, now);
        }
        let newer = self.shared.unproven.lock().unwrap().get(&self.id).is_some_and(|n| *n > self.number);
        if !self.session.is_proven() && newer {
            self.session.end(Close::Unproven, None, now);
        }
        if self.session.is_proven() || self.shared.setup.fault != Fault::KeepUnproven {
            self.session.tick(now);
        }
    }

    async fn frame(&mut self, text: &str) {
        if self.shared.setup.fault == Fault::AnySize && text.len() > LONGEST {
            return;
        }
        let mut now = clock::now();
        if self.shared.setup.fault == Fault::IgnoreTime {
            let iat = claims(text).and_then(|claims| claims["iat"].as_f64()).unwrap_or_default();
            now.wall = NumericDate::since_epoch(Duration::from_secs_f64(iat));
        }
        let verdict = self.session.receive(text, now);
        if let (Verdict::Refused(_), Fault::AckRefused) = (verdict, self.shared.setup.fault) {
            self.ack_anyway(text, now).await;
        }
    }

    /// The session's refusal is thrown away and an ack of our own goes out.
    async fn ack_anyway(&mut self, text: &str, now: Moment) {
        while self.session.poll().is_some() {}
        let seq = claims(text).and_then(|claims| claims["seq"].as_u64()).unwrap_or(1);
        let ack = serde_json::json!({
            "iss": "gateway", "aud": self.id, "sid": "-", "seq": 9999, "iat": now.wall, "op": "ack", "acks": [[seq, seq]],
        });
        let frame = self.shared.records[self.device].key.sign(ack.to_string().as_bytes());
        let _ = self.socket.send(Message::text(frame)).await;
    }

    /// `false` at the end.
    async fn outputs(&mut self, mut closed: bool) -> bool {
        loop {
            while let Some(output) = self.session.poll() {
                match output {
                    Output::Send(frame) => drop(self.socket.feed(Message::text(frame)).await),
                    Output::Proven => {
                        self.shared.generations.lock().unwrap().insert(self.id.clone(), self.number);
                        self.shared.renewals.proven(self.device, self.generation);
                    }
                    Output::Confirmed(_) => self.shared.renewals.rekeyed(self.device),
                    Output::Renew { reference, csr } => {
                        let device = (self.device, &*self.id);
                        self.shared.renewals.answer(&mut self.session, device, reference, &csr, clock::now());
                    }
                    Output::Store(accepted) => self.store(accepted),
                    Output::Subscribe(filter) => self.subscribed.push(filter),
                    Output::Unsubscribe(filter) => self.subscribed.retain(|kept| *kept != filter),
                    Output::Ping => drop(self.socket.feed(Message::Ping(Vec::new().into())).await),
                    Output::Close(close) => {
                        let frame = CloseFrame { code: close.code().into(), reason: close.reason().into() };
                        let _ = self.socket.feed(Message::Close(Some(frame))).await;
                        closed = true;
                    }
                }
            }
            self.session.flush(clock::now());
            let more = self.session.poll();
            match more {
                Some(Output::Send(frame)) => drop(self.socket.feed(Message::text(frame)).await),
                Some(_) | None => return !closed,
            }
        }
    }

    fn store(&mut self, accepted: doorward_proto::session::Accepted) {
        let (publish, receipt) = accepted.into_parts();
        self.messages += 1;
        let now = clock::now();
        let key = (publish.device.to_string(), publish.id.to_string());
        let times = *self.shared.stored.lock().unwrap().entry(key).and_modify(|n| *n += 1).or_insert(1);
        if times == 1 {
            self.shared.values.lock().unwrap().push(publish.data.to_string());
        }
        if self.shared.deaf.load(Ordering::SeqCst) {
            return;
        }
        match self.shared.setup.fault {
            Fault::ForgetEvery(n) if self.messages.is_multiple_of(n) => return,
            Fault::ForbidEvery(n) if self.messages.is_multiple_of(n) => {
                self.session.refuse(receipt, Refusal::Forbidden, "said the test", None, now);
                return;
            }
            _ => self.session.settle(Kept(receipt)),
        }
        let data = serde_json::value::RawValue::from_string(publish.data.into()).unwrap();
        let message = Published { ch: publish.channel.into(), data, id: publish.id, from: publish.device };
        let _ = self.shared.published.send(message);
    }
}

/// What a message says, whoever signed it.
fn claims(frame: &str) -> Option<serde_json::Value> {
    let payload = URL_SAFE_NO_PAD.decode(frame.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&payload).ok()
}
