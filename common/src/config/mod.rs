//! Configuration: one YAML document that collector, aggregator and `sonde up` read alike, each its own sections.
//!
//! Precedence: command line, then environment, then file, then default. Each key is also an environment variable:
//! `pods.netns.include` is `SONDE_PODS_NETNS_INCLUDE`, its value read as YAML (`[a, "b*"]`), lists also as `a,b*`.
//! Variables that begin with `SONDE_` and name no key are left alone: Kubernetes makes such ones for services.

mod load;
mod schema;
mod sinks;

pub use load::{ConfigError, load};
pub use schema::*;
pub use sinks::LOKI_PARTS;
