//! What several files of tests need.

pub(crate) mod collector;
pub(crate) mod command;
pub(crate) mod database;
pub(crate) mod device;
pub(crate) mod house;
pub(crate) mod http;
pub(crate) mod pooler;
pub(crate) mod running;
pub(crate) mod wire;
