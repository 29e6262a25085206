//! Sonde's aggregator: what collectors send goes into PostgreSQL and the live table; people read it over HTTP.

pub mod http;
pub mod live;
pub mod metrics;
pub mod store;
