//! One device whose every frame is chosen by hand.

use std::sync::Arc;
use std::time::Duration;

use doorward_client::connection::{ConnectError, Connection, Dial, Ended, Incoming};
use doorward_client::target::Target;
use doorward_client::{Credentials, tls};
use doorward_proto::close::Close;
use doorward_proto::link::{Bounds, Event, Link, Outgoing};

use super::Failure;
use crate::{clock, entropy};

/// For a connection or an answer.
const WITHIN: Duration = Duration::from_secs(30);

/// A connected device.
pub(super) struct Probe {
    connection: Connection,
    link: Link,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("a device of the demo cannot connect: {0}")]
    Connect(#[from] ConnectError),
    #[error("a device of the demo cannot be set up: {0}")]
    Setup(String),
    #[error("a device of the demo was not welcomed: {0}")]
    Unwelcome(String),
}

impl Refused {
    /// Status and problem, where the gateway gave them.
    pub(super) fn word(&self) -> String {
        match self {
            Self::Connect(ConnectError::Refused(refused)) => {
                let word =
                    refused.problem.as_ref().map(|problem| problem.word().to_owned()).unwrap_or_default();
                format!("{} {word}", refused.status)
            }
            other => other.to_string(),
        }
    }
}

impl Probe {
    /// Connects, and waits for `welcome`.
    pub(super) async fn connect(credentials: &Credentials, url: &str) -> Result<Self, Refused> {
        let setup = |error: &dyn std::fmt::Display| Refused::Setup(error.to_string());
        let target = Target::parse(url).map_err(|error| setup(&error))?;
        let bounds = Bounds::default();
        let dial = Dial {
            tls: tls::configuration(credentials.identity()).map_err(|error| setup(&error))?,
            target: Arc::new(target),
            address: None,
            local: None,
            key: None,
            within: WITHIN,
            max_message_bytes: bounds.max_message_bytes,
        };
        let connection = dial.connect().await?;
        let link = Link::new(credentials.device().clone(), credentials.keyring(), bounds);
        let mut probe = Self { connection, link };
        match probe.next_event().await {
            Ok(Event::Welcome(_)) => Ok(probe),
            Ok(other) => Err(Refused::Unwelcome(format!("{other:?}"))),
            Err(why) => Err(Refused::Unwelcome(why)),
        }
    }

    /// A signed publish of this session.
    pub(super) fn sign_publish(&mut self) -> Result<String, Failure> {
        let channel = format!("devices/{}/demo", self.link.device());
        let publish = Outgoing::new(entropy::random()?, &channel, "1").map_err(Failure::new)?;
        let full = |_| Failure::new("the device's outbox is full");
        self.link.publish(publish).map_err(full)?;
        let mut last = None;
        // A `hello` may stand before it; the publish is the last frame that the link has to send.
        while let Some(frame) = self.link.transmit(clock::now()) {
            last = Some(frame);
        }
        last.ok_or_else(|| Failure::new("the session takes no publish"))
    }

    /// Sends a frame as it is: `ack`, the error of its refusal, or how the session ended.
    pub(super) async fn send(&mut self, frame: String) -> String {
        let sent = async {
            self.connection.feed(frame).await?;
            self.connection.flush().await
        };
        if let Err(ended) = sent.await {
            return code(&ended);
        }
        loop {
            match self.next_event().await {
                Ok(Event::Acked(_)) => return "ack".to_owned(),
                Ok(Event::Rejected(reject)) => return reject.error,
                Ok(Event::Refused { refusal, .. }) => {
                    return refusal.map_or("refused", |refusal| refusal.as_str()).to_owned();
                }
                Ok(_) => {}
                Err(why) => return why,
            }
        }
    }

    /// The code that the gateway closes with.
    pub(super) async fn until_closed(&mut self, within: Duration) -> String {
        let closed = async {
            loop {
                if let Err(why) = self.next_event().await {
                    return why;
                }
            }
        };
        tokio::time::timeout(within, closed).await.unwrap_or_else(|_| "nothing".to_owned())
    }

    pub(super) async fn close(self) {
        self.connection.close(Close::Normal, Duration::from_secs(2)).await;
    }

    async fn next_event(&mut self) -> Result<Event, String> {
        let next = async {
            loop {
                if let Some(event) = self.link.poll() {
                    return Ok(event);
                }
                match self.connection.receive().await {
                    Ok(Incoming::Text(text)) => {
                        self.link
                            .receive(text.as_str(), clock::now())
                            .map_err(|violation| violation.to_string())?;
                    }
                    Ok(Incoming::Alive) => self.link.heard(clock::now()),
                    Err(ended) => return Err(code(&ended)),
                }
            }
        };
        tokio::time::timeout(WITHIN, next).await.unwrap_or_else(|_| Err("no answer".to_owned()))
    }
}

/// The close code as text, else the end in words.
fn code(ended: &Ended) -> String {
    ended.close().map_or_else(|| ended.to_string(), |close| close.code().to_string())
}
