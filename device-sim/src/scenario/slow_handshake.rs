//! Peers that begin and do not go on: each must be closed in time, and delay nobody meanwhile.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use doorward_client::connection::{ConnectError, Phase};
use rustls::ClientConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

use super::attacks::{Attacks, local};
use super::{Cast, Context};
use crate::engine::raw::{closes, request, tcp};

/// Of each way, for each attacker.
const AT_ONCE: usize = 8;
/// The first bytes of a ClientHello: a record of 512 bytes is announced, and most of it never comes.
pub(crate) const HALF_A_HELLO: [u8; 11] = [22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
const DRIP: Duration = Duration::from_millis(250);
const EXPECTED: &str = "the end of the connection in time";

#[derive(Debug, Clone, Copy)]
enum Way {
    Silent,
    HalfAHello,
    Dripping,
    HalfAnUpgrade,
}

pub(super) async fn attack(context: &Arc<Context>, cast: &Cast, attacks: &Arc<Attacks>) {
    let mut tasks = JoinSet::new();
    for (attacker, index) in cast.hostile.iter().copied().enumerate() {
        for (name, way) in [
            ("TCP and silence", Way::Silent),
            ("half a TLS hello", Way::HalfAHello),
            ("a TLS hello, a byte at a time", Way::Dripping),
            ("half an upgrade", Way::HalfAnUpgrade),
        ] {
            for _ in 0..AT_ONCE {
                let (context, attacks) = (Arc::clone(context), Arc::clone(attacks));
                tasks.spawn(async move {
                    let member = &context.members[index];
                    let tls = Arc::clone(&member.tls);
                    let instead = match one(&context, &tls, local(&context, attacker), way).await {
                        Ok(true) => None,
                        Ok(false) => {
                            Some(format!("it was open after {:.0} s", context.unproven_within.as_secs_f64()))
                        }
                        Err(error) => Some(format!("it could not be tried: {error}")),
                    };
                    attacks.saw(name, EXPECTED, member.id(), instead);
                });
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Whether the gateway ends it in time.
async fn one(
    context: &Context,
    tls: &Arc<ClientConfig>,
    local: Option<IpAddr>,
    way: Way,
) -> io::Result<bool> {
    let within = context.unproven_within;
    if matches!(way, Way::HalfAnUpgrade) {
        let mut stream = match context.dial(tls, local).secure().await {
            Ok(secured) => secured.stream,
            // An address that has failed too often gets no further: an end, too.
            Err(ConnectError::Alert(_) | ConnectError::Network { phase: Phase::Tls, .. }) => return Ok(true),
            Err(error) => return Err(io::Error::other(error)),
        };
        let request = request();
        let _ = stream.write_all(request.as_bytes().get(..40).unwrap_or_default()).await;
        let _ = stream.flush().await;
        return Ok(closes(&mut stream, within).await);
    }
    let mut tcp = match tcp(context.gateway, local).await {
        Ok(tcp) => tcp,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(true),
        Err(error) => return Err(error),
    };
    match way {
        Way::Silent | Way::HalfAnUpgrade => {}
        Way::HalfAHello => drop(tcp.write_all(&HALF_A_HELLO).await),
        Way::Dripping => {
            let (mut reader, mut writer) = tcp.split();
            let drip = async {
                for byte in HALF_A_HELLO.iter().chain(&[0; 500]) {
                    if writer.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(DRIP).await;
                }
                std::future::pending::<bool>().await
            };
            return Ok(tokio::select! {
                closed = closes(&mut reader, within) => closed,
                never = drip => never,
            });
        }
    }
    Ok(closes(&mut tcp, within).await)
}
