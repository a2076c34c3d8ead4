//! The driver: the same devices, frames and windows for both servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use doorward::{clock, entropy};
use doorward_client::connection::{Connection, Dial, Incoming};
use doorward_client::target::Target;
use doorward_client::{Credentials, tls};
use doorward_proto::close::Close;
use doorward_proto::link::{Bounds, Event, Link, Outgoing};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::server::Server;

/// Under load before a measurement begins, so that a server is at speed.
const WARM_UP: Duration = Duration::from_secs(1);
/// What the kernel and the servers still do for a load that has ended is not the next one's.
pub(crate) const SETTLE: Duration = Duration::from_millis(500);

/// The JSON text of a publish, in bytes.
const PAYLOAD: usize = 128;
/// Handshakes at once.
const AT_ONCE: usize = 8;
/// Devices that come and go in a round: once in full, once with the ticket of the first time.
const VISITORS: usize = 500;
/// For a connection, and for the answers still owed when a load ends.
const WITHIN: Duration = Duration::from_secs(30);

/// What one load has cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    /// Server CPU per acknowledged message, in µs.
    pub(crate) cpu_us: f64,
    /// Acknowledged messages.
    pub(crate) per_second: f64,
}

/// Server CPU per connection, from accept to close, in µs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Handshake {
    pub(crate) full_us: f64,
    pub(crate) resumed_us: f64,
}

/// The devices that are connected to one server.
pub(crate) struct Fleet(Vec<Device>);

struct Device {
    connection: Connection,
    talk: Talk,
}

enum Talk {
    /// Signed messages, and acks that are verified.
    Signed { link: Box<Link>, channel: String },
    /// A frame of the same length, and a count for an answer.
    Bare { frame: String },
}

/// What the devices of one load share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acked: AtomicU64,
}

impl Fleet {
    pub(crate) async fn connect(credentials: &[Credentials], server: &Server) -> Result<Self> {
        let devices = stream::iter(credentials)
            .map(|credentials| async {
                let dial = dial(credentials, server)?;
                Device::connect(&dial, credentials, server.is_gateway()).await
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(Self(devices))
    }

    /// Keeps a window of messages under way on every connection, and measures the middle of it.
    pub(crate) async fn load(&mut self, server: &Server, window: usize, long: Duration) -> Result<Load> {
        let shared = Arc::new(Shared::default());
        let tasks: Vec<_> = std::mem::take(&mut self.0)
            .into_iter()
            .map(|mut device| {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    device.pump(window, &shared).await?;
                    anyhow::Ok(device)
                })
            })
            .collect();
        tokio::time::sleep(WARM_UP).await;
        let sample =
            || anyhow::Ok((clock::now().monotonic, server.cpu_us()?, shared.acked.load(Ordering::Relaxed)));
        let (began, cpu_before, acked_before) = sample()?;
        tokio::time::sleep(long).await;
        let (ended, cpu_after, acked_after) = sample()?;
        shared.stop.store(true, Ordering::Relaxed);
        for task in tasks {
            let device = tokio::time::timeout(WITHIN, task).await.context("answers are owed")?;
            self.0.push(device.context("a device")??);
        }
        let messages = (acked_after - acked_before) as f64;
        ensure!(messages > 0.0, "nothing was acknowledged");
        Ok(Load {
            cpu_us: (cpu_after - cpu_before) / messages,
            per_second: messages / (ended - began).as_secs_f64(),
        })
    }
}

impl Device {
    async fn connect(dial: &Dial, credentials: &Credentials, signed: bool) -> Result<Self> {
        let connection = dial.connect().await?;
        let channel = format!("devices/{}/t", credentials.device());
        let mut device = Self { connection, talk: Talk::Bare { frame: "x".repeat(frame_length(&channel)) } };
        if signed {
            let bounds = Bounds { outbox: 64, window: 64, ..Bounds::default() };
            let link = Link::new(credentials.device().clone(), credentials.keyring(), bounds);
            device.talk = Talk::Signed { link: Box::new(link), channel };
            // Connected is who has been welcomed.
            while !matches!(&device.talk, Talk::Signed { link, .. } if link.welcome().is_some()) {
                let incoming = device.connection.receive().await?;
                device.take(incoming)?;
            }
            // Its hello, which proves the session.
            device.fill(0).await?;
        }
        Ok(device)
    }

