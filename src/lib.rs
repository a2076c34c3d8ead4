//! Doorward: the gateway that lets a fleet of IoT devices in, and nobody else.
//!
//! A byte enters at `accept`, and passes one check a room: `tls`, `identity`, `upgrade`, `connection` with the
//! session core of `doorward-proto`, and leaves through `sink` as a stored message, or through `route` to those who
//! subscribed. ARCHITECTURE.md is the map.

mod accept;
pub mod admin;
mod bucket;
pub mod cli;
pub mod clock;
pub mod config;
#[doc(hidden)]
pub mod conformance;
mod connection;
mod crl_server;
pub mod entropy;
mod fold;
#[doc(hidden)]
pub mod fuzzing;
pub mod gateway;
pub mod home;
mod http;
mod identity;
pub mod issuer;
pub mod master;
pub mod metrics;
pub mod own_certificate;
pub mod registry;
mod route;
pub mod schema;
pub mod secrets;
mod sink;
mod skew;
mod stamp;
mod threads;
pub mod tls;
pub mod traces;
pub mod trial;
mod upgrade;
