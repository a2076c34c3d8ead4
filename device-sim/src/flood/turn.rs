//! One connection of an attacker, from its first byte to the end that the gateway makes of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use doorward_client::connection::ConnectError;
use rustls::ClientConfig;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::{Crowd, Kind};
use crate::engine::probe::{Answer, Probe};
use crate::engine::raw::{CONTINUE, FIN, Raw, TEXT, closes, request, tcp};
use crate::scenario::forge::random_key;
use crate::scenario::slow_handshake::HALF_A_HELLO;

/// The longest that a connection is kept that the gateway does not end.
const PATIENCE: Duration = Duration::from_secs(60);
/// A gateway that takes nothing for so long has stopped reading: the next connection.
const STALLED: Duration = Duration::from_secs(2);
/// Messages before their answers are read.
const WINDOW: usize = 16;
/// Frames of a few bytes that go in one write.
const BATCH: usize = 256;
const PING: u8 = 9;
const PART: usize = 16 << 10;
/// More than any gateway may be configured to take.
const OVERSIZE: usize = 17 << 20;

/// Did not get as far as its attack.
pub(super) struct TurnedAway;

impl From<io::Error> for TurnedAway {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl From<ConnectError> for TurnedAway {
    fn from(_: ConnectError) -> Self {
        Self
    }
}

pub(super) async fn take(crowd: &Crowd, attacker: usize, tls: &Arc<ClientConfig>) -> Result<(), TurnedAway> {
    match crowd.kind {
        Kind::Connect => {
            let tcp = tcp(crowd.context.gateway, crowd.local(attacker)).await?;
            // By a reset: no port of this machine waits afterwards.
            tcp.set_zero_linger()?;
        }
        Kind::Silence | Kind::HalfHello => {
            let mut tcp = tcp(crowd.context.gateway, crowd.local(attacker)).await?;
            if crowd.kind == Kind::HalfHello {
                tcp.write_all(&HALF_A_HELLO).await?;
                crowd.sent(1);
            }
            closes(&mut tcp, PATIENCE).await;
        }
        Kind::WrongCa => {
            let mut stream = crowd.context.dial(tls, crowd.local(attacker)).secure().await?.stream;
            crowd.sent(1);
            closes(&mut stream, PATIENCE).await;
        }
        Kind::HalfUpgrade => {
            let mut stream = crowd.context.dial(tls, crowd.local(attacker)).secure().await?.stream;
            let request = request();
            stream.write_all(request.as_bytes().get(..40).unwrap_or_default()).await?;
            stream.flush().await?;
            crowd.sent(1);
            closes(&mut stream, PATIENCE).await;
        }
        Kind::Flapping | Kind::CloseRace | Kind::Forge | Kind::Replay | Kind::OverRate | Kind::SlowReader => {
            let probe = Probe::open(&crowd.context, tls, crowd.local(attacker)).await?;
            session(crowd, attacker, probe).await;
        }
        Kind::Oversize
        | Kind::Fragments
        | Kind::Pings
        | Kind::PingsInFragments
        | Kind::BadUtf8
        | Kind::Unmasked => {
            let mut raw = Raw::open(&crowd.context, tls, crowd.local(attacker)).await?;
            // Its end shows in a write that fails, or in nothing that is taken any more.
            let _ = frames(crowd, &mut raw).await;
        }
    }
    Ok(())
}

/// A session's messages, until it is ended.
async fn session(crowd: &Crowd, attacker: usize, mut probe: Probe) {
    let member = crowd.member(attacker);
    let (id, key) = (member.id(), member.credentials.key());
    let forged = random_key(key.version());
    let signed = |probe: &mut Probe| {
        let now = probe.time();
        key.sign(probe.publish(id, now).1.as_bytes())
    };
    match crowd.kind {
        Kind::Flapping => {
            let frame = signed(&mut probe);
            probe.send(&frame).await;
            crowd.sent(1);
            probe.answer().await;
            probe.close().await;
            return;
        }
        Kind::CloseRace => {
            let frame = signed(&mut probe);
            probe.send(&frame).await;
            crowd.sent(1);
            // Dropped with the answer on its way: its arrival resets the connection.
            let _ = tokio::time::timeout(Duration::ZERO, probe.close()).await;
            return;
        }
        _ => {}
    }
    if crowd.kind == Kind::SlowReader {
        let subscribe = probe.claims(id, json!({ "op": "subscribe", "ch": format!("devices/{id}/#") }));
        probe.send(&key.sign(subscribe.as_bytes())).await;
    }
    let again = signed(&mut probe);
    let data = "x".repeat(PART);
    loop {
        for _ in 0..WINDOW {
            let frame = match crowd.kind {
                Kind::Forge => {
                    let now = probe.time();
                    forged.sign(probe.publish(id, now).1.as_bytes())
                }
                Kind::Replay => again.clone(),
                Kind::SlowReader => {
                    let number = format!("sim-{:032x}", fastrand::u128(..));
                    let claims = json!({ "op": "publish", "ch": format!("devices/{id}/sim"), "data": data, "id": number });
                    key.sign(probe.claims(id, claims).as_bytes())
                }
                _ => signed(&mut probe),
            };
            match tokio::time::timeout(STALLED, probe.send(&frame)).await {
                Ok(true) => crowd.sent(1),
                Ok(false) => return,
                Err(_) => {
                    // It has stopped reading, and holds what it holds.
                    if crowd.kind == Kind::SlowReader {
                        tokio::time::sleep(PATIENCE).await;
                    }
                    return;
                }
            }
        }
        // It learns of its end by a write that fails.
        if crowd.kind == Kind::SlowReader {
            continue;
        }
        loop {
            match probe.answer_in(Duration::ZERO).await {
                Answer::Said(_) => {}
                Answer::Silence => break,
                Answer::Ended(_) => return,
            }
        }
    }
}

/// Frames of one connection, until one cannot be written.
async fn frames(crowd: &Crowd, raw: &mut Raw) -> io::Result<()> {
    let stalled = |_| io::Error::from(io::ErrorKind::TimedOut);
    let small = |first: u8| [first, 0x81, 0, 0, 0, 0, b'x'];
    match crowd.kind {
        Kind::Oversize => {
            let part = vec![b'x'; PART];
            raw.announce(FIN | TEXT, OVERSIZE as u64).await?;
            crowd.sent(1);
            for _ in 0..OVERSIZE / PART {
                tokio::time::timeout(STALLED, raw.0.stream.write_all(&part)).await.map_err(stalled)??;
            }
            return Ok(());
        }
        Kind::BadUtf8 => raw.frame(FIN | TEXT, &[0xc3, 0x28, 0xa0, 0xff]).await?,
        Kind::Unmasked => {
            raw.0.stream.write_all(&[FIN | TEXT, 1, b'x']).await?;
            raw.0.stream.flush().await?;
        }
        _ => {
            let batch: Vec<u8> = match crowd.kind {
                Kind::Pings => [small(FIN | PING)].concat().repeat(BATCH),
                Kind::PingsInFragments => [small(CONTINUE), small(FIN | PING)].concat().repeat(BATCH / 2),
                _ => small(CONTINUE).repeat(BATCH),
            };
            if crowd.kind != Kind::Pings {
                raw.frame(TEXT, b"x").await?;
            }
            loop {
                let write = async {
                    raw.0.stream.write_all(&batch).await?;
                    raw.0.stream.flush().await
                };
                tokio::time::timeout(STALLED, write).await.map_err(stalled)??;
                crowd.sent(BATCH as u64);
            }
        }
    }
    crowd.sent(1);
    raw.end(crowd.context.answer_within).await;
    Ok(())
}
