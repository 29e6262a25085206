//! The HTTP interface from the outside: a server on loopback, a real PostgreSQL behind it, batches through the writer.

mod support;

mod changes;
mod cluster_costs;
mod cluster_names;
mod cluster_restart;
mod events;
mod events_digest;
mod events_export;
mod events_page;
mod events_search;
mod events_stats;
mod events_stream;
mod federate;
mod gaps;
mod health;
mod hosts;
mod interface;
mod kubernetes;
mod nodes;
mod pages;
mod pods;
mod probe_rows;
mod probes;
mod push;
mod services;
