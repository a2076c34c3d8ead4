//! What a session asks of its caller.

use super::Accepted;
use crate::channel::Filter;
use crate::close::Close;
use crate::ids::KeyVersion;

/// What the session wants done, in this order.
#[derive(Debug)]
pub enum Output {
    /// A text frame for the device.
    Send(String),
    /// The second factor has been shown: the session takes the device's place, and ends an older one.
    Proven,
    /// The device has signed with the key that was pending: it holds it.
    Confirmed(KeyVersion),
    /// A publish to make durable; its receipt comes back through [`super::Session::settle`] or [`super::Session::refuse`].
    Store(Accepted),
    /// A certificate is asked for; the answer comes back through [`super::Session::certify`] or
    /// [`super::Session::refuse_renewal`].
    Renew {
        /// The `seq` of the `renew`.
        reference: u64,
        /// PKCS#10 in PEM, as the device wrote it.
        csr: Box<str>,
    },
    /// What is published to this filter goes to [`super::Session::deliver`] from now on.
    Subscribe(Filter),
    /// No longer.
    Unsubscribe(Filter),
    /// A WebSocket ping.
    Ping,
    /// A close frame, and the end.
    Close(Close),
}
