//! The life of an honest device: connect, send at its pace, come back when dropped, wait for every answer.

mod rotation;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use doorward_client::connection::{ConnectError, Connection, Ended, Incoming, Phase as Step};
use doorward_client::renewal::Renewal;
use doorward_proto::close::Close;
use doorward_proto::ids::{KeyVersion, MessageId};
use doorward_proto::limits::Rate;
use doorward_proto::link::{Bounds, Event, Link, Outgoing};
use doorward_proto::time::{Moment, NumericDate};
use tokio::sync::watch;

use super::pacer::{Pace, Pacer};
use super::{Context, Phase, seconds};
use crate::{clock, peek, tally};

/// Frames taken before the next ones are sent.
const BATCH: usize = 128;
/// A device that could not connect this often is not waited for; it goes on trying.
const ATTEMPTS: u32 = 3;
/// The link's time line begins here, so that a device's clock can be behind.
const LINK_BEGINS: Duration = Duration::from_secs(1000);
const GOODBYE: Duration = Duration::from_secs(5);

/// What an honest device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Role {
    pub(crate) pace: Pace,
    pub(crate) window: usize,
    /// Its clock jumps ahead once the gateway has told it the time.
    pub(crate) jumps: bool,
}

/// What became of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) index: usize,
    pub(crate) sessions: u64,
    pub(crate) last_failure: Option<String>,
    /// How its sessions ended before it closed them itself.
    pub(crate) ended: Vec<String>,
    pub(crate) accepted: u64,
    pub(crate) refused: BTreeMap<String, u64>,
    /// Sent and not answered at the end.
    pub(crate) lost: u64,
    /// Meant and not sent.
    pub(crate) unsent: u64,
    /// Certificates that it renewed.
    pub(crate) renewed: u64,
    /// Keys that it took.
    pub(crate) rekeyed: u64,
    /// Renewals that came to nothing, and keys that it could not take.
    pub(crate) not_rotated: u64,
}

struct Device {
    context: Arc<Context>,
    outcome: Outcome,
    link: Link,
    renewal: Renewal,
    /// The newest that it signs with.
    key: KeyVersion,
    /// The `seq` of the last request for a certificate in this session.
    renewing: Option<u64>,
    /// The link's clock, ahead of ours by this.
    shift: Duration,
    jumps: bool,
    pacer: Pacer,
    window: usize,
    awaiting: VecDeque<(MessageId, Duration)>,
    phase: watch::Receiver<Phase>,
    storm: watch::Receiver<u32>,
    channel: String,
    number: u64,
    /// As the last welcome stated it.
    rate: Rate,
    retry_after: Option<Duration>,
}

/// Why a session is over.
enum End {
    /// All is said and answered, or the time is up.
    Done,
    Failed(ConnectError),
    Ended(Ended),
    /// This device's own checks: the close code, and the words.
    Own(Close, String),
    /// There is another certificate to be shown.
    Reconnect,
    /// Its connection is gone, with those of all others.
    Storm,
}

pub(crate) async fn live(context: Arc<Context>, index: usize, place: usize, role: Role) -> Outcome {
    let credentials = &context.members[index].credentials;
    let tls = Arc::clone(&context.members[index].tls);
    let bounds = Bounds { outbox: role.window + 8, window: role.window + 8, ..Bounds::default() };
    let mut device = Device {
        outcome: Outcome { index, ..Outcome::default() },
        link: Link::new(credentials.device().clone(), credentials.keyring(), bounds),
        renewal: Renewal::open(credentials, tls, context.renewal_of(credentials)),
        key: credentials.key().version(),
        renewing: None,
        shift: LINK_BEGINS,
        jumps: role.jumps,
        pacer: Pacer::new(role.pace),
        window: role.window,
        awaiting: VecDeque::with_capacity(role.window.min(64)),
        phase: context.phase.subscribe(),
        storm: context.storm.subscribe(),
        channel: format!("devices/{}/sim", credentials.device()),
        number: 0,
        rate: Rate { per_second: 1, burst: 1 },
        retry_after: None,
        context: Arc::clone(&context),
    };
    let turn = clock::sleep_until(context.turn(place));
    if context.cancel.run_until_cancelled(turn).await.is_some() {
        device.run().await;
    } else {
        context.settle();
    }
    device.finish()
}

