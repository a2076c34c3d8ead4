//! The gateway from outside: real sockets, real TLS, the contract of docs/protocol.md.

mod admission;
mod authorities;
mod away;
mod caps;
mod changes;
mod clock;
mod closing;
mod drain;
mod failover;
mod hooked;
mod lists_by_http;
mod midway;
mod outage;
mod own_certificate;
mod rekey;
mod reload;
mod renew;
mod revocation_lists;
mod session;
mod storage;
mod subscriptions;
mod tls;
mod trust;
mod upgrade;
mod wire;
mod witness;
