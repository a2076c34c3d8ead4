//! A fleet of devices in one process, honest ones and hostile ones, and a judgement of what the gateway made of them.
//!
//! `device-sim run` is the command; [`run`] is the same in-process. A simulator that cannot fail proves nothing: each
//! scenario states what must happen, and [`Report::failures`] says what did not.

pub mod clock;
mod engine;
pub mod fleet;
pub mod flood;
mod laps;
mod peek;
mod plan;
mod preflight;
mod report;
mod scenario;
mod tally;

pub use engine::run;
pub use laps::Laps;
pub use plan::{Failure, Plan, Progress, Snapshot};
pub use report::{AttackReport, Connections, Latency, Messages, Report, Rotation};
pub use scenario::Scenario;
