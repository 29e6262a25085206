//! `/api/v1`: one file for each endpoint, with its parameters, its answer, its documentation and its handler.

pub(crate) mod changes;
pub(crate) mod cursor;
pub(crate) mod event_filter;
pub(crate) mod events;
pub(crate) mod events_export;
pub(crate) mod events_stats;
pub(crate) mod events_stream;
pub(crate) mod gaps;
pub(crate) mod kubernetes;
pub(crate) mod nodes;
pub(crate) mod pods;
pub(crate) mod probe_rows;
pub(crate) mod probes;
pub(crate) mod services;
