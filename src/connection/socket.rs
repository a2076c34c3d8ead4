//! The WebSocket of a device that has come through the door.

use doorward_proto::time::Moment;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::frames::Watched;
use crate::accept::Stream;
use crate::bucket::Rate;
use crate::config::LimitsSection;

/// What tungstenite reads into; a device's message is a few hundred bytes, and every session keeps one.
const READ_BUFFER: usize = 1024;
/// Frames are gathered into writes of about this size.
const WRITE_BUFFER: usize = 4096;

/// Opens it, and the longest message that it takes. `rest` has been read from the stream already.
pub(super) async fn open(
    stream: Stream,
    rest: Vec<u8>,
    limits: &LimitsSection,
    now: Moment,
) -> (WebSocketStream<Watched>, usize) {
    // The gateway's own: the fleet's limit, which may become wider, is the session's to hold.
    let longest = limits.message_bytes;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(2 * limits.outgoing_bytes + WRITE_BUFFER)
        .max_message_size(Some(longest))
        .max_frame_size(Some(longest));
    let stream = Watched::new(stream, &rest, frame_rate(limits), now.monotonic);
    (WebSocketStream::from_partially_read(stream, rest, Role::Server, Some(config)).await, longest)
}

/// How many frames may come that bring no message.
pub(super) fn frame_rate(limits: &LimitsSection) -> Rate {
    Rate::per_second(limits.frames_per_second as usize, limits.frames_burst as usize)
}
