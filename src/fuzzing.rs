//! What the fuzz targets see of rooms that are nobody else's business. It is no interface: it follows what they try.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, ReadBuf};

use crate::upgrade::{self, HeadError};

/// What a request's head comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// The peer was gone before its end.
    Unfinished,
    /// Answered with a problem document.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The end of its `type`.
        problem: &'static str,
        /// Words for a person.
        detail: String,
    },
    /// Answered with 101.
    Accepted {
        /// The key version that the gateway is asked to sign with.
        key: Option<u32>,
        /// What came behind the head.
        rest: Vec<u8>,
    },
}

/// Judges the head of a device's request that comes in these pieces, then ends.
#[must_use]
pub fn upgrade(pieces: &[&[u8]], origins: &[String]) -> Upgrade {
    let refused = |denied: crate::identity::Denied| Upgrade::Refused {
        status: denied.problem.status(),
        problem: denied.problem.label(),
        detail: denied.detail,
    };
    let mut rest = Vec::new();
    // A read of nothing would be the end.
    let pieces = pieces.iter().copied().filter(|piece| !piece.is_empty());
    let mut stream = Pieces(pieces.collect());
    match upgrade::read_head(&mut stream, &mut rest).now_or_never() {
        None | Some(Err(HeadError::Io(_))) => Upgrade::Unfinished,
        Some(Err(HeadError::Malformed(why))) => {
            refused(crate::identity::Denied::new(crate::identity::Problem::Malformed, why))
        }
        Some(Ok(request)) => match request.judge(origins) {
            Err(denied) => refused(denied),
            Ok(wanted) => {
                // What had not been read yet comes behind it.
                rest.extend(stream.0.iter().copied().flatten());
                Upgrade::Accepted { key: wanted.key.map(|key| key.get()), rest }
            }
        },
    }
}

/// A peer that sends these pieces, one a read, and is gone then.
struct Pieces<'a>(std::collections::VecDeque<&'a [u8]>);

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if let Some(piece) = self.0.front_mut() {
            let (now, later) = piece.split_at(piece.len().min(buffer.remaining()));
            buffer.put_slice(now);
            *piece = later;
            if later.is_empty() {
                self.0.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}
