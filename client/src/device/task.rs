//! The task behind a [`super::Device`]: connect, serve, wait, again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::downlink::{Command, Message, Rekey};
use doorward_proto::ids::MessageId;
use doorward_proto::link::{Event, Link, Violation};
use doorward_proto::time::Moment;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Options, Request, RequestError, State, Stop};
use crate::backoff::{Backoff, Order};
use crate::clock;
use crate::connection::{ConnectError, Connection, Dial, Ended, Incoming};
use crate::credentials::Credentials;
use crate::renewal::{Act, Cause, CertificateStatus, Renewal};

/// Frames taken before the next ones are sent: a gateway that floods must not keep the device from speaking.
const BATCH: usize = 64;
/// A retry may be due while the window is full: looking again is paced.
const SOONEST: Duration = Duration::from_millis(20);

/// Where what comes goes.
pub(super) struct Out {
    pub(super) state: watch::Sender<State>,
    pub(super) messages: broadcast::Sender<Message>,
    pub(super) commands: broadcast::Sender<Command>,
}

pub(super) struct Task {
    credentials: Credentials,
    options: Options,
    dial: Dial,
    link: Link,
    renewal: Renewal,
    requests: mpsc::Receiver<Request>,
    /// A request that found the outbox full.
    held: Option<Request>,
    answers: BTreeMap<MessageId, oneshot::Sender<Result<(), RequestError>>>,
    /// When the session was welcomed, on the monotonic clock.
    welcomed: Option<Duration>,
    out: Out,
    stop: CancellationToken,
}

/// Why a session, or the attempt at one, is over.
enum End {
    Stopped,
    Connect(ConnectError),
    Ended(Ended),
    Violation(Violation),
    Silent,
    /// There is another certificate to be shown.
    Reconnect,
}

impl End {
    fn cause(&self) -> Cause {
        match self {
            Self::Connect(error) => error.into(),
            Self::Ended(ended) => ended.into(),
            Self::Silent => Cause::Unclear,
            Self::Stopped | Self::Violation(_) | Self::Reconnect => Cause::Other,
        }
    }
}

impl Task {
    pub(super) fn new(
        credentials: Credentials,
        options: Options,
        dial: Dial,
        link: Link,
        requests: mpsc::Receiver<Request>,
        out: Out,
        stop: CancellationToken,
    ) -> Self {
        let renewal = Renewal::open(&credentials, Arc::clone(&dial.tls), options.renewal.clone());
        Self {
            credentials,
            options,
            dial,
            link,
            renewal,
            requests,
            held: None,
            answers: BTreeMap::new(),
            welcomed: None,
            out,
            stop,
        }
    }

