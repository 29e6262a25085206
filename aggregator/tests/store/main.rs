//! Ingest and store against a real PostgreSQL: a collector's stream in, rows of the views out.

mod copying;
mod distribution;
mod event_indexes;
mod fairness;
mod fixture;
mod hellos;
mod hosts;
mod once;
mod outage;
mod refusals;
mod rollups;
mod schema;
mod several;
mod shape;
mod versions;
