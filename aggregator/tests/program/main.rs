//! The program as people start it: its private PostgreSQL, its refusals, and how it dies.

mod fixture;
mod full;
mod kills;
mod refusals;
mod spool;
mod starts;