impl Device {
    async fn run(&mut self) {
        let mut failures = 0;
        let mut settled = false;
        loop {
            let sessions = self.outcome.sessions;
            let end = self.session(&mut settled).await;
            self.link.disconnected();
            self.renewing = None;
            if self.outcome.sessions > sessions {
                self.context.tally.down();
                failures = 0;
            } else {
                failures += 1;
            }
            let gives_up = self.note(&end);
            if matches!(end, End::Reconnect | End::Storm) {
                if self.is_over(clock::now()) {
                    break;
                }
                continue;
            }
            if !settled && (gives_up || failures >= ATTEMPTS) {
                settled = true;
                self.context.settle();
            }
            if gives_up || self.pause(failures).await {
                break;
            }
        }
        if !settled {
            self.context.settle();
        }
    }

    /// Writes down how a session ended. `true` where there is no point in another.
    fn note(&mut self, end: &End) -> bool {
        self.ended(end);
        let (word, gives_up) = match end {
            End::Done => return true,
            End::Reconnect | End::Storm => return false,
            End::Failed(error) => {
                self.context.tally.failed(error);
                self.outcome.last_failure = Some(error.to_string());
                let passing = match error {
                    ConnectError::Refused(refused) => matches!(refused.status, 429 | 503),
                    ConnectError::Alert(_) | ConnectError::Untrusted(_) | ConnectError::Protocol(_) => false,
                    _ => true,
                };
                return !passing && !self.renewal.is_unproven();
            }
            End::Ended(ended) => (tally::end_label(ended), ended.close() == Some(Close::Revoked)),
            End::Own(_, words) => (words.clone(), false),
        };
        self.context.tally.ended(&word);
        if self.outcome.ended.len() < 16 {
            self.outcome.ended.push(word);
        }
        gives_up
    }

    /// Waits before the next attempt. `true` when the run is over.
    async fn pause(&mut self, failures: u32) -> bool {
        let longest = seconds(0.5 * f64::from(1 << failures.min(4)));
        let wait = self.retry_after.take().unwrap_or_default().min(Duration::from_secs(10))
            + longest.mul_f64(fastrand::f64());
        let at = clock::now() + wait;
        loop {
            if self.is_over(clock::now()) {
                return true;
            }
            tokio::select! {
                () = clock::sleep_until(at) => return false,
                _ = self.phase.changed() => {}
            }
        }
    }

    fn is_over(&self, now: Duration) -> bool {
        match *self.phase.borrow() {
            Phase::Draining { until, .. } => now >= until || self.awaiting.is_empty(),
            _ => false,
        }
    }

    async fn session(&mut self, settled: &mut bool) -> End {
        let began;
        let mut connection = {
            let Ok(_permit) = self.context.handshakes.acquire().await else { return End::Done };
            began = clock::now();
            match self.context.honest_dial(self.outcome.index, self.renewal.tls()).connect().await {
                Ok(connection) => connection,
                Err(error) => return End::Failed(error),
            }
        };
        let end = self.serve(&mut connection, began, settled).await;
        match end {
            End::Done | End::Reconnect => connection.close(Close::Normal, GOODBYE).await,
            End::Own(close, _) => connection.close(close, GOODBYE).await,
            End::Failed(_) | End::Ended(_) | End::Storm => {}
        }
        end
    }

