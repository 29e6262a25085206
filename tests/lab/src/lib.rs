//! The fault lab: pods, nodes, links and faults from network namespaces, veth, bridges, nftables, tc and real sockets.
//!
//! ```no_run
//! # fn main() -> Result<(), sonde_lab::LabError> {
//! use sonde_lab::{Family, Lab, faults, sockets};
//!
//! let lab = Lab::new("demo")?;
//! let (client, server) = (lab.pod("demo", "client")?, lab.pod("demo", "server")?);
//! lab.link(&client, &server)?;
//! let port_taken = server.run(|| std::net::UdpSocket::bind("[::]:53").is_err())?;
//!
//! let scene = faults::Fault::find("nft-drop-input").unwrap().scene(&lab, "filter")?;
//! let injected = scene.inject(Family::V6, 10)?;
//! assert_eq!(injected.dropped, 10);
//! # Ok(()) }
//! ```
//!
//! Namespaces are named `<prefix>-<namespace>.<pod>`, where the prefix belongs to one run: runs at the same time do not
//! meet, and what a killed run leaves goes when the next one starts. Nothing here knows Sonde; what a fault must show is
//! said in the kernel's own words.

#![deny(unsafe_code)]

mod counters;
mod error;
mod exec;
pub mod faults;
mod flow;
pub mod healthy;
mod lab;
mod link;
mod node;
mod pod;
mod registry;
pub mod sockets;
pub mod wait;

pub use counters::{Counters, NftCounter, Qdisc};
pub use error::{LabError, Result};
pub use exec::apart;
pub use flow::{Family, Flow, Protocol};
pub use lab::Lab;
pub use link::Link;
pub use node::Node;
pub use pod::{Interface, Pod};
pub use registry::sweep;
