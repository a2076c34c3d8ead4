//! The gateway from outside: real sockets, real TLS, the contract of docs/protocol.md.

mod admission;
mod away;
mod caps;
mod changes;
mod closing;
mod drain;
mod failover;
mod hooked;
mod midway;
mod outage;
mod rekey;
mod renew;
mod session;
mod storage;
mod subscriptions;
mod tls;
mod upgrade;
mod wire;
mod witness;
