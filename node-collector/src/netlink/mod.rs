//! Netlink, as far as the collector asks it. Readers here know namespaces and devices, not pods.

pub mod dump;
pub mod filter;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod message;
pub mod nftables;
pub mod qdisc;
pub mod rdma;
pub mod route;
pub mod socket;
pub mod tcp;
