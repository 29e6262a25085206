//! Whole-system tests: the real programs, real faults of the lab, the answers out of every door.
//!
//! - `tests/faults.rs`: one running system for many faults, each in pods of its own.
//! - `tests/kill.rs`: what is left after SIGKILL.
//! - `tests/start.rs`: bad input, and an orderly end.
//! - `tests/readers/`: what Grafana, Prometheus and tools for OpenAPI read of a running system.
//!
//! The programs come from `SONDE_BIN_DIR`, else from the profile that the tests were built with.

pub mod door;
pub mod grafana;
pub mod http;
pub mod process;
pub mod prom;
pub mod prometheus;
pub mod site;
