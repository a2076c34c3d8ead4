//! A collector of traces: an HTTP server that reads what is sent to it by OpenTelemetry's own crate.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::house::eventually;

/// What it answers; `None`: it reads, and says nothing for ever.
pub(crate) type Answer = Option<String>;

/// Everything was taken.
pub(crate) fn takes() -> Answer {
    Some("HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n".to_owned())
}

#[derive(Default)]
struct Got {
    spans: Vec<Span>,
    resources: Vec<KeyValue>,
    /// Requests as they came.
    bytes: Vec<u8>,
    requests: usize,
}

/// A collector, for as long as the test lasts.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    got: Arc<Mutex<Got>>,
    answer: Arc<Mutex<Answer>>,
}

impl Collector {
    pub(crate) async fn start(answer: Answer) -> Self {
        Self::listen(answer, None).await
    }

    pub(crate) async fn secure(config: ServerConfig) -> Self {
        Self::listen(takes(), Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn listen(answer: Answer, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (got, answer) = (Arc::<Mutex<Got>>::default(), Arc::new(Mutex::new(answer)));
        let (into, says) = (Arc::clone(&got), Arc::clone(&answer));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (into, says, tls) = (Arc::clone(&into), Arc::clone(&says), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(tcp, &into, &says).await,
                        Some(tls) => {
                            // Who does not trust us has nothing to say.
                            if let Ok(stream) = tls.accept(tcp).await {
                                serve(stream, &into, &says).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, got, answer }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it answers so.
    pub(crate) fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    pub(crate) fn requests(&self) -> usize {
        self.got.lock().unwrap().requests
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.got.lock().unwrap().bytes.clone()
    }

    pub(crate) fn resource(&self, key: &str) -> String {
        text(&self.got.lock().unwrap().resources, key).unwrap()
    }

    /// All spans of this name so far.
    pub(crate) fn named(&self, name: &str) -> Vec<Span> {
        self.got.lock().unwrap().spans.iter().filter(|span| span.name == name).cloned().collect()
    }

    /// Waits for so many of them.
    pub(crate) async fn wait_for(&self, name: &str, count: usize) -> Vec<Span> {
        eventually(&format!("{count} spans named {name}"), async || self.named(name).len() >= count).await;
        self.named(name)
    }

    /// The spans below one.
    pub(crate) fn below(&self, root: &Span) -> Vec<Span> {
        let got = self.got.lock().unwrap();
        got.spans.iter().filter(|span| span.parent_span_id == root.span_id).cloned().collect()
    }
}

/// An attribute, as text.
pub(crate) fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match &attribute.value {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => Some(text.clone()),
        Some(AnyValue { value: Some(Value::IntValue(number)) }) => Some(number.to_string()),
        Some(AnyValue { value: Some(Value::BoolValue(flag)) }) => Some(flag.to_string()),
        other => panic!("{key} is {other:?}"),
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, got: &Mutex<Got>, says: &Mutex<Answer>) {
    let mut request = Vec::new();
    let (head, length) = loop {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
        let Some(head) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let text = String::from_utf8(request[..head].to_vec()).unwrap().to_lowercase();
        assert!(text.starts_with("post /v1/traces http/1.1\r\n"), "{text}");
        assert!(text.contains("\r\ncontent-type: application/x-protobuf"), "{text}");
        let length = text.split("\r\ncontent-length: ").nth(1).unwrap();
        break (head + 4, length.split("\r\n").next().unwrap().parse::<usize>().unwrap());
    };
    while request.len() < head + length {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let answer = says.lock().unwrap().clone();
    {
        let mut got = got.lock().unwrap();
        got.requests += 1;
        got.bytes.extend_from_slice(&request);
        if answer.as_ref().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            let sent = ExportTraceServiceRequest::decode(&request[head..]).unwrap();
            for part in sent.resource_spans {
                got.resources = part.resource.unwrap().attributes;
                got.spans.extend(part.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
    }
    match answer {
        Some(answer) => {
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        None => std::future::pending().await,
    }
}
