//! The bare sink: the gateway's own TLS configuration and buffers, and an answer to each batch of messages. It asks no
//! registry, checks no signature and stores nothing.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use doorward::config::Config;
use doorward::home::Home;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Listens on a free port until it is killed.
pub(crate) fn run(home: &Path) -> Result<()> {
    let home = Home::new(home);
    let tls = doorward::tls::load(&Config::load(&home)?, &home, None)?.server_config();
    let _ = rlimit::increase_nofile_limit(u64::from(u16::MAX));
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        writeln!(std::io::stderr(), "listening on {}", listener.local_addr()?)?;
        loop {
            let (tcp, _) = listener.accept().await?;
            let acceptor = TlsAcceptor::from(Arc::clone(&tls));
            tokio::spawn(async move {
                // Boxed, so that a session does not keep its handshake's state: as the gateway does.
                if let Ok(ws) = Box::pin(open(acceptor, tcp)).await {
                    tokio::spawn(serve(ws));
                }
            });
        }
    })
}

type Socket = WebSocketStream<Box<tokio_rustls::server::TlsStream<TcpStream>>>;

async fn open(acceptor: TlsAcceptor, tcp: TcpStream) -> Result<Socket> {
    tcp.set_nodelay(true)?;
    let stream = Box::new(acceptor.accept(tcp).await?);
    // The buffers of src/connection.rs.
    let config = WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(4096);
    Ok(tokio_tungstenite::accept_hdr_async_with_config(stream, subprotocol, Some(config)).await?)
}

#[expect(clippy::result_large_err, reason = "the type that tungstenite asks for")]
fn subprotocol(
    _: &Request,
    mut response: Response,
) -> Result<Response, tokio_tungstenite::tungstenite::handshake::server::ErrorResponse> {
    let value = HeaderValue::from_static(doorward_proto::SUBPROTOCOL);
    response.headers_mut().insert("sec-websocket-protocol", value);
    Ok(response)
}

/// Answers what one wake-up brought with one frame that says how many messages that was.
async fn serve(mut ws: Socket) {
    while let Some(Ok(first)) = ws.next().await {
        let mut messages = u32::from(first.is_text());
        while let Some(next) = ws.next().now_or_never() {
            match next {
                Some(Ok(message)) => messages += u32::from(message.is_text()),
                _ => return,
            }
        }
        if messages > 0 && ws.send(Message::text(messages.to_string())).await.is_err() {
            return;
        }
    }
}
