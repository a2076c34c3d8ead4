//! How a connection ends: by whose fault, and with what last words.

use std::io;
use std::pin::Pin;

use doorward_proto::close::Close;
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::CLOSE_WITHIN;
use super::frames::{TooManyFrames, Watched};

/// Bytes that are still read of a peer that goes on sending after the close: what an honest one may have on its way. To read
/// on would be work for nothing, as much of it as it likes.
const MAX_UNREAD: u64 = 512 << 10;
/// Of frames of a few bytes this is many.
const MAX_UNREAD_OF_A_FLOOD: u64 = 64 << 10;

/// How a connection came to its end.
pub(super) enum Ended {
    /// We close, with this reason.
    Ours(Close),
    /// The device closed, with this code.
    Theirs(Option<u16>),
    /// We close, for frames that bring no message.
    Flooded(TooManyFrames),
    /// The network or TLS failed.
    Broken(String),
}

impl Ended {
    /// As what it counts.
    pub(super) fn close(&self) -> Close {
        match self {
            Self::Ours(close) => *close,
            Self::Theirs(_) | Self::Broken(_) => Close::Normal,
            Self::Flooded(_) => Close::Strikes,
        }
    }

    /// What there is to say besides.
    pub(super) fn detail(&self) -> Option<String> {
        match self {
            Self::Ours(_) => None,
            Self::Theirs(code) => code.map(|code| format!("the device closed with {code}")),
            Self::Flooded(why) => Some(why.to_string()),
            Self::Broken(why) => Some(why.clone()),
        }
    }
}

pub(super) fn frame(ended: &Ended, close: Close) -> CloseFrame {
    let reason = match ended {
        Ended::Flooded(why) => why.to_string().into(),
        _ => close.reason().into(),
    };
    CloseFrame { code: close.code().into(), reason }
}

/// The closing handshake (RFC 6455 §7.1.2), bounded: a peer that does not answer, or does not stop, is cut.
pub(super) async fn closing_handshake(mut ws: WebSocketStream<Watched>, frame: Option<CloseFrame>) {
    let more = if ws.get_ref().is_flooded() { MAX_UNREAD_OF_A_FLOOD } else { MAX_UNREAD };
    let enough = ws.get_ref().received() + more;
    let handshake = async {
        if let Some(frame) = frame {
            ws.close(Some(frame)).await?;
        } else {
            std::future::poll_fn(|cx| Pin::new(&mut ws).poll_flush(cx)).await?;
        }
        // What it still sends is read and thrown away, so that the close is not lost to a reset.
        while ws.get_ref().received() < enough
            && let Some(message) = std::future::poll_fn(|cx| Pin::new(&mut ws).poll_next(cx)).await
        {
            message?;
        }
        Ok::<(), WsError>(())
    };
    let _ = tokio::time::timeout(CLOSE_WITHIN, handshake).await;
    let stream = ws.get_mut();
    let goodbye = async {
        stream.shutdown().await?;
        // Bytes left unread would turn the close into a reset, and the peer would not learn why.
        let mut unread = [0; 1024];
        while stream.received() < enough && stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(CLOSE_WITHIN, goodbye).await;
}

/// Sorts what went wrong while reading by who is at fault.
pub(super) fn failed(error: WsError) -> Ended {
    match error {
        WsError::Capacity(_) => Ended::Ours(Close::TooBig),
        WsError::Utf8(_) => Ended::Ours(Close::NotUtf8),
        WsError::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => Ended::Broken("the peer is gone without a close".to_owned()),
        WsError::Protocol(_) => Ended::Ours(Close::Protocol),
        WsError::ConnectionClosed | WsError::AlreadyClosed => Ended::Theirs(None),
        WsError::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<TooManyFrames>()) => {
            Ended::Flooded(TooManyFrames)
        }
        other => broken(other),
    }
}

pub(super) fn broken(error: WsError) -> Ended {
    match error {
        WsError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ended::Broken("the peer is gone without a close".to_owned())
        }
        error => Ended::Broken(error.to_string()),
    }
}
