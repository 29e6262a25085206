//! The aggregator's own counters, prefix `sonde_aggregator_`.

use std::sync::Arc;

use sonde_common::prom::Page;

/// Shared by ingest, writer and HTTP.
#[derive(Debug, Default)]
pub struct Metrics {}

impl Metrics {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Appends every family of this process's ingest and storage to a page.
    pub fn render(&self, _page: &mut Page) {}
}
