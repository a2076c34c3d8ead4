//! What suites that test WebSocket and TLS see of the gateway (docs/conformance.md). It is no interface, and no part of the
//! command line: the binary that is shipped has no way here (`tests/it/tidy.rs`).

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::connection::echo;
use crate::gateway::{Gateway, serve_into};
use crate::registry::RegistryError;

/// Serves as [`crate::gateway::serve`] does, up to the end of the upgrade; what a device sends then comes back to it.
///
/// # Errors
/// Those of [`crate::gateway::serve`].
pub async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), RegistryError> {
    serve_into(gateway, listener, shutdown, echo::begin).await
}
