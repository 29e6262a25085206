//! Netlink, as far as the collector asks it. Readers here know namespaces and devices, not pods.

mod message;
pub mod route;
