//! Sonde's node collector. ARCHITECTURE.md at the top of the repository has the picture.

pub mod catalogue;
mod check;
pub mod doctor;
pub mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gaps;
pub mod handles;
pub mod kernel;
pub mod missing;
pub mod netfilter;
pub mod netlink;
pub mod pipeline;
pub mod pods;
pub mod probes;
pub mod processes;
pub mod procfs;
pub mod reading;
pub mod reload;
pub mod round;
mod run;
pub mod serve;
pub mod ship;
pub mod sinks;
pub mod switched;
pub mod sysfs;
pub mod table;

pub use check::{Problem, check};
pub use run::run;
