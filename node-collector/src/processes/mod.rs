//! What single processes have, summed up for their pod.
//!
//! A pod's processes are those of its control group and the groups below it. A pod without one (a named network
//! namespace, a sandbox made without a kubelet) has those that are in its network namespace; those are looked for in
//! all of `/proc`, so only now and then. How a file of a process is read is in `crate::procfs::process`.

pub mod carry;
mod find;
mod round;

pub use carry::Id;
pub use find::Finder;
pub use round::{Members, Process, ProcessRounds};
