//! One session's connection: it moves frames between the socket and the session core, which decides.
//!
//! Everything happens in one poll function, so that what one wake-up brought is read, judged and answered together:
//! the acks of many messages leave in one frame and one write.

mod closing;
pub(crate) mod echo;
mod frames;
mod live;
mod notes;
mod pace;
mod socket;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::session::{Output, Session};
use doorward_proto::time::Moment;
use doorward_proto::verdict::Refusal;
use futures_util::{Sink as _, Stream as _};
use tokio::time::Sleep;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tracing::{debug, info};

use crate::accept::{Admitted, Pass};
use crate::clock;
use crate::entropy;
use crate::fold::{Kind, Sample};
use crate::gateway::mailbox::{Ending, Outcome, Renewed};
use crate::gateway::sessions::{Handle, Proof};
use crate::gateway::{Gateway, Live};
use crate::registry::EventKind;
use crate::registry::renewals::Shown;
use crate::sink::{Job, NoRoom};

use closing::{Ended, broken, closing_handshake, failed, frame};
use frames::Watched;
use pace::Pace;
use socket::{frame_rate, open};

/// Frames that one wake-up may bring before others have their turn.
const MAX_FRAMES: usize = 16;
/// How long the other end may take to answer a close.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// When an `unavailable` message is worth another try, in seconds.
const RETRY_AFTER: u64 = 2;
const NOT_NOW: &str = "the store does not take messages now; nothing of this one was kept";

/// Begins a device's session.
pub(crate) fn begin(gateway: Arc<Gateway>, admitted: Admitted, pass: Pass) {
    tokio::spawn(run(gateway, admitted, pass));
}

/// Runs a session to its end.
async fn run(gateway: Arc<Gateway>, admitted: Admitted, mut pass: Pass) {
    let Admitted { stream, rest, handle, mut grant, peer, stay } = admitted;
    let now = clock::now();
    let (ws, longest) = open(stream, rest, &gateway.live().config.limits, now).await;

    // What has changed since the device was entered: the answer that counts is the one just before `welcome`.
    let mail = handle.mailbox.take();
    if let Some(newer) = mail.grant {
        grant = *newer;
    }
    let live = gateway.live();
    grant.limits = live::limits(&gateway, &live, &grant, longest);
    let challenge = match (mail.close, entropy::random()) {
        (None, Ok(challenge)) => Ok(challenge),
        (Some(ending), _) => Err(ending.close),
        (None, Err(_)) => Err(Close::Internal),
    };
    match challenge {
        Err(close) => {
            gateway.counters.closed(close);
            let sample = || Sample::new(&handle.id, peer, handle.device.as_str());
            if gateway.folds.may_say(&gateway.counters, Kind::Closed, close.label(), sample) {
                info!(connection = %handle.id, device = %handle.device, %peer, reason = close.label(), "closed before welcome");
            }
            pass.trail.closed(close);
            gateway.sessions.leave(&handle);
            closing_handshake(ws, Some(frame(&Ended::Ours(close), close))).await;
        }
        Ok(challenge) => {
            let mut session = Session::open(grant, Arc::clone(&live.settings), challenge, now);
            handle.spent.tell(&mut session, now);
            gateway.counters.opened();
            debug!(connection = %handle.id, device = %handle.device, %peer, "session opened");
            let mut connection = Connection {
                timer: Box::pin(tokio::time::sleep_until(clock::instant(session.deadline(now)))),
                gateway,
                live,
                longest,
                handle,
                session,
                ws,
                peer,
                pass,
                said_skew: false,
                received: 0,
                outgoing: VecDeque::new(),
                outgoing_bytes: 0,
                held: None,
                pace: Pace::default(),
                ending: None,
            };
            let ended = connection.until_closed().await;
            connection.finish(ended).await;
        }
    }
    drop(stay);
}

struct Connection {
    gateway: Arc<Gateway>,
    /// What the gateway goes by, as this session knows it.
    live: Arc<Live>,
    /// The longest message that the WebSocket takes, as of its opening.
    longest: usize,
    handle: Arc<Handle>,
    session: Session,
    ws: WebSocketStream<Watched>,
    peer: SocketAddr,
    /// Held to the end: its place among all connections, and its address's.
    pass: Pass,
    timer: Pin<Box<Sleep>>,
    /// The device's clock is off, and an event says so.
    said_skew: bool,
    /// Bytes that had come at the last wake-up.
    received: u64,
    /// Frames that the socket has not taken yet.
    outgoing: VecDeque<Message>,
    outgoing_bytes: usize,
    /// A publish that found no room in the store's queue, and until when it waits for some. While it waits, nothing
    /// more is read.
    held: Option<(Box<Job>, Duration)>,
    pace: Pace,
    /// A gentle ending that waits for publishes under way.
    ending: Option<Ending>,
}

