//! Sonde's node collector. ARCHITECTURE.md at the top of the repository has the picture.

pub mod catalogue;
pub mod event;
pub mod pods;
pub mod table;
