//! What collector, aggregator and command line share. Nothing here knows a probe, a pod or a table.

pub mod budget;
pub mod config;
pub mod descriptors;
pub mod event_text;
pub mod log;
pub mod negotiate;
pub mod paths;
pub mod prom;
pub mod shutdown;
pub mod time;
