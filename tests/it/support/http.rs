//! HTTP as a monitoring program speaks it.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::house::within;

/// An answer.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Got {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What a metric has, of those with these labels as they are written; the sum where several lines fit.
    #[track_caller]
    pub(crate) fn value(&self, name: &str, labels: &str) -> f64 {
        let fits = |line: &&str| {
            let rest = line.strip_prefix(name).unwrap_or("!");
            (rest.starts_with('{') || rest.starts_with(' ')) && rest.contains(labels)
        };
        let values: Vec<f64> = self
            .body
            .lines()
            .filter(fits)
            .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
            .collect();
        assert!(!values.is_empty(), "{name}{{{labels}}} is not there: {}", self.body);
        values.iter().sum()
    }
}

/// Asks for a path.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Got {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await
}

/// Sends a request as it is.
pub(crate) async fn ask(address: SocketAddr, request: &str) -> Got {
    let mut tcp = within("a connection", TcpStream::connect(address)).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    within("an answer", tcp.read_to_string(&mut text)).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Got { status, head: head.to_lowercase(), body: body.to_owned() }
}
