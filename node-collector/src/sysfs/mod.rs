//! Readers of `/sys`. They know devices, not probes or metrics.

pub mod infiniband;