    pub(super) fn certificate(&self) -> watch::Receiver<CertificateStatus> {
        self.renewal.status()
    }

    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.options.backoff);
        let stop = loop {
            let mut retry_after = None;
            let end = self.session(&mut retry_after).await;
            // From `welcome` on: a slow handshake is no session.
            if let Some(welcomed) = self.welcomed.take() {
                backoff.session_lasted(clock::monotonic().saturating_sub(welcomed));
            }
            self.link.disconnected();
            let cause = end.cause();
            if cause == Cause::Certificate && self.reload() {
                continue;
            }
            let (words, order) = match end {
                End::Stopped => break Stop::Closed,
                End::Ended(Ended::Closed { close: Close::Revoked }) => break Stop::Revoked,
                End::Connect(ConnectError::Refused(refused)) if refused.is_final() => break Stop::Revoked,
                End::Connect(ConnectError::Refused(refused)) => {
                    (refused.to_string(), Order { close: None, retry_after: refused.retry_after })
                }
                End::Connect(error) => (error.to_string(), Order::default()),
                End::Ended(ended) => (ended.to_string(), Order { close: ended.close(), retry_after }),
                End::Violation(violation) => (violation.to_string(), Order::default()),
                End::Silent => ("nothing heard for two heartbeats and a half".to_owned(), Order::default()),
                End::Reconnect => {
                    self.renewal.ended(cause, "");
                    continue;
                }
            };
            let order = if self.renewal.ended(cause, &words) { Order::default() } else { order };
            self.out.state.send_replace(State::Connecting { last: Some(words.into()) });
            let wait = backoff.next_wait(order, fastrand::f64());
            let stop = self.stop.clone();
            if stop.run_until_cancelled(self.wait(wait)).await.is_none() {
                break Stop::Closed;
            }
        };
        self.requests.close();
        self.out.state.send_replace(State::Stopped(stop));
        for (_, answer) in std::mem::take(&mut self.answers) {
            // Nobody may be listening any more.
            let _ = answer.send(Err(RequestError::Stopped(stop)));
        }
    }

    /// Takes another certificate from the bundle's folder, if somebody has put one there since.
    fn reload(&mut self) -> bool {
        let Some(fresh) = self.renewal.reload(&self.credentials) else { return false };
        if fresh.key().version() > self.credentials.key().version() {
            self.link.add_key(fresh.key().clone());
        }
        self.credentials = fresh;
        true
    }

    /// Takes requests while there is no session, as far as the outbox goes.
    async fn wait(&mut self, wait: Duration) {
        let until = clock::monotonic().saturating_add(wait);
        loop {
            tokio::select! {
                () = clock::sleep_until(until) => return,
                Some(request) = self.requests.recv(), if self.held.is_none() => self.take(request),
            }
        }
    }

    async fn session(&mut self, retry_after: &mut Option<Duration>) -> End {
        let stop = self.stop.clone();
        let ends = clock::monotonic() + self.dial.within;
        self.dial.tls = Arc::clone(self.renewal.tls());
        let dial = self.dial.clone();
        let connection = match stop.run_until_cancelled(dial.connect()).await {
            None => return End::Stopped,
            Some(Err(error)) => {
                // The gateway does not know the version that the URL named: say nothing of it next time.
                self.dial.key = None;
                return End::Connect(error);
            }
            Some(Ok(connection)) => connection,
        };
        let mut connection = connection;
        let end = self.serve(&mut connection, ends, retry_after).await;
        let close = match &end {
            End::Stopped | End::Reconnect => Close::Normal,
            End::Violation(violation) => {
                // A gateway that signs with a version this device does not hold is told which one it does hold.
                let versions = *violation == Violation("its key version");
                self.dial.key = versions.then(|| self.credentials.key().version());
                Close::DeviceCheck
            }
            _ => return end,
        };
        connection.close(close, self.options.close_within).await;
        end
    }

    async fn serve(
        &mut self,
        connection: &mut Connection,
        welcome_by: Duration,
        retry_after: &mut Option<Duration>,
    ) -> End {
        let stop = self.stop.clone();
        loop {
            if let Err(ended) = self.transmit(connection).await {
                return End::Ended(ended);
            }
            let now = clock::now();
            if self.link.is_silent(now) {
                return End::Silent;
            }
            let welcomed = self.link.welcome().is_some();
            if !welcomed && now.monotonic >= welcome_by {
                return End::Connect(ConnectError::Timeout(crate::connection::Phase::Welcome));
            }
            match self.renewal.poll(now.monotonic) {
                Some(Act::Ask(request)) => {
                    self.link.renew(&request);
                    continue;
                }
                Some(Act::Reconnect) => return End::Reconnect,
                None => {}
            }
            let due = self.link.deadline().unwrap_or(welcome_by);
            let due = self.renewal.deadline().map_or(due, |at| at.min(due));
            let deadline = due.max(now.monotonic + SOONEST);
            let mut received = tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                received = connection.receive() => Some(received),
                Some(request) = self.requests.recv(), if self.held.is_none() => {
                    self.take(request);
                    None
                }
                () = clock::sleep_until(deadline) => None,
            };
            // What else has come is taken at once: one flush answers all of it.
            for _ in 0..BATCH {
                let Some(incoming) = received.take() else { break };
                let incoming = match incoming {
                    Ok(incoming) => incoming,
                    Err(ended) => return End::Ended(ended),
                };
                let now = clock::now();
                match incoming {
                    Incoming::Alive => self.link.heard(now),
                    Incoming::Text(frame) => {
                        if let Err(violation) = self.link.receive(&frame, now) {
                            return End::Violation(violation);
                        }
                    }
                }
                if self.events(now, retry_after) {
                    return End::Reconnect;
                }
                received = connection.receive_now().transpose();
            }
        }
    }

    async fn transmit(&mut self, connection: &mut Connection) -> Result<(), Ended> {
        let mut fed = false;
        while let Some(frame) = self.link.transmit(clock::now()) {
            connection.feed(frame).await?;
            fed = true;
        }
        if fed { connection.flush().await } else { Ok(()) }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Publish(outgoing, answer) => {
                let id = outgoing.id.clone();
                match self.link.publish((*outgoing).clone()) {
                    Ok(()) => drop(self.answers.insert(id, answer)),
                    Err(_) => self.held = Some(Request::Publish(outgoing, answer)),
                }
            }
            Request::Subscribe(filter) => self.link.subscribe(filter),
            Request::Unsubscribe(filter) => self.link.unsubscribe(&filter),
            Request::Result(id, status, data) => {
                if self.link.result(id.clone(), status, data.clone()).is_err() {
                    self.held = Some(Request::Result(id, status, data));
                }
            }
        }
    }

    /// `true` where the session is to end for another certificate.
    fn events(&mut self, now: Moment, retry_after: &mut Option<Duration>) -> bool {
        let mut reconnect = false;
        let time = self.link.gateway_time(now).unwrap_or(now.wall);
        while let Some(event) = self.link.poll() {
            match event {
                Event::Welcome(welcome) => {
                    self.welcomed = Some(now.monotonic);
                    self.renewal.welcomed(&welcome, time, now.monotonic);
                    self.credentials.take_identity(self.renewal.identity());
                    self.out.state.send_replace(State::Connected(Box::new(welcome)));
                }
                Event::Limits(welcome) => {
                    self.out.state.send_replace(State::Connected(Box::new(welcome)));
                }
                Event::Acked(id) => self.answer(&id, Ok(())),
                Event::Refused { id, refusal, detail } => {
                    self.answer(&id, Err(RequestError::Refused { refusal, detail }));
                }
                // Without a reader it is dropped: at most once is what a subscription promises.
                Event::Message(message) => drop(self.out.messages.send(message)),
                Event::Command(command) => drop(self.out.commands.send(command)),
                Event::Rekey(rekey) => self.rekey(&rekey),
                Event::Bye(bye) => *retry_after = bye.retry_after.map(Duration::from_secs),
                Event::Rotate(rotate) => self.renewal.rotate(&rotate, time, now.monotonic),
                Event::Certificate(new) => {
                    reconnect |= self.renewal.certificate(&new, time, now.monotonic).is_some();
                }
                Event::NotRenewed { refusal, detail } => {
                    self.renewal.not_renewed(refusal, &detail, now.monotonic);
                }
                Event::Rejected(_) | Event::Subscribed(_) => {}
            }
        }
        if let Some(request) = self.held.take() {
            self.take(request);
        }
        reconnect
    }

    fn answer(&mut self, id: &MessageId, answer: Result<(), RequestError>) {
        if let Some(waiting) = self.answers.remove(id) {
            // Its caller may have given up.
            let _ = waiting.send(answer);
        }
    }

    /// Stored first, used then: the first use retires the old key, and a device that forgot the new one is out.
    fn rekey(&mut self, rekey: &Rekey) {
        if rekey.version <= self.credentials.key().version() {
            return;
        }
        // Where it cannot be stored, the old key goes on; each new session brings the new one again.
        if let Ok(Some(key)) = self.credentials.store_key(rekey) {
            self.link.add_key(key.clone());
            self.credentials.take_key(key);
        }
    }
}
