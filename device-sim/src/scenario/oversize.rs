//! Messages that are too long, in each way that RFC 6455 knows to make one.

use std::io;
use std::sync::Arc;

use super::attacks::{Attacks, local};
use super::{Cast, Context};
use crate::engine::raw::{CONTINUE, End, FIN, Raw, TEXT};

/// More than any gateway may be configured to take.
const BYTES: usize = 17 << 20;
const PART: usize = 16 << 10;
const EXPECTED: &str = "close 1009";

#[derive(Clone, Copy)]
enum Way {
    Whole,
    Fragments,
    Announced,
}

pub(super) async fn attack(context: &Arc<Context>, cast: &Cast, attacks: &Arc<Attacks>) {
    // One after the other: it is the gateway that is to stop reading, not this machine that runs out of memory.
    for (attacker, index) in cast.hostile.iter().copied().enumerate() {
        for (name, way) in [
            ("a frame of 17 MiB", Way::Whole),
            ("fragments of 16 KiB without end", Way::Fragments),
            ("a frame that announces a tebibyte", Way::Announced),
        ] {
            one(context, attacker, index, name, way, attacks).await;
        }
    }
}

async fn one(
    context: &Context,
    attacker: usize,
    index: usize,
    name: &'static str,
    way: Way,
    attacks: &Attacks,
) {
    let member = &context.members[index];
    let mut raw = match Raw::open(context, &member.tls, local(context, attacker)).await {
        Ok(raw) => raw,
        Err(error) => return attacks.untried(name, EXPECTED, member.id(), &error),
    };
    // A gateway that has closed takes no more: what it has said is read then.
    let _ = tokio::time::timeout(context.answer_within, send(&mut raw, way)).await;
    let end = raw.end(context.answer_within).await;
    attacks.saw(name, EXPECTED, member.id(), (end != End::Closed(1009)).then(|| end.words()));
}

async fn send(raw: &mut Raw, way: Way) -> io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let part = vec![b'x'; PART];
    match way {
        Way::Announced => raw.announce(FIN | TEXT, 1 << 40).await?,
        Way::Whole => {
            raw.announce(FIN | TEXT, BYTES as u64).await?;
            for _ in 0..BYTES / PART {
                raw.0.stream.write_all(&part).await?;
            }
        }
        Way::Fragments => {
            for number in 0..BYTES / PART {
                raw.frame(if number == 0 { TEXT } else { CONTINUE }, &part).await?;
            }
        }
    }
    raw.0.stream.flush().await
}
