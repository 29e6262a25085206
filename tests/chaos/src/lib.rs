//! Everything is killed, filled and cut under load; then what went into the spools is compared with the tables.
//!
//! A node here is a process of its own ([`node`]) with the collector's real spool, writer and client; what it hands to them
//! can be told by its number ([`content`]) and is in a journal that outlives it ([`journal`]). The aggregator is the real
//! program, PostgreSQL a real server ([`site`]). Between each node and the aggregator is a relay that can be cut
//! ([`relay`]). [`run`] does things to them by turns and at random, [`verify`] compares: everything that reached a spool is in
//! the tables once with the right value, and what is not is in a gap with the right count.

pub mod account;
pub mod content;
pub mod disk;
pub mod journal;
pub mod node;
pub mod process;
pub mod relay;
pub mod run;
pub mod site;
pub mod verify;
