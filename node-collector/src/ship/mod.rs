//! From the collector to the aggregator: batches ([`batch`]), the log on disk that holds them ([`spool`]), the stream
//! that sends them ([`client`]), and the thread that writes ([`writer`]). Nothing here blocks who produces.

pub mod batch;
pub mod client;
mod early;
pub mod spool;
pub mod writer;
