//! One connection: TCP, TLS and the WebSocket upgrade under one deadline, then text frames in both directions.
//!
//! In TLS 1.3 a client's handshake ends before the server has judged its certificate: a [`Connection`] says nothing
//! about that. A device is connected once the gateway's `welcome` has arrived.

mod error;
mod upgrade;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::ids::KeyVersion;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use rustls::{ClientConfig, HandshakeKind, NamedGroup};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

pub use error::{ConnectError, Ended, Phase, Problem, RefusedUpgrade};

use crate::clock;
use crate::target::Target;

/// tungstenite's own default is 128 KiB for each connection, touched at once.
const READ_BUFFER: usize = 4096;
/// What may wait to be written before it is an error: more than a window of messages.
const MAX_WRITE_BUFFER: usize = 4 << 20;

/// How to reach the gateway.
#[derive(Debug, Clone)]
pub struct Dial {
    /// The device's TLS configuration; see [`crate::tls::configuration`].
    pub tls: Arc<ClientConfig>,
    /// The gateway.
    pub target: Arc<Target>,
    /// Where it is, if it has been looked up already.
    pub address: Option<SocketAddr>,
    /// The local address to connect from.
    pub local: Option<IpAddr>,
    /// The key version to be named in the URL; only a device that cannot read the gateway's `welcome` needs it.
    pub key: Option<KeyVersion>,
    /// For all phases together.
    pub within: Duration,
    /// The longest message taken from the gateway, in bytes.
    pub max_message_bytes: usize,
}

/// A TLS stream, before the upgrade.
#[derive(Debug)]
pub struct Secured {
    /// The stream.
    pub stream: Box<TlsStream<TcpStream>>,
    began: Duration,
    ends: Duration,
}

/// An upgraded connection.
#[derive(Debug)]
pub struct Connection {
    socket: WebSocketStream<Box<TlsStream<TcpStream>>>,
    handshake: Duration,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A text frame.
    Text(Utf8Bytes),
    /// A ping or a pong: a sign of life. Pongs are sent by themselves.
    Alive,
}

impl Dial {
    /// Connects and upgrades.
    ///
    /// # Errors
    /// [`ConnectError`], by who or what is at fault.
    pub async fn connect(&self) -> Result<Connection, ConnectError> {
        self.upgrade(self.secure().await?).await
    }

    /// TCP and TLS alone. Boxed: their state is large and is not kept for the life of the connection.
    ///
    /// # Errors
    /// [`ConnectError`], never [`ConnectError::Refused`].
    pub async fn secure(&self) -> Result<Secured, ConnectError> {
        let began = clock::monotonic();
        let ends = began + self.within;
        let tcp = phase(Phase::Connect, ends, Box::pin(self.tcp())).await?;
        tcp.set_nodelay(true).map_err(|error| ConnectError::Network { phase: Phase::Connect, error })?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let name = self.target.name().clone();
        let handshake = async {
            connector.connect(name, tcp).await.map_err(|error| ConnectError::from_io(Phase::Tls, error))
        };
        let stream = Box::new(phase(Phase::Tls, ends, Box::pin(handshake)).await?);
        Ok(Secured { stream, began, ends })
    }

    /// The WebSocket upgrade on a TLS stream.
    ///
    /// # Errors
    /// [`ConnectError`]; a gateway that answers with anything but 101 is [`ConnectError::Refused`].
    pub async fn upgrade(&self, secured: Secured) -> Result<Connection, ConnectError> {
        let Secured { mut stream, began, ends } = secured;
        let upgrade = Box::pin(upgrade::upgrade(&mut stream, &self.target, self.key));
        let early = phase(Phase::Upgrade, ends, upgrade).await?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(MAX_WRITE_BUFFER)
            .max_message_size(Some(self.max_message_bytes))
            .max_frame_size(Some(self.max_message_bytes));
        let socket = WebSocketStream::from_partially_read(stream, early, Role::Client, Some(config)).await;
        Ok(Connection { socket, handshake: clock::monotonic().saturating_sub(began) })
    }

