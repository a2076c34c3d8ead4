//! A small HTTP/1.1 listener for what is asked for by programs that are no devices: bounded connections, one deadline each,
//! no request bodies, one request a connection.

mod reserve;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::bucket::{Bucket, Rate, nanos};
use crate::clock;

pub(crate) use reserve::Reserve;

/// Connections at once; one more is closed without a word.
const MAX_CONNECTIONS: usize = 64;
/// One deadline over request and answer: what is served is some megabytes at most.
const WITHIN: Duration = Duration::from_secs(60);
/// How long a request's head may take.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// The longest request head.
const MAX_HEAD: usize = 8 << 10;
/// Between tries of `accept` when it fails.
const BACK_OFF: Duration = Duration::from_millis(200);
/// How often that is said.
const COMPLAINTS: Rate = Rate::every(10, 1);

pub(crate) type Answer = Response<Full<Bytes>>;

/// A request of which the method is GET or HEAD.
pub(crate) struct Asked {
    pub(crate) path: String,
    /// What stands behind the question mark.
    pub(crate) query: String,
    pub(crate) headers: hyper::HeaderMap,
}

/// Serves until it is stopped. `answer` is asked for GET and HEAD alone; a HEAD's answer has no body. `reserve` is for
/// when no descriptor is left.
pub(crate) async fn serve<A, F>(listener: TcpListener, reserve: Reserve, answer: A, stop: CancellationToken)
where
    A: Fn(Asked) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let (answer, room) = (Arc::new(answer), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    let reserve = Arc::new(reserve);
    let mut complaints = Bucket::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let accepted = match accepted {
            Err(error) if reserve::is_scarce(&error) && reserve.give() => {
                match tokio::time::timeout(Duration::ZERO, listener.accept()).await {
                    Ok(accepted) => accepted,
                    // Who wanted in is gone.
                    Err(_) => Err(error),
                }
            }
            accepted => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    debug!(%peer, "closed: as many HTTP connections as there may be");
                    continue;
                };
                let (answer, stop, reserve) = (Arc::clone(&answer), stop.clone(), Arc::clone(&reserve));
                tokio::spawn(async move {
                    let served = tokio::time::timeout(WITHIN, connection(tcp, peer, answer));
                    tokio::select! {
                        _ = served => {}
                        () = stop.cancelled() => {}
                    }
                    // Its descriptor is free: the reserve has it back, if it was taken from there.
                    reserve.fill();
                    drop(permit);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if complaints.try_take(COMPLAINTS, nanos(clock::now().monotonic)) {
                    warn!(%error, "cannot accept HTTP connections");
                }
                reserve.fill();
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

async fn connection<A, F>(tcp: TcpStream, peer: SocketAddr, answer: Arc<A>)
where
    A: Fn(Asked) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = Arc::clone(&answer);
        async move {
            if request.method() != Method::GET && request.method() != Method::HEAD {
                let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD alone\n");
                refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                return Ok::<_, Infallible>(refused);
            }
            // What a request has for a body is never read: the connection ends with the answer.
            let (parts, _) = request.into_parts();
            let query = parts.uri.query().unwrap_or_default().to_owned();
            Ok(answer(Asked { path: parts.uri.path().to_owned(), query, headers: parts.headers }).await)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(tcp), service)
        .await;
    if let Err(error) = served {
        debug!(%peer, %error, "an HTTP connection has failed");
    }
}

/// An answer in words, which nobody keeps.
pub(crate) fn plain(status: StatusCode, words: &'static str) -> Answer {
    passing(status, "text/plain; charset=utf-8", Bytes::from_static(words.as_bytes()))
}

/// An answer that is true now, and which nobody keeps.
pub(crate) fn passing(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
