//! Sending to systems that are not Sonde: a bounded queue that its producers never wait for, a worker that tries again,
//! and targets to send to. Collector and aggregator use the same.
//!
//! Not here: what is sent. A target gets whole items and makes of them what its system takes.

mod backoff;
mod http;
pub mod loki;
mod queue;
mod stats;
#[cfg(feature = "testing")]
pub mod testing;
mod worker;

pub use backoff::Backoff;
pub use http::{Auth, Http, HttpError, Secret};
pub use stats::{Loss, Reason, State, Stats};
pub use worker::{Outcome, Pace, Pusher, Target};

/// Something that happened at a time.
pub trait Timed {
    /// Unix time in nanoseconds.
    fn time_ns(&self) -> u64;
}
