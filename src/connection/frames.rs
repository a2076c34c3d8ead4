//! Frames that bring no message. A ping, and a fragment with next to nothing in it, cost the gateway a look and never reach
//! the session that counts messages; so they are counted here, as they come out of TLS and before the WebSocket gathers them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::accept::Stream;
use crate::bucket::{Bucket, Rate, nanos};

/// A fragment of fewer bytes than this counts. One of more gets on: the longest message ends it soon.
const SMALL: u64 = 128;

/// A peer sends more of them than it may.
#[derive(Debug, thiserror::Error)]
#[error("more pings, pongs and small fragments than this gateway takes")]
pub(super) struct TooManyFrames;

/// A stream whose WebSocket frames are counted.
#[derive(Debug)]
pub(super) struct Watched {
    stream: Stream,
    frames: Frames,
}

impl Watched {
    /// `rest` has been read from the stream already.
    pub(super) fn new(stream: Stream, rest: &[u8], rate: Rate, now: Duration) -> Self {
        let mut frames = Frames::default();
        frames.allow(rate, now);
        frames.see(rest);
        Self { stream, frames }
    }

    /// What may come until this is asked again.
    pub(super) fn allow(&mut self, rate: Rate, now: Duration) {
        self.frames.allow(rate, now);
    }

    /// Whether more of them came than may.
    pub(super) fn is_flooded(&self) -> bool {
        self.frames.told
    }

    /// Bytes read so far, those of TLS among them.
    pub(super) fn received(&self) -> u64 {
        self.stream.get_ref().0.received()
    }
}

/// The headers of frames (RFC 6455 §5.2), of which a read may bring half.
#[derive(Debug, Default)]
struct Frames {
    bucket: Bucket,
    /// What it was measured by at the last wake-up.
    rate: Option<Rate>,
    /// How many were allowed at the last wake-up, and how many have come.
    allowed: u64,
    come: u64,
    header: [u8; 10],
    /// Bytes of the header that have come.
    have: usize,
    /// Bytes of mask and payload that are still to come.
    skip: u64,
    told: bool,
}

impl Frames {
    fn allow(&mut self, rate: Rate, now: Duration) {
        if self.come > self.allowed {
            // It is over, and will be told so.
            return;
        }
        let now = nanos(now);
        if let Some(old) = self.rate.replace(rate) {
            self.bucket.rebase(old, rate, now);
        }
        self.bucket.take_many(rate, std::mem::take(&mut self.come), now);
        self.allowed = self.bucket.left(rate, now);
    }

    fn see(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= skipped as u64;
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            if let Some(place) = self.header.get_mut(self.have) {
                *place = *first;
            }
            (self.have, bytes) = (self.have + 1, rest);
            self.read_header();
        }
    }

    /// Counts the frame if its header is whole.
    fn read_header(&mut self) {
        let [kind, second, length @ ..] = self.header;
        let [a, b, ..] = length;
        let (header, length) = match second & 0x7f {
            126 => (4, u64::from(u16::from_be_bytes([a, b]))),
            127 => (10, u64::from_be_bytes(length)),
            length => (2, u64::from(length)),
        };
        if self.have < header {
            return;
        }
        let (last, code) = (kind & 0x80 != 0, kind & 0x0f);
        let (control, fragment) = (code >= 8, !last || code == 0);
        if control || fragment && length < SMALL {
            self.come += 1;
        }
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        (self.have, self.skip) = (0, length.saturating_add(mask));
    }

    /// Said once: what comes after the close is read to be thrown away.
    fn is_over(&mut self) -> bool {
        self.come > self.allowed && !std::mem::replace(&mut self.told, true)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        // What came behind the upgrade request may have been too much already.
        if !self.frames.is_over() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
            self.frames.see(buffer.filled().get(before..).unwrap_or_default());
            if !self.frames.is_over() {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Ready(Err(io::Error::other(TooManyFrames)))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A masked frame.
    fn frame(first: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![first];
        match length {
            0..126 => bytes.push(0x80 | u8::try_from(length).unwrap()),
            126..65_536 => {
                bytes.push(0xfe);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                bytes.push(0xff);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        // Mask and payload look like headers, to whom loses his place.
        bytes.resize(bytes.len() + 4 + length, 0x89);
        bytes
    }

    #[test]
    fn control_frames_and_small_fragments_count_and_nothing_else_does() {
        let (fin, text, ping) = (0x80, 1, 9);
        for (bytes, count) in [
            (frame(fin | text, 0), 0),
            (frame(fin | text, 200), 0),
            (frame(fin | text, 70_000), 0),
            (frame(fin | ping, 0), 1),
            (frame(fin | ping, 125), 1),
            (frame(fin | 10, 5), 1),
            (frame(text, 0), 1),
            (frame(0, 127), 1),
            (frame(0, 128), 0),
            (frame(0, 70_000), 0),
            (frame(fin, 3), 1),
            // Not masked: it is refused elsewhere, and is one frame here all the same.
            (vec![fin | ping, 1, 0x89, fin | ping, 0], 2),
        ] {
            for step in [1, 3, bytes.len()] {
                let mut frames = Frames::default();
                bytes.chunks(step).for_each(|part| frames.see(part));
                // What comes next is told apart from what came before.
                frames.see(&frame(fin | ping, 2));
                assert_eq!(frames.come, count + 1, "{:?} by {step}", &bytes[..bytes.len().min(12)]);
            }
        }
    }

    #[test]
    fn more_than_may_come_is_over_once() {
        let (rate, now) = (Rate::per_second(10, 20), Duration::from_secs(100));
        let mut frames = Frames::default();
        let ping = frame(0x89, 0);
        for _ in 0..2 {
            frames.allow(rate, now);
            (0..10).for_each(|_| frames.see(&ping));
            assert!(!frames.is_over());
        }
        frames.allow(rate, now);
        frames.see(&ping);
        assert!(frames.is_over() && !frames.is_over());
        // A second brings ten more.
        let mut frames = Frames { bucket: frames.bucket, ..Frames::default() };
        frames.allow(rate, now + Duration::from_secs(1));
        (0..10).for_each(|_| frames.see(&ping));
        assert!(!frames.is_over());
        frames.see(&ping);
        assert!(frames.is_over());
    }

    #[test]
    fn another_rate_counts_at_once_for_what_has_come_before_it() {
        let (slow, fast, now) =
            (Rate::per_second(1, 20), Rate::per_second(1000, 40), Duration::from_secs(100));
        let mut frames = Frames::default();
        let ping = frame(0x89, 0);
        frames.allow(slow, now);
        (0..20).for_each(|_| frames.see(&ping));
        frames.allow(slow, now);
        frames.allow(fast, now);
        assert_eq!(frames.allowed, 20);
    }
}
