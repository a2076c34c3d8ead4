//! A device that stays connected: one task owns the connection, handles talk to it through bounded queues.

mod task;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use doorward_proto::channel::Filter;
use doorward_proto::downlink::{Command, Message, Welcome};
use doorward_proto::ids::MessageId;
use doorward_proto::link::{Link, Outgoing};
use doorward_proto::uplink::CommandStatus;
use doorward_proto::verdict::Refusal;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::backoff::BackoffOptions;
use crate::connection::Dial;
use crate::credentials::Credentials;
use crate::renewal::{CertificateStatus, RenewalOptions};
use crate::target::{Target, UrlError};
use crate::tls::{self, TlsError};

/// How a device behaves. Each bound is one of its own: nothing grows beyond what stands here.
#[derive(Debug, Clone)]
pub struct Options {
    /// For TCP, TLS, upgrade and `welcome` together.
    pub connect_within: Duration,
    /// How long to wait before each attempt.
    pub backoff: BackoffOptions,
    /// Publishes and results that wait for an answer. When so many do, [`Device::publish`] waits.
    pub outbox: usize,
    /// Publishes that are sent and not yet answered.
    pub window: usize,
    /// How long [`Device::publish`] waits for its answer.
    pub answer_within: Duration,
    /// Messages and commands that wait for a slow reader; older ones are dropped beyond.
    pub inbox: usize,
    /// How long [`Device::close`] waits for a clean end.
    pub close_within: Duration,
    /// The longest message taken from the gateway, in bytes.
    pub max_message_bytes: usize,
    /// The local address to connect from.
    pub local: Option<IpAddr>,
    /// How it renews its certificate. By default it does where its credentials came from a folder.
    pub renewal: RenewalOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_within: Duration::from_secs(30),
            backoff: BackoffOptions::default(),
            outbox: 1024,
            window: 64,
            answer_within: Duration::from_secs(3600),
            inbox: 256,
            close_within: Duration::from_secs(5),
            max_message_bytes: 1 << 20,
            local: None,
            renewal: RenewalOptions::default(),
        }
    }
}

/// Where the device stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// It tries to connect, or waits to try again.
    Connecting {
        /// Why the last attempt or session ended, in words.
        last: Option<Arc<str>>,
    },
    /// The gateway has said `welcome`.
    Connected(Box<Welcome>),
    /// It does not try any more.
    Stopped(Stop),
}

/// Why a device does not try any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Stop {
    /// [`Device::close`] was called, or the last handle dropped.
    #[error("the device was closed")]
    Closed,
    /// The device is revoked, for good.
    #[error("the device is revoked for good; a new one must be added and its bundle installed")]
    Revoked,
}

/// Why a device cannot even begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The bundle's URL.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The bundle's certificate, key or trusted certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why a publish or another request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// What was to be sent has no form that could be: not JSON, no channel, no filter.
    #[error("this cannot be sent: {0}")]
    Malformed(String),
    /// The gateway refused it for good.
    #[error("the gateway refused it as '{}': {detail}", refusal.map_or("unknown", Refusal::as_str))]
    Refused {
        /// Why; `None` for a word that this version does not know.
        refusal: Option<Refusal>,
        /// In words.
        detail: String,
    },
    /// No answer within [`Options::answer_within`]. The message stays in the outbox and may still arrive.
    #[error("no answer in time; the message stays in the outbox and may still arrive")]
    Undecided,
    /// The device has stopped. What was published and not answered may have arrived.
    #[error("the device has stopped: {0}")]
    Stopped(Stop),
}

/// What a handle asks of the task.
enum Request {
    Publish(Box<Outgoing>, oneshot::Sender<Result<(), RequestError>>),
    Subscribe(Filter),
    Unsubscribe(Filter),
    Result(MessageId, CommandStatus, Option<Box<RawValue>>),
}

/// A device that stays connected. It stops when it is dropped; [`Device::close`] says goodbye first.
#[derive(Debug)]
pub struct Device {
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<State>,
    certificate: watch::Receiver<CertificateStatus>,
    messages: broadcast::Sender<Message>,
    commands: broadcast::Sender<Command>,
    answer_within: Duration,
    stop: CancellationToken,
    _stop_with_me: DropGuard,
    task: tokio::task::JoinHandle<()>,
}

impl Device {
    /// Starts to connect, and stays connected from then on. It must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] where the credentials cannot be used at all; a gateway that is not there is no error.
    pub fn connect(credentials: Credentials, options: Options) -> Result<Self, StartError> {
        let dial = Dial {
            tls: tls::configuration(credentials.identity())?,
            target: Arc::new(Target::parse(credentials.url())?),
            address: None,
            local: options.local,
            key: None,
            within: options.connect_within,
            max_message_bytes: options.max_message_bytes,
        };
        let bounds = doorward_proto::link::Bounds {
            outbox: options.outbox.max(1),
            window: options.window.max(1),
            max_message_bytes: options.max_message_bytes,
        };
        let link = Link::new(credentials.device().clone(), credentials.keyring(), bounds);
        // A request beyond the outbox waits here, and beyond that in its caller.
        let (requests, requested) = mpsc::channel(16);
        let (stating, state) = watch::channel(State::Connecting { last: None });
        let (messages, _) = broadcast::channel(options.inbox.max(1));
        let (commands, _) = broadcast::channel(options.inbox.max(1));
        let stop = CancellationToken::new();
        let answer_within = options.answer_within;
        let task = task::Task::new(
            credentials,
            options,
            dial,
            link,
            requested,
            task::Out { state: stating, messages: messages.clone(), commands: commands.clone() },
            stop.clone(),
        );
        let certificate = task.certificate();
        let task = tokio::spawn(task.run());
        let guard = stop.clone().drop_guard();
        Ok(Self {
            requests,
            state,
            certificate,
            messages,
            commands,
            answer_within,
            stop,
            _stop_with_me: guard,
            task,
        })
    }

