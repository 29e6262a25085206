//! Configuration: one YAML document that collector, aggregator and `sonde up` read alike, each its own sections.
//!
//! Precedence: command line, then environment, then file, then default. Each key is also an environment variable:
//! `pods.netns.include` is `SONDE_PODS_NETNS_INCLUDE`, its value read as YAML (`[a, "b*"]`), lists also as `a,b*`.
//! Variables that begin with `SONDE_` and name no key are left alone: Kubernetes makes such ones for services.

mod load;
mod outlets;
mod outlets_check;
mod schema;

pub use load::{ConfigError, load};
pub use outlets::*;
pub use outlets_check::LOKI_PARTS;
pub use schema::*;
