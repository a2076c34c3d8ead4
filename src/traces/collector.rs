//! The collector: where it is, and one request to it (OTLP/HTTP, binary protobuf).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::TracesError;
use super::span::clean;
use super::wire::ExportResponse;
use crate::config::TracesSection;
use crate::home::{self, Home};

/// Where traces are asked for when the URL has no path (OTLP 1, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";
/// The longest answer that is read; what it says beyond that counts for nothing.
const MOST_ANSWER: usize = 64 << 10;
/// A collector that wants to be left alone is left alone no longer.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// A collector's URL, taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    secure: bool,
    /// As in the URL, in brackets where it is an IPv6 address: for the `Host` header.
    authority: String,
    /// For name lookup, without brackets.
    host: String,
    port: u16,
    path: String,
}

impl Endpoint {
    /// Reads `http://HOST[:PORT][/PATH]` or `https://…`; the port is that of the scheme, and `/v1/traces` the path where there
    /// is none.
    ///
    /// # Errors
    /// In words, without the URL: somebody may have written a password into it.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "it must be a URL like http://127.0.0.1:4318")?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("it must begin with http:// or https://"),
        };
        let authority = uri.authority().ok_or("it names no host")?;
        if authority.as_str().contains('@') {
            return Err("it must not have a user or a password in it");
        }
        if uri.query().is_some() || url.contains('#') {
            return Err("it must not have a query or a fragment");
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if ServerName::try_from(host).is_err() {
            return Err("its host is neither a name nor an address");
        }
        let port = match (authority.port(), secure) {
            (Some(port), _) => port.as_u16(),
            // `host:` and `host:70000` have none that can be read.
            (None, _) if authority.as_str().len() > authority.host().len() => {
                return Err("its port is not a number up to 65535");
            }
            (None, true) => 443,
            (None, false) => 80,
        };
        let path = if matches!(uri.path(), "" | "/") { PATH } else { uri.path() };
        Ok(Self {
            secure,
            authority: authority.as_str().to_owned(),
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        })
    }

    /// Whether it speaks TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether it is on this host.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

/// What has become of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// It was taken, but for so many of its spans, and why.
    Taken { rejected: u64, why: String },
    /// It is not wanted, and never will be.
    Refused(String),
    /// Another try may help, not before this time where the collector says one.
    Away { why: String, retry_after: Option<Duration> },
}

/// A collector.
pub(super) struct Collector {
    endpoint: Endpoint,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// On this host, and nowhere else.
    loopback_only: bool,
    timeout: Duration,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Collector {
    pub(super) fn new(section: &TracesSection, home: &Home) -> Result<Self, TracesError> {
        let no = |reason: &str| TracesError::Endpoint(reason.to_owned());
        let endpoint = Endpoint::parse(&section.endpoint).map_err(no)?;
        let tls = if endpoint.secure {
            let name = ServerName::try_from(endpoint.host.clone());
            let name = name.map_err(|_| no("its host is neither a name nor an address"))?;
            Some((TlsConnector::from(Arc::new(trusting(&home.resolve(&section.ca))?)), name))
        } else {
            None
        };
        let loopback_only = !endpoint.secure && !section.insecure;
        Ok(Self { endpoint, tls, loopback_only, timeout: section.timeout.0 })
    }

    /// Where it is, for the log.
    pub(super) fn place(&self) -> &str {
        &self.endpoint.authority
    }

    /// Sends spans, over a connection of its own: some a second at most, and none to be found stale.
    pub(super) async fn send(&self, body: Bytes) -> Answer {
        let away = |why: String| Answer::Away { why, retry_after: None };
        match tokio::time::timeout(self.timeout, self.exchange(body)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => away(error.to_string()),
            Err(_) => away(format!("no answer within {}", humantime::format_duration(self.timeout))),
        }
    }

    async fn exchange(&self, body: Bytes) -> io::Result<Answer> {
        let tcp = TcpStream::connect((self.endpoint.host.as_str(), self.endpoint.port)).await?;
        // 'localhost' is what the resolver says it is.
        if self.loopback_only && !tcp.peer_addr()?.ip().to_canonical().is_loopback() {
            return Err(io::Error::other(
                "the name leads to another host, and http:// is for this one alone",
            ));
        }
        match &self.tls {
            None => self.ask(tcp, body).await,
            Some((connector, name)) => self.ask(connector.connect(name.clone(), tcp).await?, body).await,
        }
    }

    async fn ask<S>(&self, stream: S, body: Bytes) -> io::Result<Answer>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // It ends with this request, however that ends.
        let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.endpoint.path)
            .header(HOST, &self.endpoint.authority)
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!("doorward/", env!("CARGO_PKG_VERSION")))
            .header(CONNECTION, "close")
            .body(Full::new(body))
            .map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        Ok(judge(response).await)
    }
}

/// What an answer means (OTLP 1, "OTLP/HTTP Response").
async fn judge(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let status = head.status;
    if status.is_success() {
        let body = Limited::new(body, MOST_ANSWER).collect().await;
        // Taken is taken, whatever else is said.
        let partial =
            body.ok().and_then(|body| ExportResponse::decode(body.to_bytes()).ok()?.partial_success);
        return match partial {
            None => Answer::Taken { rejected: 0, why: String::new() },
            Some(partial) => Answer::Taken {
                rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
                why: clean(&partial.error_message),
            },
        };
    }
    let why = format!("it answers {status}");
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let retry_after = after.map(|seconds| Duration::from_secs(seconds).min(MOST_RETRY_AFTER));
            Answer::Away { why, retry_after }
        }
        _ => Answer::Refused(why),
    }
}

/// TLS that trusts the CAs of a file, and no other.
fn trusting(path: &Path) -> Result<ClientConfig, TracesError> {
    let content = |reason: String| TracesError::Content { path: path.to_owned(), reason };
    home::must_be_file(path)?;
    let text = home::read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| content(error.to_string()))?;
        roots.add(certificate).map_err(|error| content(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(content("no certificate in it".to_owned()));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| content(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let of =
            |url: &str| Endpoint::parse(url).map(|e| (e.secure, e.is_loopback(), e.host, e.port, e.path));
        let is = |secure, loopback, host: &str, port, path: &str| {
            Ok((secure, loopback, host.to_owned(), port, path.to_owned()))
        };
        assert_eq!(of("http://127.0.0.1:4318"), is(false, true, "127.0.0.1", 4318, "/v1/traces"));
        assert_eq!(of("http://localhost/"), is(false, true, "localhost", 80, "/v1/traces"));
        assert_eq!(of("http://[::1]:4318/otlp/v1/traces"), is(false, true, "::1", 4318, "/otlp/v1/traces"));
        assert_eq!(of("https://otel.example.com"), is(true, false, "otel.example.com", 443, "/v1/traces"));
        assert_eq!(
            of("http://127.0.0.1.example.com:1"),
            is(false, false, "127.0.0.1.example.com", 1, "/v1/traces")
        );
        for bad in [
            "",
            "127.0.0.1:4318",
            "grpc://127.0.0.1:4317",
            "http://",
            "http://a:x",
            "http://a:70000",
            "http://a b",
            "http://user:secret@a",
            "http://a/v1/traces?token=x",
            "http://a/#x",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad:?}");
        }
    }
}