    async fn serve(&mut self, connection: &mut Connection, began: Duration, settled: &mut bool) -> End {
        let welcome_by = began + Duration::from_secs(30);
        self.storm.mark_unchanged();
        loop {
            let now = clock::now();
            if self.is_over(now) {
                return End::Done;
            }
            self.publish(now);
            if self.rotates(now) {
                return End::Reconnect;
            }
            if let Err(ended) = self.transmit(connection).await {
                return End::Ended(ended);
            }
            if self.link.is_silent(self.moment()) {
                return End::Own(Close::Normal, "nothing heard for two heartbeats and a half".to_owned());
            }
            let welcomed = self.link.welcome().is_some();
            if !welcomed && now >= welcome_by {
                return End::Failed(ConnectError::Timeout(Step::Welcome));
            }
            let deadline = if welcomed { self.deadline(now) } else { welcome_by };
            let received = tokio::select! {
                received = connection.receive() => Some(received),
                () = clock::sleep_until(deadline) => None,
                _ = self.phase.changed() => None,
                Ok(()) = self.storm.changed() => return End::Storm,
            };
            if let Some(first) = received {
                let result = self.batch(connection, first, began);
                if !*settled && self.link.welcome().is_some() {
                    *settled = true;
                    self.context.settle();
                }
                if let Err(end) = result {
                    // In TLS 1.3 the certificate is judged after the handshake: until the welcome this is a
                    // connection that did not come about.
                    return match end {
                        End::Ended(Ended::Alert(alert)) if !welcomed => {
                            End::Failed(ConnectError::Alert(alert))
                        }
                        End::Ended(Ended::Lost(error)) if !welcomed => {
                            End::Failed(ConnectError::Network { phase: Step::Welcome, error })
                        }
                        end => end,
                    };
                }
            }
        }
    }

    /// What is due goes to the link, as far as the window allows.
    fn publish(&mut self, now: Duration) {
        let Phase::Sending(began) = *self.phase.borrow_and_update() else { return };
        let Some(rate) = self.link.welcome().map(|welcome| welcome.rate) else { return };
        self.rate = rate;
        self.pacer.begin(began);
        while self.awaiting.len() < self.window && self.pacer.due(rate) <= now {
            let data = data(self.number, self.context.payload);
            let id = fastrand::u128(..).to_be_bytes();
            // The channel and the data are ours and well-formed; the outbox is larger than the window.
            let Ok(outgoing) = Outgoing::new(id, &self.channel, &data) else { return };
            let id = outgoing.id.clone();
            if self.link.publish(outgoing).is_err() {
                return;
            }
            self.number += 1;
            self.awaiting.push_back((id, self.pacer.take(rate, now)));
            tally::Tally::add(&self.context.tally.sent, 1);
        }
    }

    async fn transmit(&mut self, connection: &mut Connection) -> Result<(), Ended> {
        let mut fed = false;
        while let Some(frame) = self.link.transmit(self.moment()) {
            self.note_request(&frame);
            connection.feed(frame).await?;
            fed = true;
        }
        if fed { connection.flush().await } else { Ok(()) }
    }

    /// When there is something to do without the gateway.
    fn deadline(&self, now: Duration) -> Duration {
        let link = self.link.deadline().map_or(Duration::MAX, |at| at.saturating_sub(self.shift));
        // A retry may be due while the window is full: looking again is paced.
        let mut next = link.max(now + Duration::from_millis(10));
        if let Some(at) = self.renewal.deadline() {
            next = next.min(at);
        }
        match *self.phase.borrow() {
            Phase::Connecting => {}
            Phase::Sending(_) => {
                if self.awaiting.len() < self.window {
                    next = next.min(self.pacer.due(self.rate));
                }
            }
            Phase::Draining { until, .. } => next = next.min(until),
        }
        next
    }

