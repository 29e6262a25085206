//! The collector alone, as it is run: real faults, and what it tells without an aggregator.

mod reload;
mod running;
mod sinks;
