//! Sending to systems that are not Sonde: a bounded queue that its producers never wait for, a worker that tries again,
//! and targets to send to. Collector and aggregator use the same.
//!
//! Not here: what is sent. A target gets whole items and makes of them what its system takes; what is too much for that
//! (metrics) is packed where it is, with the writers that are here.

mod access;
mod backoff;
mod http;
pub mod loki;
pub mod otlp;
mod posted;
mod queue;
pub mod remote_write;
mod stats;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wire;
mod worker;

pub use access::{BadSetting, server};
pub use backoff::Backoff;
pub use http::{Auth, Http, HttpError, Secret};
pub use posted::{Posted, Request, Verdict};
pub use stats::{Loss, Reason, State, Stats};
pub use worker::{Outcome, Pace, Pusher, Target};

/// Something that happened at a time.
pub trait Timed {
    /// Unix time in nanoseconds.
    fn time_ns(&self) -> u64;

    /// How much it is, in what is counted.
    fn count(&self) -> u64 {
        1
    }
}