    /// What has come, all of it at once: one flush answers it.
    fn batch(
        &mut self,
        connection: &mut Connection,
        first: Result<Incoming, Ended>,
        began: Duration,
    ) -> Result<(), End> {
        let mut latencies = Vec::new();
        let mut result = Ok(());
        let mut next = Some(first);
        for _ in 0..BATCH {
            let Some(incoming) = next.take() else { break };
            result = match incoming {
                Err(ended) => Err(End::Ended(ended)),
                Ok(Incoming::Alive) => {
                    self.link.heard(self.moment());
                    Ok(())
                }
                Ok(Incoming::Text(frame)) => self.frame(&frame, began, &mut latencies),
            };
            if result.is_err() {
                break;
            }
            next = connection.receive_now().transpose();
        }
        if !latencies.is_empty() {
            self.outcome.accepted += u64::try_from(latencies.len()).unwrap_or(0);
            self.context.tally.acked(self.outcome.index, &latencies);
        }
        result
    }

    fn frame(&mut self, frame: &str, began: Duration, latencies: &mut Vec<Duration>) -> Result<(), End> {
        let moment = self.moment();
        self.link.receive(frame, moment).map_err(|violation| {
            End::Own(Close::DeviceCheck, format!("the device's check failed: {violation}"))
        })?;
        if let Some(reject) = peek::reject(frame).filter(|reject| !self.is_of_renewal(reject)) {
            self.context.tally.refused(&reject.error);
            let count = self.outcome.refused.len();
            if count < 32 || self.outcome.refused.contains_key(&reject.error) {
                *self.outcome.refused.entry(reject.error).or_default() += 1;
            }
        }
        let mut reconnect = false;
        while let Some(event) = self.link.poll() {
            match event {
                Event::Welcome(welcome) => {
                    self.outcome.sessions += 1;
                    self.context.tally.welcomed(clock::now().saturating_sub(began));
                    self.renewal.welcomed(&welcome, self.gateway_time(), clock::now());
                    if std::mem::take(&mut self.jumps) {
                        self.shift += seconds((welcome.max_skew * 2.0).max(300.0));
                        // The jump is the device's, not a silence of the gateway.
                        self.link.heard(self.moment());
                    }
                }
                Event::Acked(id) => {
                    if let Some(intended) = self.answered(&id) {
                        latencies.push(clock::now().saturating_sub(intended));
                    }
                }
                Event::Refused { id, .. } => drop(self.answered(&id)),
                Event::Bye(bye) => self.retry_after = bye.retry_after.map(Duration::from_secs),
                other => reconnect |= self.rotation(other),
            }
        }
        if reconnect { Err(End::Reconnect) } else { Ok(()) }
    }

    fn answered(&mut self, id: &MessageId) -> Option<Duration> {
        // Answers come nearly in order: the first is the one.
        let at = self.awaiting.iter().position(|(waiting, _)| waiting == id)?;
        self.awaiting.remove(at).map(|(_, intended)| intended)
    }

    /// The link's time. Only the monotonic clock counts for it.
    fn moment(&self) -> Moment {
        Moment { monotonic: clock::now() + self.shift, wall: NumericDate::default() }
    }

    fn finish(mut self) -> Outcome {
        self.count_rotation();
        self.outcome.lost = u64::try_from(self.awaiting.len()).unwrap_or(u64::MAX);
        if let Phase::Draining { ended, .. } = *self.phase.borrow() {
            // Without a session there was no rate: those messages were never meant.
            if self.outcome.sessions > 0 {
                self.outcome.unsent = self.pacer.unsent(self.rate, ended);
            }
        }
        self.outcome
    }
}

/// A JSON object of this many bytes, where the number leaves room for it.
fn data(number: u64, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes.max(32));
    // Writing to a string cannot fail.
    let _ = write!(text, r#"{{"n":{number}"#);
    let frame = text.len() + r#","pad":""}"#.len();
    if bytes >= frame {
        text.push_str(r#","pad":""#);
        text.extend(std::iter::repeat_n('x', bytes - frame));
        text.push('"');
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_the_length_that_was_asked_for() {
        for bytes in [18, 19, 128, 4096] {
            assert_eq!(data(123, bytes).len(), bytes);
        }
        assert_eq!(data(5, 0), r#"{"n":5}"#);
        assert!(serde_json::from_str::<serde_json::Value>(&data(5, 99)).is_ok());
    }
}
