//! Sonde's node collector. ARCHITECTURE.md at the top of the repository has the picture.

pub mod catalogue;
pub mod event;
pub mod kernel;
pub mod missing;
pub mod netlink;
pub mod pods;
pub mod probes;
pub mod procfs;
pub mod table;
