//! A session of an attacker: frames are made by hand and answers are read without the link, which is too honest.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use doorward_client::connection::{ConnectError, Connection, Ended, Incoming, Phase};
use doorward_proto::close::Close;
use doorward_proto::time::NumericDate;
use rustls::ClientConfig;
use serde_json::json;

use super::Context;
use crate::peek::{self, Said};
use crate::{clock, tally};

/// What came after an attack.
#[derive(Debug)]
pub(crate) enum Answer {
    /// A message.
    Said(Said),
    /// The end of the session.
    Ended(Ended),
    /// Nothing in time.
    Silence,
}

impl Answer {
    /// In a word or two, for a report.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Said(said) if said.op == "reject" => said.error.escape_debug().to_string(),
            Self::Said(said) => said.op.escape_debug().to_string(),
            Self::Ended(ended) => format!("the end ({})", tally::end_label(ended)),
            Self::Silence => "silence".to_owned(),
        }
    }

    /// The error, if it is a refusal.
    pub(crate) fn error(&self) -> Option<&str> {
        match self {
            Self::Said(said) if said.op == "reject" => Some(&said.error),
            _ => None,
        }
    }

    /// Whether it says that this message is durable.
    pub(crate) fn acks(&self, seq: u64) -> bool {
        matches!(self, Self::Said(said) if said.acks.iter().any(|(first, last)| (*first..=*last).contains(&seq)))
    }
}

/// A session after its `welcome`.
#[derive(Debug)]
pub(crate) struct Probe {
    connection: Connection,
    pub(crate) sid: String,
    pub(crate) max_skew: Duration,
    /// The gateway's time when it was last told, and ours then.
    clock: (NumericDate, Duration),
    seq: u64,
    answer_within: Duration,
}

impl Probe {
    /// Connects and reads the `welcome`, without a check: an attacker may not hold the key for one.
    pub(crate) async fn open(
        context: &Context,
        tls: &Arc<ClientConfig>,
        local: Option<IpAddr>,
    ) -> Result<Self, ConnectError> {
        let connection = context.dial(tls, local).connect().await?;
        let mut probe = Self {
            connection,
            sid: String::new(),
            max_skew: Duration::ZERO,
            clock: (NumericDate::default(), clock::now()),
            seq: 0,
            answer_within: context.answer_within,
        };
        match probe.answer().await {
            Answer::Said(said) if said.op == "welcome" => {
                probe.sid = said.sid;
                probe.max_skew = super::seconds(said.max_skew);
                Ok(probe)
            }
            Answer::Ended(Ended::Alert(alert)) => Err(ConnectError::Alert(alert)),
            Answer::Silence => Err(ConnectError::Timeout(Phase::Welcome)),
            other => Err(ConnectError::Protocol(format!("instead of 'welcome' came {}", other.words()))),
        }
    }

    /// The gateway's time now, as far as it was told.
    pub(crate) fn time(&self) -> Duration {
        self.clock.0.as_duration() + clock::now().saturating_sub(self.clock.1)
    }

    /// The payload of an operation of this device in this session, of now.
    pub(crate) fn claims(&mut self, device: &str, members: serde_json::Value) -> String {
        self.seq += 1;
        let mut claims = json!({
            "iss": device,
            "aud": doorward_proto::GATEWAY,
            "sid": self.sid,
            "seq": self.seq,
            "iat": NumericDate::since_epoch(self.time()),
        });
        if let (Some(claims), serde_json::Value::Object(members)) = (claims.as_object_mut(), members) {
            claims.extend(members);
        }
        claims.to_string()
    }

    /// The payload of a publish of this device in this session, and its `seq`.
    pub(crate) fn publish(&mut self, device: &str, iat: Duration) -> (u64, String) {
        self.seq += 1;
        let seq = self.seq;
        let payload = json!({
            "iss": device,
            "aud": doorward_proto::GATEWAY,
            "sid": self.sid,
            "seq": seq,
            "iat": NumericDate::since_epoch(iat),
            "op": "publish",
            "id": format!("sim-{:032x}", fastrand::u128(..)),
            "ch": format!("devices/{device}/sim"),
            "data": {"attack": seq},
        });
        (seq, payload.to_string())
    }

    /// Sends a frame as it is, and says whether it went. How the session ended shows in the next [`Probe::answer`].
    pub(crate) async fn send(&mut self, frame: &str) -> bool {
        self.connection.feed(frame.to_owned()).await.is_ok() && self.connection.flush().await.is_ok()
    }

    /// What comes next in the time that an answer may take, signs of life aside.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.answer_in(self.answer_within).await
    }

    /// What comes next in this time.
    pub(crate) async fn answer_in(&mut self, within: Duration) -> Answer {
        let until = clock::now() + within;
        loop {
            let left = until.saturating_sub(clock::now());
            match tokio::time::timeout(left, self.connection.receive()).await {
                Err(_) => return Answer::Silence,
                Ok(Ok(Incoming::Alive)) => {}
                Ok(Err(ended)) => return Answer::Ended(ended),
                Ok(Ok(Incoming::Text(frame))) => match peek::said(&frame) {
                    Some(said) => {
                        if matches!(&*said.op, "welcome" | "reject") {
                            self.clock = (said.iat, clock::now());
                        }
                        return Answer::Said(said);
                    }
                    None => {
                        return Answer::Ended(Ended::Protocol("a message that cannot be read".to_owned()));
                    }
                },
            }
        }
    }

    /// Closes with 1000.
    pub(crate) async fn close(self) {
        self.connection.close(Close::Normal, Duration::from_secs(5)).await;
    }
}
