//! A device of Doorward: connects with its bundle, proves itself, publishes until acknowledged, and comes back when
//! it is dropped.
//!
//! ```no_run
//! use doorward_client::{Credentials, Device, Options};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::connect(Credentials::load("press-7")?, Options::default())?;
//! let mut messages = device.messages();
//! device.subscribe("fleets/hall/#").await?;
//! // Returns once the gateway has made it durable, over as many reconnects as that takes.
//! device.publish("devices/press-7/temperature", &serde_json::json!({"celsius": 21.5})).await?;
//! while let Some(message) = messages.next().await {
//!     println!("{}: {}", message.ch, message.data);
//! }
//! device.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! A device that was loaded from a folder renews its certificate by itself, when it is asked to or two thirds of the
//! lifetime are over, and keeps both pairs until the new one has been let in: see [`renewal`]. [`Device::certificate`] tells
//! how that goes.
//!
//! [`Device`] is all that most programs need. Below it lie [`connection`], one connection and what can go wrong with
//! it, and `doorward_proto::link`, the protocol without I/O.

pub mod backoff;
pub mod clock;
pub mod connection;
pub mod credentials;
pub mod device;
pub mod renewal;
pub mod target;
pub mod tls;

pub use credentials::{Credentials, CredentialsError, Identity};
pub use device::{Device, Options, State, Stop};
pub use renewal::{CertificateStatus, Renew, RenewalOptions, RenewalState};