    async fn pump(&mut self, window: usize, shared: &Shared) -> Result<()> {
        let mut under_way = 0;
        loop {
            if !shared.stop.load(Ordering::Relaxed) {
                let more = window - under_way;
                self.fill(more).await?;
                under_way += more;
            } else if under_way == 0 {
                return Ok(());
            }
            let incoming = self.connection.receive().await?;
            let mut acked = self.take(incoming)?;
            while let Some(incoming) = self.connection.receive_now()? {
                acked += self.take(incoming)?;
            }
            under_way = under_way.checked_sub(acked).context("more acks than messages")?;
            shared.acked.fetch_add(acked as u64, Ordering::Relaxed);
        }
    }

    async fn fill(&mut self, more: usize) -> Result<()> {
        for _ in 0..more {
            match &mut self.talk {
                Talk::Bare { frame } => self.connection.feed(frame.clone()).await?,
                Talk::Signed { link, channel } => {
                    link.publish(outgoing(channel)?)?;
                    while let Some(frame) = link.transmit(clock::now()) {
                        let (length, bare) = (frame.len(), frame_length(channel));
                        ensure!(
                            length.abs_diff(bare) < 24,
                            "signed frames have {length} bytes, bare ones {bare}"
                        );
                        self.connection.feed(frame).await?;
                    }
                }
            }
        }
        if more == 0
            && let Talk::Signed { link, .. } = &mut self.talk
            && let Some(frame) = link.transmit(clock::now())
        {
            self.connection.feed(frame).await?;
        }
        Ok(self.connection.flush().await?)
    }

    /// How many messages it answers.
    fn take(&mut self, incoming: Incoming) -> Result<usize> {
        let Incoming::Text(text) = incoming else { return Ok(0) };
        match &mut self.talk {
            Talk::Bare { .. } => Ok(text.as_str().parse()?),
            Talk::Signed { link, .. } => {
                link.receive(text.as_str(), clock::now())?;
                let mut acked = 0;
                while let Some(event) = link.poll() {
                    match event {
                        Event::Acked(_) => acked += 1,
                        Event::Welcome(_) | Event::Limits(_) => {}
                        other => bail!("the gateway answered with {other:?}"),
                    }
                }
                Ok(acked)
            }
        }
    }
}

/// Devices connect, take the first word where there is one, and go: in full, then resumed.
pub(crate) async fn handshakes(fleet: &[Credentials], server: &Server) -> Result<Handshake> {
    let visitors = fleet.get(..VISITORS.min(fleet.len())).unwrap_or(fleet);
    let dials: Vec<Dial> =
        visitors.iter().map(|credentials| dial(credentials, server)).collect::<Result<_>>()?;
    let mut cpu_us = [0.0; 2];
    for (resumed, place) in [false, true].into_iter().zip(&mut cpu_us) {
        let before = server.cpu_us()?;
        stream::iter(&dials)
            .map(|dial| visit(dial, server, resumed))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        // The goodbyes are part of a connection's price, so they are waited for.
        tokio::time::sleep(SETTLE).await;
        *place = (server.cpu_us()? - before) / dials.len() as f64;
    }
    let [full_us, resumed_us] = cpu_us;
    Ok(Handshake { full_us, resumed_us })
}

async fn visit(dial: &Dial, server: &Server, resumed: bool) -> Result<()> {
    let mut connection = dial.connect().await?;
    ensure!(connection.is_resumed() == resumed, "a handshake that should be {} is not", kind(resumed));
    if server.is_gateway() {
        connection.receive().await.context("not welcomed")?;
    } else {
        // The ticket comes behind the handshake: a message and its answer, so that it has been read.
        connection.feed("x".to_owned()).await?;
        connection.flush().await?;
        connection.receive().await?;
    }
    connection.close(Close::Normal, WITHIN).await;
    Ok(())
}

fn kind(resumed: bool) -> &'static str {
    if resumed { "resumed" } else { "full" }
}

fn dial(credentials: &Credentials, server: &Server) -> Result<Dial> {
    Ok(Dial {
        tls: tls::configuration(credentials.identity())?,
        target: Arc::new(Target::parse(&server.url)?),
        address: None,
        local: None,
        key: None,
        within: WITHIN,
        max_message_bytes: Bounds::default().max_message_bytes,
    })
}

fn outgoing(channel: &str) -> Result<Outgoing> {
    let data = format!("{{\"v\":\"{}\"}}", "x".repeat(PAYLOAD - 8));
    Outgoing::new(entropy::random()?, channel, &data).map_err(anyhow::Error::msg)
}

/// A signed publish's length: header, claims and signature in base64url, with their two points.
fn frame_length(channel: &str) -> usize {
    const CLAIMS: usize = 167;
    26 + 1 + (CLAIMS + channel.len() + PAYLOAD) * 4 / 3 + 1 + 43
}
