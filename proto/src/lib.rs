//! The Doorward device protocol, version 1: both of its halves, without I/O, clock or randomness.
//!
//! Bytes and a time go in, [`session::Output`]s and [`link::Event`]s come out. The gateway's half is
//! [`session::Session`], the device's [`link::Link`]; the one is tested against the other on virtual time.
//! The rules are numbered in `docs/protocol.md`, and cited here where they are kept.

pub mod channel;
pub mod close;
pub mod downlink;
pub mod envelope;
pub mod ids;
mod json;
pub mod key;
pub mod limits;
pub mod link;
pub mod policy;
pub mod schema;
pub mod session;
pub mod time;
pub mod uplink;
pub mod verdict;

/// The WebSocket subprotocol that both ends must agree on.
pub const SUBPROTOCOL: &str = "doorward.v1.jws";

/// The path of the upgrade request.
pub const PATH: &str = "/v1/device";

/// How the gateway names itself in `iss` and `aud`.
pub const GATEWAY: &str = "gateway";