    async fn tcp(&self) -> Result<TcpStream, ConnectError> {
        let addresses = match self.address {
            Some(address) => vec![address],
            None => self.target.resolve().await.map_err(ConnectError::Resolve)?,
        };
        let mut last = None;
        for address in addresses {
            match connect_from(self.local, address).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| ConnectError::Resolve(std::io::ErrorKind::NotFound.into())))
    }
}

async fn connect_from(local: Option<IpAddr>, address: SocketAddr) -> Result<TcpStream, ConnectError> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(ConnectError::Local)?;
    if let Some(local) = local {
        socket.bind(SocketAddr::new(local, 0)).map_err(ConnectError::Local)?;
    }
    socket.connect(address).await.map_err(|error| match error.kind() {
        // No port is free at this local address.
        std::io::ErrorKind::AddrNotAvailable | std::io::ErrorKind::AddrInUse => ConnectError::Local(error),
        _ => ConnectError::Network { phase: Phase::Connect, error },
    })
}

async fn phase<T>(
    phase: Phase,
    ends: Duration,
    work: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let left = ends.saturating_sub(clock::monotonic());
    tokio::time::timeout(left, work).await.unwrap_or(Err(ConnectError::Timeout(phase)))
}

impl Connection {
    /// How long connecting took, from the first packet to the answer to the upgrade.
    #[must_use]
    pub fn handshake(&self) -> Duration {
        self.handshake
    }

    /// Whether TLS resumed an earlier session.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.socket.get_ref().get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// What the key exchange was.
    #[must_use]
    pub fn key_exchange(&self) -> Option<NamedGroup> {
        self.socket.get_ref().get_ref().1.negotiated_key_exchange_group().map(|group| group.name())
    }

    /// Waits for what comes next. To drop the future loses nothing.
    ///
    /// # Errors
    /// [`Ended`]: the connection is over, and how.
    pub async fn receive(&mut self) -> Result<Incoming, Ended> {
        judge(self.socket.next().await)
    }

    /// What has come already, without waiting.
    ///
    /// # Errors
    /// [`Ended`]: the connection is over, and how.
    pub fn receive_now(&mut self) -> Result<Option<Incoming>, Ended> {
        self.socket.next().now_or_never().map(judge).transpose()
    }

    /// Puts a text frame into the buffer; [`Connection::flush`] sends it.
    ///
    /// # Errors
    /// [`Ended`]: the connection is over.
    pub async fn feed(&mut self, frame: String) -> Result<(), Ended> {
        self.socket.feed(Message::text(frame)).await.map_err(Ended::from_websocket)
    }

    /// Sends what was fed.
    ///
    /// # Errors
    /// [`Ended`]: the connection is over.
    pub async fn flush(&mut self) -> Result<(), Ended> {
        self.socket.flush().await.map_err(Ended::from_websocket)
    }

    /// Closes with a code and waits at most this long for the other end's answer.
    pub async fn close(mut self, close: Close, within: Duration) {
        let frame = CloseFrame {
            code: CloseCode::from(close.code()),
            reason: Utf8Bytes::from_static(close.reason()),
        };
        let goodbye = async {
            if self.socket.close(Some(frame)).await.is_ok() {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        // One that does not answer is closed all the same, by the drop.
        let _ = tokio::time::timeout(within, goodbye).await;
    }
}

fn judge(next: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>) -> Result<Incoming, Ended> {
    match next {
        Some(Ok(Message::Text(text))) => Ok(Incoming::Text(text)),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(Incoming::Alive),
        Some(Ok(Message::Close(frame))) => Err(Ended::from_close(frame)),
        Some(Ok(Message::Binary(_) | Message::Frame(_))) => Err(Ended::Protocol("a binary frame".to_owned())),
        Some(Err(error)) => Err(Ended::from_websocket(error)),
        None => Err(Ended::Lost(std::io::ErrorKind::UnexpectedEof.into())),
    }
}