impl Connection {
    async fn until_closed(&mut self) -> Ended {
        // Not pinned in the struct: it borrows the mailbox.
        let handle = Arc::clone(&self.handle);
        let mut mail = std::pin::pin!(handle.mailbox.mail());
        let ended = std::future::poll_fn(|cx| {
            while mail.as_mut().poll(cx).is_ready() {
                mail.set(handle.mailbox.mail());
            }
            self.poll(cx)
        })
        .await;
        self.pace.takes_no_turns();
        ended
    }

    /// One wake-up.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let now = clock::now();
        self.take_mail(now);
        let mut ended = self.perform(cx, now);
        if ended.is_none() {
            self.release_held(cx, now);
            ended = self.read(cx, now);
            self.note_life(now);
        }
        if self.ending.is_some_and(|ending| !ending.gently || self.session.undecided() == 0)
            && let Some(Ending { close, retry_after, .. }) = self.ending.take()
        {
            self.session.end(close, retry_after, now);
        }
        self.session.flush(now);
        ended = ended.or(self.perform(cx, now));
        if let Some(ended) = ended {
            return Poll::Ready(ended);
        }
        loop {
            if let Poll::Ready(Err(error)) = self.write(cx) {
                return Poll::Ready(broken(error));
            }
            let delivered = self.deliver(now);
            if let Some(ended) = self.perform(cx, now) {
                return Poll::Ready(ended);
            }
            if !delivered {
                break;
            }
        }
        if self.poll_timer(cx, now) {
            // The session has something to say: around once more.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn take_mail(&mut self, now: Moment) {
        let mail = self.handle.mailbox.take();
        for outcome in mail.outcomes {
            match outcome {
                Outcome::Stored(stored) => self.session.settle(stored),
                Outcome::Unavailable(receipt) => {
                    self.gateway.counters.rejected(Refusal::Unavailable);
                    self.session.refuse(receipt, Refusal::Unavailable, NOT_NOW, Some(RETRY_AFTER), now);
                }
                Outcome::Unstorable(receipt) => {
                    self.gateway.counters.rejected(Refusal::BadMessage);
                    self.session.refuse(
                        receipt,
                        Refusal::BadMessage,
                        "the store cannot hold this message",
                        None,
                        now,
                    );
                }
                // Never answered: the feed is about to end this session, and the device asks again in its next one.
                Outcome::Fenced => {}
            }
        }
        if mail.reconfigured {
            self.reconfigure(now);
        }
        if let Some(grant) = mail.grant {
            self.update(*grant, now);
        }
        if let Some(renewed) = mail.renewal {
            let Renewed { reference, answer } = *renewed;
            match answer {
                Ok((chain, expires)) => self.session.certify(reference, &chain, expires, now),
                Err((refusal, detail, retry_after)) => {
                    self.gateway.counters.rejected(refusal);
                    self.session.refuse_renewal(reference, refusal, &detail, retry_after, now);
                }
            }
        }
        if let Some(ending) = mail.close {
            self.ending = Some(ending);
            if !ending.gently {
                // Before another frame is looked at.
                self.session.end(ending.close, ending.retry_after, now);
            }
        }
    }

    /// Signs a message of its subscriptions if there is room for it, else it waits in the mailbox: a burst does not make a
    /// slow reader of one that reads.
    fn deliver(&mut self, now: Moment) -> bool {
        if self.outgoing_bytes > self.session.limits().outgoing_bytes / 2 {
            return false;
        }
        let message = self.handle.mailbox.next_delivery();
        message.inspect(|message| self.session.deliver(message, now)).is_some()
    }

    /// Anything received counts, the parts of a message that is not whole yet among it.
    fn note_life(&mut self, now: Moment) {
        let received = self.ws.get_ref().received();
        if std::mem::replace(&mut self.received, received) != received {
            self.session.heard(now);
            self.handle.spent.note(&self.session, now);
            self.handle.heard_ms.store(now.wall.as_millis(), Ordering::Relaxed);
        }
    }

