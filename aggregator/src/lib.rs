//! Sonde's aggregator: what collectors send goes into PostgreSQL and the live table; people read it over HTTP.

pub mod embedded;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod http;
pub mod ingest;
pub mod kubernetes;
pub mod live;
pub mod metrics;
mod packed;
pub mod push;
pub mod run;
pub mod store;
#[doc(hidden)]
pub mod testing;
