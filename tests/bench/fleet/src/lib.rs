//! A fleet of simulated nodes: real wire traffic, made-up numbers.
//!
//! Each node holds a stream as a collector does (hello with the catalogue, batches that stand alone, zstd, a window of
//! unacknowledged batches that are sent again after a broken stream). What is in the batches comes from the collector's own
//! probes ([`mix`]): their labels, kinds and widths, with numbers that move about as often as real ones do ([`node`]). The
//! same seed gives the same numbers. Not here: a spool; a node waits where a collector would write to disk.

pub mod fleet;
pub mod mix;
pub mod node;
pub mod null;
pub mod report;
mod stream;

pub use fleet::{Options, Pace, Until, run};
pub use mix::Mix;
pub use node::{Node, Shape};
pub use report::Report;
