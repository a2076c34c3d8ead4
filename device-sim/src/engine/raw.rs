//! An attacker's connection below the WebSocket: bytes as they are, which no client library would send.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use doorward_client::connection::{ConnectError, Phase, Secured};
use doorward_proto::{PATH, SUBPROTOCOL};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::Context;

/// The last fragment, or the only one.
pub(crate) const FIN: u8 = 0x80;
pub(crate) const CONTINUE: u8 = 0;
pub(crate) const TEXT: u8 = 1;
const CLOSE: u8 = 8;

/// How a raw connection came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With a close frame that has a code.
    Closed(u16),
    /// Without one.
    Lost,
    /// Not within the time.
    Not,
}

impl End {
    /// In words, for a report.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Closed(code) => format!("close {code}"),
            Self::Lost => "a connection that was lost".to_owned(),
            Self::Not => "no end".to_owned(),
        }
    }
}

/// A TLS connection of which the upgrade may have been made.
pub(crate) struct Raw(pub(crate) Secured);

/// The request that asks for the upgrade.
pub(crate) fn request() -> String {
    format!(
        "GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    )
}

/// TCP alone, from a local address.
pub(crate) async fn tcp(gateway: SocketAddr, local: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if gateway.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(local) = local {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    socket.connect(gateway).await
}

/// Whether the other end closes within this time, whatever it says before.
pub(crate) async fn closes(stream: &mut (impl tokio::io::AsyncRead + Unpin), within: Duration) -> bool {
    let reading = async {
        let mut bytes = [0; 4096];
        while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {}
    };
    tokio::time::timeout(within, reading).await.is_ok()
}

impl Raw {
    /// TLS and the upgrade.
    pub(crate) async fn open(
        context: &Context,
        tls: &Arc<ClientConfig>,
        local: Option<IpAddr>,
    ) -> Result<Self, ConnectError> {
        let mut raw = Self(context.dial(tls, local).secure().await?);
        let upgrade = raw.upgrade();
        match tokio::time::timeout(context.answer_within, upgrade).await {
            Ok(Ok(head)) if head.starts_with(b"HTTP/1.1 101 ") => Ok(raw),
            Ok(Ok(_)) => Err(ConnectError::Protocol("the upgrade was refused".to_owned())),
            Ok(Err(error)) => Err(ConnectError::Network { phase: Phase::Upgrade, error }),
            Err(_) => Err(ConnectError::Timeout(Phase::Upgrade)),
        }
    }

    async fn upgrade(&mut self) -> io::Result<Vec<u8>> {
        self.0.stream.write_all(request().as_bytes()).await?;
        self.0.stream.flush().await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
            head.push(self.0.stream.read_u8().await?);
        }
        Ok(head)
    }

    /// Sends the header of a frame that announces so many bytes, with a mask that changes nothing.
    pub(crate) async fn announce(&mut self, first: u8, length: u64) -> io::Result<()> {
        let mut header = vec![first];
        match u16::try_from(length) {
            Ok(length @ ..126) => header.push(0x80 | u8::try_from(length).unwrap_or(0)),
            Ok(length) => {
                header.push(0x80 | 126);
                header.extend(length.to_be_bytes());
            }
            Err(_) => {
                header.push(0x80 | 127);
                header.extend(length.to_be_bytes());
            }
        }
        header.extend([0; 4]);
        self.0.stream.write_all(&header).await
    }

    /// Sends a frame.
    pub(crate) async fn frame(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        self.announce(first, payload.len() as u64).await?;
        self.0.stream.write_all(payload).await?;
        self.0.stream.flush().await
    }

    /// Reads to the end: what the gateway's close frame says, if it sends one.
    pub(crate) async fn end(&mut self, within: Duration) -> End {
        tokio::time::timeout(within, self.read_to_close()).await.unwrap_or(End::Not)
    }

    async fn read_to_close(&mut self) -> End {
        loop {
            match self.read_frame().await {
                Ok((first, payload)) if first & 0x0f == CLOSE => {
                    let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                    return code.map_or(End::Lost, End::Closed);
                }
                Ok(_) => {}
                Err(_) => return End::Lost,
            }
        }
    }

    async fn read_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let (first, length) = (self.0.stream.read_u8().await?, self.0.stream.read_u8().await?);
        let length = match length & 0x7f {
            126 => u64::from(self.0.stream.read_u16().await?),
            127 => self.0.stream.read_u64().await?,
            length => u64::from(length),
        };
        // Nothing that a gateway says is so long.
        if length > 16 << 20 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        self.0.stream.read_exact(&mut payload).await?;
        Ok((first, payload))
    }
}