    /// Reads what the socket has, as long as there is room for it.
    fn read(&mut self, cx: &mut Context<'_>, now: Moment) -> Option<Ended> {
        let Poll::Ready(_turn) = self.pace.poll_turn(cx) else { return None };
        let most = self.live.config.limits.undecided;
        self.ws.get_mut().allow(frame_rate(&self.live.config.limits), now.monotonic);
        let mut bytes = 0;
        for _ in 0..MAX_FRAMES {
            // What a draining session has not read stays unread: the device sends it again elsewhere.
            let rests = self.pace.rests(now.monotonic).is_some();
            if rests {
                self.pace.takes_turns(&self.gateway.turns);
            }
            if rests || self.held.is_some() || self.ending.is_some() || self.session.undecided() >= most {
                return None;
            }
            if bytes >= pace::MAX_BYTES {
                break;
            }
            // Decided while this very wake-up was reading: not one frame more.
            if self.handle.mailbox.is_over() {
                self.take_mail(now);
                return None;
            }
            let message = match Pin::new(&mut self.ws).poll_next(cx) {
                Poll::Pending => {
                    self.pace.takes_no_turns();
                    return None;
                }
                Poll::Ready(None) => return Some(Ended::Theirs(None)),
                Poll::Ready(Some(Err(error))) => return Some(failed(error)),
                Poll::Ready(Some(Ok(message))) => message,
            };
            match message {
                Message::Text(text) => {
                    bytes += text.len();
                    self.pass.trail.message(&self.gateway, &self.live, &self.handle);
                    let verdict = self.session.receive(text.as_str(), now);
                    self.note_verdict(verdict, text.len(), now);
                    if let Some(ended) = self.perform(cx, now) {
                        return Some(ended);
                    }
                }
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Binary(_) | Message::Frame(_) => return Some(Ended::Ours(Close::Unsupported)),
                Message::Close(frame) => return Some(Ended::Theirs(frame.map(|frame| frame.code.into()))),
            }
        }
        self.pace.takes_turns(&self.gateway.turns);
        cx.waker().wake_by_ref();
        None
    }

