//! In place of a session: what a device sends comes back. The door, the WebSocket, the counting of frames and the ways to close
//! are a session's own; no message leads anywhere.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use doorward_proto::close::Close;
use futures_util::{Sink as _, SinkExt as _, Stream as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

use super::closing::{Ended, broken, closing_handshake, failed, frame};
use super::frames::Watched;
use super::socket::{frame_rate, open};
use crate::accept::{Admitted, Pass};
use crate::clock;
use crate::gateway::Gateway;
use crate::gateway::sessions::Handle;

/// Begins to echo.
pub(crate) fn begin(gateway: Arc<Gateway>, admitted: Admitted, pass: Pass) {
    tokio::spawn(run(gateway, admitted, pass));
}

async fn run(gateway: Arc<Gateway>, admitted: Admitted, pass: Pass) {
    let Admitted { stream, rest, handle, peer, stay, grant: _ } = admitted;
    gateway.counters.opened();
    let (mut ws, _) = open(stream, rest, &gateway.live().config.limits, clock::now()).await;
    let ended = loop {
        tokio::select! {
            biased;
            close = told(&handle) => break Ended::Ours(close),
            echoed = echo(&gateway, &mut ws) => if let Err(ended) = echoed { break ended },
        }
    };
    gateway.sessions.leave(&handle);
    let (close, detail) = (ended.close(), ended.detail());
    gateway.counters.closed(close);
    debug!(
        connection = %handle.id, device = %handle.device, %peer, code = close.code(),
        detail = detail.as_deref().unwrap_or("-"), "echo closed"
    );
    match ended {
        Ended::Broken(_) => {}
        Ended::Theirs(_) => closing_handshake(ws, None).await,
        Ended::Ours(_) | Ended::Flooded(_) => closing_handshake(ws, Some(frame(&ended, close))).await,
    }
    drop((pass, stay));
}

/// Returns when the gateway ends it: its device is revoked, another connection takes its place, or the gateway drains.
async fn told(handle: &Handle) -> Close {
    loop {
        if let Some(ending) = handle.mailbox.take().close {
            return ending.close;
        }
        handle.mailbox.mail().await;
    }
}

/// Sends the next message back, or says how it came to its end.
async fn echo(gateway: &Gateway, ws: &mut WebSocketStream<Watched>) -> Result<(), Ended> {
    // As long as a session: nothing heard, or nothing taken, for two heartbeats and a half.
    let patience = gateway.live().config.session.heartbeat.0.mul_f32(2.5);
    let Ok(next) = tokio::time::timeout(patience, next(gateway, ws)).await else {
        return Err(Ended::Ours(Close::Silent));
    };
    match next? {
        message @ (Message::Text(_) | Message::Binary(_)) => {
            match tokio::time::timeout(patience, ws.send(message)).await {
                Ok(sent) => sent.map_err(broken),
                Err(_) => Err(Ended::Ours(Close::SlowReader)),
            }
        }
        Message::Ping(_) | Message::Pong(_) => Ok(()),
        Message::Close(frame) => Err(Ended::Theirs(frame.map(|frame| frame.code.into()))),
        Message::Frame(_) => Err(Ended::Ours(Close::Unsupported)),
    }
}

async fn next(gateway: &Gateway, ws: &mut WebSocketStream<Watched>) -> Result<Message, Ended> {
    std::future::poll_fn(|cx| {
        ws.get_mut().allow(frame_rate(&gateway.live().config.limits), clock::now().monotonic);
        match Pin::new(&mut *ws).poll_next(cx) {
            Poll::Ready(Some(message)) => Poll::Ready(message.map_err(failed)),
            Poll::Ready(None) => Poll::Ready(Err(Ended::Theirs(None))),
            // Pongs leave meanwhile.
            Poll::Pending => match Pin::new(&mut *ws).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(broken(error))),
                _ => Poll::Pending,
            },
        }
    })
    .await
}