    /// Publishes a value, and returns once the gateway has made it durable. It is kept, and sent again under the same
    /// id, over as many reconnects as that takes.
    ///
    /// # Errors
    /// [`RequestError`]: refused, malformed, undecided for too long, or the device stopped.
    pub async fn publish<T: Serialize + ?Sized>(&self, channel: &str, data: &T) -> Result<(), RequestError> {
        let malformed = |error: serde_json::Error| RequestError::Malformed(error.to_string());
        let data = serde_json::to_string(data).map_err(malformed)?;
        let id = tls::random_id().ok_or_else(|| {
            RequestError::Malformed("the operating system gives no random bytes for an id".to_owned())
        })?;
        let outgoing = Outgoing::new(id, channel, &data).map_err(RequestError::Malformed)?;
        let (answer, answered) = oneshot::channel();
        let work = async {
            self.ask(Request::Publish(Box::new(outgoing), answer)).await?;
            answered.await.unwrap_or_else(|_| Err(RequestError::Stopped(self.why_stopped())))
        };
        tokio::time::timeout(self.answer_within, work).await.unwrap_or(Err(RequestError::Undecided))
    }

    /// Subscribes, in this session and each that follows; what comes goes to [`Device::messages`].
    ///
    /// # Errors
    /// [`RequestError`]: no filter, or the device stopped. A refusal by the policy ends the subscription silently.
    pub async fn subscribe(&self, filter: &str) -> Result<(), RequestError> {
        self.ask(Request::Subscribe(read_filter(filter)?)).await
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// [`RequestError`]: no filter, or the device stopped.
    pub async fn unsubscribe(&self, filter: &str) -> Result<(), RequestError> {
        self.ask(Request::Unsubscribe(read_filter(filter)?)).await
    }

    /// Answers a command. The answer is kept until the gateway has acknowledged it.
    ///
    /// # Errors
    /// [`RequestError`]: data that is not JSON, or the device stopped.
    pub async fn result<T: Serialize + ?Sized>(
        &self,
        command: &MessageId,
        status: CommandStatus,
        data: Option<&T>,
    ) -> Result<(), RequestError> {
        let data = data
            .map(serde_json::value::to_raw_value)
            .transpose()
            .map_err(|error| RequestError::Malformed(error.to_string()))?;
        self.ask(Request::Result(command.clone(), status, data)).await
    }

    /// What subscriptions bring from now on.
    #[must_use]
    pub fn messages(&self) -> Inbox<Message> {
        Inbox { receiver: self.messages.subscribe(), dropped: 0 }
    }

    /// What the gateway orders from now on. A command comes again in each session until it is answered.
    #[must_use]
    pub fn commands(&self) -> Inbox<Command> {
        Inbox { receiver: self.commands.subscribe(), dropped: 0 }
    }

    /// Where the device stands, to be read and watched.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// The device's certificate and what becomes of its renewal, to be read and watched.
    #[must_use]
    pub fn certificate(&self) -> watch::Receiver<CertificateStatus> {
        self.certificate.clone()
    }

    /// Closes the session and stops. What has no answer yet fails with [`RequestError::Stopped`].
    pub async fn close(self) {
        self.stop.cancel();
        // The task ends by itself, in bounded time; that it panicked would have been reported by the runtime.
        let _ = self.task.await;
    }

    async fn ask(&self, request: Request) -> Result<(), RequestError> {
        self.requests.send(request).await.map_err(|_| RequestError::Stopped(self.why_stopped()))
    }

    fn why_stopped(&self) -> Stop {
        match *self.state.borrow() {
            State::Stopped(stop) => stop,
            _ => Stop::Closed,
        }
    }
}

fn read_filter(text: &str) -> Result<Filter, RequestError> {
    Filter::new(text).map_err(|error| RequestError::Malformed(error.to_string()))
}

/// What came from the gateway, kept for a reader up to [`Options::inbox`].
#[derive(Debug)]
pub struct Inbox<T> {
    receiver: broadcast::Receiver<T>,
    dropped: u64,
}

impl<T: Clone> Inbox<T> {
    /// The next one; `None` once the device has stopped and all is read.
    pub async fn next(&mut self) -> Option<T> {
        loop {
            match self.receiver.recv().await {
                Ok(item) => return Some(item),
                Err(broadcast::error::RecvError::Lagged(missed)) => self.dropped += missed,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// How many were dropped because this reader was slow.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