    /// Does what the session wants done. Its end, if it wants that.
    fn perform(&mut self, cx: &mut Context<'_>, now: Moment) -> Option<Ended> {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Send(text) => {
                    self.outgoing_bytes += text.len();
                    self.outgoing.push_back(Message::text(text));
                    if self.outgoing_bytes > self.session.limits().outgoing_bytes {
                        return Some(Ended::Ours(Close::SlowReader));
                    }
                }
                Output::Ping => self.outgoing.push_back(Message::Ping(bytes::Bytes::new())),
                Output::Store(accepted) => {
                    let job = Job::new(accepted, &self.handle, self.pass.trail.publish());
                    // A quarter of max_skew is the longest that a socket may stay unread; this is well below it.
                    let until = now.monotonic + self.live.limits.max_skew / 8;
                    self.push(cx, job, until, now);
                }
                Output::Proven => self.proven(),
                Output::Confirmed(version) => {
                    self.gateway.shown.put(&self.handle.device, Shown::Key(version));
                }
                Output::Renew { reference, csr } => self.gateway.renewals.ask(&self.handle, reference, csr),
                Output::Subscribe(filter) => self.gateway.routes.add(&filter, &self.handle),
                Output::Unsubscribe(filter) => self.gateway.routes.remove(&filter, &self.handle),
                Output::Close(close) => return Some(Ended::Ours(close)),
            }
        }
        None
    }

    fn proven(&mut self) {
        let _ = self.handle.proven_at.set(clock::utc());
        let now = clock::now();
        // The session that ends by this one has used some meanwhile.
        self.handle.spent.tell(&mut self.session, now);
        let moved = self.handle.spent.proven(self.peer.ip(), now.monotonic);
        match self.gateway.sessions.prove(&self.handle, now.monotonic) {
            // A newer connection took its place before it was proven; its ending is in the mailbox.
            Proof::Late => return,
            Proof::Taken => {}
            Proof::Suspicious(older) => {
                self.gateway.possible_clone(&self.handle.id, &older, &self.peer.to_string());
            }
        }
        if self.pass.proven(&self.handle.device) | moved {
            self.gateway.moved.notify_one();
        }
        self.gateway.counters.proven();
        if self.may_say(Kind::Proven, "proven") {
            info!(connection = %self.handle.id, device = %self.handle.device, peer = %self.peer, "session proven");
        }
        if self.handle.supersedes {
            self.gateway.shown.put(&self.handle.device, Shown::Certificate(self.handle.certificate));
        }
        self.gateway.sink.claim(self.handle.claim(&self.gateway.name));
    }

    /// Tries the held publish again, or gives it up when its time is over.
    fn release_held(&mut self, cx: &mut Context<'_>, now: Moment) {
        let Some((job, until)) = self.held.take() else { return };
        if now.monotonic >= until {
            self.give_up(
                *job,
                "more messages wait for the store than it can take; nothing of this one was kept",
                now,
            );
        } else {
            self.push(cx, *job, until, now);
        }
    }

    /// Hands a publish to the store, or holds it until there is room, or refuses it.
    fn push(&mut self, cx: &Context<'_>, job: Job, until: Duration, now: Moment) {
        match self.gateway.sink.push(job, cx.waker()) {
            Ok(()) => {}
            Err(NoRoom::Full(job)) => self.held = Some((job, until)),
            Err(NoRoom::Stalled(job)) => self.give_up(*job, NOT_NOW, now),
        }
    }

    fn give_up(&mut self, job: Job, detail: &str, now: Moment) {
        self.gateway.counters.rejected(Refusal::Unavailable);
        self.session.refuse(job.into_receipt(), Refusal::Unavailable, detail, Some(RETRY_AFTER), now);
    }

    /// Hands frames to the socket while it takes them.
    fn write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        while !self.outgoing.is_empty() {
            std::task::ready!(Pin::new(&mut self.ws).poll_ready(cx))?;
            if let Some(message) = self.outgoing.pop_front() {
                if let Message::Text(text) = &message {
                    self.outgoing_bytes = self.outgoing_bytes.saturating_sub(text.len());
                }
                Pin::new(&mut self.ws).start_send(message)?;
            }
        }
        if self.outgoing.capacity() > 16 {
            self.outgoing = VecDeque::new();
        }
        Pin::new(&mut self.ws).poll_flush(cx)
    }

    /// Sets the timer to the next deadline; whether one had passed.
    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Moment) -> bool {
        let mut deadline = self.session.deadline(now);
        if let Some(held) = &self.held {
            deadline = deadline.min(held.1);
        }
        deadline = self.pace.rests(now.monotonic).map_or(deadline, |until| until.min(deadline));
        if deadline <= now.monotonic {
            self.session.tick(now);
            return true;
        }
        let deadline = clock::instant(deadline);
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx).is_ready()
    }

    /// Leaves the table first, so that nothing finds a session that has ended; then says goodbye.
    async fn finish(mut self, ended: Ended) {
        for filter in self.session.subscriptions() {
            self.gateway.routes.remove(filter, &self.handle);
        }
        self.handle.spent.note(&self.session, clock::now());
        if self.gateway.sessions.leave(&self.handle) {
            self.gateway.sink.release(&self.handle);
        }
        let (close, detail) = (ended.close(), ended.detail());
        self.gateway.counters.closed(close);
        self.pass.trail.closed(close);
        // A CA or a list has ended it: the device is told what a suspended one is, and the operator what it was.
        let untrusted = (close == Close::Suspended)
            .then(|| self.gateway.live().trust().judge(&self.handle.origin, clock::now().wall).err())
            .flatten();
        let reason = untrusted.as_ref().map_or(close.label(), |denied| denied.problem.label());
        let detail = detail.or(untrusted.map(|denied| denied.detail.to_string()));
        if self.may_say(Kind::Closed, reason) {
            let skew = self.session.skew();
            info!(
                connection = %self.handle.id, device = %self.handle.device, peer = %self.peer, code = close.code(),
                reason, detail = detail.as_deref().unwrap_or("-"), proven = self.session.is_proven(),
                after_ms = self.handle.cut_after().map(|after| after.as_millis()),
                skew_ms = skew.map(|skew| skew.last_ms), most_skew_ms = skew.map(|skew| skew.largest_ms), "session closed"
            );
        }
        if close == Close::Strikes {
            self.note(EventKind::Strikes, &detail.as_deref().unwrap_or(Close::Strikes.reason()));
        }
        let last_words = frame(&ended, close);
        match ended {
            Ended::Broken(_) => {}
            Ended::Theirs(_) => closing_handshake(self.ws, None).await,
            Ended::Ours(_) | Ended::Flooded(_) => {
                if close == Close::SlowReader {
                    // It would not read them either: what counts now is that it learns why.
                    self.outgoing.clear();
                }
                let flushed = std::future::poll_fn(|cx| self.write(cx));
                let flushed = tokio::time::timeout(CLOSE_WITHIN, flushed).await;
                if let Some(after) = self.handle.cut_after() {
                    self.gateway.counters.cut(after);
                }
                if matches!(flushed, Ok(Ok(()))) || close == Close::SlowReader {
                    closing_handshake(self.ws, Some(last_words)).await;
                }
            }
        }
    }
}
